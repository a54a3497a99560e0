"""What releases are judged by: labelled predictions once each, in any order and over restarts, and counts by bin."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.api import Collector, CollectorConfig, build
from collectors.database import open_database
from collectors.events import read_batch
from collectors.journal import Journal
from collectors.parts import Part
from collectors.performance import LabelJoin
from collectors.releases import BINS, ReleaseLabels, ReleasePredictions
from collectors.releases.predictions import edges_of
from collectors.routed import routed
from observability import names
from observability.events import event_batch, label_batch, to_ipc

T0 = 1_363_000_000
RELEASE = {"canary": 0.2, "stable": 0.8}


def events(ids: list[str], arm: str, *, version: str, release: str | None = "m-2", **more: Any) -> pa.Table:
    given = {"propensity": RELEASE.get(arm, 1.0), "predictions": {"p": np.linspace(0.1, 0.9, len(ids))}, **more}
    times = (T0 + np.arange(len(ids))) * 1_000_000_000
    batch = event_batch(
        ids=ids, time_ns=times, model="m", version=version, arm=arm, release=release, features={}, **given
    )
    return pa.Table.from_batches([batch])


def labels(ids: list[str], values: list[float], at: int = T0 + 100) -> pa.Table:
    return pa.Table.from_batches([label_batch(ids, "m", values, at * 1_000_000_000)])


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journal]:
    journal = Journal(open_database(f"sqlite:///{tmp_path_factory.mktemp('feeds') / 'intake.db'}"))
    yield journal
    journal.close()


def rows_of(feeds: ReleaseLabels, journal: Journal, model: str, feed: str) -> list[Any]:
    feeds.flush()
    journal.submit(lambda _: None).result()
    return feeds.rows(model, feed)


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(7)), again=st.lists(st.integers(0, 6), max_size=4), name=st.uuids())
def test_a_labelled_prediction_is_in_its_feed_once_whatever_comes_when(
    order: list[int], again: list[int], name: Any, journal: Journal
) -> None:
    canary, stable = [f"c{n}" for n in range(4)], [f"s{n}" for n in range(6)]
    release = f"m-{name}"
    parts = [
        events(canary, "canary", version="2", release=release),
        events(stable, "stable", version="1", release=release),
        events(stable, "shadow", version=str(name), release=None),
        events(["f"], "forced", version="2", release=None),
        labels(canary, [1.0, 0.0, 1.0, 0.0]),
        labels(stable, [0.0] * 6),
        labels(["f", "nobody"], [1.0, 1.0]),
    ]
    feeds = ReleaseLabels(journal, lambda: 1.0)
    join = LabelJoin(sink=feeds)
    for place in [*order, *again]:
        join.add_predictions(parts[place]) if place < 4 else join.add_labels(parts[place])

    found = rows_of(feeds, journal, "m", release)
    assert sorted((row.version, row.arm, row.propensity) for row in found) == [
        *[("1", "stable", 0.8)] * 6, *[("2", "canary", 0.2)] * 4,
    ]  # fmt: skip
    pairs = rows_of(feeds, journal, "m", f"shadow:{name}")
    assert [(row.prediction == row.other, row.label, math.isnan(row.propensity)) for row in pairs] == [
        (True, 0.0, True)
    ] * 6
    assert [row.number for row in found] == sorted({row.number for row in found})


def test_the_first_label_counts_and_a_feed_is_read_on_from_a_number(journal: Journal) -> None:
    feeds = ReleaseLabels(journal, lambda: 1.0)
    join = LabelJoin(sink=feeds)
    join.add_predictions(events(["a", "b"], "canary", version="2", release="first"))
    join.add_labels(labels(["a"], [1.0]))
    join.add_labels(labels(["a", "b"], [0.0, 0.0], at=T0 + 200))

    found = rows_of(feeds, journal, "m", "first")
    body = feeds.view("m", {"feed": "first", "after": str(found[0].number)}, 10)

    assert [row.label for row in found] == [1.0, 0.0]
    assert (body["rows"], body["last"], body["end"]) == ([found[1].to_json()], found[1].number, found[1].number)
    with pytest.raises(ValueError, match=r"\?feed=RELEASE"):
        feeds.view("m", {}, 10)


def test_a_requests_rows_were_routed_once_and_a_units_further_requests_not_at_all() -> None:
    several = events(["q/0", "q/1", "r", "s/3"], "canary", version="2", propensity=[0.2, 0.2, None, 0.2])
    same = several.set_column(1, "time", pa.chunked_array([[T0, T0, T0, T0 + 1]]).cast(several.schema.field(1).type))

    found = routed(same).rows()

    assert [None if row is None else row.by_chance for row in found] == [True, None, False, True]


@given(st.lists(st.floats(allow_infinity=True, allow_nan=True, width=32), max_size=60))
def test_bins_hold_every_number(values: list[float]) -> None:
    edges = edges_of(np.array(values, np.float64))

    assert edges == sorted(set(edges))
    assert len(edges) <= BINS - 2


def test_predictions_are_counted_by_arm_and_weight_in_bins_of_both_arms_together() -> None:
    counted, rng = ReleasePredictions(), np.random.default_rng(1)
    for weight in (0.2, 0.5):
        for arm, version in (("canary", "2"), ("stable", "1")):
            share = weight if arm == "canary" else 1 - weight
            ids = [f"{arm}{n}" for n in range(400)]
            predictions = {"p": np.where(np.arange(400) < 3, np.nan, rng.random(400))}
            rows = events(ids, arm, version=version, propensity=share, predictions=predictions)
            counted.add(Part("m", version, rows))
    counted.add(Part("m", "2", events(["f"], "forced", version="2", release="m-2")))

    states, values = counted.take_changed()
    again = ReleasePredictions()
    again.restore(states)

    assert again.values("m") == values["m"]
    sums: dict[tuple[str, str], float] = {}
    for value in values["m"]:
        key = value.labels["arm"], value.labels["propensity"]
        sums[key] = sums.get(key, 0.0) + value.value
        assert (value.labels["candidate"], value.labels["baseline"]) == ("2", "1")
    assert sums == {(arm, weight): 400.0 for arm in ("canary", "stable") for weight in ("0.2", "0.5")}
    assert [v.value for v in values["m"] if v.labels["bin"] == str(BINS - 1)] == [3.0] * 4
    assert counted.take_changed() == ({}, {})


def test_a_restart_counts_no_batch_twice_and_leaves_none_out(tmp_path: Path) -> None:
    config = CollectorConfig(lake=tmp_path / "lake", store_url=f"sqlite:///{tmp_path / 'store.db'}")
    now = float(T0 + 50)
    total = 0
    for run in range(3):
        collector = build(config, lambda: now)
        for part, (arm, version) in enumerate((("canary", "2"), ("stable", "1"))):
            ids = [f"{run}-{arm}-{n}" for n in range(300)]
            accept(collector, "events", events(ids, arm, version=version), f"e{run}{part}")
            accept(collector, "labels", labels(ids[:20], [1.0] * 20, at=T0 + 40), f"l{run}{part}")
        total += 300
        if run == 1:  # what is settled is durable, what follows is only in the log
            collector.log.compact()
            accept(collector, "events", events(["x"], "canary", version="2"), "x")
            total += 1
        crash(collector)

    collector = build(config, lambda: now)
    try:
        collector.log.compact()
        found = [v for owner, values in collector.signals.published().items() if owner[0] == "releases" for v in values]
        assert {v.metric for v in found} == {names.RELEASE_PREDICTIONS}
        assert sum(v.value for v in found if v.labels["arm"] == "canary") == total
        assert sum(v.value for v in found if v.labels["arm"] == "stable") == 900
        assert len(collector.release_labels.rows("m", "m-2")) == 120
    finally:
        collector.close()


def accept(collector: Collector, signal: Any, rows: pa.Table, batch: str) -> None:
    collector.log.accept(read_batch(signal, to_ipc(rows.to_batches())), batch).result()


def crash(collector: Collector) -> None:
    """Ends the process' threads as a kill would leave its files: nothing more is settled."""
    collector.measurer.close()
    collector.journal.close()
    collector.journal.engine.dispose()
    collector.store.close()
    collector.receiver.close()
