"""What forms batches, decides who waits and who is refused, and runs a batch."""

from __future__ import annotations

__all__ = [
    "device",
    "execution",
    "executor",
    "expiry",
    "gate",
    "lane_policy",
    "lanes",
    "latency_target",
    "padding",
    "pending",
    "shedding",
    "steptimes",
    "watchdog",
]
