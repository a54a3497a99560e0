"""A collector that is killed anywhere and started again has the windows and scores of one that nothing happened to."""

from __future__ import annotations

import math
import shutil
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from collectors import api
from collectors.api import Collector, CollectorConfig
from collectors.drift import DriftThresholds
from collectors.drift_views import drift_view
from collectors.events import Batch
from collectors.measure import Measures
from collectors.performance_views import performance_view
from collectors.references import Reference
from collectors.signals import Signals
from observability.events import event_batch, label_batch, to_ipc
from observability.lake import read_events
from observability.profile import Profile

T0 = 1_363_000_000.0
ROWS = 240
SPAN = 60.0


@dataclass
class StepMeasurer:
    """Measures a batch when it is told to, on the caller's thread; what it has not measured dies with it."""

    measures: Measures
    changed: Callable[[], None]
    queue: deque[tuple[Any, pa.Table, int | None]] = field(default_factory=deque)

    def start(self) -> None:
        pass

    def put(self, kind: Any, table: pa.Table, position: int | None = None) -> None:
        self.queue.append((kind, table, position))

    def step(self, batches: int) -> None:
        for _ in range(min(batches, len(self.queue))):
            self.measures.apply(*self.queue.popleft())

    def waiting(self) -> int:
        return len(self.queue)

    def show(self, signals: Signals) -> None:
        pass

    def close(self) -> None:
        pass


STEPS = ("measure", "all", "tick", "wait", "compact", "again", "kill")


class Site:
    """A collector on a disk. `kill` leaves what is on the disk at that moment, and starts another one on it."""

    def __init__(self, folder: Path, clock: Any, window_seconds: float = 15.0) -> None:
        self.folder = folder
        self.window_seconds = window_seconds
        self.clock = clock
        self.lives = 0
        self.collector = self._start()

    def _start(self) -> Collector:
        folder = self.folder / str(self.lives)
        folder.mkdir(parents=True, exist_ok=True)
        config = CollectorConfig(
            lake=folder / "lake",
            store_url=f"sqlite:///{folder / 'store.db'}",
            window_seconds=self.window_seconds,
            allowed_lateness_seconds=2.0,
            judged_windows=2,
            amend_seconds=500.0,
            slices=("feature.origin",),
            slice_values=2,
            drift=DriftThresholds(min_rows=10),
        )
        collector = Collector(config, self.clock)
        collector.start()
        return collector

    @property
    def measurer(self) -> Any:
        return self.collector.measurer

    def accept(self, batch: pa.RecordBatch, name: str, kind: Any = "events") -> bool:
        table = pa.Table.from_batches([batch])
        return self.collector.log.accept(Batch(kind, to_ipc(batch), table), name).result().duplicate

    def work(self, step: str) -> None:
        """One of STEPS but "again"."""
        if step == "measure":
            self.measurer.step(1)
        elif step == "all":
            self.measurer.step(10**6)
        elif step == "tick":
            self.collector.measures.tick()
        elif step == "wait":
            self.clock.advance(3)
        elif step == "compact":
            self.collector.log.compact()
        else:
            self.kill()

    def kill(self) -> None:
        old = self.folder / str(self.lives)
        self.lives += 1
        self.collector.journal.submit(lambda _: None).result()
        shutil.copytree(old, self.folder / str(self.lives))
        self.end()
        self.collector = self._start()

    def end(self) -> None:
        self.collector.journal.close()
        self.collector.journal.engine.dispose()
        self.collector._queries.close()
        self.collector.store.close()

    def finish(self) -> tuple[list[Any], list[Any]]:
        """Closes all windows; the stored panes and the judged windows."""
        self.measurer.step(10**6)
        self.clock.advance(300)
        self.collector.measures.tick()
        self.collector.log.compact()
        panes = [content(pane) for pane in self.collector.windows.all()]
        return sorted(panes), [
            scores(window) for window in drift_view(self.collector.measures, "m", None, 500)["windows"]
        ]


