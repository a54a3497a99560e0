"""The numeric columns of a window together: judged where the reference has a joint part."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from collectors.computed import joint_values
from collectors.drift import DriftThresholds, judge
from collectors.drift.joint_verdict import judge_joint
from collectors.history import Against, JudgedWindow
from collectors.panes import Pane
from observability import names
from observability.profile import Profile

COLUMNS = 6


def table(rows: int, correlation: float, seed: int) -> pa.Table:
    generator = np.random.default_rng(seed)
    common = generator.normal(size=(rows, 1)) * math.sqrt(correlation)
    values = common + math.sqrt(1 - correlation) * generator.normal(size=(rows, COLUMNS))
    return pa.table({f"feature.x{i}": values[:, i] for i in range(COLUMNS)})


def test_only_the_columns_together_show_a_lost_correlation() -> None:
    reference = Profile.of(table(5_000, 0.6, 0), joint=True)
    window = reference.empty().updated(table(1_500, 0.0, 1))
    found = judge_joint(reference, window)
    assert found is not None
    assert found.drifted
    assert found.mmd > found.threshold
    assert found.reconstruction > 1.3
    assert not any(column.drifted for column in judge(reference, window).values())


def test_unchanged_windows_do_not_drift() -> None:
    reference = Profile.of(table(5_000, 0.6, 0), joint=True)
    found = [judge_joint(reference, reference.empty().updated(table(800, 0.6, seed))) for seed in range(1, 41)]
    assert not any(one.drifted for one in found if one is not None)
    assert None not in found


def test_nothing_is_said_without_a_joint_part_or_rows() -> None:
    plain, joint = Profile.of(table(500, 0.6, 0)), Profile.of(table(500, 0.6, 0), joint=True)
    assert judge_joint(plain, plain) is None
    assert judge_joint(joint, joint.empty()) is None
    assert joint_values(("m", "1"), None) == []


@pytest.mark.parametrize("joint", [True, False])
def test_a_judged_window_publishes_the_distance(joint: bool) -> None:
    reference = Profile.of(table(5_000, 0.6, 0), joint=joint)
    pane = Pane("m", "1", 0.0, 60.0)
    pane.profile = reference.empty().updated(table(1_000, 0.0, 1))
    window = JudgedWindow([pane])
    found = window.joint(Against(reference, None, DriftThresholds()))
    assert (found is not None) == joint
    assert window.joint(None) is None
    values = {value.labels.get("statistic"): value for value in joint_values(("m", "1"), found)}
    if joint:
        assert set(values) == {"mmd", "pca_reconstruction", None}
        assert values["mmd"].metric is names.DRIFT_JOINT
        assert values["mmd"].value > values[None].value
