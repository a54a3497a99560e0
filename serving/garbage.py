"""The garbage collector of a serving process: what was made at the start is left alone, what requests make is looked at
rarely. torch and the libraries make half a million objects, which a full collection would walk under load.
"""

from __future__ import annotations

import gc

# Requests leave almost no cycles: a look each 50,000 new objects instead of 700.
_THRESHOLDS = (50_000, 20, 50)


def settle_down() -> None:
    """Collects once, and then never looks at what lives now; for a process whose main work begins here."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
