"""Windows by event time: which rows fall where, when they close, and that the order of arrival does not matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.windows import Pane, Slicing, Windows, WindowSettings, latency_counts, merge_panes
from observability.profile import Profile

T0 = 1_363_000_000.0
SETTINGS = WindowSettings(window_seconds=10, allowed_lateness_seconds=5, quiet_seconds=5)
Events = Callable[..., pa.RecordBatch]


def table(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch])


def content(panes: list[Pane]) -> list[tuple[object, ...]]:
    return [
        (
            pane.model,
            pane.version,
            pane.start,
            pane.rows,
            sorted(pane.outcomes.items()),
            pane.latencies.tolist(),
            [column.counts.tolist() for column in pane.profile.columns.values()] if pane.profile else None,
        )
        for pane in panes
    ]


def test_rows_fall_into_the_window_of_their_event_time(events: Events) -> None:
    windows = Windows(SETTINGS)
    windows.add(table(events(4, time_s=[T0, T0 + 9.999, T0 + 10, T0 + 31])), now=T0 + 31)

    closed = windows.advance(T0 + 31)

    assert [(pane.start - T0, pane.rows) for pane in closed] == [(0, 2), (10, 1)]
    assert [(pane.start - T0, pane.rows) for pane in windows.open_panes()] == [(30, 1)]


def test_a_row_behind_the_watermark_amends_its_closed_window(events: Events) -> None:
    windows = Windows(SETTINGS)
    windows.add(table(events(1, time_s=T0 + 20)), now=T0 + 20)
    windows.add(table(events(5, time_s=T0 + 3)), now=T0 + 20)
    (first,) = windows.advance(T0 + 20)

    added = windows.add(table(events(2, time_s=[T0 + 3, T0 + 12])), now=T0 + 20)

    assert added.amended == {("delay", "1"): 1}
    assert added.measured == {("delay", "1"): 2}
    assert not added.late
    (again,) = windows.amended()
    assert (again.start, again.rows, again.revision) == (T0, 6, 1)
    assert first.rows == 5
    assert windows.amended() == []


def test_a_window_of_which_nothing_was_known_is_amended_too(events: Events) -> None:
    windows = Windows(SETTINGS)
    windows.add(table(events(1, time_s=T0 + 40)), now=T0 + 40)
    windows.advance(T0 + 40)
    windows.add(table(events(3, time_s=T0 + 3, version="2")), now=T0 + 40)

    (amended,) = windows.amended()

    assert (amended.version, amended.start, amended.end, amended.rows) == ("2", T0, T0 + 10, 3)


def test_a_row_behind_the_horizon_is_late_and_not_measured(events: Events) -> None:
    windows = Windows(replace(SETTINGS, amend_seconds=20))
    windows.add(table(events(1, time_s=T0 + 45)), now=T0 + 45)
    windows.advance(T0 + 45)

    added = windows.add(table(events(3, time_s=[T0 + 19, T0 + 20, T0 + 39])), now=T0 + 45)

    assert added.late == {("delay", "1"): 1}
    assert added.amended == {("delay", "1"): 2}


def test_a_quiet_model_is_closed_by_the_wall_clock(events: Events) -> None:
    windows = Windows(SETTINGS)
    windows.add(table(events(3, time_s=T0 + 2)), now=T0 + 100)

    assert windows.advance(T0 + 117) == []
    assert [pane.rows for pane in windows.advance(T0 + 118.1)] == [3]


def test_a_clock_that_runs_ahead_does_not_close_everybodys_windows(events: Events) -> None:
    windows = Windows(SETTINGS)
    added = windows.add(table(events(2, time_s=[T0, T0 + 1e6])), now=T0)

    assert added.late == {("delay", "1"): 1}
    assert windows.watermark("delay", T0) == T0 - 5


def test_models_have_watermarks_of_their_own(events: Events) -> None:
    windows = Windows(SETTINGS)
    windows.add(table(events(1, time_s=T0)), now=T0)
    windows.add(table(events(1, time_s=T0 + 60, model="other")), now=T0)

    assert windows.advance(T0) == []
    assert windows.watermark("other", T0) == T0 + 55


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_order_within_the_lateness_gives_the_same_windows(data: st.DataObject) -> None:
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    times = np.sort(T0 + generator.random(300) * 60)
    reference = Profile.of(pa.table({"feature.x": generator.normal(size=500)}))
    rows = pa.table(
        {
            "time": pa.array((times * 1e9).astype(np.int64)).cast(pa.timestamp("ns", tz="UTC")),
            "model": ["m"] * 300,
            "version": generator.choice(["1", "2"], 300),
            "outcome": generator.choice(["ok", "model_error"], 300),
            "latency_seconds": generator.random(300),
            "feature.x": generator.normal(size=300),
        }
    )
    # Each row comes at most the lateness after its time, and so behind any row at most so much later.
    shuffled = np.argsort(times + generator.random(300) * SETTINGS.allowed_lateness_seconds)

    def closed(order: np.ndarray, batch_rows: int) -> list[tuple[object, ...]]:
        windows = Windows(SETTINGS)
        for version in ("1", "2"):
            windows.set_reference("m", version, reference)
        found: list[Pane] = []
        for start in range(0, 300, batch_rows):
            added = windows.add(rows.take(order[start : start + batch_rows]), now=T0)
            assert not added.late
            found += windows.advance(T0)
        return content(sorted(found + windows.advance(T0 + 1000), key=lambda pane: (pane.start, pane.version)))

    batch_rows = data.draw(st.sampled_from([1, 7, 300]))

    assert closed(shuffled, batch_rows) == closed(np.arange(300), 50)


def test_a_sliding_window_is_the_sum_of_its_panes(events: Events) -> None:
    rows = table(events(400, time_s=T0 + np.linspace(0, 19.9, 400)))
    reference = Profile.of(rows)
    windows = Windows(SETTINGS)
    windows.set_reference("delay", "1", reference)
    windows.add(rows, now=T0)

    both = merge_panes(windows.advance(T0 + 100))

    assert both.rows == 400
    assert (both.start, both.end) == (T0, T0 + 20)
    assert both.profile is not None
    for name, column in both.profile.columns.items():
        assert column.counts.tolist() == reference.columns[name].counts.tolist()
    assert both.latencies.tolist() == latency_counts(rows.column("latency_seconds")).tolist()


def test_a_pane_survives_json(events: Events) -> None:
    windows = Windows(SETTINGS)
    rows = table(events(50, outcome=["ok", "non_finite"] * 25))
    windows.set_reference("delay", "1", Profile.of(rows))
    windows.add(rows, now=T0)
    (pane,) = windows.advance(T0 + 100)

    again = Pane.from_json(pane.model, pane.version, pane.start, pane.end, pane.to_json())

    assert content([again]) == content([pane])
    assert again.faults() == 25


def test_a_column_of_another_type_spoils_no_other_column_and_no_other_batch(events: Events) -> None:
    rows = table(events(50))
    windows = Windows(SETTINGS)
    windows.set_reference("delay", "1", Profile.of(rows))
    text = rows.set_column(rows.schema.get_field_index("feature.x"), "feature.x", pa.array(["?"] * 50))
    # Whether text reads like numbers must not depend on which batches come together.
    numbers = rows.set_column(rows.schema.get_field_index("feature.x"), "feature.x", pa.array(["1.5"] * 50))
    for batch in (text, rows, numbers):
        windows.add(batch, now=T0)

    (pane,) = windows.advance(T0 + 100)

    assert pane.rows == 150
    assert pane.profile is not None
    found = {name: (column.count, column.missing) for name, column in pane.profile.columns.items()}
    assert found == {"feature.x": (50, 100), "feature.carrier": (150, 0), "prediction.p": (150, 0)}


def test_a_slice_column_of_vectors_loses_no_window(events: Events) -> None:
    rows = table(events(50))
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(100)), 2)
    windows = Windows(SETTINGS, Slicing(columns=("feature.carrier",)))
    windows.add(rows.set_column(rows.schema.get_field_index("feature.carrier"), "feature.carrier", vectors), now=T0)
    windows.add(table(events(30, model="other")), now=T0)

    panes = {pane.model: pane for pane in windows.advance(T0 + 100)}

    assert {model: pane.rows for model, pane in panes.items()} == {"delay": 50, "other": 30}
    assert {value: part.rows for value, part in panes["delay"].slices["feature.carrier"].items()} == {"missing": 50}


@pytest.mark.parametrize("known", [False, True])
def test_slices_do_not_depend_on_which_batches_come_together(events: Events, known: bool) -> None:
    with_, without = table(events(50)), table(events(20)).drop_columns(["feature.carrier"])
    found = []
    for apart in (False, True):
        windows = Windows(SETTINGS, Slicing(columns=("feature.carrier",), values=2))
        if known:
            windows.set_reference("delay", "1", Profile.of(with_))
        windows.add(with_, now=T0)
        if apart:
            windows.open_panes()[0].folded()
        windows.add(without, now=T0)
        (pane,) = windows.advance(T0 + 100)
        found.append({value: part.rows for value, part in pane.slices["feature.carrier"].items()})

    assert found[0] == found[1]
    assert sum(found[0].values()) == (70 if known else 50)


def test_many_values_of_a_slice_column_take_no_pane_each(events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table(events(3_000))
    # A text that is long and first must not make room for one as long for every other value.
    texts = pa.array(["a" * 1_000_000, *(f"v{row:05}" for row in range(2_999))])
    windows = Windows(SETTINGS, Slicing(columns=("feature.carrier",), values=2))
    made = []
    really = Pane.__init__

    def counted(self: Pane, *arguments: object) -> None:
        made.append(self)
        really(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Pane, "__init__", counted)
    windows.add(rows.set_column(rows.schema.get_field_index("feature.carrier"), "feature.carrier", texts), now=T0)

    (pane,) = windows.advance(T0 + 100)

    parts = pane.slices["feature.carrier"]
    assert {value[:6]: part.rows for value, part in parts.items()} == {"aaaaaa": 1, "v00000": 1, "other": 2_998}
    assert len(made) == 4


def test_a_new_reference_starts_the_open_windows_profile_anew(events: Events) -> None:
    rows = table(events(50))
    windows = Windows(SETTINGS)
    windows.set_reference("delay", "1", Profile.of(rows))
    windows.add(rows, now=T0)
    windows.set_reference("delay", "1", Profile.of(table(events(50, shift=5))))
    windows.add(rows, now=T0)

    (pane,) = windows.advance(T0 + 100)

    assert pane.rows == 100
    assert pane.profile is not None
    assert pane.profile.rows == 50


def test_settings_without_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="window_seconds"):
        WindowSettings(window_seconds=0)
