"""What a pane is worth as evidence: nothing where a column cannot be judged, and a changed missing share as such."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from collectors.alarms import Step, VersionAlarms, cause_of, step_of
from collectors.drift import ColumnDrift, DriftThresholds, judge
from collectors.drift.calibration import Calibration
from collectors.drift.detector import DetectorSettings, EDetector
from collectors.evidence import Evidence
from collectors.history import Against, History
from collectors.windows import Pane
from observability.profile import Profile

T0, WINDOW = 1_363_000_000.0, 10.0
LIMITS = DriftThresholds(min_rows=50)
RNG = np.random.default_rng(11)


def step(number: int, *evalues: float | None) -> Step:
    quiet = tuple(None if value is None else value < 2 for value in evalues)
    return Step(T0 + WINDOW * number, T0 + WINDOW * (number + 1), evalues, quiet)


def some(rows: int, missing: float, rng: np.random.Generator = RNG) -> dict[str, np.ndarray]:
    x = rng.normal(size=rows)
    x[rng.random(rows) < missing] = np.nan
    return {"x": x, "y": rng.normal(size=rows)}


REFERENCE = Profile.of(some(20_000, 0.0))


def verdicts(values: dict[str, np.ndarray]) -> dict[str, ColumnDrift]:
    return judge(REFERENCE, REFERENCE.empty().updated(values), LIMITS)


def test_a_column_that_is_never_judged_never_alarms() -> None:
    alarms = VersionAlarms(("a", "b"), 1e-2, 60)
    for number in range(5_000):
        assert alarms.put(step(number, None, 0.5)) == []
    assert alarms.active() == []
    assert alarms.evidence < 1.1


def test_panes_without_a_verdict_leave_the_sum_and_its_beginning_as_they_were() -> None:
    judged = [0.5, 0.7, 6.0, 6.0]
    with_gaps, without = EDetector(2, DetectorSettings(kind="evalue")), EDetector(2, DetectorSettings(kind="evalue"))
    without.update([[value, 1.0] for value in judged])
    for value in judged:
        with_gaps.update([[value, 1.0], *[[np.nan, 1.0]] * 700])

    assert with_gaps.evidence[0] == pytest.approx(without.evidence[0], rel=1e-9)
    alarms = VersionAlarms(("a",), 1e-2, 60)
    for number, value in enumerate([0.5, None, None, 15.0, None, 15.0]):
        raised = alarms.put(step(number, value))
    assert [found.since for found in raised] == [T0 + 3 * WINDOW]


def test_a_stored_step_that_could_not_be_judged_comes_back() -> None:
    alarms = VersionAlarms(("a", "b"), 1e-2, 1e9)
    for number in range(16):
        alarms.put(step(number, 3.0 if number % 4 == 0 else None, 0.6))
    again = VersionAlarms.from_json(alarms.to_json(), 1e9)

    assert again.evidence == alarms.evidence > 1
    assert again.to_json() == alarms.to_json()


def test_the_same_rows_are_no_evidence_and_too_few_say_nothing() -> None:
    found = step_of(0, 1, ("x", "y"), verdicts(some(500, 0.0)), LIMITS)
    nothing = step_of(0, 1, ("x", "y", "z"), verdicts(some(20, 0.0)), LIMITS)

    assert all(value is not None and value < 3 for value in found.evalues)
    assert nothing.evalues == nothing.quiet == (None, None, None)


@pytest.mark.parametrize("missing", [0.4, 1.0])
def test_a_changed_missing_share_is_evidence_of_its_own(missing: float) -> None:
    found = verdicts(some(300, missing))
    evidence = step_of(0, 1, ("x", "y"), found, LIMITS)

    assert evidence.evalues[0] is not None
    assert evidence.evalues[0] > 1e6
    assert evidence.quiet[0] is False
    assert cause_of(found["x"], LIMITS) == "missing"
    assert cause_of(found["y"], LIMITS) == "values"


def test_a_missing_share_that_moves_less_than_matters_is_none() -> None:
    found = verdicts(some(20_000, 0.02))
    assert found["x"].missing_p_value < 1e-6
    evidence = step_of(0, 1, ("x",), {"x": replace(found["x"], p_value=1.0)}, LIMITS)

    assert evidence.evalues == (pytest.approx(0.5, abs=1e-6),)


def test_missing_shares_that_stay_raise_no_alarm() -> None:
    """A share of 30 % that only chance moves: its e-values have a mean of at most 1."""
    rng = np.random.default_rng(3)
    reference = Profile.of(some(50_000, 0.3, rng))
    values = []
    for _ in range(300):
        window = reference.empty().updated(some(200, 0.3, rng))
        values.append(step_of(0, 1, ("x",), judge(reference, window, LIMITS), LIMITS).evalues[0])

    assert np.mean(np.array(values, np.float64)) < 1.2


def test_an_alarm_of_missing_values_says_so() -> None:
    against, history = Against(REFERENCE, None, LIMITS), History(WINDOW, 1, 100)
    evidence, rng = Evidence(1000.0, 60.0), np.random.default_rng(5)
    for number in range(16):
        profile = REFERENCE.empty().updated(some(120, 0.4 if number >= 10 else 0.0, rng))
        start = T0 + WINDOW * number
        pane = Pane("m", "1", start, start + WINDOW, rows=120, profile=profile)
        history.put(pane)
        evidence.put(pane, against, history)
    _, raised = evidence.standing(("m", "1"))

    assert [found.column for found in raised] == ["x"]
    assert raised[0].since == T0 + 10 * WINDOW
    explained = raised[0].explanation
    assert explained["cause"] == "missing"
    assert explained["missing"]["reference"] == 0
    assert explained["missing"]["now"] == pytest.approx(0.4, abs=0.15)
    assert explained["missing"]["p_value"] < 1e-6


def test_single_panes_are_judged_by_what_single_panes_differ_by() -> None:
    """Days that each have an offset of their own: without knowing so, every day would alarm."""
    rng = np.random.default_rng(9)

    def day(shift: float = 0.0) -> dict[str, np.ndarray]:
        return {"x": rng.normal(0, 0.4) + shift + rng.normal(size=300), "y": rng.normal(size=300)}

    days = [day() for _ in range(40)]
    reference = Profile.of({name: np.concatenate([one[name] for one in days]) for name in ("x", "y")})
    empty = reference.empty()
    daily = Calibration.of([empty.updated(one) for one in days])

    def standing_after(live: list[dict[str, np.ndarray]], calibration: Calibration | None) -> list[str]:
        against, history = Against(reference, None, LIMITS, calibration), History(WINDOW, 8, 100)
        evidence = Evidence(1000.0, 60.0)
        for number, values in enumerate(live):
            start = T0 + WINDOW * number
            pane = Pane("m", "1", start, start + WINDOW, rows=300, profile=empty.updated(values))
            history.put(pane)
            evidence.put(pane, against, history)
        return [raised.column for raised in evidence.standing(("m", "1"))[1]]

    same, warmer = [day() for _ in range(30)], [day(1.5) for _ in range(15)]
    assert standing_after(same, None) == ["x"]
    assert standing_after(same, daily) == []
    assert standing_after(warmer, daily) == ["x"]


def test_an_alarm_that_amended_panes_find_earlier_or_later_keeps_what_it_was_about() -> None:
    alarms = VersionAlarms(("a",), 1e-2, 600.0)
    for number, value in enumerate([0.5, 0.5, 8.0, 150.0]):
        for raised in alarms.put(step(number, value)):
            alarms.explain(raised, {"score": 0.4})
    (found,) = alarms.active()

    alarms.put(step(2, 500.0))

    (moved,) = alarms.active()
    assert moved.at < found.at
    assert moved.explanation == {"score": 0.4}
    assert VersionAlarms.from_json(alarms.to_json(), 600.0).active()[0].explanation == {"score": 0.4}
