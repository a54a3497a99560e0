"""A reference by hour of the week: windows are judged against their own hours."""

from __future__ import annotations

import json
from concurrent.futures import Future

import numpy as np
import pyarrow as pa
import pytest

from collectors.drift import DriftThresholds
from collectors.drift.seasonal import HOUR_NS, SeasonalReference
from collectors.evidence import Evidence
from collectors.history import Against, History, JudgedWindow
from collectors.measure import Measures
from collectors.measure_settings import MeasureSettings
from collectors.panes import Pane
from collectors.references import Reference
from collectors.signals import Signals
from collectors.windows import WindowSettings
from observability import names
from observability.columns import ProfileError
from observability.events import event_batch
from observability.profile import Profile

ROWS, HOURS = 600, 24 * 7 * 3


def hour(number: int, random: np.random.Generator, shift: float = 0.0) -> np.ndarray:
    """A mean that swings by one deviation with the day, and is another on Saturdays and Sundays."""
    mean = np.cos(2 * np.pi * number / 24) + 0.5 * ((number // 24) % 7 >= 5)
    return random.normal(mean + shift, 1.0, ROWS)


@pytest.fixture(scope="module")
def reference() -> Reference:
    """As it is registered: a profile's JSON with the hours beside it."""
    random = np.random.default_rng(0)
    rows = np.concatenate([hour(number, random) for number in range(HOURS)])
    table = pa.table({"feature.x": rows, "time": np.repeat(np.arange(HOURS) * HOUR_NS, ROWS)})
    seasonal = SeasonalReference.of(table, "time")
    body = json.loads(seasonal.whole.to_json()) | {"seasonal": json.loads(seasonal.to_json())}
    return Reference.from_json(json.dumps(body).encode())


def drifted(reference: Reference, seasonal: SeasonalReference | None, shift: float) -> float:
    random = np.random.default_rng(1)
    against = Against(reference.profile, None, DriftThresholds(), None, seasonal)
    found = []
    for number in range(HOURS, HOURS + 168, 4):
        pane = Pane("m", "1", number * 3600.0, (number + 1) * 3600.0)
        pane.profile = reference.profile.empty().updated({"feature.x": hour(number, random, shift)})
        found.append(JudgedWindow([pane]).verdicts(against)["feature.x"].drifted)
    return float(np.mean(found))


def test_seasons_raise_no_drift_and_hide_none(reference: Reference) -> None:
    assert reference.seasonal is not None
    assert drifted(reference, None, 0.0) > 0.5
    assert drifted(reference, reference.seasonal, 0.0) == 0.0
    assert drifted(reference, reference.seasonal, 0.75) > 0.95


def test_hours_of_another_layout_are_refused(reference: Reference) -> None:
    other = Profile.of({"feature.x": np.arange(100.0)})
    assert reference.seasonal is not None
    body = json.loads(other.to_json()) | {"seasonal": json.loads(reference.seasonal.to_json())}
    with pytest.raises(ProfileError, match="other bins"):
        Reference.from_json(json.dumps(body).encode())


def test_an_alarm_shows_the_reference_in_the_hours_that_were_compared(reference: Reference) -> None:
    """The whole's mean is none of its hours', so that beside it every window looked changed by its season."""
    random = np.random.default_rng(2)
    against = Against(reference.profile, None, DriftThresholds(), None, reference.seasonal)
    evidence, history = Evidence(1000.0, 0.0), History(3600.0, 1, 500)
    for number in range(HOURS, HOURS + 3):
        pane = Pane("m", "1", number * 3600.0, (number + 1) * 3600.0)
        pane.profile = reference.profile.empty().updated({"feature.x": hour(number, random, 1.0)})
        pane.rows = ROWS
        history.put(pane)
        evidence.put(pane, against, history)

    _, (raised,) = evidence.standing(("m", "1"))
    found = raised.explanation
    assert found["reference"]["rows"] == 3 * ROWS
    assert found["now"]["mean"] - found["reference"]["mean"] == pytest.approx(1.0, abs=0.2)


def wandering(random: np.random.Generator, hours: int) -> list[dict[str, np.ndarray]]:
    """Days that swing, and hours that remember the last one: no two weeks are alike."""
    off, found = random.normal(0, 0.15, 6), []
    for number in range(hours):
        off = 0.9 * off + random.normal(0, 0.15 * np.sqrt(1 - 0.9**2), 6)
        mean = np.cos(2 * np.pi * number / 24)
        found.append({f"feature.{i}": random.normal(mean + off[i], 1.0, 400) for i in range(6)})
    return found


def test_hours_that_differ_from_week_to_week_raise_no_alarm_and_hide_no_change() -> None:
    windows = wandering(np.random.default_rng(7), HOURS + 150)
    rows = {name: np.concatenate([window[name] for window in windows[:HOURS]]) for name in windows[0]}
    table = pa.table(rows | {"time": np.repeat(np.arange(HOURS) * HOUR_NS, 400)})
    seasonal = SeasonalReference.from_json(SeasonalReference.of(table, "time").usable().to_json())
    against = Against(seasonal.whole, None, DriftThresholds(), None, seasonal)
    evidence, history = Evidence(1000.0, 0.0), History(3600.0, 1, 500)
    differing, standing = 0, []
    for number, window in enumerate(windows[HOURS:], HOURS):
        pane = Pane("m", "1", number * 3600.0, (number + 1) * 3600.0)
        moved = number >= HOURS + 120
        pane.profile = seasonal.whole.empty().updated({name: values + moved for name, values in window.items()})
        pane.rows = 400
        history.put(pane)
        evidence.put(pane, against, history)
        if not moved:
            verdicts = JudgedWindow([pane]).verdicts(against).values()
            differing += any(verdict.score >= verdict.threshold for verdict in verdicts)
        standing.append(len(evidence.standing(("m", "1"))[1]))

    assert seasonal.between is not None
    assert differing <= 6
    assert max(standing[:120]) == 0
    assert standing[-1] == 6


def test_what_an_hour_differs_by_lasts_for_the_minutes_in_it_and_evens_out_over_days() -> None:
    windows = wandering(np.random.default_rng(8), HOURS)
    rows = {name: np.concatenate([window[name] for window in windows]) for name in windows[0]}
    seasonal = SeasonalReference.of(pa.table(rows | {"time": np.repeat(np.arange(HOURS) * HOUR_NS, 400)}), "time")
    minute, hour_long, days = (seasonal.differing(0, length) for length in (HOUR_NS // 60, HOUR_NS, 96 * HOUR_NS))

    assert minute is not None
    assert hour_long is not None
    assert days is not None
    for name, one in hour_long.columns.items():
        assert minute.columns[name].mean == one.mean
        assert minute.columns[name].memory == pytest.approx(60 * one.memory)
        assert days.columns[name].mean == pytest.approx(one.mean * one.memory / 96)
        assert days.columns[name].memory == 1.0


def constants(reference: Reference, column: str, start_hour: int) -> list[float]:
    """What is said of two windows whose values are all alike."""
    signals, now = Signals(), (start_hour + 2) * 3600.0
    windows = WindowSettings(window_seconds=3600.0, allowed_lateness_seconds=0.0)
    measures = Measures(MeasureSettings(windows=windows), signals, lambda: now, lambda _: Future())
    measures.set_reference("m", "1", reference)
    for hour_of in (start_hour, start_hour + 1):
        times = np.full(ROWS, (hour_of * 3600 + 1800) * 10**9)
        ids = [f"{hour_of}/{row}" for row in range(ROWS)]
        value = np.full(ROWS, float((start_hour // 24) % 7))
        batch = event_batch(ids=ids, time_ns=times, model="m", version="1", features={column: value}, predictions={})
        measures.apply("events", pa.Table.from_batches([batch]))
    measures.tick()
    values = signals.published()["pane", "m", "1"]
    return [value.value for value in values if value.metric is names.QUALITY_CONSTANT]


def test_a_weekday_is_no_constant_column_on_its_day() -> None:
    days = np.repeat((np.arange(HOURS) // 24) % 7, ROWS).astype(float)
    table = pa.table({"feature.day": days, "time": np.repeat(np.arange(HOURS) * HOUR_NS, ROWS)})
    seasonal = SeasonalReference.of(table, "time")
    assert constants(Reference(seasonal.whole, seasonal=seasonal), "day", HOURS + 30) == [0.0]
    assert constants(Reference(seasonal.whole), "day", HOURS + 30) == [1.0]
