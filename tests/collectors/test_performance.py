"""Latency from cells, scores against their formulas, and the join of late labels against a batch computation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from collectors.parts import predictions_of
from collectors.performance import JoinSettings, LabelJoin, latency_quantile, scores
from collectors.scores import LabelledWindows
from collectors.windows import latency_counts
from observability.events import label_batch
from observability.lake import read_labelled, write_events, write_labels

T0 = 1_363_000_000.0
Events = Callable[..., pa.RecordBatch]


def labels_for(ids: list[str], values: list[float], times: list[float] | None = None) -> pa.Table:
    moments = times or [T0 + 60] * len(ids)
    return pa.Table.from_batches([label_batch(ids, "delay", values, [round(t * 1e9) for t in moments])])


def table(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch])


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_latency_quantiles_are_within_a_cell_of_numpys(q: float) -> None:
    seconds = np.random.default_rng(0).lognormal(-4, 1, 20_000)
    counts = latency_counts(pa.chunked_array([pa.array(seconds)]))

    assert latency_quantile(counts, q) == pytest.approx(np.quantile(seconds, q), rel=0.06)


def test_no_latency_has_no_quantile() -> None:
    assert math.isnan(latency_quantile(latency_counts(pa.chunked_array([pa.nulls(3, pa.float64())])), 0.5))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_scores_are_the_textbooks(rows: list[tuple[float, bool]]) -> None:
    predictions = np.array([row[0] for row in rows])
    labels = np.array([float(row[1]) for row in rows])

    found = scores(predictions, labels)

    assert found["log_loss"] == pytest.approx(metrics.log_loss(labels, predictions, labels=[0, 1]), abs=1e-9)
    assert found["brier"] == pytest.approx(np.mean((predictions - labels) ** 2))
    assert found["accuracy"] == np.mean((predictions >= 0.5) == (labels == 1))
    assert found["positive_ratio"] == labels.mean()
    if 0 < labels.mean() < 1:
        u = stats.mannwhitneyu(predictions[labels == 1], predictions[labels == 0], method="asymptotic").statistic
        assert found["roc_auc"] == pytest.approx(u / (labels.sum() * (1 - labels).sum()))
    else:
        assert "roc_auc" not in found


def test_labels_that_are_not_classes_are_scored_as_numbers() -> None:
    found = scores(np.array([1.0, 3.0]), np.array([2.0, 5.0]))

    assert found["mae"] == 1.5
    assert found["bias"] == -1.5
    assert "log_loss" not in found
    assert scores(np.array([]), np.array([])) == {}


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scored=st.sampled_from([10, 60, 1000]))
def test_joined_scores_equal_the_batch_computation_in_any_order_of_arrival(
    seed: int, scored: int, tmp_path_factory: pytest.TempPathFactory, events_of: Events
) -> None:
    lake = tmp_path_factory.mktemp("lake")
    generator = np.random.default_rng(seed)
    batches = [
        table(events_of(30, prefix=f"b{i}", time_s=T0 + i * 20 + generator.random(30) * 30, seed=seed % 1000 + i))
        for i in range(4)
    ]
    chosen = [f"b{i}/{j}" for i in range(4) for j in range(30) if generator.random() < 0.7]
    # Some labels are corrected later: the latest counts.
    ids = chosen + chosen[:20]
    times = [T0 + 100 + position for position in range(len(ids))]
    labels = labels_for(ids, generator.integers(0, 2, len(ids)).astype(float).tolist(), times)
    parts: list[tuple[str, pa.Table]] = [("events", batch) for batch in batches]
    order = generator.permutation(len(ids))
    parts += [("labels", labels.take(order[start : start + 25])) for start in range(0, len(ids), 25)]
    join = LabelJoin(JoinSettings(scored_rows=scored))

    for position in generator.permutation(len(parts)):
        kind, rows = parts[position]
        join.add_predictions(rows) if kind == "events" else join.add_labels(rows)

    for batch in batches:
        write_events(lake, batch)
    write_labels(lake, labels)
    whole = read_labelled(lake, "delay", versions=["1"])
    whole = whole.slice(max(0, len(whole) - scored))
    predictions, found = join.labelled("delay", "1")
    assert predictions.tolist() == whole.column("prediction.p").to_pylist()
    assert found.tolist() == whole.column("label").to_pylist()
    expected = scores(np.array(whole.column("prediction.p")), np.array(whole.column("label")))
    assert scores(predictions, found) == expected


def test_a_label_that_comes_first_waits_for_its_prediction(events: Events) -> None:
    join = LabelJoin()
    joined = join.add_labels(labels_for(["r/0", "r/1"], [1.0, 0.0]))

    assert joined.unmatched == {"delay": ["r/0", "r/1"]}
    assert join.waiting_ids("delay") == ["r/0", "r/1"]

    join.add_predictions(table(events(1)))

    assert join.labelled("delay", "1")[1].tolist() == [1.0]
    assert join.waiting_ids("delay") == ["r/1"]


def test_a_shadow_that_answered_the_same_request_is_scored_too(events: Events) -> None:
    join = LabelJoin()
    join.add_predictions(table(events(5, version="1")))
    join.add_labels(labels_for([f"r/{i}" for i in range(5)], [1.0] * 5))
    join.add_predictions(table(events(5, version="2", seed=9)))

    assert len(join.labelled("delay", "1")[1]) == 5
    assert len(join.labelled("delay", "2")[1]) == 5


def test_a_failed_prediction_is_not_scored(events: Events) -> None:
    rows = table(events(4))
    failed = rows.set_column(
        rows.schema.get_field_index("prediction.p"), "prediction.p", pa.array([0.1, None, float("nan"), 0.9])
    )
    join = LabelJoin()
    join.add_predictions(failed)
    joined = join.add_labels(labels_for([f"r/{i}" for i in range(4)], [0.0, 1.0, 1.0, 1.0]))

    assert joined.matched == {"delay": 4}
    assert join.labelled("delay", "1")[0].tolist() == [0.1, 0.9]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_an_id_that_comes_twice_has_its_first_answer_and_its_last_label_in_any_order(
    events: Events, order: tuple[int, ...]
) -> None:
    def answered(prediction: float | None, seconds: float) -> pa.Table:
        rows = table(events(2, time_s=T0 + seconds))
        place = rows.schema.get_field_index("prediction.p")
        return rows.set_column(place, "prediction.p", pa.array([prediction, 0.75], pa.float64()))

    windows = LabelledWindows()
    join = LabelJoin(windows=windows)
    # The first request failed and was sent again; the second's label was taken back by one that is no number.
    parts = [
        lambda: join.add_predictions(answered(None, 0)),
        lambda: join.add_predictions(answered(0.25, 1)),
        lambda: join.add_labels(labels_for(["r/0", "r/1"], [1.0, 1.0])),
        lambda: join.add_labels(labels_for(["r/1"], [math.nan], [T0 + 90])),
    ]
    for position in order:
        parts[position]()

    assert join.labelled("delay", "1")[0].tolist() == []
    assert windows.merged(windows.windows("delay", "1")).rows == 0


def test_predictions_at_one_time_are_told_apart_in_any_order(events: Events) -> None:
    found = []
    for seeds in ((1, 2), (2, 1)):
        join = LabelJoin()
        for seed in seeds:
            join.add_predictions(table(events(20, seed=seed)))
        join.add_labels(labels_for([f"r/{i}" for i in range(20)], [1.0] * 20))
        found.append(join.labelled("delay", "1")[0].tolist())

    assert found[0] == found[1]


def test_numbers_beyond_every_score_spoil_no_other(events: Events) -> None:
    rows = table(events(3))
    place = rows.schema.get_field_index("prediction.p")
    windows = LabelledWindows()
    join = LabelJoin(windows=windows)
    join.add_predictions(rows.set_column(place, "prediction.p", pa.array([1e80, 0.5, 0.25])))
    join.add_labels(labels_for(["r/0", "r/1", "r/2"], [1.0, -1e90, 1.0]))

    assert join.labelled("delay", "1")[0].tolist() == [0.25]
    assert windows.merged(windows.windows("delay", "1")).rows == 1


def test_memory_is_bounded(events: Events) -> None:
    join = LabelJoin(JoinSettings(scored_rows=10, remembered_rows=50, waiting_labels=40))
    for i in range(10):
        join.add_predictions(table(events(30, prefix=f"b{i}", time_s=T0 + i)))
        join.add_labels(labels_for([f"b{i}/{j}" for j in range(30)], [1.0] * 30))
        join.add_labels(labels_for([f"unknown{i}/{j}" for j in range(30)], [1.0] * 30))

    (state,) = join._versions.values()
    assert len(state.predictions) == 50
    assert len(state.labelled) <= 30
    assert len(join._waiting["delay"]) == 40
    assert len(join.labelled("delay", "1")[0]) == 10


def test_labels_that_are_taken_back_leave_the_place_to_rows_before_with_their_latest_labels(events: Events) -> None:
    """A row that memory had let go of came back with an older label, or not at all."""
    join = LabelJoin(JoinSettings(scored_rows=4))
    ids = [f"e/{place}" for place in range(40)]
    join.add_predictions(table(events(40, prefix="e", time_s=T0 + np.arange(40.0))))
    join.add_labels(labels_for(ids, [1.0] * 40, [T0 + 100] * 40))

    join.add_labels(labels_for(ids, [7.0] * 40, [T0 + 50] * 40))
    join.add_labels(labels_for(ids[-4:], [math.nan] * 4, [T0 + 200] * 4))

    assert join.labelled("delay", "1")[1].tolist() == [1.0] * 4


def test_events_without_numeric_predictions_have_none() -> None:
    assert predictions_of(pa.table({"id": ["a"], "prediction.word": ["x"]})) is None


def test_bounds_without_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        JoinSettings(scored_rows=0)
