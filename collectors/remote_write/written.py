"""What a remote-write request brings, whichever version of the protocol it is in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from collectors.store.limits import LimitExceeded, Limits
from collectors.store.values import Exemplar, MetricMetadata


class SeriesLabels(dict[str, str]):
    """A label set that knows its series in the store, as of the catalog's count of removals; -1: not looked up yet."""

    __slots__ = ("removals", "series_id")

    def __init__(self, labels: Mapping[str, str]) -> None:
        super().__init__(labels)
        self.series_id = -1
        self.removals = -1


@dataclass(slots=True)
class Written:
    """Samples, one an entry: labels, times in ms and values, in the order of the request; and what is beside them."""

    labels: list[SeriesLabels] = field(default_factory=list)
    times: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    values: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    exemplars: list[Exemplar] = field(default_factory=list)
    metadata: dict[str, MetricMetadata] = field(default_factory=dict)
    histograms: int = 0
    """Samples of native histograms, which the store has no form for."""
    invalid: dict[str, None] = field(default_factory=dict)
    """Why series were left out."""
    invalid_samples: int = 0


class Columns:
    """Samples as they are read one by one; `into` makes columns of them."""

    def __init__(self) -> None:
        self.labels: list[SeriesLabels] = []
        self.times: list[int] = []
        self.values: list[float] = []

    def add(self, labels: SeriesLabels, t_ms: int, value: float) -> None:
        """Adds a sample."""
        self.labels.append(labels)
        self.times.append(t_ms)
        self.values.append(value)

    def into(self, written: Written) -> None:
        """Puts the samples behind those that are there."""
        if not self.labels:
            return
        written.labels += self.labels
        written.times = np.concatenate([written.times, np.array(self.times, np.int64)])
        written.values = np.concatenate([written.values, np.array(self.values, np.float64)])


def checked_labels(pairs: list[tuple[str, str]], limits: Limits) -> SeriesLabels | str:
    """The label set of these pairs, or why it is none: as the specification's `Invalid samples` has it."""
    labels = dict(pairs)
    if not labels.get("__name__"):
        return f"a series has no metric name: {labels}"
    if len(labels) != len(pairs):
        return f"a series has a label twice: {pairs}"
    if "" in labels:
        return f"a label of {labels['__name__']} has no name"
    try:
        limits.check_labels(labels)
    except LimitExceeded as error:
        return str(error)
    # One text for all the series that have it.
    return SeriesLabels({sys.intern(name): sys.intern(value) for name, value in labels.items() if value})


class LabelCache:
    """Label sets by what says them in a message: the same object each time, so that the store knows it again.

    Forgets everything when it has `most` of them: series that are still written come back with the next request.
    """

    def __init__(self, limits: Limits | None = None, most: int = 1_000_000) -> None:
        self.known: dict[Hashable, SeriesLabels] = {}
        self._limits = limits or Limits()
        self._most = most

    def labels(self, key: Hashable, read: Callable[[], list[tuple[str, str]]]) -> SeriesLabels | str:
        """The label set of `key`; `read` gives its pairs the first time. A text says why it is none."""
        found = self.known.get(key)
        if found is not None:
            return found
        made = checked_labels(read(), self._limits)
        if not isinstance(made, str):
            if len(self.known) >= self._most:
                self.known.clear()
            self.known[key] = made
        return made
