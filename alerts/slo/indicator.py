"""What is good and what is bad: indicators as PromQL, counted in events or seen at each look.

Events are counted over a window: bad events / all events, so that a busy hour weighs more than a quiet one. What is
seen (a threshold held or not, a ratio that comes ready) is judged at every look, and looks are counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alerts.slo.windowed import Counted, grouping

Operator = Literal["lte", "lt", "gte", "gt"]
SYMBOLS: dict[str, str] = {"lte": "<=", "lt": "<", "gte": ">=", "gt": ">"}


@dataclass(frozen=True, slots=True)
class Events:
    """Bad events out of all events, or good ones out of all. Exactly one of `bad` and `good` is given."""

    total: Counted
    bad: Counted | None = None
    good: Counted | None = None
    by: tuple[str, ...] = ()
    """Labels that are kept, where the queries are plain selectors; each of their values has a budget of its own."""

    def __post_init__(self) -> None:
        if (self.bad is None) == (self.good is None):
            raise ValueError("give either the good events or the bad ones, beside the total")

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that tell the budgets apart, as far as the queries show them."""
        return self.by or grouping(self.total.text)

    def total_over(self, seconds: float, *, exactly: bool = False) -> str:
        """All events of the window that ends now."""
        return self._over(self.total, seconds, exactly)

    def bad_over(self, seconds: float, total: str = "", ignoring: str = "", *, exactly: bool = False) -> str:
        """Bad events of the window. `total` is an expression of all of them, with labels to be ignored."""
        total = total or self.total_over(seconds, exactly=exactly)
        counter = self.bad or self.good
        assert counter is not None
        # Without a bad (good) event yet there may be no series, and there were none of them all the same.
        counted = f"({self._over(counter, seconds, exactly)} or{ignoring} {total} * 0)"
        return counted if self.bad else f"clamp_min({total} -{ignoring} {counted}, 0)"

    def _over(self, counter: Counted, seconds: float, exactly: bool) -> str:
        return counter.exactly_over(seconds, self.by) if exactly else counter.over(seconds, self.by)

    def metrics(self) -> tuple[str, ...]:
        """The queries, to look whether there is anything to count."""
        return tuple(query.text for query in (self.total, self.bad, self.good) if query is not None)


@dataclass(frozen=True, slots=True)
class _Seen:
    """One query that is looked at."""

    query: str

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that tell the budgets apart, as far as the query shows them."""
        return grouping(self.query)

    def metrics(self) -> tuple[str, ...]:
        """The query, to look whether there is anything to see."""
        return (self.query,)


@dataclass(frozen=True, slots=True)
class Threshold(_Seen):
    """A value that must be `op` than `value`: good while it is."""

    op: Operator
    value: float

    def bad(self, value: str) -> str:
        """1 where the value, an expression, misses the threshold, else 0; NaN is nothing seen."""
        return f"(1 - ({value} {SYMBOLS[self.op]} bool {self.value!r})) and ({value} == {value})"


@dataclass(frozen=True, slots=True)
class Raw(_Seen):
    """A ratio that comes ready; `failures` says of what. Without counts an average of it is not weighted by traffic."""

    failures: bool

    def bad(self, value: str) -> str:
        """The share that failed."""
        kept = f"({value} == {value})"
        return kept if self.failures else f"1 - {kept}"


Indicator = Events | Threshold | Raw
