"""The reference of a version: the profile of its rows, and what the front door wants registered beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import nn

from observability import Profile
from observability.events import FEATURE, PREDICTION
from training.data import TabularTask, encode, predict

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """What the gate sees: rows that the candidate was not trained on, their labels of 0 and 1 and its probabilities."""

    table: pa.Table
    labels: Vector
    probabilities: Vector
    groups: npt.NDArray[np.object_]
    """Of each row; a group is never divided, and they sort as time does."""


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceData:
    """What a reference is made from."""

    profile: Profile
    rows: pa.Table
    """What the profile is of: features and predictions, with columns named as events name them."""
    groups: pa.ChunkedArray
    """Of each row."""
    held_out: HeldOut
    times: pa.ChunkedArray | None = None
    """Event time of each row; None where the task or the rows have none."""


Beside = Callable[[ReferenceData], Mapping[str, Any]]
"""What is registered beside the profile, as members of its JSON object."""


def reference_body(
    task: TabularTask,
    network: nn.Module,
    vocabularies: Mapping[str, tuple[str, ...]],
    table: pa.Table,
    held_out: HeldOut,
    beside: Beside | None = None,
    *,
    joint: bool = False,
) -> bytes:
    """The profile of the rows and of what the network says of them as JSON, with what `beside` adds.

    `joint` also keeps the first 64 numeric columns together: see `Profile.of`.
    """
    columns = {FEATURE + name: table.column(name) for name in task.features}
    columns[PREDICTION + task.output] = pa.array(predict(network, encode(task, vocabularies, table)), pa.float64())
    rows = pa.table(columns)
    profile = Profile.of(rows, joint=joint)
    body = profile.to_json()
    times = table.column(task.time) if task.time is not None and task.time in table.column_names else None
    more = beside(ReferenceData(profile, rows, table.column(task.group), held_out, times)) if beside else {}
    if not more:
        return body
    return json.dumps({**json.loads(body), **more}, separators=(",", ":"), allow_nan=False).encode()
