"""One distribution that is to be judged, in the words of the calibrated tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from collectors.drift.calibration import Between
from collectors.drift.cells import Cells

Method = Literal["cdf_distance", "chi_square", "rare_category", "new_categories", "mmd", "missing"]
NONE = Between()


@dataclass(frozen=True, slots=True)
class Asked:
    """One distribution to be judged, of the column at `place`, and the share of the level that it has."""

    place: int
    cells: Cells
    share: float = 1.0
    between: Between = NONE
    part: int = 0
    """Its number among the parts of its column."""


def asked_of(columns: Mapping[str, Sequence[Cells]], known: Mapping[str, Between], first_place: int = 0) -> list[Asked]:
    """What there is to judge: one item a column, or one a part of it."""
    return [
        Asked(place, cells, 1 / len(parts), known.get(name, NONE), number)
        for place, (name, parts) in enumerate(columns.items(), first_place)
        for number, cells in enumerate(parts)
    ]
