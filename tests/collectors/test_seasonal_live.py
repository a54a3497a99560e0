"""A reference by hour of the week: windows are judged against their own hours."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from collectors.drift import DriftThresholds
from collectors.drift.seasonal import HOUR_NS, SeasonalReference
from collectors.evidence import Evidence
from collectors.history import Against, History, JudgedWindow
from collectors.panes import Pane
from collectors.references import Reference
from observability.columns import ProfileError
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
