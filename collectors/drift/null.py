"""The law of the drift scores when nothing changed: from it come p-values and thresholds that hold at any row count.

Ordered cells: with `D` the difference of the two distribution functions at the cells' edges, the score is the root of
the mean of `D²` over the reference's rows, and `T = n_eff · score²`, `n_eff = nN / (n + N)`, is a Cramér–von Mises
statistic. Where nothing changed `√n_eff · D` is a Brownian bridge at the pooled distribution function `H`, so that `T`
is a weighted sum of chi-squares, its weights the eigenvalues of `√w_j (min(H_j, H_k) − H_j H_k) √w_k` (Anderson &
Darling 1952; Kiefer 1959). Ties and atoms are in `H` and `w`; nothing is assumed continuous.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from collectors.drift.bins import Counts, Floats
from collectors.drift.laws import chi2_sf, normal_isf, normal_sf
from collectors.drift.native_sums import ordered_sums
from observability.numeric import edges_of_sorted

# Below this many expected rows outside the largest cell (or in a group of categories) an exact law takes over.
FEW_ORDERED = 10.0
# Cells worked on at once: some ten arrays of so many numbers fit into a second-level cache.
CACHED = 16_384
# Quantiles are kept for so many degrees of freedom up to the most; between two of them they are a line to 1e-6.
KNOTS, MOST_DEGREES = 512, 4.0
# Each brings the tail's quantile ten times nearer where it counts.
STEPS = 7


def effective_rows(window_rows: float, reference_rows: float) -> float:
    """`nN / (n + N)`: the rows of one sample whose estimate is as uncertain as the difference of these two."""
    total = window_rows + reference_rows
    return window_rows * reference_rows / total if total else 0.0


@dataclass(frozen=True, slots=True)
class NullLaw:
    """`Σ λ_k χ²₁` for many columns at once, by the eigenvalues' power sums and the largest: arrays `(columns,)`.

    The body of the law is a chi-square that is shifted and scaled to three cumulants (Hall 1983; Buckley & Eagleson
    1988); the tail is Zolotarev's (1961) with the next term of its series, `Π_{k>1} (1 − λ_k/λ_1)^(−1/2) ·
    P(χ²₁ > x/λ_1) · (1 + ρ/2x)`, `ρ = Σ_{k>1} λ_k / (1 − λ_k/λ_1)`. The larger of both is taken: of a column without
    ties 0.999 to 1.032 times the exact probability from 0.1 down to 1e-5, of any within a tenth of it down to 1e-4.
    """

    first: Floats
    """`Σ λ`: the mean of T."""
    second: Floats
    """`Σ λ²`: half its variance."""
    third: Floats
    """`Σ λ³`: an eighth of its third cumulant."""
    largest: Floats

    def __getitem__(self, chosen: Counts | slice) -> NullLaw:
        return NullLaw(self.first[chosen], self.second[chosen], self.third[chosen], self.largest[chosen])

    def pvalue(self, statistic: Floats) -> Floats:
        """`P(T >= statistic)`, one a column; 1 for a column that cannot vary (all rows in one cell)."""
        varies, rate, degrees = self._body()
        body = chi2_sf(np.maximum((statistic - self.first) * rate + degrees, 0.0), degrees)
        scale, factor, further = self._tail()
        tail = 2 * factor * (1 + further / np.maximum(statistic, scale)) * normal_sf(np.sqrt(statistic / scale))
        return np.where(varies, np.minimum(np.maximum(body, tail), 1.0), 1.0)

    def quantile(self, pvalue: float) -> Floats:
        """The statistic that is exceeded with probability `pvalue` below one half: the inverse of `pvalue`."""
        varies, rate, degrees = self._body()
        body = (_chi2_isf(pvalue, degrees) - degrees) / rate + self.first
        scale, factor, further = self._tail()
        tail = np.asarray(np.inf)
        for _ in range(STEPS):
            chance = pvalue / (factor * (1 + further / np.maximum(tail, scale)))
            tail = scale * normal_isf(np.minimum(chance, 1.0) / 2) ** 2
        return np.where(varies, np.maximum(body, tail), 0.0)

    def _body(self) -> tuple[np.typing.NDArray[np.bool_], Floats, Floats]:
        varies = self.third > 0
        second, third = np.where(varies, self.second, 1.0), np.where(varies, self.third, 1.0)
        rate = second / third
        return varies, rate, second * rate * rate

    def _tail(self) -> tuple[Floats, Floats, Floats]:
        """`λ_1`, the product, and `ρ/2`, in place of logarithm and fraction three terms of their power series."""
        scale = np.where(self.largest > 0, self.largest, 1.0)
        # −½ Σ_{k>1} log(1 − λ_k/λ_1) = ½ Σ_m (Σ λ^m / λ_1^m − 1) / m, and so on.
        first, second, third = (
            np.maximum(power_sum / scale**m - 1.0, 0.0)
            for m, power_sum in enumerate((self.first, self.second, self.third), 1)
        )
        return scale, np.exp(first / 2 + second / 4 + third / 6), scale * (first + second + third) / 2


def _chi2_isf(pvalue: float, degrees: Floats) -> Floats:
    """Chi-square's quantile at one level for many degrees of freedom: interpolated in their usual range, 1 … 4."""
    knots, values = _quantiles(pvalue)
    usual = degrees <= knots[-1]
    found = np.interp(degrees, knots, values)
    return found if usual.all() else np.where(usual, found, _newton(pvalue, np.where(usual, 1.0, degrees)))


@lru_cache(maxsize=64)
def _quantiles(pvalue: float) -> tuple[Floats, Floats]:
    """Few levels are asked for, again and again: from window to window, and of each part of a table."""
    knots = np.geomspace(1 - 1e-9, MOST_DEGREES, KNOTS)
    return knots, _newton(pvalue, knots)


def _newton(pvalue: float, degrees: Floats) -> Floats:
    third, half = 2 / (9 * degrees), degrees / 2
    gamma = np.array([math.lgamma(value) for value in half])
    # Wilson & Hilferty (1931), then Newton's steps on ln P.
    x = np.maximum(degrees * (1 - third + np.sqrt(third) * normal_isf(pvalue)) ** 3, 1e-3)
    for _ in range(3):
        chance = chi2_sf(x, degrees)
        density = np.exp((half - 1) * np.log(x / 2) - x / 2 - gamma) / 2
        x = np.maximum(x + (np.log(chance) - math.log(pvalue)) * chance / density, x / 4)
    return np.asarray(x, np.float64)


def edge_weights(reference: Counts) -> Floats:
    """The weight of each inner edge: half the reference's share of the two cells that meet there, `(cells − 1, …)`.

    The trapezoid rule for the mean over the reference's rows; turning the axis round changes nothing.
    """
    return np.asarray((reference[1:] + reference[:-1]) * (0.5 / np.maximum(reference.sum(axis=0), 1)), np.float64)


def ordered_test(reference: Counts, window: Counts) -> tuple[Floats, NullLaw]:
    """The scores of `(columns, cells)` counts of ordered cells, and the law of `T = n_eff · score²`; O(cells) a column.

    The score is the root-mean-square difference of the two distribution functions over the reference's rows: 0 … 1,
    `0.303 d` for a shift of a normal column by a small `d` standard deviations; 0 where a side has no rows.

    The power sums are traces of powers of the bridge's covariance, whose entries are products `H_j (1 − H_k)`, so that
    running sums do; the largest eigenvalue comes from the power method's first steps.
    """
    sums_of = ordered_sums(reference, window)
    if sums_of is not None:
        return sums_of[0], NullLaw(*sums_of[1:])
    step = max(1, CACHED // reference.shape[-1])
    # Cells by columns: sums over cells are then sums of whole rows.
    first, second = np.ascontiguousarray(reference.T), np.ascontiguousarray(window.T)
    parts = [_test(first[:, at : at + step], second[:, at : at + step]) for at in range(0, len(reference), step)]
    scores, *sums = np.concatenate(parts, axis=1) if parts else np.zeros((5, 0))
    return scores, NullLaw(*sums)


def _test(reference: Counts, window: Counts) -> Floats:
    """Scores and the four rows of a `NullLaw`, of `(cells, columns)` that fit into the processor's cache."""
    before, now = np.cumsum(reference, axis=0), np.cumsum(window, axis=0)
    rows, others = before[-1], now[-1]
    held = (rows > 0) & (others > 0)
    weights = edge_weights(reference)
    difference = before[:-1] / np.maximum(rows, 1)
    difference -= now[:-1] / np.maximum(others, 1)
    difference *= difference
    difference *= weights
    scores = np.where(held, np.sqrt(difference.sum(axis=0)), 0.0)
    pooled = (before[:-1] + now[:-1]) * (1.0 / np.maximum(rows + others, 1))
    return np.stack([scores, *_law(weights, pooled)])


def _law(weights: Floats, pooled: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    below = weights * pooled
    below *= pooled
    both = weights * pooled
    both -= below
    above = weights * (1.0 - pooled)
    above -= both
    earlier = np.cumsum(below, axis=0)
    earlier -= below
    triples = 6.0 * earlier
    triples += 3.0 * below
    triples *= both
    pairs = np.cumsum(triples, axis=0)
    pairs -= triples
    first = both.sum(axis=0)
    squares = both * both
    second = 2.0 * (above * earlier).sum(axis=0) + squares.sum(axis=0)
    squares *= both
    both *= earlier
    both *= 3.0
    pairs += both
    pairs *= above
    third = pairs.sum(axis=0) + squares.sum(axis=0)
    # From the eigenvector of no ties, nearly: one step of the power method, and the ratio of two moments.
    weighted = weights * (pooled - pooled * pooled)
    image = _bridge(weighted, pooled)
    moment = (image * weighted).sum(axis=0)
    image *= image
    largest = (image * weights).sum(axis=0) / np.where(moment > 0, moment, 1.0)
    return first, second, third, np.minimum(largest, np.sqrt(second))


def _bridge(vector: Floats, pooled: Floats) -> Floats:
    """The bridge's covariance times a vector: `(1 − H_k) Σ_{j<=k} H_j v_j + H_k Σ_{j>k} (1 − H_j) v_j`."""
    # The second sum is the total less what the first has: Σ_{j>k} (1 − H_j) v_j, with both running sums in one.
    running = np.cumsum(vector, axis=0)
    left = np.cumsum(pooled * vector, axis=0)
    running *= -1.0
    running += -running[-1:] - left[-1:]
    running *= pooled
    running += left
    return running


@dataclass(frozen=True, slots=True)
class TwoCells:
    """The exact conditional law of the difference of two shares: Fisher's hypergeometric, two-sided by the difference.

    Half the probability of the observed value counts (the mid-p of Lancaster 1961), so that the rate of false alarms is
    the nominal one on average and not below it.
    """

    differences: Floats
    """|share now − share before| of every possible table, ascending and distinct."""
    midp: Floats
    """The p-value at each."""

    @staticmethod
    def of(successes: int, window_rows: int, reference_rows: int) -> TwoCells:
        """Of `successes` in both samples together; the tables differ in how many of them are in the window."""
        n, other = window_rows, reference_rows
        low, high = max(0, successes - other), min(n, successes)
        inside = np.arange(low, high + 1, dtype=np.float64)
        # The ratio of a table's probability to its predecessor's.
        k = inside[1:]
        steps = np.log((successes - k + 1) * (n - k + 1)) - np.log(k * (other - successes + k))
        logs = np.concatenate([[0.0], np.cumsum(steps)])
        chance = np.exp(logs - logs.max())
        chance /= chance.sum()
        difference = np.round(np.abs(inside / n - (successes - inside) / other), 12)
        distinct, places = np.unique(difference, return_inverse=True)
        mass = np.bincount(places, weights=chance, minlength=len(distinct))
        return TwoCells(np.asarray(distinct, np.float64), np.minimum(np.cumsum(mass[::-1])[::-1] - mass / 2, 1.0))

    def pvalue(self, difference: float) -> float:
        """The p-value of a difference of shares that one of the tables has."""
        place = int(np.searchsorted(self.differences, round(abs(difference), 12) - 1e-12))
        return float(self.midp[place]) if place < len(self.midp) else 0.0

    def quantile(self, pvalue: float) -> float:
        """The smallest difference whose p-value is at most `pvalue`; infinity when no table reaches it."""
        place = int(np.argmax(self.midp <= pvalue))
        return float(self.differences[place]) if self.midp[place] <= pvalue else math.inf


def is_sparse(reference: Counts, window: Counts) -> np.typing.NDArray[np.bool_]:
    """Columns `(columns, cells)` with fewer than ten rows to be expected outside the pooled table's largest cell.

    There the sum of chi-squares does not hold and `TwoCells` (the largest cell against the rest) is used; where no cell
    holds half the rows, few rows are just few rows.
    """
    pooled = reference + window
    largest = pooled.max(axis=1) / np.maximum(pooled.sum(axis=1), 1)
    smaller = np.minimum(reference.sum(axis=1), window.sum(axis=1))
    found: np.typing.NDArray[np.bool_] = (largest > 0.5) & (smaller * (1.0 - largest) < FEW_ORDERED)
    return found


def cells_of_sorted(reference: Floats, window: Floats, cells: int = 128) -> tuple[Counts, Counts]:
    """Counts of two ascending arrays of finite numbers over cells that hold equal shares of the reference.

    The same cells as a profile's (`NumericColumn`), so that the verdict from rows is the verdict from profiles.
    """
    if not len(reference):
        return np.zeros(1, np.int64), np.array([len(window)], np.int64)
    edges = edges_of_sorted(reference, cells)
    # The last edge closes its cell: a value on it is inside.
    closed = np.append(edges[:-1], np.nextafter(edges[-1], np.inf))
    return _counts_between(reference, closed), _counts_between(window, closed)


def _counts_between(ascending: Floats, edges: Floats) -> Counts:
    places = np.concatenate([[0], np.searchsorted(ascending, edges, side="left"), [len(ascending)]])
    return np.diff(places).astype(np.int64)
