"""The worst slices of a version's latest rows as JSON: where it errs most, and which rows came or went."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from collectors.measure import Measures
from collectors.performance import Labelled
from collectors.replay import tables_back
from collectors.scores import Slice, SliceSettings, drifted_slices, row_errors, worst_slices
from observability.events import FEATURE

# The latest rows of a version whose shares are compared.
SLICED_ROWS = 20_000
LOOK_BACK_SECONDS = 7 * 24 * 3600.0
KEEP_SECONDS = 30.0
MOST_SLICES = 10
_SETTINGS = SliceSettings(limit=MOST_SLICES)

Key = tuple[str, str]


@dataclass(slots=True)
class SliceViews:
    """Slices of versions from the rows in the lake; an answer is kept half a minute and made once however many ask."""

    measures: Measures
    lake: Path
    clock: Callable[[], float]
    _made: dict[Key, tuple[float, dict[str, Any]]] = field(default_factory=dict)
    _making: dict[Key, asyncio.Task[dict[str, Any]]] = field(default_factory=dict)

    async def view(self, model: str, version: str | None) -> dict[str, Any]:
        """The JSON of `/api/slices`, of a version, by default the latest."""
        versions = self.measures.versions(model)
        key = model, version or (versions[-1] if versions else "")
        made_at, body = self._made.get(key, (-1e18, {}))
        if self.clock() - made_at < KEEP_SECONDS:
            return body
        if key not in self._making:
            self._making[key] = asyncio.create_task(self._make(key))
            self._making[key].add_done_callback(lambda _: self._making.pop(key, None))
        return await asyncio.shield(self._making[key])

    async def _make(self, key: Key) -> dict[str, Any]:
        now = self.clock()
        rows = self.measures.scoring.labelled(*key)
        body = await asyncio.to_thread(slices_view, rows, self.lake, *key, now - LOOK_BACK_SECONDS)
        self._made = {known: kept for known, kept in self._made.items() if now - kept[0] < KEEP_SECONDS}
        self._made[key] = now, body
        return body


def slices_view(rows: Labelled, lake: Path, model: str, version: str, since: float) -> dict[str, Any]:
    """The slices of a version: by error, of its labelled `rows`, and by share, of its latest rows in the lake.

    `since` is how far back (unix seconds) the latter are looked for; their newer half is held against the older one.
    """
    return {
        "model": model,
        "version": version,
        "error": _by_error(rows, lake, model, version),
        "drift": _by_drift(_latest(lake, model, version, since)),
    }


def _by_error(rows: Labelled, lake: Path, model: str, version: str) -> dict[str, Any]:
    """The slices with the largest mean error, among the rows that the version's scores are of."""
    if not len(rows.ids):
        return {"rows": 0, "measure": None, "mean": None, "start": None, "end": None, "slices": []}
    place = {id_: number for number, id_ in enumerate(rows.ids)}
    known = pa.array(rows.ids, pa.utf8())
    missing, parts, places = set(rows.ids), [], list[int]()
    for table in tables_back(lake, "events", model, float(rows.times.min()) / 1e9):
        if not missing:
            break
        chosen = table.filter(pc.and_(pc.equal(table.column("version"), version), pc.is_in(table.column("id"), known)))
        fresh = [number for number, id_ in enumerate(chosen.column("id").to_pylist()) if _taken(missing, id_)]
        places += [place[id_] for id_ in chosen.column("id").take(fresh).to_pylist()] if fresh else []
        parts += [_features(chosen.take(fresh))] if fresh else []
    losses, measure = row_errors(rows.predictions[places], rows.labels[places])
    times = rows.times[places] / 1e9
    return {
        "rows": len(places),
        "measure": measure,
        "mean": float(losses.mean()) if len(places) else None,
        "start": float(times.min()) if len(places) else None,
        "end": float(times.max()) if len(places) else None,
        "slices": _told(parts, lambda features: worst_slices(features, losses, settings=_SETTINGS)),
    }


def _by_drift(parts: list[pa.Table]) -> dict[str, Any]:
    """The slices whose share of the rows differs most between the newer and the older half of the rows."""
    rows = sum(part.num_rows for part in parts)
    half = rows // 2
    if not half:
        return {"before": None, "now": None, "slices": []}
    together = pa.concat_tables(parts, promote_options="permissive").sort_by(
        [("time", "ascending"), ("id", "ascending")]
    )
    together = together.slice(max(0, rows - SLICED_ROWS))
    half = together.num_rows // 2
    before, now = together.slice(0, half), together.slice(half)

    def found(features: pa.Table) -> list[Slice]:
        return drifted_slices(features.slice(0, half), features.slice(half), settings=_SETTINGS)

    return {"before": _span(before), "now": _span(now), "slices": _told([_features(together)], found)}


def _told(parts: list[pa.Table], find: Callable[[pa.Table], list[Slice]]) -> list[dict[str, Any]]:
    """The slices that are found among the features of rows; none where there are no features."""
    if not parts:
        return []
    features = pa.concat_tables(parts, promote_options="permissive")
    if not (features.num_columns and features.num_rows):
        return []
    return [
        {
            name: value if not isinstance(value, float) or math.isfinite(value) else None
            for name, value in asdict(one).items()
        }
        for one in find(features)
    ]


def _latest(lake: Path, model: str, version: str, since: float) -> list[pa.Table]:
    """The version's latest rows, newest hours first, until there are enough."""
    found, rows = list[pa.Table](), 0
    for table in tables_back(lake, "events", model, since):
        chosen = table.filter(pc.equal(table.column("version"), version))
        if chosen.num_rows:
            found.append(chosen)
            rows += chosen.num_rows
        if rows >= SLICED_ROWS:
            break
    return found


def _features(table: pa.Table) -> pa.Table:
    return table.select([name for name in table.schema.names if name.startswith(FEATURE)])


def _taken(missing: set[str], id_: str) -> bool:
    """Whether an id was missing until now."""
    if id_ not in missing:
        return False
    missing.remove(id_)
    return True


def _span(table: pa.Table) -> dict[str, Any]:
    times = table.column("time").cast(pa.int64())
    return {"rows": table.num_rows, "start": pc.min(times).as_py() / 1e9, "end": pc.max(times).as_py() / 1e9}
