"""`python -m serving.fleet KIND NUMBER DESCRIPTOR`: how the supervisor starts a process; not for people."""

from __future__ import annotations

import sys

from serving.fleet.process import main

if __name__ == "__main__":
    main(int(sys.argv[3]))
