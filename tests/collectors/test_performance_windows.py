"""Scores by window: any order, repetition and correction of labels, and a restart, against one pass over the rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.performance import LabelJoin
from collectors.scores import LabelledRow, LabelledWindow, LabelledWindows, Scored
from observability.events import label_batch

Events = Callable[..., pa.RecordBatch]
SECOND = 1_000_000_000

values = st.one_of(st.floats(0, 1), st.floats(-1e3, 1e3), st.sampled_from([0.0, 0.5, 1.0]))
deliveries = st.lists(
    st.tuples(
        st.integers(0, 15),  # id
        st.integers(0, 5 * 60) | st.integers(0, 3),  # prediction time, s
        values,
        st.sampled_from([0.0, 1.0, 0.0, 1.0, 2.5]),
        st.integers(0, 9),  # label time, s
    ),
    max_size=60,
)


def put(windows: LabelledWindows, rows: list[tuple[int, int, float, float, int]]) -> None:
    for id_, time, prediction, label, label_time in rows:
        windows.put("m", "1", [str(id_)], [LabelledRow(time * SECOND, prediction, label, label_time * SECOND)])


def batch(rows: list[tuple[int, int, float, float, int]]) -> dict[float, Scored]:
    """The earliest prediction and the latest label of each id, in one pass, by window of a minute."""
    ids = {row[0] for row in rows}
    found: dict[float, list[tuple[float, float]]] = {}
    for id_ in ids:
        mine = [row for row in rows if row[0] == id_]
        time, prediction = min((row[1], row[2]) for row in mine)
        _, label = max((row[4], row[3]) for row in mine)
        found.setdefault(time // 60 * 60.0, []).append((prediction, label))
    return {start: Scored.of(*np.array(pairs, np.float64).T) for start, pairs in found.items()}


def content(windows: LabelledWindows) -> dict[float, Scored]:
    return {window.start: windows.scored(window) for window in windows.windows("m", "1")}


@given(deliveries, st.randoms(use_true_random=False))
def test_windows_equal_one_pass_whatever_the_order_and_repetition(
    rows: list[tuple[int, int, float, float, int]], random: object
) -> None:
    windows = LabelledWindows()
    shuffled = rows + rows[: len(rows) // 2]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    half = len(shuffled) // 2
    put(windows, shuffled[:half])
    content(windows)  # what was read before has no part in what comes
    put(windows, shuffled[half:])

    assert content(windows) == batch(rows)


@settings(max_examples=60)
@given(deliveries, st.integers(1, 8), st.randoms(use_true_random=False))
def test_rows_for_forgotten_windows_are_never_lost_nor_counted_twice(
    rows: list[tuple[int, int, float, float, int]], kept_rows: int, random: object
) -> None:
    rows = [(id_, id_ * 20, prediction, label, when) for id_, _, prediction, label, when in rows]
    windows = LabelledWindows(kept_rows=kept_rows)
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    truth: list[tuple[int, int, float, float, int]] = []
    for row in shuffled:
        put(windows, [row])
        truth.append(row)
        for window in windows.take_stale():
            windows.replace(window, batch(truth)[window.start])

    assert content(windows) == batch(rows)
    assert len(windows._versions["m", "1"].rows if rows else ()) <= max(kept_rows, 3)  # a window holds three ids


@given(deliveries, deliveries)
def test_a_restart_goes_on_where_it_was(
    before: list[tuple[int, int, float, float, int]], after: list[tuple[int, int, float, float, int]]
) -> None:
    before = [(id_, id_ * 20, prediction, label, when) for id_, _, prediction, label, when in before]
    after = [(id_, id_ * 20, prediction, label, when) for id_, _, prediction, label, when in after]
    first = LabelledWindows()
    put(first, before)
    stored = [(window, first.scored(window).to_json()) for window in first.windows("m", "1")]

    second = LabelledWindows()
    for window, body in stored:
        second.replace(window, Scored.from_json(body))
    put(second, after)
    for window in second.take_stale():
        second.replace(window, batch(before + after)[window.start])

    assert content(second) == batch(before + after)


def test_only_what_changed_is_told() -> None:
    windows = LabelledWindows(window_seconds=10)
    put(windows, [(1, 5, 0.2, 0.0, 1), (2, 25, 0.9, 1.0, 1)])
    assert windows.take_changed() == [LabelledWindow("m", "1", 0.0), LabelledWindow("m", "1", 20.0)]

    put(windows, [(1, 5, 0.2, 0.0, 1)])
    assert windows.take_changed() == []

    put(windows, [(1, 5, 0.2, 1.0, 2)])
    assert windows.take_changed() == [LabelledWindow("m", "1", 0.0)]
    assert windows.scored(LabelledWindow("m", "1", 0.0)) == Scored.of(np.array([0.2]), np.array([1.0]))


def test_values_that_no_score_can_hold_are_left_out() -> None:
    windows = LabelledWindows()
    put(
        windows, [(1, 5, float("nan"), 0.0, 1), (2, 5, 0.5, float("inf"), 1), (3, 5, 1e80, 1.0, 1), (4, 5, 0.5, 1.0, 1)]
    )

    assert windows.merged(windows.windows("m", "1")).rows == 1


def test_the_join_feeds_the_windows_of_every_version(events_of: Events) -> None:
    windows = LabelledWindows(window_seconds=60)
    join = LabelJoin(windows=windows)
    times = 1_363_000_020.0 + np.arange(200.0)
    for version in ("1", "2"):
        join.add_predictions(pa.Table.from_batches([events_of(200, version=version, time_s=times)]))
    ids = [f"r/{i}" for i in range(200)]
    labels = np.arange(200) % 2
    for chosen in (slice(100, 200), slice(0, 150), slice(0, 200)):
        rows = label_batch(
            ids[chosen], "delay", labels[chosen].astype(float).tolist(), [round(times[-1]) * SECOND] * len(ids[chosen])
        )
        join.add_labels(pa.Table.from_batches([rows]))

    assert windows.keys() == [("delay", "1"), ("delay", "2")]
    for version in ("1", "2"):
        known = windows.windows("delay", version)
        assert [windows.scored(window).rows for window in known] == [60, 60, 60, 20]
        whole = windows.merged(known)
        assert whole == Scored.of(*join.labelled("delay", version))


def test_sizes_without_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        LabelledWindows(kept_rows=0)
