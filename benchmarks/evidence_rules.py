"""What others document as the rule that ends a canary, on simulated traffic: seconds until each would roll it back.

Sources: Flagger's tutorials (success rate 99 % and p99 500 ms over 1 minute, 5 failed checks in all); Argo Rollouts'
analysis documentation (success 95 % over 5 minutes, `failureLimit: 3`, which ends at the fourth failure); the ratio
to the stable version as in argo-rollouts#1107; Kayenta's judge (Mann-Whitney at 98 % on values a minute, every 15
minutes); and a two-proportion z-test that somebody looks at each minute.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import mannwhitneyu

from benchmarks.evidence_traffic import BOUNDS, Counts, Floats, Traffic

Rule = Callable[[Traffic], np.ndarray]


def windows(values: Counts, seconds: int) -> Floats:
    """(R, T / seconds) sums."""
    whole = values.shape[1] // seconds * seconds
    return np.asarray(values[:, :whole].reshape(len(values), -1, seconds).sum(axis=2))


def ended(failed: np.ndarray, seconds: int, limit: int, length: int) -> np.ndarray:
    """The second at which the check has failed `limit` times, `length` when never."""
    over = np.cumsum(failed, axis=1) >= limit
    return np.where(over.any(axis=1), np.minimum((over.argmax(axis=1) + 1) * seconds, length), length)


def flagger(seen: Traffic) -> np.ndarray:
    """99 % success and p99 of at most 500 ms, each minute, five failures."""
    asked, errors = windows(seen.canary, 60), windows(seen.canary_errors, 60)
    slow = windows(seen.slow_canary[BOUNDS.index(0.5)], 60)
    # The histogram of units does not say what a minute's requests took: then only success is checked.
    late = np.where(seen.sticky[:, None], False, slow > 0.01 * asked)
    return ended((errors > 0.01 * asked) | late, 60, 5, seen.canary.shape[1])


def argo(seen: Traffic) -> np.ndarray:
    """95 % success over 5 minutes, more than three failures."""
    asked, errors = windows(seen.canary, 300), windows(seen.canary_errors, 300)
    return ended(errors > 0.05 * asked, 300, 4, seen.canary.shape[1])


def ratio(seen: Traffic) -> np.ndarray:
    """The canary's error rate above 1.2 times the stable one's over 5 minutes, looked at each minute."""
    sums = [windows(a, 60) for a in (seen.canary_errors, seen.canary, seen.stable_errors, seen.stable)]
    last = [np.stack([a[:, max(0, i - 4) : i + 1].sum(axis=1) for i in range(a.shape[1])], axis=1) for a in sums]
    mine, theirs = last[0] / np.maximum(last[1], 1), last[2] / np.maximum(last[3], 1)
    return ended((mine > 1.2 * theirs) & (last[0] > 0), 60, 1, seen.canary.shape[1])


def z_test(seen: Traffic) -> np.ndarray:
    """All counts so far, one-sided at 5 %, looked at each minute."""
    sums = (seen.canary_errors, seen.canary, seen.stable_errors, seen.stable)
    bad, asked, other, all_other = (np.cumsum(windows(a, 60), axis=1) for a in sums)
    pooled = (bad + other) / np.maximum(asked + all_other, 1)
    spread = np.sqrt(
        np.maximum(pooled * (1 - pooled) * (1 / np.maximum(asked, 1) + 1 / np.maximum(all_other, 1)), 1e-12)
    )
    z = (bad / np.maximum(asked, 1) - other / np.maximum(all_other, 1)) / spread
    return ended(z > 1.645, 60, 1, seen.canary.shape[1])


def kayenta(seen: Traffic) -> np.ndarray:
    """Mann-Whitney on error rates a minute at 98 %, the canary's higher, every 15 minutes on all so far."""
    bad, asked, other, all_other = (
        windows(a, 60) for a in (seen.canary_errors, seen.canary, seen.stable_errors, seen.stable)
    )
    mine, theirs = bad / np.maximum(asked, 1), other / np.maximum(all_other, 1)
    failed = []
    for until in range(15, mine.shape[1] + 1, 15):
        tested = mannwhitneyu(mine[:, :until], theirs[:, :until], axis=1, alternative="greater", method="asymptotic")
        failed.append(tested.pvalue < 0.01)
    if not failed:
        return np.full(len(mine), seen.canary.shape[1])
    return ended(np.stack(failed, axis=1), 900, 1, seen.canary.shape[1])


RULES: dict[str, Rule] = {
    "Flagger's tutorial": flagger,
    "Argo Rollouts' documentation": argo,
    "1.2 times the stable rate over 5 min": ratio,
    "z-test each minute at 5 %": z_test,
    "Kayenta, Mann-Whitney at 98 %": kayenta,
}
