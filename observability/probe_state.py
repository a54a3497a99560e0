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
# Columns, width, rows that have room, rows that wait; where counts, moments, tables (0: none), waiting rows and pending
# cells begin; rows in the latter.
_HEADER = 16
_FILLED, _TABLES, _WAITING, _PENDING, _UNJOINED = 3, 6, 7, 8, 9
# Cells of 16 bits that a column has for counts that join the others later, behind the first cell.
_PENDING_CELLS = 128
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
    pending_at = _aligned(tables_at + 2 * size)
    waiting_at = pending_at + (columns * _PENDING_CELLS // 4 if size else 0)
    state = torch.zeros(waiting_at + (rows * columns + 1) // 2, dtype=torch.int64)
    header = [columns, width, rows, 0, _HEADER, ends[0], tables_at if size else 0, waiting_at, pending_at]
    state[: len(header)] = torch.tensor(header)
    views = views_of(state, columns, width)
    views.edges.copy_(torch.from_numpy(edges))
    views.edges_float32.copy_(torch.from_numpy(edges_float32))
    forget(views)
    if native is not None:
        of_float, of_double = (state[tables_at + part * size :].data_ptr() for part in (0, 1))
        native.trimtab_tables_float(views.edges_float32.data_ptr(), columns, width, of_float)
        native.trimtab_tables_double(views.edges.data_ptr(), columns, width, of_double)
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
    start = int(state[_PENDING])
    pending = state[start : start + columns * _PENDING_CELLS // 4].numpy().view(np.uint16)
    cells = min(width - 1, _PENDING_CELLS)
    counts = views_of(state, columns, width).counts.numpy()
    counts[:, 1 : 1 + cells] += pending.reshape(columns, _PENDING_CELLS)[:, :cells]
    pending[:] = 0
    state[_FILLED] = state[_UNJOINED] = 0


def _ends(columns: int, width: int) -> tuple[int, int, int, int]:
    """Where counts, moments, edges and edges in float32 end."""
    counts = _HEADER + columns * (width + NUM_SPECIAL)
    moments = counts + columns * NUM_MOMENTS
    edges = moments + columns * width
    return counts, moments, edges, edges + (columns * width + 1) // 2


def _aligned(place: int) -> int:
    return -(-place // _LINE) * _LINE
