"""How much memory a comparison may take: what the machine, the container and the process's own limit leave free."""

from __future__ import annotations

import resource
from pathlib import Path

import psutil

_GROUPS, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Of a control group of version 2 and of version 1: the limit, what is used, and what of that is files' pages that the
# kernel gives up when memory is wanted.
_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_memory() -> int:
    """Bytes that this process can still take, at most."""
    return int(max(0, min(psutil.virtual_memory().available, _of_process(), _of_container(_GROUPS, _MEMBERSHIP))))


def _of_process() -> float:
    """What the limit of the address space (`ulimit -v`) leaves."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return float("inf") if limit == resource.RLIM_INFINITY else limit - psutil.Process().memory_info().vms


def _of_container(groups: Path, membership: Path) -> float:
    """What the control group that the process is in, and those around it, leave; infinite where there is none."""
    free = float("inf")
    for line in _text(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in _FILES:
            continue
        # A container sees its own group as the root.
        root = groups / controllers
        folder = root / path.strip("/")
        for group in {root, folder, *(one for one in folder.parents if one.is_relative_to(root))}:
            free = min(free, _of_group(group, *_FILES[controllers]))
    return free


def _of_group(group: Path, limit: str, used: str, given_up: str) -> float:
    most, taken = _text(group / limit).strip(), _text(group / used).strip()
    if not (most.isdigit() and taken.isdigit()):
        return float("inf")
    stat = dict(line.split(" ", 1) for line in _text(group / "memory.stat").splitlines() if " " in line)
    return int(most) - int(taken) + int(stat.get(given_up, "0"))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
