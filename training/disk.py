"""Whether a disk is full, which ends processes in ways that do not name it: a page that cannot be had is a SIGBUS."""

from __future__ import annotations

import shutil
from pathlib import Path

_LEAST_BYTES = 1 << 20


def fullness(folder: Path) -> str:
    """What to add to the reason of an end where the disk of a folder is full; empty where it is not, or not known."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return ""
    return f"; the disk of {folder} is full: less than 1 MiB is left" if free < _LEAST_BYTES else ""
