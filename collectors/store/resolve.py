"""From the samples of an append to series ids and a vector: quick for a source that sends what it sent last time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collectors.store.catalog import Catalog
from collectors.store.limits import LimitExceeded, Limits
from collectors.store.sources import Sources
from collectors.store.values import Append, Columns, Floats, Labels, Scrape, label_key

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Resolved:
    """An append as vectors, each series once; `repeated` samples of a series that came before are left out.

    `removals` is the catalog's count when the ids were looked up: they hold while it has not changed.
    """

    append: Append | Scrape
    ids: Ids
    values: Floats
    repeated: int
    removals: int


class Resolver:
    """Looks label sets up, adds those that are new within the limits. Thread-safe."""

    def __init__(self, catalog: Catalog, sources: Sources, lock: threading.RLock, limits: Limits) -> None:
        self._catalog = catalog
        self._sources = sources
        self._lock = lock
        self._limits = limits
        # What each source sent last.
        self._known: dict[str, Columns] = {}

    def resolve(self, append: Append | Scrape) -> Resolved:
        """The append's ids and values. Raises LimitExceeded, before anything was added, and ValueError."""
        if isinstance(append, Scrape):
            known, values = self._current(append), np.asarray(append.values, dtype=np.float64)
            if values.shape != known.ids.shape:
                raise ValueError(f"{len(known.ids)} columns and values of the shape {values.shape}")
        else:
            labels, values = _split(append.samples)
            known = self.columns(append.target, labels, append.replaces)
        ids = known.ids
        if len(ids) > 1 and not (ids[1:] > ids[:-1]).all():
            unique, first = np.unique(ids, return_index=True)
            if len(unique) < len(ids):
                kept = np.sort(first)
                return Resolved(append, ids[kept], values[kept], len(ids) - len(kept), known.removals)
        return Resolved(append, ids, values, 0, known.removals)

    def columns(self, target: str, labels: list[Labels], replaces: bool) -> Columns:
        """The label sets looked up. Raises LimitExceeded."""
        known = self._known.get(target)
        # Equal label sets in the same order: comparing is several times quicker than looking each of them up.
        if known is None or known.removals != self._catalog.removals or known.labels != labels:
            with self._lock:
                known = self._look_up(target, labels, replaces)
        return known

    def _current(self, scrape: Scrape) -> Columns:
        columns = scrape.columns
        if columns.removals == self._catalog.removals:
            return columns
        return self.columns(columns.target, columns.labels, scrape.replaces)

    def forget(self, target: str) -> None:
        """Drops what is remembered of a source that is gone."""
        self._known.pop(target, None)

    def forget_all(self) -> None:
        """Drops what is remembered, as ids may have gone."""
        self._known.clear()

    def _look_up(self, target: str, labels: list[Labels], replaces: bool) -> Columns:
        index, removals = self._catalog.index, self._catalog.removals
        found = [index.find(item) for item in labels]
        if None in found:
            self._check(target, labels, found, replaces)
            for k, series_id in enumerate(found):
                if series_id is None:
                    found[k] = self._catalog.series_id(labels[k])
        ids = np.array(found, dtype=np.int64)
        known = Columns(target, index.labels_of(ids.tolist()), ids, removals)
        self._known[target] = known
        return known

    def _check(self, target: str, labels: list[Labels], found: list[int | None], replaces: bool) -> None:
        new = {label_key(labels[k]): labels[k] for k, series_id in enumerate(found) if series_id is None}
        for item in new.values():
            self._limits.check_labels(item)
        most = self._limits.series_per_target
        if not most:
            return
        before = None if replaces else self._sources.ids(target)
        known = {series_id for series_id in found if series_id is not None}
        if before is not None:
            known |= set(before.tolist())
        count = len(known) + len(new)
        if count > most:
            sent = [*new.values(), *self._catalog.index.labels_of(i for i in known if i in self._catalog.index)]
            raise self._limits.refuse_series(target, count, sent)


def _split(samples: Sequence[tuple[Labels, float]]) -> tuple[list[Labels], Floats]:
    try:
        return [item for item, _ in samples], np.array([value for _, value in samples], dtype=np.float64)
    except (TypeError, ValueError) as error:
        for item, value in samples:
            if not isinstance(value, int | float | np.number):
                raise LimitExceeded(f"the value of {dict(item)!r} is {value!r}, which is not a number") from error
        raise
