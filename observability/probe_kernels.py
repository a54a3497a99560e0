"""What a Probe does to its counts, as torch operators: C or numpy on the CPU, torch's own operators elsewhere.

As operators they are one call each in the graphs that `torch.compile` and `torch.export` make. Neither waits for the
device nor lets a shape depend on a value, so that CUDA graphs can hold them, too.

`values` has shape [rows, columns] and any real type; `state` is what `probe_state.py` lays out for columns of `width`
edges each, ascending and filled up with +inf: a value's cell is the number of edges not above it. A row of counts
(int64) is the `width` cells, then +inf, -inf, NaN, zeros; a row of moments (float64) is count, mean, M2, minimum,
maximum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from observability.cells import Counts, Floats
from observability.native import brief_calls, library
from observability.probe_dispatch import registered_in_c
from observability.probe_memory import library_for, lock_of
from observability.probe_state import has_tables, none_waiting, rows_waiting, views_of

# A sort is fastest while its block is in the cache.
_BLOCK = 16_384
# Neighbouring rows count into cells of their own, so that few atomic additions meet on a GPU.
_REPLICAS = 16
# As in `count_probe.h`.
_KINDS = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}

# Up to the first are the negative infinities; zeros; from the last two on are the positive infinities, and NaN.
_ASKED = np.array([-np.inf, 0.0, np.inf, np.nan], np.float32)


def count(values: Tensor, state: Tensor, width: int) -> None:
    """Adds `values` [rows, columns] to the counts and moments in `state`, in place."""
    torch.ops.trimtab.count.default(values, state, width)


def count_codes(columns: list[Tensor], sizes: list[int], booleans: list[bool], counts: Tensor) -> None:
    """Adds `columns` of codes, [rows] each, to `counts` [columns, width], in place; the last cell is for missing ones.

    Codes of and above a column's size count as code 0, negative ones and NaN as missing. Of a boolean column any number
    but 0 is true.
    """
    torch.ops.trimtab.count_codes.default(columns, sizes, booleans, counts)


def count_with_torch(values: Tensor, state: Tensor, width: int) -> None:
    """`count` in torch's own operators, for any device; counts nothing that waits in the state."""
    values = exact(values).t()
    num_columns, num_rows = values.shape
    counts, moments, *both = views_of(state, num_columns, width)
    edges = both[values.dtype == torch.float32]
    if num_rows == 0:
        return
    cells = counts.shape[1]
    # Scalars reach the device as arguments of a kernel; `torch.where` would copy them, which no CUDA graph allows.
    nan, not_finite = torch.isnan(values), ~torch.isfinite(values)
    cell = torch.searchsorted(edges, values.contiguous(), right=True)
    cell = cell.masked_fill(values == math.inf, width).masked_fill(values == -math.inf, width + 1)
    cell = cell.masked_fill(nan, width + 2)
    rows = torch.arange(num_rows, device=values.device) % _REPLICAS
    columns = torch.arange(num_columns, device=values.device).unsqueeze(1)
    # int32 holds the rows of any one batch, and adds twice as fast.
    found = torch.zeros(num_columns * _REPLICAS * cells, dtype=torch.int32, device=values.device)
    at = ((columns * _REPLICAS + rows) * cells + cell).view(-1)
    found.scatter_add_(0, at, torch.ones((), dtype=torch.int32, device=values.device).expand(at.shape))
    counts += found.view(num_columns, _REPLICAS, cells).sum(1)
    counts[:, -1] += (values == 0).sum(1)

    before, mean, m2, minimum, maximum = moments.unbind(1)
    added = num_rows - not_finite.sum(1).double()
    # Around a value of the batch: sums of numbers far from zero would lose their last digits. A second pass is exact.
    numbers = values.masked_fill(not_finite, 0).double()
    batch_mean = numbers.sum(1) / added.clamp(min=1)
    deviations = (numbers - batch_mean.unsqueeze(1)).masked_fill(not_finite, 0.0)
    total, delta = before + added, batch_mean - mean
    share = added / total.clamp(min=1)
    # Chan, Golub and LeVeque (1979), "Updating formulae", equation 2.1; a batch without values changes nothing.
    merged = torch.stack(
        (
            total,
            torch.where(added > 0, torch.where(before > 0, mean + delta * share, batch_mean), mean),
            m2 + (deviations * deviations).sum(1) + (delta * delta * before * share).masked_fill(before == 0, 0.0),
            torch.minimum(minimum, values.masked_fill(not_finite, math.inf).amin(1).double()),
            torch.maximum(maximum, values.masked_fill(not_finite, -math.inf).amax(1).double()),
        ),
        1,
    )
    moments.copy_(merged)


def count_codes_with_torch(columns: list[Tensor], sizes: list[int], booleans: list[bool], counts: Tensor) -> None:
    """`count_codes` in torch's own operators, for any device."""
    for column, size, boolean, row in zip(columns, sizes, booleans, counts.unbind(0), strict=True):
        missing = torch.isnan(column) if column.is_floating_point() else (column < 0) & (not boolean)
        codes = (column != 0).long() if boolean else column.masked_fill(missing, 0).long()
        missing = missing | (codes < 0)
        codes = codes.masked_fill(codes >= size, 0).masked_fill(missing, len(row) - 1)
        row.scatter_add_(0, codes, torch.ones((), dtype=row.dtype, device=row.device).expand(codes.shape))


