"""`/api/slices`: the segments of a version's labelled rows where it errs most, and those whose share changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from observability.events import event_batch, label_batch, to_ipc

T0 = 1_363_000_000.0
ROWS = 4_000
Events = Callable[..., pa.RecordBatch]


def send(collector: Any, path: str, batch: pa.RecordBatch, name: str) -> None:
    headers = {"X-Batch-Id": name, "Content-Type": "application/vnd.apache.arrow.stream"}
    collector.intake.post(path, content=to_ipc(batch), headers=headers).raise_for_status()


def serve(collector: Any, version: str = "1") -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Rows of which those of carrier UA have labels that the score says nothing of; whether UA, and log losses."""
    generator = np.random.default_rng(7)
    carrier = generator.choice(["AA", "DL", "UA"], ROWS)
    # In the newer half of the rows there are twice as many of JFK.
    origin = np.where(generator.random(ROWS) < np.repeat([0.2, 0.4], ROWS // 2), "JFK", "LGA")
    p = generator.uniform(0.05, 0.95, ROWS)
    label = (generator.random(ROWS) < np.where(carrier == "UA", 1 - p, p)).astype(float)
    ids = [f"v{version}/{row}" for row in range(ROWS)]
    times = ((T0 + np.arange(ROWS) * 0.01) * 1e9).astype(np.int64)
    events = event_batch(
        ids=ids,
        time_ns=times,
        model="delay",
        version=version,
        outcome="ok",
        latency_seconds=np.full(ROWS, 0.01),
        features={"carrier": carrier, "origin": origin, "x": generator.normal(size=ROWS)},
        predictions={"p": p},
    )
    send(collector, "/v1/events", events, f"events-{version}")
    send(collector, "/v1/labels", label_batch(ids=ids, model="delay", time_ns=times, labels=label), f"labels-{version}")
    losses = -np.log(np.where(label == 1, p, 1 - p))
    return carrier == "UA", losses


def test_the_worst_slices_of_labelled_rows_are_told(collector: Any, clock: Any) -> None:
    inside, losses = serve(collector)
    collector.settled(lambda: len(collector.collector.measures.scoring.labelled("delay", "1").ids) == ROWS)
    collector.collector.log.compact()

    found = collector.query.get("/api/slices/delay", params={"version": "1"}).json()
    by_error, by_share = found["error"], found["drift"]

    assert (found["model"], found["version"]) == ("delay", "1")
    assert (by_error["rows"], by_error["measure"]) == (ROWS, "log_loss")
    assert (by_error["start"], by_error["end"]) == (T0, T0 + (ROWS - 1) * 0.01)
    assert np.isclose(by_error["mean"], losses.mean())
    assert by_error["slices"][0]["conditions"] == ["feature.carrier = UA"]
    assert np.isclose(by_error["slices"][0]["mean"], losses[inside].mean())
    assert np.isclose(by_error["slices"][0]["rest"], losses[~inside].mean())
    assert (by_share["before"]["rows"], by_share["now"]["rows"]) == (ROWS // 2, ROWS // 2)
    assert {tuple(one["conditions"]) for one in by_share["slices"]} <= {
        ("feature.origin = JFK",),
        ("feature.origin = LGA",),
    }
    assert abs(by_share["slices"][0]["drift"]) > 0.15


def test_a_version_without_rows_or_labels_has_no_slices(collector: Any, clock: Any, events: Events) -> None:
    assert collector.query.get("/api/slices/delay").status_code == 404

    send(collector, "/v1/events", events(200), "a")
    clock.advance(60)
    collector.settled(lambda: collector.query.get("/api/drift/delay").json()["windows"])
    collector.collector.log.compact()
    found = collector.query.get("/api/slices/delay").json()
    other = collector.query.get("/api/slices/delay", params={"version": "9"}).json()

    assert found["version"] == "1"
    assert (found["error"]["rows"], found["error"]["slices"]) == (0, [])
    assert found["drift"]["now"]["rows"] == 100
    assert other["drift"] == {"before": None, "now": None, "slices": []}


def test_an_answer_is_kept_for_half_a_minute(collector: Any, clock: Any, events: Events) -> None:
    send(collector, "/v1/events", events(200), "a")
    first = collector.query.get("/api/slices/delay", params={"version": "1"}).json()
    send(collector, "/v1/events", events(200, prefix="s"), "b")
    collector.settled(lambda: collector.collector.measurer.waiting() == 0)
    collector.collector.log.compact()
    kept = collector.query.get("/api/slices/delay", params={"version": "1"}).json()
    clock.advance(31)
    new = collector.query.get("/api/slices/delay", params={"version": "1"}).json()

    assert kept == first
    assert new["drift"]["now"]["rows"] == 200
