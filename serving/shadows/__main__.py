"""`python -m serving.shadows DESCRIPTOR`: how a server starts the process of its shadows; not for people."""

from __future__ import annotations

import sys

from serving.shadows.worker import main

if __name__ == "__main__":
    main(int(sys.argv[1]))
