"""Runs a command and ends it when its parent is gone: `python guard.py ARGV...`, with a pipe from the parent as stdin.

A command that outlived a killed judge would run beside its own retry. Needs only the standard library.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def main(argv: list[str]) -> int:
    """The command's exit status."""
    try:
        command = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    except OSError as error:
        print(f"cannot start {argv[0]}: {error}", file=sys.stderr)
        return 127

    def watch() -> None:
        os.read(0, 1)  # returns at the end of the pipe, when the parent has closed it or died
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    status = command.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
