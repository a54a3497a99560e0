"""The named methods: which statistic is the score, and from which value on it is drift by convention.

| method | score | drift |
|---|---|---|
| `psi` | population stability index | ≥ 0.25, the credit industry's "major shift" (Siddiqi 2006) |
| `jensen_shannon`, `hellinger`, `total_variation` | distance | ≥ 0.1, as Evidently |
| `wasserstein` | Wasserstein-1 in standard deviations of the reference | ≥ 0.1, as Evidently |
| `ks`, `cramer_von_mises`, `chi2`, `g`, `z` | p-value | < 0.05 |

A method that is not defined for a column gives way to its counterpart, which the verdict names: for categories `ks` and
`cramer_von_mises` become `chi2` and `wasserstein` becomes `total_variation` (the Wasserstein distance when all
categories are equally far apart); `z` with more than two categories becomes `chi2`, whose square root it is with two.
For numbers `chi2`, `g` and `z` are taken over bins: ten of equal reference mass, for `z` the two halves.
Evidently's and scipy's names for them are understood, too (`ALIASES`).
"""

from __future__ import annotations

import math

import numpy as np

from collectors.drift.bins import Counts, regroup_ordered
from collectors.drift.column_scores import BINS, Scores, chi_square_pvalue
from collectors.drift.comparison import Sides
from collectors.drift.exact import Ordered
from collectors.drift.laws import chi2_sf, cramer_von_mises_sf, normal_sf
from collectors.drift.rows import cvm_rows
from collectors.drift.verdict import Verdict

DISTANCES = {
    "psi": ("psi", 0.25),
    "jensen_shannon": ("js_distance", 0.1),
    "hellinger": ("hellinger", 0.1),
    "total_variation": ("total_variation", 0.1),
    "wasserstein": ("wasserstein_normed", 0.1),
}
TESTS = ("ks", "cramer_von_mises", "chi2", "g", "z")
METHODS = ("auto", "evidently", *DISTANCES, *TESTS)
ALIASES = {
    "js": "jensen_shannon",
    "jensenshannon": "jensen_shannon",
    "js_distance": "jensen_shannon",
    "TVD": "total_variation",
    "tvd": "total_variation",
    "wasserstein_distance": "wasserstein",
    "kolmogorov_smirnov": "ks",
    "ks_2samp": "ks",
    "cvm": "cramer_von_mises",
    "chisquare": "chi2",
    "chi_square": "chi2",
    "chi2_contingency": "chi2",
    "g_test": "g",
}
ALPHA = 0.05
_UNORDERED = {"ks": "chi2", "cramer_von_mises": "chi2", "wasserstein": "total_variation"}


def named_verdict(
    method: str,
    scores: Scores,
    counts: Sides[Counts],
    *,
    ordered: bool,
    rows: Sides[Ordered] | None = None,
    threshold: float | None = None,
    alpha: float | None = None,
) -> Verdict:
    """The verdict of one named method; `counts` are over the column's cells or categories, both sides not empty."""
    if not ordered or "ks" not in scores:
        method = _UNORDERED.get(method, method)
    if method in DISTANCES:
        name, usual = DISTANCES[method]
        score = float(scores[name])  # type: ignore[literal-required]
        return Verdict.of_distance(method, score, usual if threshold is None else threshold)
    level = next((value for value in (threshold, alpha) if value is not None), ALPHA)
    if method in ("ks", "cramer_von_mises"):
        p_value = scores["ks_pvalue"] if method == "ks" else _cramer_von_mises(scores, counts, rows)
        return Verdict.of_test(method, p_value, level)
    before, now = regroup_ordered(counts.reference, counts.current, 2 if method == "z" else BINS) if ordered else (
        counts.reference, counts.current
    )  # fmt: skip
    held = (before + now) > 0
    before, now = before[held], now[held]
    if method == "z" and len(before) > 2:
        method = "chi2"
    p_value = {"chi2": chi_square_pvalue, "g": _g_pvalue, "z": _z_pvalue}[method](before, now)
    return Verdict.of_test(method, p_value, level)


def _cramer_von_mises(scores: Scores, counts: Sides[Counts], rows: Sides[Ordered] | None) -> float:
    if rows is not None:
        return cvm_rows(rows.reference.values, rows.current.values).pvalue
    n, m = int(counts.reference.sum()), int(counts.current.sum())
    return float(cramer_von_mises_sf(scores["cramer_von_mises"] * n * m / (n + m)))


def _g_pvalue(before: Counts, now: Counts) -> float:
    """Likelihood-ratio test of the two count vectors (Woolf 1957)."""
    if len(before) < 2:
        return 1.0
    pooled = (before + now) / float(before.sum() + now.sum())
    statistic = 0.0
    for side in (before, now):
        seen = side > 0
        statistic += 2 * float(np.sum(side[seen] * np.log(side[seen] / (pooled[seen] * side.sum()))))
    return float(chi2_sf(statistic, len(before) - 1))


def _z_pvalue(before: Counts, now: Counts) -> float:
    if len(before) < 2:
        return 1.0
    n, m = int(before.sum()), int(now.sum())
    pooled = float(before[0] + now[0]) / (n + m)
    z = (before[0] / n - now[0] / m) / math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    return float(2 * normal_sf(abs(z)))