def content(pane: Any) -> tuple[Any, ...]:
    counts = [column.counts.tolist() for column in pane.profile.columns.values()] if pane.profile else None
    parts = [(name, value, content(part)) for name in pane.slices for value, part in sorted(pane.slices[name].items())]
    return pane.version, pane.start, pane.rows, sorted(pane.outcomes.items()), pane.latencies.tolist(), counts, parts


def scores(window: dict[str, Any]) -> tuple[Any, ...]:
    columns = {name: (c["counts"], c["psi"], c.get("ks"), c["drifted"]) for name, c in window["columns"].items()}
    return window["version"], window["start"], window["end"], window["rows"], columns


def rows_of(generator: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
    return {
        "time": T0 + np.sort(generator.random(rows)) * SPAN,
        "version": generator.choice(["1", "2"], rows),
        "outcome": generator.choice(["ok", "model_error"], rows),
        "x": generator.normal(size=rows),
        "origin": generator.choice(["A", "B", "C", "D"], rows),
        "p": generator.random(rows),
    }


def batch_of(rows: dict[str, np.ndarray], chosen: np.ndarray, name: str) -> pa.RecordBatch:
    part = {key: values[chosen] for key, values in rows.items()}
    return event_batch(
        ids=[f"{name}/{row}" for row in range(len(chosen))],
        time_ns=np.round(part["time"] * 1e9).astype(np.int64),
        model="m",
        version=part["version"].tolist(),
        outcome=part["outcome"].tolist(),
        latency_seconds=part["p"],
        features={"x": part["x"], "origin": part["origin"]},
        predictions={"p": part["p"]},
    )


def learn(site: Site, reference: Profile) -> None:
    for version in ("1", "2"):
        measures = site.collector.measures
        site.collector.references.put("m", version, reference.to_json(), put_into(measures, version)).result()


def put_into(measures: Measures, version: str) -> Callable[[Reference], None]:
    return lambda reference: measures.set_reference("m", version, reference)


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "Measurer", StepMeasurer)


@pytest.mark.slow
@settings(
    max_examples=6,
    deadline=None,
    phases=[Phase.generate],  # an example costs a second, and shrinking takes hundreds
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_order_split_and_kill_gives_the_same_windows(data: st.DataObject, stepped: None, clock: Any) -> None:
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    rows = rows_of(generator, ROWS)
    reference = Profile.of(pa.Table.from_batches([batch_of(rows_of(generator, 500), np.arange(500), "r")]))
    # A row comes up to 30 s behind its time: 28 s behind the watermark.
    order = np.argsort(rows["time"] + generator.random(ROWS) * data.draw(st.sampled_from([0.5, 10, 30])))
    cuts = sorted(data.draw(st.sets(st.integers(1, ROWS - 1), min_size=3, max_size=14)))
    batches = [(f"b{n}", chosen) for n, chosen in enumerate(np.split(order, cuts))]

    with TemporaryDirectory() as folder:
        clock.now = T0 + SPAN
        site = Site(Path(folder) / "killed", clock)
        learn(site, reference)
        sent = []
        for name, chosen in batches:
            sent.append((name, batch_of(rows, chosen, name)))
            assert site.accept(sent[-1][1], name) is False
            for step in data.draw(st.lists(st.sampled_from(STEPS), max_size=4)):
                if step == "again":
                    again, batch = sent[data.draw(st.integers(0, len(sent) - 1))]
                    assert site.accept(batch, again) is True
                else:
                    site.work(step)
        killed = site.finish()
        stored = read_events(site.collector.config.lake, "m").num_rows
        site.end()

        clock.now = T0 + SPAN
        whole = Site(Path(folder) / "whole", clock)
        learn(whole, reference)
        whole.accept(batch_of(rows, np.arange(ROWS), "all"), "all")
        expected = whole.finish()
        whole.end()

    assert stored == ROWS
    assert sum(pane[2] for pane in expected[0]) == ROWS
    assert killed[0] == expected[0]
    assert killed[1] == expected[1]


def odd(batch: pa.RecordBatch, how: str) -> pa.RecordBatch:
    """The batch as a sender that is not like the others would send it."""
    rows = batch.num_rows
    if how == "without x":
        return batch.drop_columns(["feature.x"])
    if how == "without origin":
        return batch.drop_columns(["feature.origin"])
    if how == "text":
        return replaced(batch, "feature.x", pa.array(["1.5" if row % 2 else "?" for row in range(rows)]))
    if how == "vectors":
        return replaced(batch, "feature.origin", pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2 * rows)), 2))
    if how == "failed":
        return replaced(batch, "prediction.p", pa.nulls(rows, pa.float64()))
    if how == "more":
        return batch.append_column("feature.more", pa.array([True] * rows))
    return batch


