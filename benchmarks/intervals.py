"""How often the 95 % intervals of realised scores hold the truth: of classifiers and of regressions, by rows.

Scores are the posterior of two normal classes, so their population values are known; regressions have errors of a law
whose moments are known. Beside the share of draws whose interval holds the truth stands how often there was one.

    python benchmarks/intervals.py [--draws 1000] [--rows 30 100 1000 10000]
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from collectors.scores import RegressionSums, Score, ScoreHistogram

Floats = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], dict[str, Score]]

CLASS_SCORES = ("roc_auc", "pr_auc", "log_loss", "brier", "ece", "accuracy", "precision", "recall", "f1")
NUMBER_SCORES = ("mae", "bias", "rmse", "r2")
_GRID = 400_000


@dataclass(frozen=True, slots=True)
class Classifier:
    """Scores of two normal classes `apart` deviations, said with `boldness` times the right log odds."""

    name: str
    base: float
    apart: float
    boldness: float = 1.0
    ties: int = 0
    """Scores are rounded to this many equal steps, and to half a step from 0 and 1; 0: not."""

    def scores(self, values: Floats) -> Floats:
        odds = self.apart * values - self.apart**2 / 2 + math.log(self.base / (1 - self.base))
        found = 1 / (1 + np.exp(-self.boldness * odds))
        return np.clip(np.rint(found * self.ties), 0.5, self.ties - 0.5) / self.ties if self.ties else found

    def draw(self, generator: np.random.Generator, rows: int) -> dict[str, Score]:
        labels = (generator.random(rows) < self.base).astype(np.float64)
        scores = self.scores(generator.standard_normal(rows) + self.apart * labels)
        return ScoreHistogram.of(scores, labels).scores()

    def truth(self) -> dict[str, float]:
        """The population's scores, from a fine grid of quantiles of either class."""
        grid = stats.norm.ppf((np.arange(_GRID) + 0.5) / _GRID)
        negatives, positives = self.scores(grid), self.scores(grid + self.apart)
        weights = np.concatenate([np.full(_GRID, 1 - self.base), np.full(_GRID, self.base)]) / _GRID
        scores = np.concatenate([negatives, positives])
        labels = np.repeat([0.0, 1.0], _GRID)
        predicted = scores >= 0.5
        hit = float(weights[predicted & (labels == 1)].sum())
        flagged = float(weights[predicted].sum())
        place = np.minimum((scores * 10 + 1e-12).astype(int), 9)
        gaps = np.bincount(place, weights * (scores - labels), 10)
        kept = np.clip(scores, 2.2e-16, 1 - 2.2e-16)
        return {
            **self._areas(scores, labels, weights),
            "log_loss": float(np.dot(weights, -np.log(np.where(labels == 1, kept, 1 - kept)))),
            "brier": float(np.dot(weights, (scores - labels) ** 2)),
            "ece": float(np.abs(gaps).sum()),
            "accuracy": float(weights[predicted == (labels == 1)].sum()),
            "precision": hit / flagged if flagged else math.nan,
            "recall": hit / self.base,
            "f1": 2 * hit / (flagged + self.base),
        }

    def _areas(self, scores: Floats, labels: Floats, weights: Floats) -> dict[str, float]:
        _, place = np.unique(scores, return_inverse=True)
        positives = np.bincount(place, weights * labels)
        negatives = np.bincount(place, weights * (1 - labels))
        below = np.cumsum(negatives) - negatives / 2
        hits, misses = np.cumsum(positives[::-1])[::-1], np.cumsum(negatives[::-1])[::-1]
        return {
            "roc_auc": float(np.dot(positives, below)) / self.base / (1 - self.base),
            "pr_auc": float(np.dot(positives, hits / (hits + misses))) / self.base,
        }


@dataclass(frozen=True, slots=True)
class Regression:
    """Predictions of variance 4, errors of a law with mean 0 and variance 1."""

    name: str
    errors: Callable[[np.random.Generator, int], Floats]
    absolute: float
    """The mean absolute error of the law."""

    def draw(self, generator: np.random.Generator, rows: int) -> dict[str, Score]:
        labels = 2 * generator.standard_normal(rows)
        return RegressionSums.of(labels + self.errors(generator, rows), labels).scores()

    def truth(self) -> dict[str, float]:
        return {"mae": self.absolute, "bias": 0.0, "rmse": 1.0, "r2": 1 - 1 / 4}


