"""A column's distribution in the reference and in a window, side by side in few enough cells to be read. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from dashboards.charts.frame import Floats

_TAIL = 0.005  # share of the reference beyond which neighbouring bins of either end are one open cell
_FEW = 24  # so many bins are shown as they are: they may be whole numbers, one each


@dataclass(frozen=True, slots=True)
class Comparison:
    """Shares of the reference and of the window over the same cells; `labels` say each cell exactly.

    `edges` bound the cells of a numeric column, n + 1 of them; the first and the last are -inf and inf where that
    cell is open. Categories have none.
    """

    labels: tuple[str, ...]
    reference: Floats
    current: Floats
    edges: Floats | None = None


def compare(
    reference: Mapping[str, Any], window: Mapping[str, Any], *, most_bars: int = 20, most_categories: int = 15
) -> Comparison | None:
    """Reference and window over the same cells. None: their layouts differ, or there is nothing to compare.

    Neighbouring bins of a numeric column are joined to about `most_bars`; of many categories the weightiest
    are kept, and the rest is one cell.
    """
    before = np.asarray(reference.get("counts") or (), dtype=np.float64)
    after = np.asarray(window.get("counts") or (), dtype=np.float64)
    same = all(reference.get(key) == window.get(key, reference.get(key)) for key in ("edges", "categories"))
    if not same or len(before) != len(after) or not len(before):
        return None
    shares = (before / max(before.sum(), 1), after / max(after.sum(), 1))
    edges = reference.get("edges")
    if edges is not None and len(before) == len(edges) + 1:
        return _bins(np.asarray(edges, dtype=np.float64), *shares, most_bars)
    return _categories(_names(reference, len(before)), *shares, most_categories)


def _bins(edges: Floats, before: Floats, after: Floats, most: int) -> Comparison:
    if len(edges) > 2 and edges[-1] == np.nextafter(edges[-2], np.inf):
        # The greatest of a few values is a bin of no width: it is drawn with what lies above it.
        edges = edges[:-1]
        before, after = (np.append(shares[:-2], shares[-2:].sum()) for shares in (before, after))
    bounds = np.concatenate(([-np.inf], edges, [np.inf]))
    kept = np.array(_kept_bounds(edges, before, most))
    first = np.searchsorted(bounds, kept[:-1])
    columns = [np.add.reduceat(shares, first) for shares in (before, after)]
    used = np.flatnonzero(columns[0] + columns[1])
    inside = slice(used[0], used[-1] + 1) if len(used) else slice(0, len(first))
    kept = kept[inside.start : inside.stop + 1]
    labels = tuple(_stretch(low, high) for low, high in pairwise(kept))
    return Comparison(labels, columns[0][inside], columns[1][inside], kept)


def _kept_bounds(edges: Floats, before: Floats, most: int) -> list[float]:
    """Of the bins' bounds those that stay: about evenly spaced over where nearly all of the reference lies."""
    if len(edges) <= _FEW:
        return [-np.inf, *map(float, edges), np.inf]
    below = np.cumsum(before)[:-1]
    inner = edges[(below >= _TAIL) & (below <= 1 - _TAIL)]
    if len(inner) < 2:
        inner = edges
    step = (inner[-1] - inner[0]) / max(most - 2, 1)
    kept = [float(inner[0])]
    for edge in map(float, inner[1:-1]):
        # Half a step of tolerance: bins of equal mass seldom end where the even spacing would have them end.
        if edge - kept[-1] >= 0.95 * step and inner[-1] - edge >= 0.5 * step:
            kept.append(edge)
    return [-np.inf, *kept, float(inner[-1]), np.inf]


def _stretch(low: float, high: float) -> str:
    if np.isinf(low):
        return f"below {high:.5g}"
    return f"{low:.5g} and more" if np.isinf(high) else f"{low:.5g} to {high:.5g}"


def _names(layout: Mapping[str, Any], size: int) -> list[str]:
    categories = layout.get("categories")
    if categories is None:
        return ["false", "true"] if size == 2 else [str(i) for i in range(size)]
    extra = ["unseen", "other"][: max(0, size - len(categories))]
    return [*map(str, categories), *extra][:size]


def _categories(names: Sequence[str], before: Floats, after: Floats, most: int) -> Comparison:
    held = [i for i in range(len(names)) if before[i] or after[i]]
    held.sort(key=lambda i: -max(before[i], after[i]))
    kept, rest = held[:most], held[most:]
    labels = [names[i] for i in kept] + ([f"{len(rest)} more"] if rest else [])
    columns = [np.append(x[kept], x[rest].sum()) if rest else x[kept] for x in (before, after)]
    return Comparison(tuple(labels), *columns)
