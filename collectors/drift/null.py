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

import numpy as np

from collectors.drift.bins import Counts, Floats
from collectors.drift.laws import chi2_sf
from collectors.drift.native_sums import ordered_sums
from observability.numeric import edges_of_sorted

# Below this many expected rows outside the largest cell (or in a group of categories) an exact law takes over.
FEW_ORDERED = 10.0
# Cells worked on at once: some ten arrays of so many numbers fit into a second-level cache.
CACHED = 16_384
# Newton's, on the logarithm of the tail, which is nearly a line.
STEPS = 6
# Squared cosines of so many angles: the mean over them is exact to 1e-9 of it where a probability is above 1e-12.
_COSINES = np.cos((np.arange(12) + 0.5) * (math.pi / 24))[:, None] ** 2
# Of exponents, so that no logarithm is of 0; and in place of a statistic that cannot vary.
_FARTHEST, _TINIEST = 700.0, 1e-300
# Of two vectors one whose own part is a smaller share is the other.
_ALONG = 1e-9


def effective_rows(window_rows: float, reference_rows: float) -> float:
    """`nN / (n + N)`: the rows of one sample whose estimate is as uncertain as the difference of these two."""
    total = window_rows + reference_rows
    return window_rows * reference_rows / total if total else 0.0


@dataclass(frozen=True, slots=True)
class NullLaw:
    """`Σ λ_k χ²₁` for many columns at once, by the eigenvalues' power sums and the two largest: arrays `(columns,)`.

    The tail is the first of Smirnov's (1936) alternating integrals, `(1/π) ∫ exp(−xu/2) Π |1 − λ_k u|^(−1/2) du/u`
    between `1/λ_1` and `1/λ_2`; what the others take from it is less than a fiftieth of it from one half down and soon
    nothing. With `1/u = λ_1 cos²φ + λ_2 sin²φ` it is a mean over φ, however near the two largest are to each other, and
    of the rest three terms of the logarithm's power series are known. Above one half it is a chi-square, shifted and
    scaled to three cumulants (Hall 1983; Buckley & Eagleson 1988). 0.98 to 1.02 times the exact probability from 0.1
    down to 1e-5, whatever the cells.
    """

    first: Floats
    """`Σ λ`: the mean of T."""
    second: Floats
    """`Σ λ²`: half its variance."""
    third: Floats
    """`Σ λ³`: an eighth of its third cumulant."""
    largest: Floats
    next_largest: Floats

    def __getitem__(self, chosen: Counts | slice) -> NullLaw:
        parts = (self.first, self.second, self.third, self.largest, self.next_largest)
        return NullLaw(*(part[chosen] for part in parts))

    def pvalue(self, statistic: Floats) -> Floats:
        """`P(T >= statistic)`, one a column; 1 for a column that cannot vary (all rows in one cell)."""
        varies = self.third > 0
        second, third = np.where(varies, self.second, 1.0), np.where(varies, self.third, 1.0)
        rate = second / third
        degrees = second * rate * rate
        tail, _ = self._tail(statistic)
        body = chi2_sf(np.maximum((statistic - self.first) * rate + degrees, 0.0), degrees)
        return np.where(varies, np.where(tail < 0.5, tail, np.maximum(body, 0.5)), 1.0)

    def quantile(self, pvalue: float) -> Floats:
        """The statistic that is exceeded with probability `pvalue` below one half: the inverse of `pvalue`."""
        found = np.maximum(self.first, _TINIEST)
        goal = math.log(pvalue)
        for _ in range(STEPS):
            # The logarithm is convex: after the first step the quantile is neared from below.
            chance, density = self._tail(found)
            found = np.maximum(found + (np.log(chance) - goal) * chance / density, found / 8)
        return np.where(self.third > 0, found, 0.0)

    def _tail(self, statistic: Floats) -> tuple[Floats, Floats]:
        """The tail's probability, and its density; both 1 for a column that cannot vary."""
        varies = self.largest > 0
        top, after = np.where(varies, self.largest, 1.0), np.where(varies, self.next_largest, 1.0)
        unit = top * _COSINES + after * (1.0 - _COSINES)
        # −½ Σ_{k>2} log(1 − λ_k u) = ½ Σ_m u^m Σ λ^m / m; none of them is above the second largest.
        power_sum = np.maximum(self.first - self.largest - self.next_largest, 0.0)
        exponent = (power_sum - statistic) / unit
        for m, whole in ((2, self.second), (3, self.third)):
            beside = np.maximum(whole - self.largest**m - self.next_largest**m, 0.0)
            power_sum = np.minimum(beside, power_sum * self.next_largest)
            exponent += power_sum / (m * unit**m)
        chance = np.exp(np.clip(exponent / 2, -_FARTHEST, _FARTHEST))
        density = np.where(varies, (chance / unit).mean(axis=0) / 2, 1.0)
        return np.where(varies, chance.mean(axis=0), 1.0), density


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
    running sums do; the two largest eigenvalues are Ritz' from what the covariance makes of two vectors.
    """
    sums_of = ordered_sums(reference, window)
    if sums_of is not None:
        return sums_of[0], NullLaw(*sums_of[1:])
    step = max(1, CACHED // reference.shape[-1])
    # Cells by columns: sums over cells are then sums of whole rows.
    first, second = np.ascontiguousarray(reference.T), np.ascontiguousarray(window.T)
    parts = [_test(first[:, at : at + step], second[:, at : at + step]) for at in range(0, len(reference), step)]
    scores, *sums = np.concatenate(parts, axis=1) if parts else np.zeros((6, 0))
    return scores, NullLaw(*sums)


def _test(reference: Counts, window: Counts) -> Floats:
    """Scores and the five rows of a `NullLaw`, of `(cells, columns)` that fit into the processor's cache."""
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


def _law(weights: Floats, pooled: Floats) -> tuple[Floats, Floats, Floats, Floats, Floats]:
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
    return first, second, third, *_largest(weights, pooled)


def _largest(weights: Floats, pooled: Floats) -> tuple[Floats, Floats]:
    """The two largest eigenvalues, by Rayleigh and Ritz over two vectors: those of no ties, nearly.

    What ties make of the eigenvectors is left to one step of the power method. Exact with up to three cells.
    """
    even = pooled - pooled * pooled
    odd = weights * even * (1.0 - 2.0 * pooled)
    even *= weights
    images = _bridge(even, pooled), _bridge(odd, pooled)
    moments = [(images[i] * vector).sum(axis=0) for i, vector in ((0, even), (0, odd), (1, odd))]
    squares = [(images[i] * images[j] * weights).sum(axis=0) for i, j in ((0, 0), (0, 1), (1, 1))]
    # The second vector without its part along the first.
    unit = np.where(moments[0] > 0, moments[0], 1.0)
    part = moments[1] / unit
    left = moments[2] - part * moments[1]
    two = left > _ALONG * moments[2]
    left = np.where(two, left, 1.0)
    across = squares[1] - part * squares[0]
    first = squares[0] / unit
    second = np.where(two, (squares[2] - part * (2.0 * squares[1] - part * squares[0])) / left, 0.0)
    between = np.where(two, across * across / (unit * left), 0.0)
    middle, radius = (first + second) / 2, np.sqrt((first - second) ** 2 / 4 + between)
    return middle + radius, np.maximum(middle - radius, 0.0)


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
