"""A probe's memory for its numeric columns: one tensor, so that a compiled graph has one thing to check and to hand on.

It is made of numbers of 8 bytes: a header, then counts, moments and edges, and, where there is C code, what that looks
values up in and room for the rows that wait to be counted. `count_probe.h` reads the same header.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from observability.cells import Floats
from observability.native import library

NUM_SPECIAL = 4
NUM_MOMENTS = 5
# Columns, width, rows that have room, rows that wait; where counts, moments, tables, waiting rows and groups begin (0:
# there is none); rows whose cells and whose moments are in the latter.
_HEADER = 16
_FILLED, _TABLES, _WAITING, _GROUPS, _UNJOINED, _UNMERGED = 3, 6, 7, 8, 9, 10
# `struct trimtab_group` of `count.c`: what C code has counted of 16 columns joins the others later.
_LEAVES, _FLOATS, _DOUBLES = 128, (np.float32, 16), (np.float64, 16)
_GROUP = np.dtype(
    [
        ("tree", np.float32, (16, _LEAVES)), ("pending", np.uint16, (16, _LEAVES)), ("first", *_FLOATS),
        ("last", *_FLOATS), ("pivot", *_FLOATS), ("low", *_FLOATS), ("high", *_FLOATS), ("rows", np.int32, 16),
        ("sum", *_DOUBLES), ("squares", *_DOUBLES),
    ]
)  # fmt: skip
# Numbers that wait (256 kB), and rows of wide tables: so many share what a pass costs, most of it memory gone cold.
_WAITING_VALUES, _WAITING_ROWS = 65_536, 64
_LINE = 8


class Views(NamedTuple):
    """Parts of a state, shared with it: see `probe_kernels.py` for what a row of counts and of moments is.

    `counts` is int64 [columns, width + 4], `moments` float64 [columns, 5], the edges are [columns, width].
    """

    counts: Tensor
    moments: Tensor
    edges: Tensor
    edges_float32: Tensor


def state_of(edges: Floats, edges_float32: NDArray[np.float32]) -> Tensor:
    """The state, int64, of columns with these edges, [columns, width] each; nothing is counted yet.

    Without C code no rows wait in it.
    """
    columns, width = edges.shape
    native = library() if columns else None
    ends = _ends(columns, width)
    size = 0 if native is None else native.trimtab_tables_size_double(columns, width)
    rows = max(_WAITING_ROWS, _WAITING_VALUES // columns) if native is not None else 0
    tables_at = _aligned(ends[-1])
    groups_at = _aligned(tables_at + 2 * size)
    finite = np.isfinite(edges_float32).sum(1)
    few = bool((finite >= 1).all() and (finite <= _LEAVES + 1).all())
    groups = native.trimtab_groups_size(columns) if native is not None and few else 0
    waiting_at = groups_at + groups
    state = torch.zeros(waiting_at + (rows * columns + 1) // 2, dtype=torch.int64)
    places = tables_at if size else 0, waiting_at, groups_at if groups else 0
    header = [columns, width, rows, 0, _HEADER, ends[0], *places]
    state[: len(header)] = torch.tensor(header)
    views = views_of(state, columns, width)
    views.edges.copy_(torch.from_numpy(edges))
    views.edges_float32.copy_(torch.from_numpy(edges_float32))
    forget(views)
    if native is not None:
        of_float, of_double = (state[tables_at + part * size :].data_ptr() for part in (0, 1))
        native.trimtab_tables_float(views.edges_float32.data_ptr(), columns, width, of_float)
        native.trimtab_tables_double(views.edges.data_ptr(), columns, width, of_double)
    if native is not None and groups:
        native.trimtab_groups(views.edges_float32.data_ptr(), columns, width, state[groups_at:].data_ptr())
    return state


def views_of(state: Tensor, columns: int, width: int) -> Views:
    """The state's parts, on any device and without waiting for it."""
    counts, moments, edges, end = _ends(columns, width)
    return Views(
        state[_HEADER:counts].view(columns, width + NUM_SPECIAL),
        state[counts:moments].view(torch.float64).view(columns, NUM_MOMENTS),
        state[moments:edges].view(torch.float64).view(columns, width),
        state[edges:end].view(torch.float32).view(columns, width),
    )


def forget(views: Views) -> None:
    """Sets counts and moments to those of no rows, on the device and in its order."""
    views.counts.zero_()
    views.moments.zero_()
    views.moments[:, 3].fill_(torch.inf)
    views.moments[:, 4].fill_(-torch.inf)


def has_tables(state: Tensor) -> bool:
    """Whether C code made the state (on the CPU), and can count with it."""
    return bool(state[_TABLES])


def rows_waiting(state: Tensor) -> Tensor:
    """The rows [rows, columns], float32, that are not counted yet, of a state on the CPU."""
    columns, _, _, filled = state[: _FILLED + 1].tolist()
    values = state[int(state[_WAITING]) :].view(torch.float32)
    return values[: filled * columns].view(filled, columns)


def none_waiting(state: Tensor) -> None:
    """Says that the rows that waited are counted, and joins what C code had counted of others, where there is none."""
    columns, width = state[:2].tolist()
    views = views_of(state, columns, width)
    if start := int(state[_GROUPS]):
        groups = state[start : start + _groups_of(columns) * _GROUP.itemsize // 8].numpy().view(_GROUP)
        pending = groups["pending"].reshape(-1, _LEAVES)[:columns]
        cells = min(width - 1, _LEAVES)
        views.counts.numpy()[:, 1 : 1 + cells] += pending[:, ::-1][:, :cells]
        pending[:] = 0
        _merge(groups, views.moments.numpy())
    state[_FILLED] = state[_UNJOINED] = state[_UNMERGED] = 0


def _merge(groups: NDArray[np.void], moments: Floats) -> None:
    """Brings the groups' moments to the others: Chan, Golub and LeVeque (1979), "Updating formulae", equation 2.1."""
    added, sums, squares, pivots, low, high = (
        groups[name].reshape(-1)[: len(moments)] for name in ("rows", "sum", "squares", "pivot", "low", "high")
    )
    some = added > 0
    before, mean, total = moments[some, 0], sums[some] / added[some], moments[some, 0] + added[some]
    delta = pivots[some] + mean - moments[some, 1]
    moments[some, 1] += np.where(before > 0, delta * added[some] / total, delta)
    moments[some, 2] += np.maximum(squares[some] - sums[some] * mean, 0) + delta**2 * before * added[some] / total
    moments[some, 0] = total
    moments[some, 3] = np.minimum(moments[some, 3], low[some])
    moments[some, 4] = np.maximum(moments[some, 4], high[some])
    for values in (added, sums, squares):
        values[:] = 0


def _groups_of(columns: int) -> int:
    return -(-columns // 16)


def _ends(columns: int, width: int) -> tuple[int, int, int, int]:
    """Where counts, moments, edges and edges in float32 end."""
    counts = _HEADER + columns * (width + NUM_SPECIAL)
    moments = counts + columns * NUM_MOMENTS
    edges = moments + columns * width
    return counts, moments, edges, edges + (columns * width + 1) // 2


def _aligned(place: int) -> int:
    return -(-place // _LINE) * _LINE
