"""Training–serving skew: of a version's first judged window, whatever comes after it, and a restart."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pyarrow as pa

from collectors.measure import SKEW, Measures
from collectors.measure_settings import MeasureSettings
from collectors.references import Reference, Standing
from collectors.signals import Signals
from collectors.windows import Pane, WindowSettings
from observability import names
from observability.events import event_batch
from observability.profile import Profile

T0, SECONDS, ROWS = 1_700_000_000.0, 10.0, 600
KEY = ("kauf", "7")


class Kept:
    """What would be in the database."""

    def __init__(self) -> None:
        self.panes: dict[float, Pane] = {}
        self.states: dict[tuple[str, str, str], bytes] = {}
        self.last: Standing | None = None

    def __call__(self, standing: Standing) -> Future[None]:
        self.panes.update({pane.start: pane for pane in standing.panes})
        self.states.update(standing.states)
        self.last = standing
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def standing(self) -> Standing:
        assert self.last is not None
        return Standing(self.last.position, self.last.times, states=self.states)


class Clock:
    def __init__(self) -> None:
        self.now = T0

    def __call__(self) -> float:
        return self.now


def rows(window: int, count: int = ROWS, shift: float = 0.0, columns: Sequence[str] = ("größe", "b")) -> pa.Table:
    generator = np.random.default_rng(window)
    values = {"größe": generator.normal(shift, 1, count), "b": generator.exponential(1, count)}
    batch = event_batch(
        ids=[f"{window}/{row}" for row in range(count)],
        time_ns=np.full(count, round((T0 + SECONDS * window + 5) * 1e9)),
        model=KEY[0],
        version=KEY[1],
        features={name: values[name] for name in columns},
        predictions={},
    )
    return pa.Table.from_batches([batch])


def reference(shift: float = 0.0) -> Reference:
    generator = np.random.default_rng(99)
    columns = {"feature.größe": generator.normal(shift, 1, 5_000), "feature.b": generator.exponential(1, 5_000)}
    return Reference(Profile.of(pa.table(columns)))


def made(kept: Kept, clock: Clock, **settings: Any) -> Measures:
    windows = WindowSettings(window_seconds=SECONDS, allowed_lateness_seconds=0.0)
    measures = Measures(MeasureSettings(windows=windows, **settings), Signals(), clock, kept)
    measures.set_reference(*KEY, reference())
    return measures


def take_in(measures: Measures, clock: Clock, table: pa.Table, window: int) -> None:
    clock.now = T0 + SECONDS * window + 6
    measures.apply("events", table)
    measures.tick()


def ratio(measures: Measures) -> float | None:
    found = measures.first_window(*KEY)
    return None if found is None else found.ratio


def test_the_first_window_stays_the_first_after_a_restart_that_has_only_later_ones() -> None:
    kept, clock = Kept(), Clock()
    measures = made(kept, clock, history_windows=3)
    for window in range(8):
        take_in(measures, clock, rows(window, shift=0.0 if window < 2 else 2.0), window)
    again = made(kept, clock, history_windows=3)
    latest = sorted(kept.panes.values(), key=lambda pane: pane.end)[-3:]
    again.restore(latest, kept.standing(), clock.now)
    take_in(again, clock, rows(9, shift=2.0), 9)
    take_in(again, clock, rows(10, shift=2.0), 10)

    published = again._signals.published()["pane", *KEY]
    assert ratio(measures) == 0.0
    assert again.first_window(*KEY) == measures.first_window(*KEY)
    assert [value.value for value in published if value.metric is names.TRAINING_SERVING_SKEW] == [0.0]


def test_a_database_that_tells_of_no_first_window_has_it_in_the_windows_that_it_keeps() -> None:
    kept, clock = Kept(), Clock()
    measures = made(kept, clock)
    for window in range(3):
        take_in(measures, clock, rows(window, shift=2.0), window)
    for state in ({}, {(SKEW, *KEY): b"{"}):
        again = made(Kept(), clock)
        last = kept.standing()
        again.restore(list(kept.panes.values()), Standing(last.position, last.times, states=state), clock.now)
        assert ratio(again) == 0.5
        assert again.first_window(*KEY) == measures.first_window(*KEY)


def test_rows_that_come_late_amend_it() -> None:
    kept, clock = Kept(), Clock()
    measures = made(kept, clock)
    take_in(measures, clock, rows(2), 2)
    take_in(measures, clock, rows(3), 3)
    take_in(measures, clock, rows(4), 4)
    assert ratio(measures) == 0.0
    measures.apply("events", rows(2, count=4 * ROWS, shift=3.0))
    clock.now += 5
    measures.tick()

    found = measures.first_window(*KEY)
    assert found is not None
    assert (found.start, found.rows, found.ratio) == (T0 + 2 * SECONDS, 5 * ROWS, 0.5)


def test_an_earlier_window_that_comes_late_is_the_first() -> None:
    clock = Clock()
    measures = made(Kept(), clock)
    take_in(measures, clock, rows(5), 5)
    take_in(measures, clock, rows(6), 6)
    measures.apply("events", rows(3, shift=3.0))
    clock.now += 5
    measures.tick()

    found = measures.first_window(*KEY)
    assert found is not None
    assert (found.start, found.ratio) == (T0 + 3 * SECONDS, 0.5)


def test_another_reference_is_compared_anew_and_the_same_one_is_not() -> None:
    kept, clock = Kept(), Clock()
    measures = made(kept, clock)
    for window in range(3):
        take_in(measures, clock, rows(window), window)
    first = measures.first_window(*KEY)
    measures.set_reference(*KEY, reference())
    assert measures.first_window(*KEY) is first
    measures.set_reference(*KEY, reference(shift=3.0))
    assert ratio(measures) is None
    for window in (3, 4):
        take_in(measures, clock, rows(window), window)
    assert ratio(measures) == 0.5

    again = made(Kept(), clock)
    again.set_reference(*KEY, reference(shift=-3.0))
    again.restore([], kept.standing(), clock.now)
    assert ratio(again) is None


def test_a_column_that_serving_never_sends_is_skewed() -> None:
    clock = Clock()
    measures = made(Kept(), clock)
    for window in range(2):
        take_in(measures, clock, rows(window, columns=("größe",)), window)

    found = measures.first_window(*KEY)
    assert found is not None
    body = found.to_json("7")
    assert found.ratio == 0.5
    assert list(body["columns"]) == ["feature.b", "feature.größe"]
    assert body["columns"]["feature.b"]["differs"]
    assert body["columns"]["feature.b"]["missing_ratio"] == 1.0


def test_nothing_is_said_of_a_version_without_a_reference_or_of_too_few_rows() -> None:
    clock = Clock()
    measures = made(Kept(), clock)
    take_in(measures, clock, rows(0, count=40), 0)
    stranger = rows(1).set_column(3, "version", pa.array(["8"] * ROWS))
    take_in(measures, clock, stranger, 1)
    take_in(measures, clock, rows(2, count=40), 2)
    # Of these one column is missing beyond doubt, and of the other nothing is known.
    take_in(measures, clock, rows(3, count=80, columns=("größe",)), 3)
    take_in(measures, clock, rows(4, count=40), 4)

    assert ratio(measures) is None
    assert measures.first_window("kauf", "8") is None
