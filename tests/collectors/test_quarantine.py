"""Sources in quarantine: their events reach neither windows nor the lake that models learn from, over restarts too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from collectors.api import CollectorConfig
from observability.events import to_ipc
from observability.lake import read_events

BAD = {"attribute": "source", "value": "sensor-7"}


def from_source(events: Callable[..., pa.RecordBatch], prefix: str, source: str | None) -> bytes:
    batch = events(10, prefix=prefix)
    text = None if source is None else f'{{"source": "{source}"}}'
    place = batch.schema.get_field_index("attributes")
    return to_ipc(batch.set_column(place, "attributes", pa.array([text] * 10, pa.utf8())))


def test_a_sources_events_are_kept_apart_until_it_is_let_out(
    config: CollectorConfig, clock: Any, events: Callable[..., pa.RecordBatch],
    start: Callable[..., contextlib.AbstractContextManager[Any]],
) -> None:  # fmt: skip
    def sent(running: Any, prefix: str, source: str | None) -> Any:
        answer = running.intake.post("/v1/events", content=from_source(events, prefix, source))
        assert answer.status_code == 200, answer.text
        return answer.json()["accepted_rows"]

    with start(config, clock) as running:
        assert sent(running, "before", "sensor-7") == 10
        answer = running.intake.put("/v1/quarantine/delay", json={**BAD, "reason": "NaN", "key": "k"})
        assert answer.json()["sources"] == [{**BAD, "since": clock(), "key": "k", "actor": "", "reason": "NaN"}]
        assert sent(running, "apart", "sensor-7") == 10
        assert sent(running, "other", "sensor-8") == 10
        assert sent(running, "none", None) == 10
    with start(config, clock) as running:  # it is durable
        assert sent(running, "later", "sensor-7") == 10
        assert running.intake.request("DELETE", "/v1/quarantine/delay", json=BAD).json()["sources"] == []
        assert sent(running, "after", "sensor-7") == 10
        running.collector.log.compact()

    def prefixes(lake: Path) -> set[str]:
        return {text.split("/")[0] for text in read_events(lake, "delay").column("id").to_pylist()}

    assert prefixes(Path(config.lake)) == {"before", "other", "none", "after"}
    assert prefixes(Path(config.lake) / "quarantined") == {"apart", "later"}


def test_what_is_wrong_with_a_source_is_said(collector: Any) -> None:
    def refused(body: Any) -> str:
        answer = collector.intake.put("/v1/quarantine/delay", json=body)
        assert answer.status_code == 400
        return str(answer.json()["error"])

    assert "attribute must be 1 to 200 characters" in refused({"value": "x"})
    assert "no field 'colour'" in refused({**BAD, "colour": "red"})
    assert "an object of texts" in refused([1])
