"""A probe's memory on the CPU: batches of float32 wait in it until enough of them are there to be counted at once.

What is the same for a batch of one row and of a hundred is paid once for thousands of values: a step of a model only
copies its batch. Whoever reads the counts counts what waits in a copy of them.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from observability.native import brief_calls, library

# Numbers that wait (256 kB), and rows of wide tables: so many share what a pass costs, most of it memory gone cold.
_WAITING_VALUES, _WAITING_ROWS = 65_536, 64
# A call about more numbers than these lets other threads have Python.
_BRIEF_VALUES = 1 << 16
_FIELDS = 8

_LOCKS: list[threading.Lock] = []


def _renew_locks() -> None:
    _LOCKS[:] = [threading.Lock() for _ in range(64)]


_renew_locks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


def lock_of(counts: Tensor) -> threading.Lock:
    """The lock of who adds to `counts` where there is no C code, which has its own."""
    return _LOCKS[(counts.data_ptr() >> 6) % len(_LOCKS)]


def library_for(values: int, brief: ctypes.PyDLL) -> ctypes.CDLL:
    """How a call about so many values is made."""
    return brief if values <= _BRIEF_VALUES else cast(ctypes.CDLL, library())


def tables_of(edges: Tensor, edges_float32: Tensor) -> Tensor:
    """What the C code looks float32 (row 0) and float64 values (row 1) up in; no rows where there is no C code.

    `edges` are [columns, width], as in `probe_kernels.py`.
    """
    native = library()
    columns, width = edges.shape
    if native is None or not columns:
        return torch.zeros(0, 0, dtype=torch.int64)
    size = native.trimtab_tables_size_double(columns, width)
    tables = torch.zeros(2, size, dtype=torch.int64)
    native.trimtab_tables_float(edges_float32.data_ptr(), columns, width, tables[0].data_ptr())
    native.trimtab_tables_double(edges.data_ptr(), columns, width, tables[1].data_ptr())
    return tables


def waiting_of(columns: int) -> tuple[Tensor, Tensor]:
    """Room for the rows that wait, [rows, columns], and the number of those that do; no room without C code."""
    rows = max(_WAITING_ROWS, _WAITING_VALUES // columns) if columns and library() is not None else 0
    return torch.zeros(rows, columns), torch.zeros(1, dtype=torch.int64)


def addresses(counts: Tensor, moments: Tensor, tables: Tensor, waiting: Tensor, filled: Tensor) -> Any:
    """`struct trimtab_probe` of `count.c` over these tensors, which it does not keep."""
    columns, cells = counts.shape
    return (ctypes.c_int64 * _FIELDS)(
        columns, cells - 4, len(waiting), tables.data_ptr(), counts.data_ptr(), moments.data_ptr(),
        waiting.data_ptr(), filled.data_ptr(),
    )  # fmt: skip


class ProbeMemory:
    """The C code's view of a probe's buffers, to add batches without torch's dispatch. Copies of a module make anew."""

    __slots__ = ("_add_columns", "_brief", "_struct", "_tensors", "address", "counts", "offer")

    def __init__(self, columns: int, tensors: tuple[Tensor, ...], calls: ctypes.PyDLL) -> None:
        self.counts = tensors[0]
        # So many rows are added by calls that hold on to Python.
        self._brief = _BRIEF_VALUES // columns
        self._tensors = tensors
        self._struct = addresses(*tensors)
        self.address = ctypes.addressof(self._struct)
        # Takes the tuple of a module's inputs, and says whether it has counted them; see `offered_by`.
        self.offer: Callable[[tuple[object, ...]], bool] = _taken_by_nobody
        self._add_columns = calls.trimtab_probe_add_columns

    @staticmethod
    def of(counts: Tensor, moments: Tensor, tables: Tensor, waiting: Tensor, filled: Tensor) -> ProbeMemory | None:
        """None where these tensors are not in this process's memory, or there is no C code."""
        tensors = counts, moments, tables, waiting, filled
        calls = brief_calls()
        if calls is None or not len(waiting) or not tables.numel():
            return None
        if not all(type(tensor) is Tensor and tensor.is_cpu for tensor in tensors):
            return None
        return ProbeMemory(counts.shape[0], tensors, calls)

    def offered_by(self, dicts: Sequence[dict[Any, Any]], buffers: dict[str, Any], columns: int) -> None:
        """Makes `offer`: one call of C that takes a float32 matrix [rows, columns] in memory, as most models have it.

        A model leaves Python's and torch's own code cold, so that each call on the way costs three times what a loop
        over it shows. It takes nothing once one of `dicts` (a module's hooks) has something in it, or `buffers` other
        counts.
        """
        exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)
        calls, adding = brief_calls("offer"), library()
        if exchange is None or calls is None or adding is None or not columns:
            return
        pointer = ctypes.cast(adding.trimtab_probe_add, ctypes.c_void_p).value
        parts = Tensor, tuple(dicts), buffers, "counts", self.counts
        offer = calls.trimtab_offer(exchange, pointer, self.address, columns, self._brief, parts)
        self.offer = offer or _taken_by_nobody

    def add_columns(self, columns: Sequence[Tensor], rows: int) -> None:
        """Adds float32 columns [rows] that lie without gaps, one for each of the probe's."""
        pointers = (ctypes.c_void_p * len(columns))(*[column.data_ptr() for column in columns])
        add = self._add_columns if rows <= self._brief else cast(ctypes.CDLL, library()).trimtab_probe_add_columns
        add(self.address, ctypes.addressof(pointers), rows)

    def count_waiting(self) -> None:
        """Counts what waits."""
        cast(ctypes.CDLL, library()).trimtab_probe_count_waiting(self.address)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


def _taken_by_nobody(inputs: tuple[object, ...]) -> bool:
    """Where there is no such call, every batch goes the long way."""
    return False


def copied_on_cpu(state: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Copies of counts (the first) and whatever is counted with them, of one moment; waits for the device."""
    if state[0].device.type != "cpu":
        return tuple(tensor.detach().cpu() for tensor in state)
    native = library()
    if native is None:
        with lock_of(state[0]):
            return tuple(tensor.detach().clone() for tensor in state)
    copies = tuple(torch.empty_like(tensor) for tensor in state)
    pieces = len(copies)
    origins, targets = (
        (ctypes.c_void_p * pieces)(*[tensor.data_ptr() for tensor in tensors]) for tensors in (state, copies)
    )
    sizes = (ctypes.c_int64 * pieces)(*[tensor.numel() * tensor.element_size() for tensor in copies])
    native.trimtab_copy(pieces, *(ctypes.addressof(array) for array in (origins, targets, sizes)), state[0].data_ptr())
    return copies
