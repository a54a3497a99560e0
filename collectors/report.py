"""Drift reports: Evidently's HTML, made in a process of its own.

Evidently takes many seconds to import and a gigabyte for large tables, so the service never imports it: it writes two
sampled tables and runs `python -m collectors.report REFERENCE CURRENT HTML`. The reference's rows are drawn from its
profile, column by column: the collector keeps no reference rows, and the report compares each column by itself.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from collectors.drift.inputs import opened
from collectors.drift.kinds import kind_of
from collectors.drift.source import InputError, Source
from collectors.measure import Measures
from collectors.replay import tables_since
from observability.columns import BooleanColumn, CategoricalColumn, NumericColumn
from observability.profile import Profile

REPORT_ROWS = 5_000
PAGE_ROWS = 50_000
INTEGER_CATEGORIES = 10
REPORT_SECONDS = 300.0
KEEP_SECONDS = 60.0
LOOK_BACK_SECONDS = 24 * 3600.0
_SEED = 20130101
_DRAWABLE = (NumericColumn, CategoricalColumn, BooleanColumn)


class NoReport(Exception):
    """There is nothing to report on (404), or the report could not be made (503)."""

    def __init__(self, message: str, status: int = 404) -> None:
        super().__init__(message)
        self.status = status


def write_evidently_page(reference: str | Path, current: str | Path, html: Path, columns: Sequence[str]) -> None:
    """Evidently's report of two tables on disk, on at most `PAGE_ROWS` rows of each, evenly taken.

    NoReport when Evidently is not installed or fails; InputError when a side has no rows.
    """
    with tempfile.TemporaryDirectory(prefix="trimtab-report-") as folder:
        paths = [Path(folder) / "reference.parquet", Path(folder) / "current.parquet", html]
        for data, name, path in zip((reference, current), ("the reference", "the current table"), paths, strict=False):
            source = opened(data, name)
            if isinstance(source, Profile):
                sampled = sampled_rows(source, REPORT_ROWS)
                pq.write_table(sampled.select([column for column in columns if column in sampled.schema.names]), path)
            else:
                pq.write_table(sampled_source(source, [c for c in columns if c in source.columns]), path)
        done = subprocess.run(
            _command(paths), capture_output=True, text=True, timeout=REPORT_SECONDS, env=_environment(), check=False
        )
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise NoReport(f"Evidently could not make its report: {said[-1] if said else 'no output'}", 503)


def sampled_source(source: Source, columns: Sequence[str], rows: int = PAGE_ROWS) -> pa.Table:
    """At most about `rows` rows of a source, every k-th."""
    step, parts, offset = -(-source.rows // rows) or 1, [], 0
    for batch in source.scan(columns):
        parts.append(batch.take(pa.array(range((-offset) % step, batch.num_rows, step))))
        offset += batch.num_rows
    if not parts:
        raise InputError(f"{source.name} has no rows")
    return pa.Table.from_batches(parts)


@dataclass(slots=True)
class Reports:
    """Evidently reports of the versions, each kept for a minute and made once however many ask."""

    measures: Measures
    lake: Path
    clock: Callable[[], float]
    _made: dict[tuple[str, str], tuple[float, str]] = field(default_factory=dict)
    _making: dict[tuple[str, str], asyncio.Task[str]] = field(default_factory=dict)

    async def drift(self, model: str, version: str | None) -> str:
        """The HTML report of a version, by default the latest. NoReport when there is nothing to compare."""
        versions = self.measures.versions(model)
        chosen = version or (versions[-1] if versions else "")
        key = (model, chosen)
        made_at, html = self._made.get(key, (-1e18, ""))
        if self.clock() - made_at < KEEP_SECONDS:
            return html
        if key not in self._making:
            self._making[key] = asyncio.create_task(self._make(model, chosen))
            self._making[key].add_done_callback(lambda _: self._making.pop(key, None))
        return await asyncio.shield(self._making[key])

    async def _make(self, model: str, version: str) -> str:
        reference = self.measures.reference(model, version)
        if reference is None:
            raise NoReport(
                f"model {model!r} version {version!r} has no reference profile: PUT /v1/references/{model}/{version}"
            )
        current = await asyncio.to_thread(self._latest_rows, model, version, reference)
        with tempfile.TemporaryDirectory(prefix="trimtab-report-") as folder:
            paths = [Path(folder) / name for name in ("reference.parquet", "current.parquet", "report.html")]
            await asyncio.to_thread(pq.write_table, sampled_rows(reference, REPORT_ROWS), paths[0])
            await asyncio.to_thread(pq.write_table, current, paths[1])
            html = await _run(paths)
        self._made[model, version] = (self.clock(), html)
        return html

    def _latest_rows(self, model: str, version: str, reference: Profile) -> pa.Table:
        """The last rows that the lake has of a version, with the reference's columns."""
        latest: deque[pa.Table] = deque()
        for table in tables_since(self.lake, "events", model, self.clock() - LOOK_BACK_SECONDS):
            names = [name for name in reference.columns if name in table.schema.names]
            chosen = table.filter(pa.compute.equal(table.column("version"), version)).select([*names, "time"])
            latest.append(chosen.sort_by("time").slice(max(0, chosen.num_rows - REPORT_ROWS)))
            while len(latest) > 1 and sum(part.num_rows for part in latest) - latest[0].num_rows >= REPORT_ROWS:
                latest.popleft()
        rows = pa.concat_tables(latest, promote_options="permissive") if latest else None
        if rows is None or not rows.num_rows:
            raise NoReport(f"the lake has no rows of model {model!r} version {version!r} in the last day")
        rows = rows.sort_by("time").drop_columns("time")
        return rows.slice(max(0, rows.num_rows - REPORT_ROWS))


