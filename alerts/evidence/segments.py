"""The e-process on whose an event is: the canary's or the stable version's, given that it happened.

An e-process E_t has E_0 = 1 and mean at most 1 at every stopping time when its hypothesis is true, so
P(E_t >= 1/alpha at any time) <= alpha (Ville 1939): looking every second costs nothing. What is here holds for any
event (a failure, an answer slower than a bound, a prediction within a bin) and needs two numbers a routing probability.

With the probability rho that the router sent a request to the canary, and the canary's rate of events r times the
stable version's, an event is the canary's with the chance rho r / (1 - rho + rho r), whatever the traffic, the season
or an incident common to both. So each likelihood ratio of r against a ratio r0 is exact for any ramp, and its mixture
over alternatives beyond r0 is an e-process against every ratio up to r0 (monotone likelihood ratio). After Lindon &
Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022, with the probability logged by event.

Events must be independent given the arm. Where the router keeps units (users) on an arm, a unit's first event counts,
not each of them: `alerts.evidence.units`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from alerts.evidence.native_sums import native_sums

Floats = NDArray[np.float64]
Numbers = tuple[float, ...]

# Rate ratios that the mixtures bet on. Fixed before any release; a grid chosen from its data would void the guarantee.
HARM_RATIOS: Floats = np.geomspace(1.15, 60.0, 16)
# The same for proof of safety: a good release is as good as its neighbour, so most is bet on that.
SAFE_RATIOS: Floats = np.array([0.05, 0.3, 0.6, 1.0, 1.0, 1.0, 1.3])

# The logarithm of what adds nothing to a sum that 1 is added to.
NOTHING = -700.0
# Weights that a router has had, of which what follows is remembered.
_MOST_PROPENSITIES = 1000


class Segment(msgspec.Struct, frozen=True):
    """Events of both arms while the router sent a request to the canary with one probability (`propensity`).

    Numbers of events may be fractions: a likelihood ratio to a power below 1 is evidence too (Jensen).
    """

    propensity: float
    canary_events: float
    total_events: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.propensity <= 1.0:
            raise ValueError(f"propensity is a probability, got {self.propensity}")
        if not 0 <= self.canary_events <= self.total_events:
            raise ValueError(
                f"canary events must lie within all events, got {self.canary_events} of {self.total_events}"
            )

    def plus(self, other: Segment) -> Segment:
        """With further events of the same probability."""
        return Segment(
            self.propensity, self.canary_events + other.canary_events, self.total_events + other.total_events
        )

    def times(self, share: float) -> Segment:
        """A share of the events."""
        return Segment(self.propensity, share * self.canary_events, share * self.total_events)


def log_evidence(segments: Sequence[Segment], grid: Floats = HARM_RATIOS, tolerance: float = 1.0) -> float:
    """Log e-value against "the canary's rate of events is at most `tolerance` times the stable one's".

    The uniform mixture over the rate ratios `grid` times `tolerance`. ValueError unless these lie beyond it.
    """
    return log_mixture(_rows(segments), Bets.of(grid, tolerance))


def log_ratio_safety(segments: Sequence[Segment], max_ratio: float, grid: Floats = SAFE_RATIOS) -> float:
    """Log e-value against "the canary's rate of events is at least `max_ratio` times the stable one's".

    `grid` are the ratios that are bet on; those of at least `max_ratio` are left out.
    """
    return log_mixture(_rows(segments), Bets.below(grid, max_ratio))


def log_mean_exp(values: Sequence[float]) -> float:
    """Logarithm of the mean of e-values that are given by their logarithms; infinite where one is."""
    highest = max(values)
    if not math.isfinite(highest):
        return highest
    total = 0.0
    for value in values:  # one after the other: `sum` adds in another way in later versions of Python
        total += math.exp(value - highest)
    return highest + math.log(total / len(values))


def log_plus_one(value: float) -> float:
    """ln(1 + exp(value)), without overflow."""
    return value + math.log1p(math.exp(-value)) if value > 0 else math.log1p(math.exp(value))


class Bets:
    """Log rate ratios of the alternatives against that of the hypothesis, made ready; `of` keeps those it has made.

    `slopes` is what a canary event adds to each log likelihood ratio.
    """

    __slots__ = ("_alternatives", "_normalizers", "_null", "slopes")

    def __init__(self, alternatives: Numbers, null: float) -> None:
        self.slopes = tuple(alternative - null for alternative in alternatives)
        self._alternatives = alternatives
        self._null = null
        self._normalizers: dict[float, Numbers] = {}

    @staticmethod
    def of(grid: Floats, null: float) -> Bets:
        """Of rate ratios relative to `null`. ValueError unless all lie on one side of it."""
        return _bets(grid.tobytes(), null)

    @staticmethod
    def below(grid: Floats, null: float) -> Bets:
        """Of those rate ratios that are below `null`. ValueError when none is."""
        return _bets_below(grid.tobytes(), null)

    def normalizers(self, propensity: float) -> Numbers:
        """What any event takes from each log likelihood ratio."""
        found = self._normalizers.get(propensity)
        if found is None:
            null = math.log1p(propensity * math.expm1(self._null))
            found = tuple(math.log1p(propensity * math.expm1(other)) - null for other in self._alternatives)
            if len(self._normalizers) >= _MOST_PROPENSITIES:
                self._normalizers.clear()
            self._normalizers[propensity] = found
        return found


def log_mixture(rows: Sequence[tuple[float, float, float]], bets: Bets) -> float:
    """Log of the uniform mixture of the bets' likelihood ratios; a row is (propensity, canary events, all events)."""
    # With propensity 0 or 1 the label is certain and says nothing (and a canary's event at 0 was not routed by chance).
    informative = [row for row in rows if row[2] and 0.0 < row[0] < 1.0]
    if not informative:
        return 0.0
    native = native_sums()
    if native is not None and len(bets.slopes) <= native.MOST:
        return native.label_mixture(bets.slopes, [bets.normalizers(row[0]) for row in informative], informative)
    (propensity, canary, total), *others = informative
    for row in others:
        canary += row[1]
    # A dozen numbers are faster in lists than in arrays.
    values = [canary * s - total * n for s, n in zip(bets.slopes, bets.normalizers(propensity), strict=True)]
    for propensity, _, total in others:
        values = [value - total * n for value, n in zip(values, bets.normalizers(propensity), strict=True)]
    return log_mean_exp(values)


@lru_cache(maxsize=256)
def _bets(grid: bytes, null: float) -> Bets:
    ratios = np.frombuffer(grid)
    if null <= 0.0 or not len(ratios) or ratios.min() <= 0.0:
        raise ValueError(f"rate ratios are above 0, got {null} and {ratios.tolist()}")
    if ratios.min() < 1.0 < ratios.max():
        raise ValueError(f"all alternatives lie on one side of the hypothesis, got {ratios.tolist()} times it")
    return Bets(tuple(math.log(ratio * null) for ratio in ratios.tolist()), math.log(null))


@lru_cache(maxsize=256)
def _bets_below(grid: bytes, null: float) -> Bets:
    ratios = np.frombuffer(grid)
    return Bets.of(ratios[ratios < null] / null, null)


def _rows(segments: Sequence[Segment]) -> list[tuple[float, float, float]]:
    return [(segment.propensity, segment.canary_events, segment.total_events) for segment in segments]
