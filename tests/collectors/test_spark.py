"""Spark over a small lake: the counts of its profile are numpy's to the unit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collectors.report import drift_tables
from collectors.spark import local_session, profile_of_lake
from observability.columns import NumericColumn
from observability.lake import write_events
from observability.profile import Profile

Events = Callable[..., pa.RecordBatch]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_sparks_profile_of_a_lake_is_numpys(tmp_path: Path, events: Events) -> None:
    reference = Profile.of(pa.Table.from_batches([events(2000)]))
    tables = [
        pa.Table.from_batches([events(500, seed=i, prefix=str(i), time_s=1.363e9 + 3600 * i, shift=i / 3)])
        for i in range(4)
    ]
    for table in tables:
        write_events(tmp_path / "lake", table)
    expected = reference.empty()
    for table in tables:
        expected = expected.updated(table)
    session = local_session()

    try:
        found = profile_of_lake(tmp_path / "lake" / "events", reference, session)
        for name in ("a", "b"):
            pq.write_table(
                pa.table({"x": np.random.default_rng(len(name)).normal(size=500)}), tmp_path / f"{name}.parquet"
            )
        verdicts = drift_tables(tmp_path / "a.parquet", tmp_path / "b.parquet", engine="spark")
    finally:
        session.stop()

    for name, column in found.columns.items():
        wanted = expected.columns[name]
        assert column.counts.tolist() == wanted.counts.tolist()
        assert column.missing == wanted.missing
        if isinstance(column, NumericColumn) and isinstance(wanted, NumericColumn):
            assert column.mean == pytest.approx(wanted.mean)
            assert column.m2 == pytest.approx(wanted.m2)
            assert (column.minimum, column.maximum) == (wanted.minimum, wanted.maximum)
    assert verdicts["x"].reason == "within_threshold"
