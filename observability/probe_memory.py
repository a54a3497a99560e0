"""A probe's memory on the CPU: batches of numbers wait in it until enough of them are there to be counted at once.

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
from observability.probe_state import has_tables

# A call about more numbers than these lets other threads have Python.
_BRIEF_VALUES = 1 << 16

_LOCKS: list[threading.Lock] = []


def _renew_locks() -> None:
    _LOCKS[:] = [threading.Lock() for _ in range(64)]


_renew_locks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


def lock_of(state: Tensor) -> threading.Lock:
    """The lock of who adds to `state` where there is no C code, which has its own."""
    return _LOCKS[(state.data_ptr() >> 6) % len(_LOCKS)]


def library_for(values: int) -> ctypes.CDLL:
    """How a call about so many values is made, where there is C code."""
    return cast(ctypes.CDLL, brief_calls() if values <= _BRIEF_VALUES else library())


class ProbeMemory:
    """The C code's view of a probe's state, to add batches without torch's dispatch. Copies of a module make anew."""

    __slots__ = ("_brief", "offer", "state")

    def __init__(self, columns: int, state: Tensor) -> None:
        self.state = state
        # So many rows are added by calls that hold on to Python.
        self._brief = _BRIEF_VALUES // columns
        # Takes the tuple of a module's inputs, and says whether it has counted them; see `offered_by`.
        self.offer: Callable[[tuple[object, ...]], bool] = _taken_by_nobody

    @staticmethod
    def of(columns: int, state: Tensor) -> ProbeMemory | None:
        """None where the state is not in this process's memory, or not made for C code, or there is none."""
        if not columns or brief_calls() is None or type(state) is not Tensor or not state.is_cpu:
            return None
        return ProbeMemory(columns, state) if has_tables(state) else None

    def offered_by(self, dicts: Sequence[dict[Any, Any]], buffers: dict[str, Any], columns: int) -> None:
        """Makes `offer`: one call of C that takes a matrix [rows, columns] in memory, as most models have it.

        A model leaves Python's and torch's own code cold, so that each call on the way costs three times what a loop
        over it shows. It takes nothing once one of `dicts` (a module's hooks) has something in it, or `buffers` another
        state.
        """
        exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)
        calls, counting = brief_calls("offer"), library()
        if exchange is None or calls is None or counting is None or not columns:
            return
        pointer = ctypes.cast(counting.trimtab_probe_count, ctypes.c_void_p).value
        parts = Tensor, tuple(dicts), buffers, "state", self.state
        offer = calls.trimtab_offer(exchange, pointer, self.state.data_ptr(), columns, self._brief, parts)
        self.offer = offer or _taken_by_nobody

    def add_columns(self, columns: Sequence[Tensor], rows: int) -> None:
        """Adds float32 columns [rows] that lie without gaps, one for each of the probe's."""
        pointers = (ctypes.c_void_p * len(columns))(*[column.data_ptr() for column in columns])
        native = library_for(rows * len(columns))
        native.trimtab_probe_add_columns(self.state.data_ptr(), ctypes.addressof(pointers), rows)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


def _taken_by_nobody(inputs: tuple[object, ...]) -> bool:
    """Where there is no such call, every batch goes the long way."""
    return False


def copied_on_cpu(state: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Copies of a state (the first) and whatever is counted with it, of one moment; waits for the device."""
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
