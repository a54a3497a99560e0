"""Exemplars: the newest ones of each series, in memory and in the database."""

from __future__ import annotations

import json
import struct
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import sqlalchemy as sa

from collectors.store.matchers import Matcher
from collectors.store.schema import exemplars_table
from collectors.store.values import Exemplar, LabelKey, label_key

MOST_CHARACTERS = 128
"""Characters in the names and values of an exemplar's labels together (OpenMetrics 1.0)."""
_MOST = 100_000
_DELETED_AT_ONCE = 5000


class ExemplarShelf:
    """The newest hundred thousand exemplars, by series, in the order of their coming. Not thread-safe.

    As in Prometheus, an exemplar like the last one of its series is the same again, and one older than it is left out.
    """

    def __init__(self) -> None:
        self._by_series: dict[LabelKey, deque[Exemplar]] = {}
        self._order: deque[LabelKey] = deque()

    def __len__(self) -> int:
        return len(self._order)

    def new_ones(self, exemplars: Iterable[Exemplar]) -> list[Exemplar]:
        """Those that are new when they come in this order, and whose labels are short enough."""
        last: dict[LabelKey, Exemplar] = {}
        found = []
        for exemplar in exemplars:
            if sum(len(name) + len(value) for name, value in exemplar.labels.items()) > MOST_CHARACTERS:
                continue
            key = label_key(exemplar.series)
            kept = self._by_series.get(key)
            before = last.get(key) or (kept[-1] if kept else None)
            if before is None or (exemplar.t_ms >= before.t_ms and not _same(before, exemplar)):
                last[key] = exemplar
                found.append(exemplar)
        return found

    def add(self, exemplar: Exemplar) -> None:
        """Keeps it; the oldest one makes room."""
        key = label_key(exemplar.series)
        self._by_series.setdefault(key, deque()).append(exemplar)
        self._order.append(key)
        if len(self._order) > _MOST:
            self._drop(self._order.popleft())

    def _drop(self, key: LabelKey) -> None:
        kept = self._by_series[key]
        kept.popleft()
        if not kept:
            del self._by_series[key]

    def prune(self, cutoff_ms: int) -> None:
        """Forgets the oldest while they are before the cutoff."""
        while self._order and self._by_series[self._order[0]][0].t_ms < cutoff_ms:
            self._drop(self._order.popleft())

    def select(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[Exemplar]:
        """Those of the matching series with start <= t <= end, series by series."""
        found: list[Exemplar] = []
        for key, kept in self._by_series.items():
            labels = dict(key)
            if all(matcher.matches_labels(labels) for matcher in matchers):
                found.extend(item for item in kept if start_ms <= item.t_ms <= end_ms)
        return found


def load(connection: sa.Connection, shelf: ExemplarShelf) -> None:
    """Fills a shelf with what the database has."""
    columns = exemplars_table.c
    newest = sa.select(exemplars_table).order_by(columns.id.desc()).limit(_MOST).subquery()
    known: dict[str, Mapping[str, str]] = {}
    for row in connection.execute(sa.select(newest).order_by(newest.c.id)):
        series = known.setdefault(row.series, json.loads(row.series))
        (value,) = struct.unpack("<d", row.value)
        shelf.add(Exemplar(series, json.loads(row.labels), value, row.t_ms))


def write(connection: sa.Connection, exemplars: Iterable[Exemplar]) -> None:
    """Adds exemplars."""
    rows = [
        {
            "t_ms": item.t_ms,
            "series": json.dumps(dict(item.series)),
            "labels": json.dumps(dict(item.labels)),
            "value": struct.pack("<d", item.value),
        }
        for item in exemplars
    ]
    connection.execute(exemplars_table.insert(), rows)


def delete(connection: sa.Connection, cutoff_ms: int) -> int:
    """Deletes some exemplars that are before the cutoff or not among the newest; gives how many went."""
    columns = exemplars_table.c
    beyond = connection.scalar(sa.select(columns.id).order_by(columns.id.desc()).offset(_MOST).limit(1))
    superfluous = sa.or_(columns.t_ms < cutoff_ms, columns.id <= (-1 if beyond is None else beyond))
    some = sa.select(columns.id).where(superfluous).order_by(columns.id).limit(_DELETED_AT_ONCE)
    ids = list(connection.scalars(some))
    for first in range(0, len(ids), 500):
        connection.execute(exemplars_table.delete().where(columns.id.in_(ids[first : first + 500])))
    return len(ids)


def _same(one: Exemplar, other: Exemplar) -> bool:
    return one.t_ms == other.t_ms and one.value == other.value and one.labels == other.labels
