"""How far the estimate of when a request will be done is wrong: a few requests let in too late fill every batch."""

from __future__ import annotations

# Of 100 batches, 5 may hold a request that was done later than was said of it.
_SHARE = 0.05
# Of a full batch's time: how much the margin grows by one batch that was late.
_STEP = 0.1
_MEMORY = 0.1
# Batches that are this full, or less, on the average need no margin.
_FULL = 0.75


class Margin:
    """Seconds to keep free before a deadline, so that 95 of 100 batches are done when it was said of their requests.

    At the edge of what can be done in time the estimate decides alone: under overload the requests that just fit take
    every place, and if batches take 5 % longer than they did, none of them is in time. Steps in the proportion of 95 to
    5 come to rest at that quantile of how late batches were (Robbins and Monro, 1951). It counts only as far as batches
    are full: a place that nobody else would take is better given to one who may be late.
    """

    __slots__ = ("_fill", "_quantile", "_worst")

    def __init__(self) -> None:
        self._quantile = 0.0
        self._fill = 0.0
        # How late the latest request was of those that never ran.
        self._worst: float | None = None

    @property
    def seconds(self) -> float:
        """The margin at present."""
        return self._quantile * max(0.0, (self._fill - _FULL) / (1.0 - _FULL))

    def missed(self, late: float) -> None:
        """A request expired before a batch took it, so much later than it should have been done."""
        self._worst = late if self._worst is None else max(self._worst, late)

    def observe(self, late: float | None, batch_seconds: float, fill: float) -> None:
        """A batch has run, its latest request so much later than was said (negative: earlier; None: nothing was said).

        `batch_seconds` is what a full batch takes: the margin is never more. `fill` is how full this one was.
        """
        self._fill += _MEMORY * (min(1.0, fill) - self._fill)
        worst, self._worst = self._worst, None
        if late is None and worst is None:
            self._quantile *= 1.0 - _SHARE / 2
            return
        latest = max(one for one in (late, worst) if one is not None)
        step = _STEP * batch_seconds
        self._quantile += step * (1.0 - _SHARE) if latest > self._quantile else -step * _SHARE
        self._quantile = max(0.0, min(batch_seconds, self._quantile))
