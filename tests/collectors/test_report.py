"""Rows drawn from a profile or a table, and Evidently's report in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from collectors.drift.compare import compare
from collectors.drift.inputs import opened
from collectors.drift.source import Source
from collectors.report import reportable_columns, sampled_rows, sampled_source
from observability.events import to_ipc
from observability.lake import read_events
from observability.profile import Profile

Events = Callable[..., pa.RecordBatch]


def flights(rows: int, shift: float = 0.0, seed: int = 0) -> pa.Table:
    generator = np.random.default_rng(seed)
    temp = generator.normal(shift, 1, rows)
    return pa.table(
        {
            "temp": pa.array(temp, mask=generator.random(rows) < 0.1),
            "carrier": generator.choice(["AA", "DL", "UA"], rows, p=[0.5, 0.3, 0.2]),
            "late": generator.random(rows) < 0.3,
            "rain": np.where(generator.random(rows) < 0.8, 0.0, generator.exponential(1, rows)),
        }
    )


def test_rows_drawn_from_a_profile_have_its_distributions() -> None:
    profile = Profile.of(flights(20_000))

    drawn = sampled_rows(profile, 20_000)

    again = profile.empty().updated(drawn.set_column(2, "late", drawn.column("late").cast(pa.bool_())))
    for name, verdict in compare(flights(20_000), again_as_table(drawn)).columns.items():
        assert not verdict.drifted, name
    for name, column in again.columns.items():
        expected = profile.columns[name]
        assert column.missing == pytest.approx(expected.missing, abs=250), name
        assert np.abs(column.counts - expected.counts).max() < 400, name


def again_as_table(drawn: pa.Table) -> pa.Table:
    return drawn.set_column(2, "late", drawn.column("late").cast(pa.bool_()))


def test_an_empty_column_is_left_out_of_the_report() -> None:
    before = pa.table({"a": [1.0, 2.0], "b": pa.nulls(2, pa.float64()), "c": ["x", "y"], "d": [1.0, 1.0]})
    now = pa.table({"a": [1.0, 2.0], "b": [1.0, 2.0], "c": ["x", "y"]})

    assert reportable_columns(before, now) == (["a"], ["c"])


def test_what_evidently_calls_a_number_and_a_category() -> None:
    table = pa.table(
        {
            "code": np.arange(50) % 4,
            "number": np.arange(50),
            "truth": np.arange(50) % 2 == 0,
            "at": np.arange(50).astype("datetime64[s]"),
            "vector": pa.array([[1.0, 2.0]] * 50),
        }
    )

    assert reportable_columns(table, table) == (["number"], ["code", "truth"])


def test_a_large_table_is_sampled_evenly() -> None:
    source = opened(pa.table({"n": np.arange(1000)}), "the reference")
    assert isinstance(source, Source)

    sample = sampled_source(source, ["n"], rows=100)

    assert sample.column("n").to_pylist() == list(range(0, 1000, 10))


def test_a_report_without_a_reference_or_rows_says_what_is_missing(collector: Any, events: Events) -> None:
    nothing = collector.query.get("/api/reports/drift", params={"model": "delay"})
    unnamed = collector.query.get("/api/reports/drift")
    reference = Profile.of(pa.Table.from_batches([events(100)]))
    collector.intake.put("/v1/references/delay/1", content=reference.to_json())
    no_rows = collector.query.get("/api/reports/drift", params={"model": "delay", "version": "1"})

    assert nothing.status_code == 404
    assert "no reference profile" in nothing.json()["error"]
    assert unnamed.status_code == 400
    assert no_rows.status_code == 404
    assert "no rows" in no_rows.json()["error"]


@pytest.mark.slow
def test_evidently_writes_its_report_in_a_process_of_its_own(collector: Any, events: Events, config: Any) -> None:
    reference = Profile.of(pa.Table.from_batches([events(1000)]))
    collector.intake.put("/v1/references/delay/1", content=reference.to_json())
    collector.intake.post("/v1/events", content=to_ipc(events(600, shift=1.0)))
    log = collector.collector.log
    # Only what is measured leaves the log, here or in its own time.
    collector.settled(lambda: log.compact() >= 0 and len(read_events(config.lake, "delay")) == 600)

    answer = collector.query.get("/api/reports/drift", params={"model": "delay"}, timeout=240)
    again = collector.query.get("/api/reports/drift", params={"model": "delay"})

    assert answer.status_code == 200, answer.text[:2000]
    assert answer.headers["content-type"].startswith("text/html")
    assert "feature.x" in answer.text
    assert again.text == answer.text
