"""Sheds load when the queue's delay stands above a target, after CoDel (Nichols and Jacobson, 2012)."""

from __future__ import annotations


class DelayGuard:
    """Tells a standing queue from a burst: `shedding` once no batch has started within `target` for `interval` seconds.

    CoDel drops at the head, since a router learns a packet's delay when it leaves. Here the delay of a request is
    known when it comes, from what a batch takes, so requests that would wait longer than the target are refused on
    arrival: their clients learn it at once, and no time is spent on keeping them. It ends when a batch has started in
    half the target; were it the target itself, shedding would end and begin again all the time.
    """

    __slots__ = ("_since", "interval", "shedding", "target")

    def __init__(self, target: float, interval: float) -> None:
        self.target = target
        self.interval = interval
        self.shedding = False
        self._since: float | None = None

    def observe(self, now: float, delay: float, floor: float = 0.0) -> None:
        """A batch starts whose first request waited `delay`; the target is at least `floor`."""
        if self.target <= 0:
            return
        target = max(self.target, floor)
        if delay <= (target / 2 if self.shedding else target):
            self.shedding, self._since = False, None
        elif self._since is None:
            self._since = now
        elif now - self._since >= self.interval:
            self.shedding = True

    def refuses(self, wait: float, floor: float = 0.0) -> bool:
        """Whether to turn away a request that would wait so long."""
        return self.shedding and wait > max(self.target, floor)
