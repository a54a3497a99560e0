"""Two saved profiles that were made apart: the current one brought over the bins and categories of the reference.

A profile counts over a layout, and only counts over one layout can be compared. Bins of their own are counted anew by
spreading the values of a cell evenly, where no edge cuts a cell of many; categories by name, where all are known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from collectors.drift.cells import CUT_SHARE
from collectors.drift.comparison import Sides
from collectors.drift.source import InputError
from observability.columns import (
    CategoricalColumn,
    Column,
    DatetimeColumn,
    EmbeddingColumn,
    LogLinearColumn,
    NumericColumn,
    ProfileError,
    TextColumn,
    as_reference,
    rebinned,
)
from observability.profile import Profile

ROWS_INSTEAD = "give the rows of the current table instead, or profile them against the reference"


@dataclass(frozen=True, slots=True)
class Aligned:
    """Both profiles over the reference's layout."""

    profiles: Sides[Profile]
    notes: dict[str, str]
    """What there is to say of columns that were brought there."""
    refused: dict[str, str]
    """The columns that could not be, and why."""


def in_one_layout(profiles: Sides[Profile], names: Iterable[str]) -> Aligned:
    """Both profiles with the columns of these names over the reference's layout. InputError where none can be."""
    before, now = dict(profiles.reference.columns), dict(profiles.current.columns)
    notes: dict[str, str] = {}
    refused: dict[str, str] = {}
    done = 0
    for name in names:
        try:
            before[name], now[name], error = _together(before[name], now[name])
        except ProfileError as problem:
            refused[name] = f"{problem}; {ROWS_INSTEAD}"
            continue
        done += 1
        if error:
            notes[name] = f"the current profile has bins of its own: its shares are off by up to {error:.1%}"
    if refused and not done:
        raise InputError("; ".join(f"column {name!r}: {why}" for name, why in list(refused.items())[:5]))
    both = replace(profiles.reference, columns=before), replace(profiles.current, columns=now)
    return Aligned(Sides(*both), notes, refused)


def _together(reference: Column, current: Column) -> tuple[Column, Column, float]:
    """Both over one layout, and the share of the current values that may lie in a wrong cell."""
    if isinstance(reference, LogLinearColumn) and not isinstance(current, LogLinearColumn):
        reference = as_reference(reference)
    if isinstance(reference, NumericColumn) and isinstance(current, LogLinearColumn):
        return reference, rebinned(current, reference, CUT_SHARE), 0.0
    if isinstance(reference, NumericColumn) and isinstance(current, NumericColumn):
        return reference, *_over_bins(reference, current)
    if isinstance(reference, CategoricalColumn) and isinstance(current, CategoricalColumn):
        reference = as_reference(reference)
        assert isinstance(reference, CategoricalColumn)
        return reference, _over_categories(reference, current), 0.0
    if isinstance(reference, TextColumn) and isinstance(current, TextColumn):
        parts = {name: _together(part, current.parts[name]) for name, part in reference.parts.items()}
        each = [TextColumn({name: found[side] for name, found in parts.items()}) for side in (0, 1)]  # type: ignore[misc]
        return each[0], each[1], max(found[2] for found in parts.values())
    if isinstance(reference, EmbeddingColumn) and isinstance(current, EmbeddingColumn):
        kernels = [(part.bandwidth, part.seed) for part in (reference.fourier, current.fourier) if part is not None]
        if reference.dimensions != current.dimensions or len(set(kernels)) > 1:
            raise ProfileError("the profiles have kernels of their own for the vectors")
        norm, counted, error = _together(reference.norm, current.norm)
        return replace(reference, norm=norm), replace(current, norm=counted), error  # type: ignore[arg-type]
    if (
        isinstance(reference, DatetimeColumn)
        and isinstance(current, DatetimeColumn)
        and reference.span
        and current.span
    ):
        try:
            span, error = _over_bins(reference.span, current.span)
        except ProfileError:
            # The hours of the week are the same everywhere.
            return reference, replace(current, span=None), 0.0
        return reference, replace(current, span=span), error
    return reference, current, 0.0


def _over_bins(reference: NumericColumn, current: NumericColumn) -> tuple[NumericColumn, float]:
    edges, own, total = reference.edges, current.edges, current.count
    if np.array_equal(edges, own):
        return current, 0.0
    if not total:
        return replace(current, edges=edges, counts=np.zeros(len(edges) + 1, np.int64)), 0.0
    if not len(edges):
        # A reference without values.
        return replace(current, edges=edges, counts=np.array([total], np.int64)), 0.0
    if not len(own):
        raise ProfileError("the current profile was made without bins")
    at, below = own, np.cumsum(current.counts[:-1])
    if current.minimum < own[0]:
        at, below = np.append(current.minimum, at), np.append(0, below)
    if current.maximum > own[-1]:
        at, below = np.append(at, current.maximum), np.append(below, total)
    cells = np.searchsorted(own, edges, "right")
    cut = (own[np.maximum(cells - 1, 0)] != edges) & (edges > current.minimum) & (edges < current.maximum)
    error = float(current.counts[cells[cut]].max(initial=0)) / total
    if error > CUT_SHARE:
        raise ProfileError(
            f"the current profile has bins of its own, and one of {error:.0%} of its values lies across an edge"
        )
    found = np.interp(edges, at, below, 0, total)
    counts = np.diff(np.concatenate([[0], np.rint(found), [total]])).astype(np.int64)
    return replace(current, edges=edges, counts=counts), error


def _over_categories(reference: CategoricalColumn, current: CategoricalColumn) -> CategoricalColumn:
    if (current.categories, current.truncated) == (reference.categories, reference.truncated):
        return current
    free = replace(CategoricalColumn.over(()), counts=np.array([current.count, 0], np.int64), missing=current.missing)
    if not reference.categories and not reference.truncated:
        return free
    strangers = dict(current.strangers)
    if not current.truncated and sum(strangers.values()) == current.unseen:
        # Each category is known, with its count: as if none had been listed.
        counted = dict(zip(current.categories, current.counts.tolist(), strict=False))
        strangers |= {text: count for text, count in counted.items() if count}
        found = rebinned(replace(free, strangers=strangers), reference, CUT_SHARE)
        assert isinstance(found, CategoricalColumn)
        return found
    raise ProfileError("the current profile has a list of categories of its own, and does not know all of them")
