"""What the collector knows of a version before its first row: how the reference's own blocks differ, and its scores.

Both are made from what a training run leaves, and registered with the version beside its profile.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from collectors.drift.calibration import FEWEST_BLOCKS, Calibration
from collectors.scores import PerformanceEstimator, ScoreError, ScoreHistogram
from training.reference import Beside, HeldOut, ReferenceData

logger = logging.getLogger(__name__)


def baseline(groups: int, rows: int) -> Beside:
    """Calibration and estimator of a reference; judged windows are as long as `groups` groups, and have `rows` rows."""
    return partial(_baseline, num_groups=groups, num_rows=rows)


def _baseline(data: ReferenceData, *, num_groups: int, num_rows: int) -> Mapping[str, Any]:
    found = {"calibration": calibration_of(data, num_groups, num_rows), "estimator": estimator_of(data.held_out)}
    return {name: json.loads(body) for name, body in found.items() if body is not None}


def calibration_of(data: ReferenceData, num_groups: int, num_rows: int) -> bytes | None:
    """What blocks of whole groups say, in their order, of at least so many groups and rows each; None of too few.

    A block that is shorter than the windows differs by more than they do, and would hide their drift.
    """
    blocks = blocks_of(data.groups.to_numpy(zero_copy_only=False), num_groups, num_rows)
    if len(blocks) < FEWEST_BLOCKS:
        logger.info(
            "the reference is as long as %d judged windows (%d groups, %d rows), %d are needed to tell how they differ "
            "by themselves: they are judged by chance alone",
            len(blocks),
            num_groups,
            num_rows,
            FEWEST_BLOCKS,
        )
        return None
    empty = data.profile.empty()
    calibration = Calibration.of([empty.updated(data.rows.take(block)) for block in blocks])
    return json.dumps(calibration.to_json()).encode()


def blocks_of(groups: npt.NDArray[Any], num_groups: int, num_rows: int) -> list[npt.NDArray[np.int64]]:
    """The rows of each block, given the group of each row; rows without one are in none.

    What is left over joins the last block.
    """
    known = np.flatnonzero([group is not None for group in groups.tolist()])
    _, code, counts = np.unique(groups[known].astype(str), return_inverse=True, return_counts=True)
    block, taken, held = 0, 0, 0
    block_of_group = np.zeros(len(counts), np.int64)
    for place, count in enumerate(counts.tolist()):
        if taken >= num_groups and held >= num_rows:
            block, taken, held = block + 1, 0, 0
        block_of_group[place] = block
        taken, held = taken + 1, held + count
    if block and (taken < num_groups or held < num_rows):
        block_of_group[block_of_group == block] = block - 1
        block -= 1
    return [known[block_of_group[code] == number] for number in range(block + 1)] if len(known) else []


def estimator_of(held_out: HeldOut) -> bytes | None:
    """What scores are expected from, learned group by group on rows that training did not see; None of one class."""
    blocks = [
        ScoreHistogram.of(held_out.probabilities[chosen], held_out.labels[chosen])
        for chosen in blocks_of(held_out.groups, 1, 1)
    ]
    try:
        return PerformanceEstimator.learnt(blocks).to_json()
    except ScoreError as error:
        logger.warning("no scores can be expected of this version: %s", error)
        return None
