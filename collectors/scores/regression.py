"""RegressionSums: what is kept of predicted and true numbers, a monoid of exact sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import msgspec
import numpy as np
import numpy.typing as npt

from collectors.scores.cells import ScoreError
from collectors.scores.exact import UNIT_EXPONENT, exact_sum
from collectors.scores.intervals import log_interval, normal_quantile, student_quantile
from collectors.scores.means import Score, mean_and_variance, mean_score

Floats = npt.NDArray[np.float64]

_FORMAT = 1
# Beyond it a square or a fourth power is infinite.
LARGEST = 1e75


def scorable(*values: float) -> bool:
    """Whether the values are all finite and not beyond what a score can hold."""
    return all(abs(value) <= LARGEST for value in values)


@dataclass(frozen=True, slots=True)
class RegressionSums:
    """Rows, and exact sums of prediction p, label y, error e = p - y and their powers.

    `a + b` is that of both, bit for bit, in any order and partition; `a - b` takes rows out again.
    """

    rows: int = 0
    sums: tuple[int, ...] = (0,) * 12
    """Σ of p, p², y, y², y³, y⁴, e, |e|, e², e⁴, y e² and y² e², in units of 2**-1074."""

    @classmethod
    def of(cls, predictions: Floats, labels: Floats) -> RegressionSums:
        """Of predictions and labels, shape (rows,) each. Raises ScoreError unless they are as many, and finite."""
        p, y = np.asarray(predictions, np.float64).ravel(), np.asarray(labels, np.float64).ravel()
        if len(p) != len(y):
            raise ScoreError(f"{len(y)} labels for {len(p)} predictions: give one each")
        if len(p) and not (np.abs(p).max() <= LARGEST and np.abs(y).max() <= LARGEST):
            raise ScoreError(f"predictions and labels must be finite and at most {LARGEST:g} in size: leave others out")
        return cls(len(p), tuple(sum(map(exact_sum, parts)) for parts in _powers(p, y)))

    def __add__(self, other: RegressionSums) -> RegressionSums:
        if not isinstance(other, RegressionSums):
            return NotImplemented
        return RegressionSums(self.rows + other.rows, tuple(map(int.__add__, self.sums, other.sums)))

    def __sub__(self, other: RegressionSums) -> RegressionSums:
        """Without the rows of `other`, which must have been added. Raises ScoreError when there are too few."""
        if not isinstance(other, RegressionSums):
            return NotImplemented
        if other.rows > self.rows:
            raise ScoreError("rows can only be taken out of sums that they are in")
        return RegressionSums(self.rows - other.rows, tuple(map(int.__sub__, self.sums, other.sums)))

    def scores(self, confidence: float = 0.95) -> dict[str, Score]:
        """`bias`, `prediction_mean` (Student's intervals), `mae` and `rmse` (the log scale), `r2` (delta method).

        The upper end of RMSE, and with it the lower of R², is further away the heavier the errors' tails: the largest
        errors may not have come yet. None without rows; `r2` needs labels that differ. Values are those of the rows
        but for one rounding.
        """
        if not self.rows:
            return {}
        z, n = normal_quantile(confidence), self.rows
        p, p2, y, y2, _, _, e, size, e2, e4, *_ = self.sums
        found = {
            "prediction_mean": mean_score(p, p2, n, z),
            "bias": mean_score(e, e2, n, z),
            "mae": _positive_score(*mean_and_variance(size, e2, n), student_quantile(z, n - 1)),
        }
        square, further = _square_score(*mean_and_variance(e2, e4, n), n, z)
        found["rmse"] = Score(*map(_root, (square.value, square.low, square.high)))
        total = n * (y2 << UNIT_EXPONENT) - y * y  # n² times the variance of y, in units of 2**-2148
        if total > 0:
            value = 1 - n * (e2 << UNIT_EXPONENT) / total
            error = self._r2_error(1 - value)
            t = student_quantile(z, n - 1)
            found["r2"] = Score(value, 1 - (1 - value + t * error) * further, value + t * error)
        return found

    def _r2_error(self, ratio: float) -> float:
        """The standard error of R² = 1 - Σe²/Σ(y-ȳ)²: of the mean of e² - ratio (y-ȳ)², over the variance of y."""
        n = self.rows
        if n < 3:
            return math.nan
        scale = n << UNIT_EXPONENT
        _, _, y, y2, y3, y4, _, _, e2, e4, ye2, y2e2 = (Fraction(total, scale) for total in self.sums)
        share, variance = Fraction(ratio), y2 - y * y
        fourth = y4 - 4 * y * y3 + 6 * y * y * y2 - 3 * y**4
        cross = y2e2 - 2 * y * ye2 + y * y * e2
        spread = e4 - 2 * share * cross + share * share * fourth - (e2 - share * variance) ** 2
        return math.sqrt(max(0.0, float(spread / variance**2 / (n - 1))))

    def to_json(self) -> bytes:
        """About 3 kB of JSON."""
        return msgspec.json.encode(_Stored(_FORMAT, self.rows, [format(total, "x") for total in self.sums]))

    @classmethod
    def from_json(cls, body: bytes) -> RegressionSums:
        """The sums that `to_json` wrote. Raises ScoreError on any other bytes."""
        try:
            stored = msgspec.json.decode(body, type=_Stored)
            found = cls(stored.rows, tuple(int(total, 16) for total in stored.sums))
        except (msgspec.DecodeError, ValueError) as wrong:
            raise ScoreError(f"these are no stored regression sums: {wrong}") from wrong
        if stored.format != _FORMAT or len(found.sums) != 12:
            raise ScoreError(f"regression sums of format {stored.format} cannot be read: this is format {_FORMAT}")
        return found


class _Stored(msgspec.Struct):
    format: int
    rows: int
    sums: list[str]


def _positive_score(mean: float, variance: float, t: float) -> Score:
    """A mean of values from 0 on, with its interval on the log scale; NaN where its variance is."""
    if math.isnan(variance):
        return Score(mean, math.nan, math.nan)
    return Score(mean, *log_interval(mean, math.sqrt(variance), t))


def _square_score(mean: float, variance: float, rows: int, z: float) -> tuple[Score, float]:
    """The mean squared error with its interval, and how many times further up that goes because of heavy tails.

    A sample's fourth moment is too small when tails are heavy, as the rows that make it are rare. So the upper end is
    also that of the same rows with one more, as large as the fourth moment beyond a normal law's (three squares of
    the second) can hold: nothing for normal or lighter tails.
    """
    t = student_quantile(z, rows - 1)
    score = _positive_score(mean, variance, t)
    if not (mean > 0 and variance > 0):
        return score, 1.0
    fourth = 1 + (rows - 1) * (variance / mean / mean)  # Σe⁴ / rows over the mean square's square
    event = math.sqrt(rows * max(0.0, fourth - 3))  # as is all that follows, in units of the mean
    wider = (rows + event) / (rows + 1)
    spread = (rows * fourth + event * event) / (rows + 1) - wider * wider
    high = mean * log_interval(wider, math.sqrt(max(0.0, spread) / rows), t)[1] if event else score.high
    return Score(mean, score.low, max(score.high, high)), max(1.0, high / score.high)


def _root(square: float) -> float:
    return square if math.isnan(square) else math.sqrt(max(0.0, square))


def _powers(p: Floats, y: Floats) -> tuple[tuple[Floats, ...], ...]:
    """The terms of each sum; where labels come in also what rounding took off, for moments about their mean are
    differences of these: of labels of a million that differ by one, the fourth powers agree in 24 digits."""
    error = p - y
    y2, e2 = _product(y, y), _product(error, error)
    return (
        (p,),
        _product(p, p),
        (y,),
        y2,
        _products((y,), y2),
        _products(y2, y2),
        (error,),
        (np.abs(error),),
        e2,
        (e2[0] * e2[0],),
        _products((y,), e2),
        _products(y2, e2),
    )


def _products(these: Sequence[Floats], those: Sequence[Floats]) -> tuple[Floats, ...]:
    """(Σ these) times (Σ those), each a rounded part and what is left of it, to some 48 digits: in three such parts."""
    most, *middle = (part for a in these[:1] for b in those[:1] for part in _product(a, b))
    least = np.zeros_like(most)
    for a, b in [(a, those[0]) for a in these[1:]] + [(these[0], b) for b in those[1:]]:
        part, left = _product(a, b)
        middle, least = [*middle, part], least + left
    total = middle[0]
    for part in middle[1:]:
        added = total + part
        kept = added - total
        least += (total - (added - kept)) + (part - kept)  # what that rounded off (Knuth's two-sum)
        total = added
    if len(these) > 1 and len(those) > 1:
        least += these[1] * those[1]
    return tuple(part for part in (most, total, least) if part.any())


def _product(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """ab as a rounded and a remaining part, whose sum is exact above 1e-140 (Dekker 1971)."""
    product = a * b
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _halves(values: Floats) -> tuple[Floats, Floats]:
    """The first 26 bits of each value and the rest."""
    scaled = values * 134_217_729.0
    high = scaled - (scaled - values)
    return high, values - high
