"""Where a version stands: in one process, and in all replicas of a server together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

State = Literal["LOADING", "READY", "UNLOADING", "UNAVAILABLE"]


@dataclass(frozen=True, slots=True)
class Status:
    """Where a version stands, in Triton's words, and why when it is not ready."""

    state: State
    reason: str = ""


NOT_LOADED = Status("UNAVAILABLE", "not loaded")
GAVE_WAY = Status("UNAVAILABLE", "evicted: the least recently used gave way")
"""A request for it waits until it is loaded again."""


def everywhere(by_replica: Mapping[int, Status], needed: int | None = None) -> Status:
    """Where a version stands in the server: READY when it is so in `needed` replicas, or in all of them.

    A server of one process is one replica.
    """
    ready = sum(status.state == "READY" for status in by_replica.values())
    if ready >= (len(by_replica) if needed is None else needed):
        return Status("READY")
    number, status = next((n, s) for n, s in sorted(by_replica.items()) if s.state != "READY")
    if all(one == status for one in by_replica.values()):
        return status
    return Status(status.state, f"ready in {ready} of {len(by_replica)} replicas; replica {number}: {status.reason}")