def count_on_cpu(values: Tensor, state: Tensor, width: int) -> None:
    """`count` in C where it could be compiled, else in numpy. Small batches only join those that wait.

    Raises ValueError for a state of other columns or another width: its parts would be read beyond their ends.
    """
    rows, columns = values.shape
    if not rows or not columns:
        return
    of_columns, of_width = state[:2].tolist()
    if (of_columns, of_width) != (columns, width):
        raise ValueError(f"{columns} columns of {width} edges, and a state of {of_columns} columns of {of_width} edges")
    if values.dtype not in _KINDS:
        values = values.double()
    if brief_calls() is not None and has_tables(state):
        library_for(values.numel()).trimtab_probe_count(
            state.data_ptr(), values.data_ptr(), _KINDS[values.dtype], rows, *values.stride()
        )
        return
    with lock_of(state):
        _add_with_numpy(exact(values), state, width)


def count_waiting(state: Tensor, width: int) -> None:
    """Counts what waits in a state on the CPU, which may be of a machine that had C code."""
    native = library()
    if not has_tables(state):
        return
    if native is not None:
        native.trimtab_probe_count_waiting(state.data_ptr())
        return
    with lock_of(state):
        _add_with_numpy(rows_waiting(state), state, width)
        none_waiting(state)


def exact(values: Tensor) -> Tensor:
    """`values` in a type that all kernels count: float32 where it holds them exactly, else float64."""
    if values.dtype in (torch.float32, torch.float64):
        return values
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values.double()


def count_codes_on_cpu(columns: list[Tensor], sizes: list[int], booleans: list[bool], counts: Tensor) -> None:
    """`count_codes` in C where it could be compiled, else in torch."""
    native = brief_calls()
    if native is None:
        with lock_of(counts):
            count_codes_with_torch(columns, sizes, booleans, counts)
        return
    width, first = counts.shape[1], counts.data_ptr()
    for number, (column, size, boolean) in enumerate(zip(columns, sizes, booleans, strict=True)):
        codes = column
        if boolean or codes.dtype != torch.int64:
            missing = torch.isnan(column) if column.is_floating_point() else None
            codes = (column != 0).long() if boolean else column.nan_to_num(-1).long()
            if boolean and missing is not None:
                codes[missing] = -1
        native.trimtab_add_codes(
            codes.data_ptr(), len(codes), codes.stride(0), size, width, first + number * width * 8, first
        )


def count_with_numpy(
    values: NDArray[np.floating], edges: NDArray[np.floating], counts: Counts, moments: Floats
) -> None:
    """`count` of [columns, rows] in numpy: blocks are sorted, and the few edges looked up in them."""
    width = edges.shape[1]
    for column, bounds, row, moment in zip(values, edges, counts, moments, strict=True):
        for start in range(0, len(column), _BLOCK):
            ordered = np.sort(column[start : start + _BLOCK])
            # NaN sorts to the end.
            low, positive = (int(place) for place in ordered.searchsorted(_ASKED[:2], "right"))
            zero, high, nan = (int(place) for place in ordered.searchsorted(_ASKED[1:], "left"))
            row[width:] += (nan - high, low, len(ordered) - nan, positive - zero)
            finite = ordered[low:high]
            if len(finite):
                row[:width] += np.diff(finite.searchsorted(bounds, "left"), prepend=0)
                _add_moments(finite.astype(np.float64), moment)


def _add_with_numpy(values: Tensor, state: Tensor, width: int) -> None:
    """`count_with_numpy` of float32 or float64 values [rows, columns] and a state."""
    counts, moments, *both = views_of(state, values.shape[1], width)
    edges = both[values.dtype == torch.float32]
    count_with_numpy(values.t().numpy(), edges.numpy(), counts.numpy(), moments.numpy())


def _add_moments(finite: Floats, moments: Floats) -> None:
    """Chan, Golub and LeVeque (1979), "Updating formulae", equation 2.1; `finite` ascends and is overwritten."""
    minimum, maximum = finite[0], finite[-1]
    with np.errstate(over="ignore", invalid="ignore"):
        mean = finite.mean()
        finite -= mean
        before, total = moments[0], moments[0] + len(finite)
        share, delta = len(finite) / total, mean - moments[1]
        moments[2] += finite @ finite + (delta * delta * before * share if before else 0.0)
        moments[1] = moments[1] + delta * share if before else mean
        moments[0] = total
    moments[3:] = min(moments[3], minimum), max(moments[4], maximum)


def _nothing(*arguments: Tensor | Sequence[Tensor] | Sequence[int] | Sequence[bool] | int) -> None:
    """Neither returns anything, so that there is no shape to tell."""


# Not `torch.library.custom_op`: its wrapper takes 24 microseconds a call, this 3.5.
_OPERATORS: Any = torch.library.Library("trimtab", "FRAGMENT")  # type: ignore[no-untyped-call]
_TAGS = (torch.Tag.pt2_compliant_tag,)
_OPERATORS.define("count(Tensor values, Tensor(a!) state, int width) -> ()", tags=_TAGS)
_OPERATORS.define("count_codes(Tensor[] columns, int[] sizes, bool[] booleans, Tensor(a!) counts) -> ()", tags=_TAGS)
# What the kernel in C leaves to Python: states made without C code.
_OPERATORS.define("count_in_python(Tensor values, Tensor(a!) state, int width) -> ()", tags=_TAGS)
if not registered_in_c():
    _OPERATORS.impl("count", count_on_cpu, "CPU")
_OPERATORS.impl("count", count_with_torch, "CompositeExplicitAutograd")
_OPERATORS.impl("count_codes", count_codes_on_cpu, "CPU")
_OPERATORS.impl("count_codes", count_codes_with_torch, "CompositeExplicitAutograd")
_OPERATORS.impl("count_in_python", count_on_cpu, "CPU")
for _name in ("count", "count_codes", "count_in_python"):
    torch.library.register_fake(f"trimtab::{_name}", _nothing, lib=_OPERATORS)