def replaced(batch: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    return batch.set_column(batch.schema.get_field_index(name), name, values)


def performance(site: Site) -> list[Any]:
    site.collector.housekeeping().look_up()
    site.measurer.step(10**6)
    site.collector.housekeeping().rescore()
    windows = performance_view(site.collector.measures, "m", None, 500)["windows"]
    return [(w["version"], w["start"], w["rows"], w["labelled_rows"], w["scores"]) for w in windows]


@pytest.mark.slow
@settings(
    max_examples=6,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_odd_batches_and_labels_in_any_order_give_what_one_ordered_delivery_gives(
    data: st.DataObject, stepped: None, clock: Any
) -> None:
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    rows = rows_of(generator, ROWS)
    rows["x"] = rows["x"] + 1.0  # it drifts, so that there is evidence
    reference = Profile.of(pa.Table.from_batches([batch_of(rows_of(generator, 500), np.arange(500), "r")]))
    cuts = sorted(data.draw(st.sets(st.integers(1, ROWS - 1), min_size=3, max_size=10)))
    kinds = ("plain", "without x", "without origin", "text", "vectors", "failed", "more")
    sent: list[tuple[str, Any, pa.RecordBatch]] = []
    for number, chosen in enumerate(np.split(np.arange(ROWS), cuts)):
        name = f"b{number}"
        sent.append((name, "events", odd(batch_of(rows, chosen, name), data.draw(st.sampled_from(kinds)))))
        for again in range(data.draw(st.integers(0, 2))):  # labels that contradict each other: the latest counts
            ids = [f"{name}/{row}" for row in range(len(chosen)) if generator.random() < 0.6]
            ids += [f"unknown/{number}"]
            times = np.round((T0 + 100 + again + generator.random(len(ids))) * 1e9).astype(np.int64)
            values = generator.choice([0.0, 1.0, math.nan], len(ids), p=[0.5, 0.45, 0.05])
            sent.append((f"{name} labels {again}", "labels", label_batch(ids, "m", values, times)))
    order = data.draw(st.permutations(sent))

    found = []
    with TemporaryDirectory() as folder:
        for delivery in (order, sent):
            clock.now = T0 + SPAN
            # Half a minute holds rows enough for evidence.
            site = Site(Path(folder) / str(len(found)), clock, 30.0)
            learn(site, reference)
            for place, (name, kind, batch) in enumerate(delivery):
                assert site.accept(batch, name, kind) is False
                if delivery is sent:
                    continue
                for step in data.draw(st.lists(st.sampled_from(STEPS), max_size=3)):
                    if step == "again":  # also with other content
                        again, kind, _ = order[data.draw(st.integers(0, place))]
                        other = data.draw(st.sampled_from([item[2] for item in sent if item[1] == kind]))
                        assert site.accept(other, again, kind) is True
                    else:
                        site.work(step)
            panes, windows = site.finish()
            evidence = [site.collector.measures.alarms("m", version)[0] for version in ("1", "2")]
            found.append((panes, windows, performance(site), evidence))
            site.end()

    assert found[0][0] == found[1][0]
    assert found[0][1] == found[1][1]
    assert found[0][2] == found[1][2]
    assert found[0][3] == found[1][3]
    assert sum(pane[2] for pane in found[0][0]) == ROWS
