"""The interpreter of a serving process: what the start made is left out of garbage collection, threads give way soon.

torch and the libraries make half a million objects, which a full collection would walk under load. A model gives the
interpreter's lock away at each operator, and has to get it back from the threads that make events.
"""

from __future__ import annotations

import gc
import sys
from importlib.abc import MetaPathFinder
from typing import Any

import pyarrow as pa

# Requests leave almost no cycles: a look each 50,000 new objects instead of 700.
_THRESHOLDS = (50_000, 20, 50)
# How long a thread that makes events may keep the event loop waiting; Python's default is 5 ms.
_SWITCH_SECONDS = 0.0005


def settle_down() -> None:
    """Collects once, and then never looks at what lives now; for a process whose main work begins here."""
    _look_for_pandas()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    sys.setswitchinterval(_SWITCH_SECONDS)


def _look_for_pandas() -> None:
    """Has pyarrow decide now whether there is pandas: only where something has imported it before.

    Its first conversion would import it, half a second and 40 MB in the midst of traffic; no event needs it.
    """
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
