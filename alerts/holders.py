"""Who holds a lease: a process by its machine, boot, id and start, so that a dead one is known at once."""

from __future__ import annotations

import itertools
import os
import socket
from functools import cache
from pathlib import Path

import psutil

_TICKS = "t"
_numbers = itertools.count(1)


@cache
def this_machine() -> str:
    """The host and its boot: process ids say something only there."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = f"{psutil.boot_time():.0f}"
    return f"{socket.gethostname()}/{boot}"


def _started(pid: int) -> str:
    """When a process began, in words that do not change while it lives. Raises `psutil.NoSuchProcess`.

    In ticks since the boot where `/proc` has them: the seconds that psutil adds to them move when the clock is set.
    """
    try:
        return _TICKS + Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return f"{psutil.Process(pid).create_time():.2f}"


def this_process() -> str:
    """A new holder in this process: none that was before has its name, as one would that is named by its `id()`."""
    return f"{this_machine()}:{os.getpid()}:{_started(os.getpid())}:{next(_numbers)}"


def is_dead(holder: str) -> bool:
    """Whether the holder was a process of this machine that is gone."""
    try:
        host, pid, created, _ = holder.rsplit(":", 3)
        if host != this_machine():
            return False
        started = _started(int(pid))
        if started.startswith(_TICKS) != created.startswith(_TICKS):
            return False  # written by another release of ours: its term decides
        return started != created or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except (ValueError, psutil.Error):
        return False