async def _run(paths: list[Path]) -> str:
    """Runs the report's process and gives the HTML it wrote. NoReport 503 with the end of its output when it failed."""
    process = await asyncio.create_subprocess_exec(
        *_command(paths), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=_environment()
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), REPORT_SECONDS)
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise NoReport(f"the report was not made within {REPORT_SECONDS:.0f} s", 503) from error
    if process.returncode:
        raise NoReport(f"the report could not be made: {output.decode(errors='replace')[-2000:]}", 503)
    return await asyncio.to_thread(paths[2].read_text)


def _command(paths: Sequence[Path]) -> list[str]:
    return [sys.executable, "-m", "collectors.report", *map(str, paths)]


def _environment() -> dict[str, str]:
    return {**os.environ, "DO_NOT_TRACK": "1", "MPLBACKEND": "Agg"}


def sampled_rows(profile: Profile, rows: int) -> pa.Table:
    """Rows drawn from a profile, each column by itself: the marginal distributions, without what ties columns.

    Numbers, categories and truth values: of the other kinds Evidently shows nothing that cells could give.
    """
    generator = np.random.default_rng(_SEED)
    drawable = {name: column for name, column in profile.columns.items() if isinstance(column, _DRAWABLE)}
    return pa.table({name: _drawn(column, rows, generator) for name, column in drawable.items()})


def _drawn(
    column: NumericColumn | CategoricalColumn | BooleanColumn, rows: int, generator: np.random.Generator
) -> pa.Array:
    missing = generator.random(rows) < (1 - column.count / column.rows if column.rows else 1.0)
    if not column.count:
        kind = pa.float64() if isinstance(column, NumericColumn) else pa.utf8()
        return pa.nulls(rows, kind)
    cells = generator.choice(len(column.counts), size=rows, p=column.counts / column.count)
    if isinstance(column, NumericColumn):
        bounds = np.concatenate([[min(column.minimum, column.edges[0])], column.edges])
        bounds = np.append(bounds, max(column.maximum, column.edges[-1]))
        # A bin opens with a value that occurs: where the column has few values, the bins are those values.
        discrete = column.edges.size < 64
        share = 0.0 if discrete else generator.random(rows)
        return pa.array(bounds[cells] + share * (bounds[cells + 1] - bounds[cells]), mask=missing)
    return pa.array(np.array(column.labels, dtype=object)[cells], pa.utf8(), mask=missing)


def write_report(reference: Path, current: Path, html: Path) -> None:
    """Writes Evidently's drift report of two Parquet tables; imports Evidently, which takes seconds."""
    os.environ["DO_NOT_TRACK"] = "1"
    import evidently
    from evidently.presets import DataDriftPreset

    before, now = pq.read_table(reference), pq.read_table(current)
    numeric, categorical = reportable_columns(before, now)
    definition = evidently.DataDefinition(numerical_columns=numeric, categorical_columns=categorical)
    datasets = [
        evidently.Dataset.from_pandas(_as_pandas(table, numeric, categorical), data_definition=definition)
        for table in (now, before)
    ]
    # Current first, reference second: Evidently's own order.
    evidently.Report([DataDriftPreset()]).run(*datasets).save_html(str(html))


def reportable_columns(reference: pa.Table, current: pa.Table) -> tuple[list[str], list[str]]:
    """Numeric and categorical columns with a value in both tables: Evidently fails on an empty column, and on dates."""
    numeric: list[str] = []
    categorical: list[str] = []
    for name in reference.schema.names:
        if name not in current.schema.names:
            continue
        columns = [table.column(name) for table in (reference, current)]
        if any(column.null_count == len(column) for column in columns):
            continue
        kinds = {kind_of(column.type) for column in columns}
        if kinds == {"numeric"} and any(_is_number(column) for column in columns):
            numeric.append(name)
        elif kinds <= {"numeric", "categorical", "boolean"}:
            categorical.append(name)
    return numeric, categorical


def _is_number(column: pa.ChunkedArray) -> bool:
    """Evidently takes integers of up to ten values for categories."""
    return not pa.types.is_integer(column.type) or len(column.unique()) > INTEGER_CATEGORIES


def _as_pandas(table: pa.Table, numeric: list[str], categorical: list[str]) -> object:
    columns = {name: table.column(name).cast(pa.float64()) for name in numeric}
    columns |= {name: table.column(name).cast(pa.utf8()) for name in categorical}
    return pa.table(columns).to_pandas()


if __name__ == "__main__":
    write_report(*map(Path, sys.argv[1:4]))
