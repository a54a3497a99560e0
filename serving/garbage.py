"""The interpreter of a serving process: what the start made is left out of garbage collection, threads give way soon.

torch and the libraries make half a million objects, which a full collection would walk under load. A model gives the
interpreter's lock away at each operator, and has to get it back from the threads that make events.
"""

from __future__ import annotations

import ctypes
import gc
import linecache
import os
import sys
import threading
from contextlib import suppress
from importlib.abc import MetaPathFinder
from typing import Any

# Requests leave almost no cycles: a look each 50,000 new objects instead of 700.
_THRESHOLDS = (50_000, 20, 50)
# How long a thread that makes events may keep the event loop waiting; Python's default is 5 ms.
_SWITCH_SECONDS = 0.0005
# Set once the process is known to be this server's own.
_own = threading.Event()


def load_torch(threads: int) -> None:
    """Imports torch and leaves what it makes out of all collections: they find nothing in it, and take a tenth of it.

    For a process that is this server's own; `threads` is how many torch may use in an operator.
    """
    _own.set()
    collecting = gc.isenabled()
    gc.disable()
    try:
        import torch

        gc.freeze()
    finally:
        if collecting:
            gc.enable()
    torch.set_num_threads(threads)


def settle_down() -> None:
    """Collects once, and then never looks at what lives now; for a process whose main work begins here."""
    # torch's import reads sources and leaves their text here; whoever needs it reads it again.
    linecache.clearcache()
    gc.collect()
    gc.freeze()
    give_memory_back()
    gc.set_threshold(*_THRESHOLDS)
    sys.setswitchinterval(_SWITCH_SECONDS)


def give_memory_back() -> None:
    """Has the C library give the system what is free in its heaps, in less than a millisecond (glibc; else nothing)."""
    with suppress(AttributeError, OSError, TypeError):  # another C library; a system on which nothing names it
        ctypes.CDLL(None).malloc_trim(0)


def load_arrow() -> None:
    """Imports Arrow, which only what counts profiles needs: without pandas, and with the C library's allocator.

    Its first conversion would import pandas, half a second and 40 MB in the midst of traffic; its own allocator keeps
    6 MB. A process that is not the server's own, or has Arrow already, is left as it is.
    """
    if not _own.is_set() or "pyarrow" in sys.modules:
        return
    # Arrow's C++ asks the environment once; `pyarrow.set_memory_pool` reaches only a part of it.
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    import pyarrow as pa

    if "pandas" in sys.modules:
        return
    sys.meta_path.insert(0, _WithoutPandas)
    try:
        pa.scalar(0)
    finally:
        sys.meta_path.remove(_WithoutPandas)


class _WithoutPandas(MetaPathFinder):
    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("pandas is not wanted here", name=name)
