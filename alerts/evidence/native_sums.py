"""The sums of logarithms that a verdict is made of, compiled where there is a compiler: the same bits in less time.

The formulas stand beside the same in Python, in `segments`, `errors`, `sample_ratio` and `latency`. Verdicts are
replayed bit for bit, on another machine, too; so compiled sums are taken only where what they rest on, the C library's
functions, are those of Python.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Protocol, cast

from observability.native import extension

Numbers = Sequence[float]
_SOURCE = Path(__file__).with_name("native_sums.c")
# A product and a sum are rounded apart, as in Python.
_FLAGS = ("-ffp-contract=off",)
_log = logging.getLogger(__name__)


class NativeSums(Protocol):
    """The compiled functions. ValueError for lists that do not belong together, or of more than `MOST` numbers."""

    MOST: int

    def label_mixture(
        self, slopes: Numbers, normalizers: list[tuple[float, ...]], rows: list[tuple[float, float, float]], /
    ) -> float:
        """`segments.log_mixture` of rows that say something."""

    def rate_mixture(self, errors: float, clean: float, on_errors: Numbers, on_clean: Numbers, /) -> float:
        """`errors.log_rate_safety`."""

    def split_terms(self, rows: list[tuple[float, float, float]], prior: float, /) -> tuple[float, ...]:
        """What each row adds to `sample_ratio.log_split_evidence`, of rows that chance has routed."""

    def mixed_wealth(
        self, weights: Numbers, wealth: tuple[tuple[float, ...], ...], shares: Numbers, most: float, /
    ) -> tuple[float, int]:
        """`latency.Pace.evidence`: the logarithm of the mixed wealth, and the place of the bound that adds most."""

    def wealth_after(
        self,
        wealth: tuple[tuple[float, ...], ...],
        weights: Numbers,
        usual: Numbers,
        slow: Numbers,
        canary: Numbers,
        stable: Numbers,
        settings: tuple[float, float, float, float, float, float],
        fractions: Numbers,
        since_any: bool,
        /,
    ) -> tuple[tuple[tuple[float, ...], ...], tuple[float, ...], tuple[float, ...]]:
        """A look of `latency.Pace`: the next wealth, usual shares and slow requests.

        `settings` are the arms' requests, the tolerance, the most gained, the least requests and what is remembered.
        """


@cache
def native_sums() -> NativeSums | None:
    """The compiled functions, or None where they cannot be had. Half a second the first time on a machine."""
    made = extension(_SOURCE, *_FLAGS)
    if made is None:
        return None
    for place in range(200):
        x = 1e-6 * 1.1**place
        if made.elementary(x) != (math.exp(-x), math.exp(x), math.log(x), math.log1p(x)):
            _log.info("doing without %s: the C library's functions are not those of Python here", _SOURCE)
            return None
    return cast(NativeSums, made)
