"""Evidence over windows: a reference's own error lasts, and blocks that remember each other are little evidence."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from collectors.drift import DriftThresholds
from collectors.drift.calibration import Calibration
from collectors.drift.lasting import lasting
from collectors.evidence import Evidence
from collectors.history import Against, History
from collectors.panes import Pane
from observability.profile import Profile

Rows = dict[str, NDArray[np.generic]]
KEY = ("m", "1")


def alarms(against: Against, windows: list[Rows]) -> list[float]:
    """When the first alarm of each column stood first, in windows."""
    evidence, history = Evidence(1000.0, 0.0), History(1.0, 1, len(windows))
    found: dict[str, float] = {}
    for number, rows in enumerate(windows):
        pane = Pane(*KEY, number, number + 1)
        pane.profile = against.profile.empty().updated(rows)
        pane.rows = len(next(iter(rows.values())))
        history.put(pane)
        evidence.put(pane, against, history)
        for raised in evidence.standing(KEY)[1]:
            found.setdefault(raised.column, raised.at)
    return sorted(found.values())


def rows_of(random: np.random.Generator, rows: int, shift: float = 0.0) -> Rows:
    numbers: Rows = {f"feature.{i}": random.normal(shift, 1, rows) for i in range(12)}
    texts: Rows = {f"feature.c{i}": random.choice(list("abcdef"), rows) for i in range(12)}
    return numbers | texts


@pytest.mark.parametrize("size", [1_000, 2_000])
def test_a_short_reference_raises_no_alarm_by_its_own_error(size: int) -> None:
    raised = []
    for seed in range(3):
        random = np.random.default_rng(seed)
        against = Against(Profile.of(rows_of(random, size)), None, DriftThresholds())
        raised += alarms(against, [rows_of(random, 1_000) for _ in range(60)])
    assert raised == []


def test_what_is_farther_off_than_that_is_found() -> None:
    random = np.random.default_rng(3)
    against = Against(Profile.of(rows_of(random, 1_000)), None, DriftThresholds())
    windows = [rows_of(random, 1_000, 0.3 * (number >= 10)) for number in range(30)]
    found = alarms(against, windows)
    assert len(found) == 12
    assert min(found) > 10
    assert np.median(found) <= 14


def test_what_lasts_falls_with_the_rows_of_the_reference_and_adds_to_its_blocks() -> None:
    random = np.random.default_rng(4)
    small, large = (lasting(Profile.of(rows_of(random, rows)), 500) for rows in (1_000, 100_000))
    for name in ("feature.0", "feature.c0"):
        assert small.columns[name].mean == pytest.approx(100 * large.columns[name].mean, rel=0.05)
    reference = Profile.of(rows_of(random, 4_000))
    blocks = Calibration.of([reference.empty().updated(rows_of(random, 400, 0.3 * (i % 2))) for i in range(10)])
    both = lasting(reference, 400, blocks)
    assert both.columns["feature.0"].mean > blocks.columns["feature.0"].mean > 10 * large.columns["feature.0"].mean


def hours(random: np.random.Generator, count: int, correlation: float) -> list[Rows]:
    """Windows whose means wander about by a tenth of a deviation."""
    columns, off = 8, random.normal(0, 0.1, 8)
    found: list[Rows] = []
    for _ in range(count):
        off = correlation * off + random.normal(0, 0.1 * np.sqrt(1 - correlation**2), columns)
        found.append({f"feature.{i}": random.normal(off[i], 1, 300) for i in range(columns)})
    return found


def test_blocks_that_remember_each_other_are_told_from_those_that_do_not() -> None:
    for correlation, low, high in ((0.0, 1.0, 1.3), (0.9, 5.0, 25.0)):
        blocks = hours(np.random.default_rng(5), 400, correlation)
        reference = Profile.of({name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]})
        calibration = Calibration.of([reference.empty().updated(block) for block in blocks])
        memory = float(np.mean([column.memory for column in calibration.columns.values()]))
        assert low <= memory <= high
        assert Calibration.from_json(calibration.to_json()) == calibration


def test_windows_that_remember_each_other_raise_few_alarms() -> None:
    raised, standing = [], 0
    for seed in range(3):
        windows = hours(np.random.default_rng(seed), 700, 0.9)
        blocks, live = windows[:500], windows[500:]
        reference = Profile.of({name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]})
        calibration = Calibration.of([reference.empty().updated(block) for block in blocks])
        raised += alarms(Against(reference, calibration, DriftThresholds()), live)
        standing += len(live)
    # Three thousand windows between two false ones are promised for one column, of eight together one thousand.
    assert len(raised) <= 1


def test_a_calibration_of_before_has_no_memory() -> None:
    body = {"format": 1, "blocks": 5, "rows": 100, "columns": {"x": [0.1, 0.2, 0.3, 0.4]}}
    assert Calibration.from_json(body).columns["x"].memory == 1.0
