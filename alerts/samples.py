"""The values that cross between the judge and its store, and what can go wrong there."""

from __future__ import annotations

from dataclasses import dataclass

from alerts.labels import Labels


class QueryError(RuntimeError):
    """The store did not answer an expression: it refuses it, or it is away."""


class StoreAway(QueryError):
    """The store cannot be reached; asking it something else is of no use either."""


class WriteError(RuntimeError):
    """The store did not accept samples."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One element of an instant vector. `labels` holds the name, if any, as `__name__`."""

    labels: Labels
    value: float
