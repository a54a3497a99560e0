"""Registers the C code as a torch operator's CPU kernel, through the C functions that torch exports for extensions."""

from __future__ import annotations

import ctypes
import logging

import torch

from observability.native import library

# As in `struct torch` of `dispatch.c`.
_NAMES = (
    "library_init_impl", "library_impl", "call_dispatcher", "get_data_ptr", "get_sizes", "get_strides", "get_dtype",
    "delete_tensor_object", "dtype_float32", "dtype_float64", "dtype_float16", "dtype_bfloat16",
)  # fmt: skip
_log = logging.getLogger(__name__)


def registered_in_c(names: tuple[str, ...] = _NAMES) -> bool:
    """Whether `trimtab::count` runs in C from now on; not without a compiler, nor by a torch that lacks `names`."""
    counting, dispatch = library(), library("dispatch")
    if counting is None or dispatch is None:
        return False
    try:
        exported = ctypes.CDLL(torch._C.__file__)
        addresses = [ctypes.cast(getattr(exported, f"aoti_torch_{name}"), ctypes.c_void_p).value for name in names]
    except (OSError, AttributeError) as error:
        _log.info("calling the probe's C code through Python: %s", error)
        return False
    table = (ctypes.c_void_p * len(addresses))(*addresses)
    count = ctypes.cast(counting.trimtab_probe_count, ctypes.c_void_p).value
    return bool(dispatch.trimtab_register(ctypes.addressof(table), count) == 0)