def _lognormal(generator: np.random.Generator, rows: int) -> Floats:
    values = np.exp(generator.standard_normal(rows))
    return np.asarray((values - math.exp(0.5)) / math.sqrt((math.e - 1) * math.e))


def _lognormal_absolute() -> float:
    # E|X - m| = 2 (m Phi(ln m) - m Phi(ln m - 1)), with m = exp(1/2).
    mean = math.exp(0.5)
    return float(2 * mean * (stats.norm.cdf(0.5) - stats.norm.cdf(-0.5)) / math.sqrt((math.e - 1) * math.e))


def _student(degrees: float) -> Regression:
    scale = math.sqrt((degrees - 2) / degrees)
    absolute = (
        2 * math.sqrt(degrees) * math.gamma((degrees + 1) / 2)
        / (math.sqrt(math.pi) * math.gamma(degrees / 2) * (degrees - 1))
    )  # fmt: skip
    return Regression(f"t of {degrees:g}", lambda g, n: scale * g.standard_t(degrees, n), scale * absolute)


CLASSIFIERS = (
    Classifier("balanced, good", 0.5, 1.5),
    Classifier("balanced, poor", 0.5, 0.2),
    Classifier("balanced, near perfect", 0.5, 5.0),
    Classifier("balanced, overconfident", 0.5, 1.5, boldness=3.0),
    Classifier("balanced, 11 scores", 0.5, 1.5, ties=10),
    Classifier("1 %, good", 0.01, 1.5),
    Classifier("1 %, poor", 0.01, 0.2),
    Classifier("1 %, near perfect", 0.01, 5.0),
    Classifier("1 %, overconfident", 0.01, 1.5, boldness=3.0),
    Classifier("1 %, 101 scores", 0.01, 1.5, ties=100),
)
REGRESSIONS = (
    Regression("normal", lambda g, n: g.standard_normal(n), math.sqrt(2 / math.pi)),
    _student(5),
    _student(3),
    Regression("lognormal", _lognormal, _lognormal_absolute()),
)


def coverage(case: Classifier | Regression, rows: int, draws: int, seed: int) -> dict[str, tuple[float, float]]:
    """By score: the share of intervals that hold the truth, and of draws that had an interval."""
    generator = np.random.default_rng(seed)
    truth, held, given = case.truth(), Counter[str](), Counter[str]()
    for _ in range(draws):
        for name, score in case.draw(generator, rows).items():
            if name in truth and not math.isnan(score.low):
                given[name] += 1
                held[name] += score.low - 1e-12 <= truth[name] <= score.high + 1e-12
    return {name: (held[name] / given[name], given[name] / draws) for name in truth if given[name]}


def table(cases: Sequence[Classifier | Regression], names: Sequence[str], rows: Sequence[int], draws: int) -> None:
    print("| case | rows | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 2) + "|")
    for case in cases:
        for number in rows:
            found = coverage(case, number, draws, seed=number)
            cells = [_cell(*found[name]) if name in found else "–" for name in names]
            print(f"| {case.name} | {number:,} | " + " | ".join(cells) + " |", flush=True)


def _cell(held: float, given: float) -> str:
    return f"{100 * held:.0f}" if given > 0.995 else f"{100 * held:.0f} (of {100 * given:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=1_000)
    parser.add_argument("--rows", type=int, nargs="+", default=[30, 100, 1_000, 10_000])
    chosen = parser.parse_args()
    print(
        f"Draws whose 95 % interval holds the truth, %, of {chosen.draws}; where not every draw has one, of how many.\n"
    )
    table(CLASSIFIERS, CLASS_SCORES, chosen.rows, chosen.draws)
    print()
    table(REGRESSIONS, NUMBER_SCORES, chosen.rows, chosen.draws)


if __name__ == "__main__":
    main()
