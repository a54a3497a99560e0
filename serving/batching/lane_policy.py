"""How one version's queue forms batches and when it turns requests away."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LanePolicy:
    """Limits and rules of one lane. Times are seconds; 0 means no such limit or rule unless said otherwise.

    Raises ValueError naming the fields that contradict each other.
    """

    max_rows: int = 64
    # How long a batch may wait for company, from its oldest request's arrival.
    max_delay: float = 0.0
    # A batch of exactly so many rows goes at once; with `pad`, smaller ones are filled up to the next of these sizes.
    preferred_rows: tuple[int, ...] = ()
    pad: bool = False
    # Batches and waits are as large as keep a request's time, queue included, under this; 0 leaves them as set.
    latency_target: float = 0.0
    # A batch that takes at most this long runs on the event loop.
    inline_seconds: float = 0.0
    # What may wait: rows, bytes; and requests that may wait or run.
    limit_rows: int = 1024
    limit_bytes: int = 0
    limit_requests: int = 0
    # Rows that may wait or run follow what requests take: twice a full batch's time is let grow by this factor.
    adaptive_concurrency: float = 0.0
    # A queue whose delay stays over `delay_target` for `delay_interval` refuses what would wait longer than that.
    delay_target: float = 0.0
    delay_interval: float = 0.1
    # While it does so, the newest request goes first.
    newest_first: bool = False
    # Waiting so long is worth one class of priority.
    ageing: float = 1.0
    # A batch that runs for longer than this, and for 20 times what such a batch takes, makes the version not ready.
    stall_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.max_rows < 1 or self.limit_rows < self.max_rows:
            raise ValueError(
                f"max_rows is {self.max_rows}, limit_rows {self.limit_rows}: the first must be at least 1, the second "
                "at least the first"
            )
        negative = [
            name
            for name in (
                "max_delay", "latency_target", "inline_seconds", "limit_bytes", "limit_requests", "delay_target",
                "stall_seconds", "adaptive_concurrency",
            )
            if getattr(self, name) < 0
        ]  # fmt: skip
        if negative:
            raise ValueError(f"{', '.join(negative)} must not be negative")
        if self.delay_interval <= 0 or self.ageing <= 0:
            raise ValueError(f"delay_interval is {self.delay_interval}, ageing {self.ageing}: both must be over 0")
        if any(not 1 <= rows <= self.max_rows for rows in self.preferred_rows):
            raise ValueError(f"preferred_rows are {self.preferred_rows}; each is from 1 to max_rows, {self.max_rows}")
        if self.pad and not self.preferred_rows:
            raise ValueError("pad needs preferred_rows, the sizes that batches are filled up to")
