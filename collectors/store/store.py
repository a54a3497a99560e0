"""The time-series store: durable before it answers, recent data in memory as matrices, older data in the database.

One process writes to a database at a time; any number of its threads append and read.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import sqlalchemy as sa

from collectors.store import retention
from collectors.store.catalog import Catalog
from collectors.store.commit import GroupCommit
from collectors.store.head import Group, Head, gather, group_by_layouts
from collectors.store.matchers import Matcher
from collectors.store.schema import (
    is_in_memory,
    layouts_table,
    metadata_table,
    open_database,
    scrapes_table,
    series_table,
)
from collectors.store.values import (
    Block,
    Exemplar,
    Floats,
    Labels,
    MetricMetadata,
    SeriesData,
    StoreCounts,
    Times,
)
from collectors.store.writer import Append, MarkStale, Writer

_LAYOUTS_IN_A_STATEMENT = 500
_TRIM_SLACK = 0.1
_EXEMPLARS = 100_000
# Answers to "which series share their times", kept until a series or layout comes or goes.
_GROUPINGS = 256


class Store:
    """Appends samples and answers selections.

    `url` is an SQLAlchemy URL (`sqlite:///file`, `sqlite://` for memory, `postgresql+psycopg://…`); `clock` gives unix
    seconds; the last `head_seconds` are kept in memory; `prune` removes what is older than `retention_seconds`.
    """

    def __init__(
        self,
        url: str = "sqlite://",
        *,
        clock: Callable[[], float] = time.time,
        head_seconds: float = 7200.0,
        retention_seconds: float = 30 * 86400.0,
        synchronous: str = "FULL",
    ) -> None:
        self._engine = open_database(url, synchronous)
        self._clock = clock
        self._head_seconds = head_seconds
        self._retention_seconds = retention_seconds
        self._lock = threading.RLock()
        self._catalog = Catalog()
        self._head = Head(self._floor_ms())
        self._has_older = False
        self._has_unused = False
        self._groups: dict[tuple[tuple[Matcher, ...], frozenset[int]], list[Group]] = {}
        self._groups_generation = 0
        self._metadata: dict[str, MetricMetadata] = {}
        self._exemplars: deque[Exemplar] = deque(maxlen=_EXEMPLARS)
        self._counts = StoreCounts()
        self._load()
        writer = Writer(self._engine, self._catalog, self._head, self._lock, self._counts)
        self._group: GroupCommit[Append | MarkStale, int] = GroupCommit(writer.commit)
        # A database in memory has one connection, so its readers must not look into an open transaction.
        self._reading = self._group.turn if is_in_memory(self._engine.url) else contextlib.nullcontext()

    # --- writing ------------------------------------------------------------------------------------------------------
    def append(
        self, target: str, t_ms: int, samples: Sequence[tuple[Mapping[str, str], float]], *, stale: bool = True
    ) -> int:
        """Writes the samples of one source at `t_ms`; when it returns they are durable. Gives how many were taken.

        A sample older than its series' newest, or of the same time with another value, is refused and counted
        (`counts`); the same time and value again is taken without effect. With `stale`, series that the target's last
        append had and this one has not get a stale marker; pass False for a source that sends parts.
        """
        taken = self._group.submit(Append(target, int(t_ms), samples, stale))
        self._after_append(t_ms)
        return taken

    def mark_stale(self, target: str, t_ms: int) -> int:
        """Ends all series of a source that is gone; gives how many stale markers were written."""
        return self._group.submit(MarkStale(target, int(t_ms)))

    def set_metadata(self, metadata: Mapping[str, MetricMetadata]) -> None:
        """Records what metric families are; writes only what changed."""
        changed = {name: value for name, value in metadata.items() if self._metadata.get(name) != value}
        if not changed:
            return
        rows = [{"metric": n, "type": m.type, "help": m.help, "unit": m.unit} for n, m in changed.items()]
        with self._group.turn, self._engine.begin() as connection:
            connection.execute(metadata_table.delete().where(metadata_table.c.metric.in_(list(changed))))
            connection.execute(metadata_table.insert(), rows)
        with self._lock:
            self._metadata |= changed

    def add_exemplar(self, series: Mapping[str, str], labels: Mapping[str, str], value: float, t_ms: int) -> None:
        """Keeps an exemplar; the newest hundred thousand are held, in memory only."""
        with self._lock:
            self._exemplars.append(Exemplar(dict(series), dict(labels), value, int(t_ms)))

    def prune(self, now: float | None = None, limit: int = 1000) -> int:
        """Deletes about `limit` scrapes past retention (`now` in unix seconds); gives how many went: 0 is done."""
        moment = self._clock() if now is None else now
        cutoff_ms = int((moment - self._retention_seconds) * 1000)
        with self._group.turn:
            with self._engine.begin() as connection:
                deleted = retention.delete_scrapes(connection, cutoff_ms, limit)
            self._has_unused = self._has_unused or deleted > 0
            if self._has_unused and deleted < limit:
                self._forget_unused()
                self._has_unused = False
        with self._lock:
            if cutoff_ms > self._head.floor_ms:
                self._head.trim(cutoff_ms)
        return deleted

    def close(self) -> None:
        """Waits for the commit under way and closes the database."""
        with self._group.turn:
            self._engine.dispose()

    # --- reading ------------------------------------------------------------------------------------------------------
    def select_blocks(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[Block]:
        """The samples with start <= t <= end of the series that meet all matchers, as matrices that share times."""
        with self._lock:
            ids = self._catalog.index.select(matchers)
            if not len(ids):
                return []
            if start_ms >= self._head.floor_ms or not self._has_older:
                return self._gather(matchers, self._head.parts(start_ms, end_ms))
            floor_ms = self._head.floor_ms
            parts = self._head.parts(max(start_ms, floor_ms), end_ms)
            wanted = {layout for series_id in ids.tolist() for layout in self._catalog.layouts_of[series_id]}
        older = self._read_older(wanted, start_ms, min(end_ms, floor_ms - 1))
        with self._lock:
            return self._gather(matchers, _joined(older, parts))

    def select(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[SeriesData]:
        """The same, series by series."""
        blocks = self.select_blocks(matchers, start_ms, end_ms)
        return [
            SeriesData(labels, block.t, np.ascontiguousarray(block.v[:, column]))
            for block in blocks
            for column, labels in enumerate(block.labels)
        ]

    def series(
        self, matchers: Sequence[Matcher] = (), start_ms: int | None = None, end_ms: int | None = None
    ) -> list[Labels]:
        """Label sets that meet all matchers; with a range, those of the scrapes in it."""
        with self._lock:
            ids = self._catalog.index.select(matchers).tolist()
            if start_ms is None and end_ms is None:
                return [self._catalog.index.labels[i] for i in ids]
        low = -(2**62) if start_ms is None else start_ms
        high = 2**62 if end_ms is None else end_ms
        active = self._active_layouts(low, high)
        with self._lock:
            labels, layouts_of = self._catalog.index.labels, self._catalog.layouts_of
            return [labels[i] for i in ids if i in labels and not active.isdisjoint(layouts_of[i])]

    def label_names(
        self, matchers: Sequence[Matcher] = (), start_ms: int | None = None, end_ms: int | None = None
    ) -> list[str]:
        """Sorted names of the labels of the matching series."""
        if not matchers and start_ms is None and end_ms is None:
            with self._lock:
                return self._catalog.index.names()
        return sorted({name for labels in self.series(matchers, start_ms, end_ms) for name in labels})

    def label_values(
        self, name: str, matchers: Sequence[Matcher] = (), start_ms: int | None = None, end_ms: int | None = None
    ) -> list[str]:
        """Sorted values that a label has in the matching series."""
        if not matchers and start_ms is None and end_ms is None:
            with self._lock:
                return self._catalog.index.values(name)
        return sorted({labels[name] for labels in self.series(matchers, start_ms, end_ms) if name in labels})

    def metadata(self) -> dict[str, MetricMetadata]:
        """Type, help and unit by metric family."""
        with self._lock:
            return dict(self._metadata)

    def exemplars(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[Exemplar]:
        """Exemplars of the matching series with start <= t <= end, in the order of arrival."""
        with self._lock:
            recent = [item for item in self._exemplars if start_ms <= item.t_ms <= end_ms]
        return [item for item in recent if all(matcher.matches_labels(item.series) for matcher in matchers)]

    def counts(self) -> StoreCounts:
        """A copy of the counts of samples taken and refused."""
        with self._lock:
            current = self._counts
            return StoreCounts(
                current.appended, current.duplicates, current.conflicting, current.out_of_order, current.commits
            )

    def num_series(self) -> int:
        """Series known, in memory or in the database."""
        with self._lock:
            return len(self._catalog.index)

    # --- inside -------------------------------------------------------------------------------------------------------
    def _floor_ms(self) -> int:
        return int((self._clock() - self._head_seconds) * 1000)

    def _load(self) -> None:
        floor_ms = self._head.floor_ms
        with self._engine.connect() as connection:
            for series_id, text in connection.execute(sa.select(series_table.c.id, series_table.c.labels)):
                self._catalog.restore_series(series_id, json.loads(text), floor_ms - 1)
            for layout_id, data in connection.execute(sa.select(layouts_table.c.id, layouts_table.c.series_ids)):
                self._catalog.restore_layout(layout_id, np.frombuffer(data, dtype="<i8").astype(np.int64))
            for metric, kind, text, unit in connection.execute(sa.select(metadata_table)):
                self._metadata[metric] = MetricMetadata(kind, text, unit)
            columns = scrapes_table.c
            older = sa.select(sa.exists().where(columns.t_ms < floor_ms))
            self._has_older = bool(connection.scalar(older))
            recent = sa.select(scrapes_table).where(columns.t_ms >= floor_ms).order_by(columns.t_ms)
            for layout_id, t_ms, data in connection.execute(recent):
                layout, values = self._catalog.layouts[layout_id], np.frombuffer(data, dtype="<f8")
                self._head.append(layout, t_ms, values)
                self._catalog.last_t[layout.series_ids] = t_ms
                self._catalog.last_v[layout.series_ids] = values

    def _after_append(self, t_ms: int) -> None:
        floor_ms = self._floor_ms()
        with self._lock:
            if t_ms < self._head.floor_ms:
                self._has_older = True
            if floor_ms - self._head.floor_ms > self._head_seconds * 1000 * _TRIM_SLACK:
                self._has_older = self._has_older or bool(self._head.parts(self._head.floor_ms, floor_ms - 1))
                self._head.trim(floor_ms)

    def _gather(self, matchers: Sequence[Matcher], parts: Mapping[int, tuple[Times, Floats]]) -> list[Block]:
        catalog = self._catalog
        if self._groups_generation != catalog.generation or len(self._groups) >= _GROUPINGS:
            self._groups.clear()
            self._groups_generation = catalog.generation
        key = tuple(matchers), frozenset(parts)
        groups = self._groups.get(key)
        if groups is None:
            ids = catalog.index.select(matchers).tolist()
            groups = group_by_layouts(ids, catalog.index.labels, catalog.layouts, catalog.layouts_of, parts)
            self._groups[key] = groups
        return gather(groups, parts)

    def _read_older(self, layout_ids: set[int], start_ms: int, end_ms: int) -> dict[int, tuple[Times, Floats]]:
        columns = scrapes_table.c
        found: dict[int, list[tuple[int, Floats]]] = {}
        ordered = sorted(layout_ids)
        with self._reading, self._engine.connect() as connection:
            for first in range(0, len(ordered), _LAYOUTS_IN_A_STATEMENT):
                query = (
                    sa.select(columns.layout_id, columns.t_ms, columns.data)
                    .where(columns.layout_id.in_(ordered[first : first + _LAYOUTS_IN_A_STATEMENT]))
                    .where(columns.t_ms.between(start_ms, end_ms))
                    .order_by(columns.layout_id, columns.t_ms)
                )
                for layout_id, t_ms, data in connection.execute(query):
                    found.setdefault(layout_id, []).append((t_ms, np.frombuffer(data, dtype="<f8")))
        return {
            layout_id: (np.array([t for t, _ in rows], dtype=np.int64), np.array([v for _, v in rows]))
            for layout_id, rows in found.items()
        }

    def _active_layouts(self, start_ms: int, end_ms: int) -> set[int]:
        with self._lock:
            active = set(self._head.parts(start_ms, end_ms))
            floor_ms = self._head.floor_ms
            look_older = self._has_older and start_ms < floor_ms
        if look_older:
            columns = scrapes_table.c
            in_range = columns.t_ms.between(start_ms, min(end_ms, floor_ms - 1))
            query = sa.select(columns.layout_id).distinct().where(in_range)
            with self._reading, self._engine.connect() as connection:
                active.update(connection.scalars(query))
        return active

    def _forget_unused(self) -> None:
        with self._engine.begin() as connection:
            layouts = retention.unused_layouts(connection)
            with self._lock:
                series = self._catalog.only_in(layouts)
            retention.delete_layouts(connection, layouts)
            retention.delete_series(connection, series)
        with self._lock:
            self._catalog.remove(layouts, series)


def _joined(
    older: Mapping[int, tuple[Times, Floats]], newer: Mapping[int, tuple[Times, Floats]]
) -> dict[int, tuple[Times, Floats]]:
    joined = {**older, **newer}
    for layout_id in older.keys() & newer.keys():
        (t_old, v_old), (t_new, v_new) = older[layout_id], newer[layout_id]
        joined[layout_id] = np.concatenate([t_old, t_new]), np.concatenate([v_old, v_new])
    return joined
