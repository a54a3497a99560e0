"""Memory of loaded versions: what each takes, what is free, and which ones give way when another one needs room."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from serving.errors import OverBudget

Key = TypeVar("Key")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CGROUP = Path("/sys/fs/cgroup")
# None where the C library has no such function.
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)


@dataclass(frozen=True, slots=True)
class Footprint:
    """A version's bytes: of its weights, and by which the process grew, pages of files apart, while it was loaded."""

    weights: int
    resident: int

    @property
    def bytes(self) -> int:
        """What counts against the budget: the larger, since the process may reuse memory that it had."""
        return max(self.weights, self.resident)


@dataclass(frozen=True, slots=True)
class Held(Generic[Key]):
    """A version in memory. `used` is when it was last asked for; a pinned one never gives way, and one that answers a
    model's traffic only after those that do not.
    """

    key: Key
    bytes: int
    used: float
    pinned: bool
    answers: bool = False


def giving_way(held: Sequence[Held[Key]], needed: int, limit: int) -> list[Key]:
    """The least recently used versions that must go so that `needed` more bytes fit under `limit`, in that order.

    Raises OverBudget when even all that may go would not make room; then none should.
    """
    over = sum(version.bytes for version in held) + needed - limit
    chosen: list[Key] = []
    for version in sorted((v for v in held if not v.pinned), key=lambda v: (v.answers, v.used)):
        if over <= 0:
            break
        chosen.append(version.key)
        over -= version.bytes
    if over > 0:
        kept = sum(version.bytes for version in held if version.pinned)
        raise OverBudget(
            f"the version needs {needed} bytes; the memory budget is {limit}, of which pinned versions hold {kept}: "
            "raise memory_budget_bytes, or take a version out of the traffic or the pins"
        )
    return chosen


def resident_bytes() -> int:
    """This process's resident memory without pages of files, such as a library's code; 0 where the system does not say.

    How much of a file one access brings in depends on what the machine holds of it, so that the same load would count
    otherwise from run to run; and those pages go when somebody needs the room.
    """
    try:
        _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
        return (int(resident) - int(shared)) * _PAGE
    except (OSError, ValueError):
        return 0


def release_unused() -> None:
    """Gives memory that was freed back to the machine, where the C library can (glibc)."""
    if _TRIM is not None:
        _TRIM(0)


def available_bytes() -> int | None:
    """Bytes that this process can still take, by the machine and by its control group; None where neither says."""
    found = [value for value in (_machine(), _group()) if value is not None]
    return min(found) if found else None


def _machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def _group() -> int | None:
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit == "max":
            return None
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        # Pages of files that were read once go when somebody needs the room.
        used = int((_CGROUP / "memory.current").read_text()) - int(stat.get("inactive_file", 0))
        return max(0, int(limit) - used)
    except (OSError, ValueError):
        return None
