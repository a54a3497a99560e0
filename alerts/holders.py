"""Who holds a lease: a process by its machine, boot, id and start, so that a dead one is known at once."""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path

import psutil


@cache
def this_machine() -> str:
    """The host and its boot: process ids say something only there."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = f"{psutil.boot_time():.0f}"
    return f"{socket.gethostname()}/{boot}"


def this_process(number: int) -> str:
    """This process, and within it the holder of a number."""
    return f"{this_machine()}:{os.getpid()}:{psutil.Process().create_time():.2f}:{number}"


def is_dead(holder: str) -> bool:
    """Whether the holder was a process of this machine that is gone."""
    try:
        host, pid, created, _ = holder.rsplit(":", 3)
        if host != this_machine():
            return False
        process = psutil.Process(int(pid))
        return abs(process.create_time() - float(created)) > 0.1 or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except (ValueError, psutil.Error):
        return False
