"""What is registered beside a reference profile: blocks of whole groups, and what held-out rows say of scores."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from collectors.references import Reference
from collectors.scores import score_counts
from observability.profile import Profile
from training.reference import HeldOut, ReferenceData
from trimtab.baseline import Length, baseline, blocks_of
from trimtab.settings import SettingsError, load

DAYS = 40
A_DAY = 60


def data(seed: int = 0, weather: float = 0.6, positives: float = 0.5) -> ReferenceData:
    """Days in any order; `x` moves from day to day, `y` does not."""
    rng = np.random.default_rng(seed)
    day = np.repeat(np.arange(DAYS), A_DAY)
    rows = pa.table(
        {
            "feature.x": rng.normal(0, weather, DAYS)[day] + rng.normal(size=len(day)),
            "feature.y": rng.normal(size=len(day)),
            "prediction.p": rng.random(len(day)),
        }
    )
    groups = np.array([f"2024-01-{number:02d}" for number in day], object)
    order = rng.permutation(len(day))
    p = rng.random(1200)
    labels = (rng.random(1200) < p * 2 * positives).astype(float)
    held_out = HeldOut(rows.slice(0, 1200), labels, p, groups[:1200])
    rows = rows.take(pa.array(order))
    return ReferenceData(Profile.of(rows), rows, pa.chunked_array([groups[order]]), held_out)


def reference(found: ReferenceData, groups: int, rows: int, windows: int = 1) -> Reference:
    """As the collector reads it."""
    body = {**json.loads(found.profile.to_json()), **baseline(groups, rows, windows)(found)}
    return Reference.from_json(json.dumps(body).encode())


def test_the_collector_reads_a_calibration_of_the_days_and_an_estimator() -> None:
    found = reference(data(), 1, 50)

    assert found.calibration is not None
    assert (found.calibration.blocks, found.calibration.rows) == (DAYS, A_DAY)
    between = found.calibration.columns
    assert between["feature.x"].mean > 0.01 > 5 * between["feature.y"].mean
    assert found.estimator is not None
    # Labels follow the probabilities: what is expected of uniform scores is that of a calibrated model.
    expected = found.estimator.estimate(score_counts(np.random.default_rng(1).random(5_000)))
    assert expected["roc_auc"].value == pytest.approx(5 / 6, abs=0.03)
    assert expected["brier"].value == pytest.approx(1 / 6, abs=0.02)


def test_blocks_follow_the_groups_are_equally_long_and_hold_every_row() -> None:
    groups = np.array(["c", "a", None, "b", "a", "e", "d", "c", "f", "g", "g"], object)

    def cut(num_groups: int, num_rows: int) -> list[list[int]]:
        return [block.tolist() for block in blocks_of(groups, Length(num_groups, num_rows))]

    # Ten rows in seven groups.
    assert cut(7, 1) == [[1, 4, 3, 0, 7, 6, 5, 8, 9, 10]]
    assert cut(2, 1) == [[1, 4, 3, 0], [7, 6, 5], [8, 9, 10]]
    assert cut(1, 5) == [[1, 4, 3, 0, 7], [6, 5, 8, 9, 10]]
    assert len(cut(1, 1)) == 10
    assert len(cut(9, 99)) == 1
    assert blocks_of(np.array([None], object), Length(1, 1)) == []


def test_a_reference_of_fewer_than_three_windows_is_not_calibrated(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = reference(data(), 15, 1)

    assert found.calibration is None
    assert found.estimator is not None
    assert "as long as 2 windows" in caplog.text


def test_single_windows_have_a_calibration_of_their_own_length() -> None:
    found = reference(data(), 10, 60, windows=5)

    assert found.calibration is not None
    assert found.pane_calibration is not None
    assert (found.calibration.blocks, found.pane_calibration.blocks) == (4, 20)
    # Days that differ on their own: the shorter the block, the further it may be off.
    assert found.pane_calibration.columns["feature.x"].mean > 1.5 * found.calibration.columns["feature.x"].mean
    assert reference(data(), 10, 60).pane_calibration is None


def test_the_hours_that_come_again_each_week_are_registered_and_others_are_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = data()
    # 2,400 rows from a Monday on: a row each five minutes for eight days, so that one day of the week comes twice.
    monday = np.datetime64("2024-01-01T00:00", "ns").astype(np.int64)
    times = pa.chunked_array([pa.array(monday + np.arange(DAYS * A_DAY) * 300 * 10**9).cast(pa.timestamp("ns"))])
    timed = replace(found, times=times)

    seasonal = reference(timed, 1, 50).seasonal

    assert seasonal is not None
    assert sorted(seasonal.slots) == list(range(32))
    assert seasonal.slots[0].rows == 24
    assert seasonal.whole.columns == found.profile.columns
    assert reference(found, 1, 50).seasonal is None
    assert "seasonal" not in baseline(1, 50, seasonal=False)(timed)
    once = pa.chunked_array([pa.array(monday + np.arange(DAYS * A_DAY) * 10**9).cast(pa.timestamp("ns"))])
    with caplog.at_level(logging.INFO):
        assert reference(replace(found, times=once), 1, 50).seasonal is None
    assert "in two weeks" in caplog.text


def test_labels_of_one_class_give_no_estimator_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    found = reference(data(positives=0.0), 1, 1)

    assert found.estimator is None
    assert "no scores can be expected" in caplog.text


def test_predictions_that_are_no_probabilities_give_no_estimator_and_no_error() -> None:
    good = data()
    amounts = replace(good.held_out, probabilities=good.held_out.probabilities * 30)

    found = reference(replace(good, held_out=amounts), 1, 1)

    assert found.estimator is None
    assert found.calibration is not None


def test_a_window_of_no_group_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "trimtab.toml"
    file.write_text('[models.m]\ntask = "a:b"\nwindow_groups = 0\n')

    with pytest.raises(SettingsError, match=r"models\.m\.window_groups must be at least 1"):
        load(file)
