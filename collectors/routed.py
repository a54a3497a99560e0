"""What the router chose for the rows of a batch of events, and which rows were chosen for by chance of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_COLUMNS = ("arm", "release", "propensity")
# How the ids of a request's second and further rows end.
_FURTHER = "/[1-9][0-9]*$"


@dataclass(frozen=True, slots=True)
class Routing:
    """An arm, the release in progress ("" without one), and the probability of the arm.

    The probability is NaN where chance did not choose for this request: its unit had its arm already.
    """

    arm: str
    release: str
    propensity: float

    @property
    def by_chance(self) -> bool:
        """Whether the row says something of a release: one of its arms by a logged probability."""
        return bool(self.release) and self.arm != "forced" and 0.0 < self.propensity < 1.0


@dataclass(frozen=True, slots=True)
class Routed:
    """The routings of a batch: row i has `routings[codes[i]]`, and is its request's first row if `first[i]`."""

    routings: Sequence[Routing]
    codes: npt.NDArray[np.int64]
    first: npt.NDArray[np.bool_]

    def rows(self) -> list[Routing | None]:
        """Each row's routing; None for a request's further rows, which were not routed by themselves."""
        if len(self.routings) == 1 and self.first.all():
            return [self.routings[0]] * len(self.codes)
        chosen = zip(self.codes.tolist(), self.first.tolist(), strict=True)
        return [self.routings[code] if first else None for code, first in chosen]


def routed(events: pa.Table) -> Routed:
    """The routings of a table of events (METADATA's columns). A request's rows stand together and have one time."""
    codes = np.zeros(events.num_rows, np.int64)
    values: list[list[object]] = []
    for name in _COLUMNS:
        column = pc.dictionary_encode(_whole(events.column(name)), null_encoding="encode")
        values.append(column.dictionary.to_pylist() or [None])
        codes = codes * len(values[-1]) + column.indices.to_numpy(zero_copy_only=False)
    sizes = [len(known) for known in values]
    found = codes[:1]
    if max(sizes) > 1:
        found, codes = np.unique(codes, return_inverse=True)
    routings = []
    for places in zip(*np.unravel_index(found, sizes), strict=True):
        arm, release, propensity = (known[place] for known, place in zip(values, places, strict=True))
        chance = propensity if isinstance(propensity, float) else math.nan
        routings.append(Routing(str(arm), str(release or ""), chance))
    return Routed(routings, codes.astype(np.int64).reshape(-1), _first(events))


def _first(events: pa.Table) -> npt.NDArray[np.bool_]:
    times = events.column("time").cast(pa.int64()).to_numpy()
    first = np.ones(len(times), np.bool_)
    first[1:] = times[1:] != times[:-1]
    if first.all():
        return first
    ids = events.column("id")
    if not pc.any(pc.match_substring(ids, "/")).as_py():
        return np.ones(len(times), np.bool_)
    further = pc.match_substring_regex(ids, _FURTHER).to_numpy()
    return np.asarray(first | ~further, np.bool_)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
