"""Late rows, embeddings and late labels over HTTP: what was shown of a window is amended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from collectors.drift.calibration import Calibration
from observability import names
from observability.events import event_batch, to_ipc
from observability.profile import Profile

T0 = 1_363_000_000.0
Events = Callable[..., pa.RecordBatch]


def post(collector: Any, batch: pa.RecordBatch) -> None:
    collector.intake.post("/v1/events", content=to_ipc(batch)).raise_for_status()
    collector.settled(lambda: collector.collector.measurer.waiting() == 0)


def windows(collector: Any, path: str = "/api/drift/delay") -> list[dict[str, Any]]:
    return list(collector.query.get(path).json()["windows"])


def test_a_late_batch_amends_what_is_shown_of_its_window(collector: Any, clock: Any, events: Events) -> None:
    reference = Profile.of(pa.Table.from_batches([events(4_000, seed=9)]))
    collector.intake.put("/v1/references/delay/1", content=reference.to_json()).raise_for_status()
    post(collector, events(300, prefix="a"))
    clock.advance(60)
    collector.settled(lambda: windows(collector))
    (before,) = windows(collector)
    assert (before["rows"], before["revision"], before["columns"]["feature.x"]["drifted"]) == (300, 0, False)

    post(collector, events(900, prefix="b", shift=3.0))
    clock.advance(3)
    collector.settled(lambda: windows(collector)[0]["revision"] == 1)

    (after,) = windows(collector)
    assert (after["start"], after["rows"]) == (before["start"], 1200)
    assert after["columns"]["feature.x"]["drifted"] is True
    amended = collector.collector.signals.metrics[names.AMENDED_ROWS].labels("delay", "1")._value.get()
    assert amended == 900


def test_embeddings_are_features_that_drift(collector: Any, clock: Any) -> None:
    generator = np.random.default_rng(3)

    def batch(rows: int, shift: float, prefix: str) -> pa.RecordBatch:
        vectors = generator.normal(size=(rows, 8)).astype(np.float32) + np.float32(shift)
        ids = [f"{prefix}/{row}" for row in range(rows)]
        return event_batch(
            ids=ids,
            time_ns=round(T0 * 1e9),
            model="delay",
            version="1",
            features={"e": vectors},
            predictions={"p": 0.5},
        )

    table = pa.Table.from_batches([batch(4_000, 0.0, "r")])
    reference = Profile.of(table, {"feature.e": "embedding"})
    calibration = Calibration.of(table, reference, rows=400)
    body = reference.to_json()[:-1] + b',"calibration":' + _json(calibration.to_json()) + b"}"
    collector.intake.put("/v1/references/delay/1", content=body).raise_for_status()
    refused = collector.intake.put(
        "/v1/references/delay/1", content=reference.to_json()[:-1] + b',"calibration":{"a":1}}'
    )
    post(collector, batch(600, 0.5, "a"))
    clock.advance(60)
    collector.settled(lambda: windows(collector))

    column = windows(collector)[0]["columns"]["feature.e"]

    assert refused.status_code == 400
    assert "calibration" in refused.json()["error"]
    assert column["kind"] == "embedding"
    assert column["dimensions"] == 8
    assert column["score"] > column["score_threshold"]
    assert collector.collector.measures.against("delay", "1").calibration == calibration


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)


def test_late_labels_change_the_scores_of_their_window(collector: Any, clock: Any, events: Events) -> None:
    post(collector, events(40, prefix="a"))
    clock.advance(60)
    collector.settled(lambda: windows(collector))

    def label(first: int, until: int) -> None:
        labels = [{"id": f"a/{row}", "model": "delay", "label": row % 2} for row in range(first, until)]
        collector.intake.post("/v1/labels", json=labels).raise_for_status()
        collector.settled(lambda: collector.collector.measurer.waiting() == 0)

    label(0, 10)
    (first,) = windows(collector, "/api/performance/delay?version=1")
    label(10, 40)
    (second,) = windows(collector, "/api/performance/delay?version=1")

    assert (first["start"], first["rows"], first["labelled_rows"], first["labelled_ratio"]) == (T0, 40, 10, 0.25)
    assert (second["labelled_rows"], second["labelled_ratio"]) == (40, 1.0)
    accuracy = second["scores"]["accuracy"]
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    assert accuracy != first["scores"]["accuracy"]
