"""What the collector knows of a version before its first row: how its reference's own blocks differ, the hours of its
week, and its scores.

All are made from what a training run leaves, and registered with the version beside its profile.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from collectors.drift.calibration import FEWEST_BLOCKS, Calibration
from collectors.drift.seasonal import SeasonalReference
from collectors.scores import PerformanceEstimator, ScoreError, ScoreHistogram
from observability.profile import Profile
from training.reference import Beside, HeldOut, ReferenceData

logger = logging.getLogger(__name__)
_TIME = "time"


def baseline(groups: int, rows: int, windows: int = 1, *, seasonal: bool = True) -> Beside:
    """Calibrations and estimator of a reference, and with `seasonal` its profiles by the hour of the week.

    Judged windows are as long as `groups` groups, have at least `rows` rows, and are sums of so many `windows`: single
    ones, which alarms look at, differ by more.
    """
    lengths = {"calibration": Length(groups, rows)}
    if windows > 1:
        lengths["pane_calibration"] = Length(max(1, round(groups / windows)), max(1, rows // windows))
    return partial(_baseline, lengths=lengths, seasonal=seasonal)


@dataclass(frozen=True, slots=True)
class Length:
    """How long a block is at least: as so many groups are on average, and so many rows."""

    groups: int
    rows: int


def _baseline(data: ReferenceData, *, lengths: Mapping[str, Length], seasonal: bool) -> Mapping[str, Any]:
    calibrated = {name: calibration_of(data, length) for name, length in lengths.items()}
    found: dict[str, Any] = {name: one.to_json() for name, one in calibrated.items() if one is not None}
    hours = seasonal_of(data) if seasonal else None
    if hours is not None:
        found["seasonal"] = json.loads(hours.to_json())
    estimator = estimator_of(data.held_out)
    return found if estimator is None else {**found, "estimator": json.loads(estimator.to_json())}


def calibration_of(data: ReferenceData, length: Length) -> Calibration | None:
    """What blocks say that follow one another; None of too few.

    A block that is shorter than the windows differs by more than they do, and would hide their drift.
    """
    blocks = blocks_of(data.groups.to_numpy(zero_copy_only=False), length)
    if len(blocks) < FEWEST_BLOCKS:
        logger.info(
            "the reference is as long as %d windows (of %d groups and %d rows), %d are needed to tell how they differ "
            "by themselves: they are judged by chance among rows alone",
            len(blocks),
            length.groups,
            length.rows,
            FEWEST_BLOCKS,
        )
        return None
    # Columns are calibrated one by one.
    empty = Profile(data.profile.columns).empty()
    return Calibration.of([empty.updated(data.rows.take(block)) for block in blocks])


def seasonal_of(data: ReferenceData) -> SeasonalReference | None:
    """The hours of the week that were seen in two weeks at least; None where the rows have no times or no such hours.

    One hour weighs about as much as a whole profile, and a hundred and sixty-eight are the most.
    """
    if data.times is None:
        return None
    rows = data.rows.append_column(_TIME, data.times)
    found = SeasonalReference.of(rows, _TIME, reference=Profile(data.profile.columns)).usable()
    if not found.slots:
        logger.info("no hour of the week is in two weeks of the reference: windows are judged against all of it")
        return None
    return found


def blocks_of(groups: npt.NDArray[Any], length: Length) -> list[npt.NDArray[np.int64]]:
    """The rows of each block, given the group of each row; rows without one are in none.

    Rows go by their groups, within one as they come, and blocks are equally long: as windows do, they begin and end
    anywhere in a group.
    """
    known = np.flatnonzero([group is not None for group in groups.tolist()])
    if not len(known):
        return []
    found, code = np.unique(groups[known].astype(str), return_inverse=True)
    size = max(length.rows, round(length.groups * len(known) / len(found)))
    return np.array_split(known[np.argsort(code, kind="stable")], max(len(known) // size, 1))


def estimator_of(held_out: HeldOut) -> PerformanceEstimator | None:
    """What scores are expected from, learned on rows that training did not see, in blocks as long as a group.

    None of one class, or of predictions that are no probabilities.
    """
    try:
        blocks = [
            ScoreHistogram.of(held_out.probabilities[chosen], held_out.labels[chosen])
            for chosen in blocks_of(held_out.groups, Length(1, 1))
        ]
        return PerformanceEstimator.learnt(blocks)
    except ScoreError as error:
        logger.warning("no scores can be expected of this version: %s", error)
        return None
