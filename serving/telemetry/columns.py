"""What is told of answered batches, and in which columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serving.protocol.signature import Input
from serving.router import Choice
from serving.telemetry.runs import MAX_VALUES, Run


@dataclass(frozen=True, slots=True)
class Anchor:
    """Ties the clock of calls (perf_counter, s) to unix time (ns) at one moment."""

    clock: float
    unix_ns: int

    def unix(self, moment: float) -> int:
        """Unix time in nanoseconds."""
        return self.unix_ns + int((moment - self.clock) * 1e9)


@dataclass(frozen=True, slots=True)
class ServedGroup:
    """Batches of the shortcut that were answered by one choice; `first` is the number of their first request."""

    model: str
    choice: Choice
    served: Sequence[Run]
    first: int

    @property
    def count(self) -> int:
        """Rows of all batches."""
        return sum(run.column.rows for run in self.served)


def names_of(output: str, width: int) -> list[str]:
    """The names of an output's values in an event: one column a value."""
    return [output] if width == 1 else [f"{output}.{k}" for k in range(width)]


def recorded(column: Input) -> bool:
    """A vector of texts, of varying length, or too long to be compared with others, is not part of an event."""
    return not column.shape or (column.codes is None and 0 < column.size <= MAX_VALUES)
