"""Quality through the collector's ports: violations counted, kept and shown, the schema edited; nothing is dropped."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from collectors.api import CollectorConfig
from collectors.computed import traffic_values
from observability import names
from observability.events import MEDIA_TYPE, to_ipc
from observability.profile import Profile

NOW = 1_363_000_000.0


def reference() -> bytes:
    generator = np.random.default_rng(5)
    table = pa.table(
        {
            "feature.x": generator.normal(0, 1, 3_000),
            "feature.carrier": generator.choice(["AA", "DL", "UA"], 3_000),
            "prediction.p": generator.random(3_000),
        }
    )
    return Profile.of(table).to_json()


def post(running: Any, body: pa.RecordBatch, batch: str) -> None:
    answer = running.intake.post(
        "/v1/events", content=to_ipc(body), headers={"content-type": MEDIA_TYPE, "x-batch-id": batch}
    )
    assert answer.status_code == 200, answer.text


def counted(running: Any) -> dict[tuple[str, str], float]:
    family = running.collector.signals.metrics
    return {
        (sample.labels["column"], sample.labels["rule"]): sample.value
        for found in family[names.QUALITY_VIOLATIONS].collect()
        for sample in found.samples
        if sample.name.endswith("_total")
    }


def test_rows_that_break_the_schema_are_measured_counted_kept_and_shown(
    collector: Any, clock: Any, events: Callable[..., pa.RecordBatch]
) -> None:
    collector.intake.put("/v1/references/delay/1", content=reference()).raise_for_status()
    post(collector, events(200, prefix="a", time_s=NOW), "a")
    post(collector, events(200, prefix="b", time_s=NOW + 1, shift=1_000.0), "b")
    collector.settled(lambda: counted(collector).get(("feature.x", "range")) == 200)
    post(collector, events(10, prefix="c", time_s=NOW + 30), "c")
    clock.advance(30)

    collector.settled(lambda: collector.query.get("/api/drift/delay").json()["windows"])

    window = collector.query.get("/api/drift/delay").json()["windows"][0]
    assert window["rows"] == 400  # nothing was dropped
    shown = collector.query.get("/api/quality/delay", params={"column": "feature.x", "limit": 5}).json()
    assert shown["schema"]["columns"]["feature.x"]["type"] == "numeric"
    assert {"version": "1", "column": "feature.x", "rule": "range", "rows": 200} in shown["broken"]
    assert len(shown["rows"]) == 5
    assert shown["rows"][0]["id"].startswith("b/")
    assert float(shown["rows"][0]["value"]) > 900


def test_a_batch_sent_twice_is_counted_once(collector: Any, events: Callable[..., pa.RecordBatch]) -> None:
    collector.intake.put("/v1/references/delay/1", content=reference()).raise_for_status()
    for _ in range(3):
        post(collector, events(50, shift=1_000.0), "same")
    post(collector, events(1, prefix="z"), "other")

    collector.settled(lambda: bool(counted(collector)))

    assert counted(collector) == {("feature.x", "range"): 50}


def test_the_schema_can_be_edited_and_survives_a_restart(
    config: CollectorConfig, clock: Any, start: Callable[..., AbstractContextManager[Any]]
) -> None:
    with start(config, clock) as running:
        running.intake.put("/v1/references/delay/1", content=reference()).raise_for_status()
        inferred = running.intake.get("/v1/schemas/delay").json()
        assert sorted(inferred["columns"]["feature.carrier"]["categories"]) == ["AA", "DL", "UA"]
        edit = {"columns": {"feature.x": {"minimum": -3, "maximum": 3}}, "max_age_seconds": 42}
        edited = running.intake.put("/v1/schemas/delay", json=edit).json()
        assert edited["columns"]["feature.x"]["maximum"] == 3
        refused = running.intake.put("/v1/schemas/delay", json={"columns": {"feature.x": {"minimum": 9, "maximum": 1}}})
        assert refused.status_code == 400
        assert "minimum 9.0 above its maximum 1.0" in refused.json()["error"]

    with start(config, clock) as running:
        again = running.intake.get("/v1/schemas/delay").json()
        assert again["columns"]["feature.x"]["maximum"] == 3
        assert again["max_age_seconds"] == 42


def test_volume_and_age_are_metrics(collector: Any, clock: Any, events: Callable[..., pa.RecordBatch]) -> None:
    collector.intake.put("/v1/references/delay/1", content=reference()).raise_for_status()
    for window in range(7):
        rows = 200 if window < 6 else 20
        post(collector, events(rows, prefix=f"w{window}", time_s=NOW + 10 * window, seed=window), f"w{window}")
        clock.advance(10)
    post(collector, events(20, prefix="end", time_s=NOW + 75, seed=6), "end")
    post(collector, events(3, prefix="wrong", time_s=NOW + 9e8, model="ahead"), "wrong")
    clock.advance(10)

    def ratio() -> float:
        found = collector.values('quality_volume_ratio{model="delay"}', clock.now)
        return next(iter(found.values()), math.nan)

    collector.settled(lambda: ratio() < 0.2)

    assert next(iter(collector.values("quality_latest_row_age_limit_seconds", clock.now).values())) == 100
    assert next(iter(collector.values("quality_latest_row_age_seconds", clock.now).values())) >= 0
    # Once no rows come the age tells of it, and not for ever how many came last.
    quality = collector.collector.measures.quality
    volume = [value for value in traffic_values(quality, "delay", NOW + 175) if value.metric == names.QUALITY_VOLUME]
    assert len(volume) == 1
    assert not [value for value in traffic_values(quality, "delay", NOW + 176) if value.metric == names.QUALITY_VOLUME]
    # Rows of a wrong clock do not make the data young.
    assert math.isnan(collector.collector.measures.quality.age("ahead", clock.now))

    def duplicated() -> float:
        return next(iter(collector.values("quality_duplicated_rows_ratio", clock.now).values()), 0.0)

    # The last batch repeats the features of the one before. The share is told as a window closes, so its own must.
    family = collector.collector.signals.metrics[names.EVENT_ROWS]
    collector.settled(lambda: family.labels("delay", "1")._value.get() == 6 * 200 + 2 * 20)
    clock.advance(10)
    collector.settled(lambda: duplicated() > 0.0)
    assert duplicated() == pytest.approx(20 / (6 * 200 + 2 * 20))
