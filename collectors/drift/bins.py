"""Cells regrouped into a few bins of about equal reference mass, so that small windows are not read as noise.

The null expectation of PSI grows with the number of bins (see `psi.null_expectation`); a profile's fine cells serve KS,
Jensen–Shannon and Wasserstein, and ten bins of equal mass serve PSI.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# A tail cell that no reference row fell in joins its neighbour, unless the window has at least this share in it.
TAIL_SHARE = 0.05


def shares(counts: Counts) -> Floats:
    """Counts as shares of their sum; all zero when there are none."""
    total = counts.sum()
    return counts / total if total else np.zeros(len(counts))


def shares_each(reference: Counts, window: Counts) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """Both sides' counts (…, cells) as shares, and (…) whether both have rows; the shares of no rows are all zero."""
    n, m = reference.sum(axis=-1, keepdims=True), window.sum(axis=-1, keepdims=True)
    return reference / np.maximum(n, 1), window / np.maximum(m, 1), ((n > 0) & (m > 0))[..., 0]


def equal_mass_groups(reference: Counts, groups: int) -> Counts:
    """Starts of runs of ordered cells with about `1/groups` of the reference each (for `np.add.reduceat`).

    A cell is never split: a value that holds half the reference is one bin, and fewer bins come out.
    """
    total = int(reference.sum())
    if total == 0:
        return np.zeros(1, dtype=np.int64)
    before = np.cumsum(reference) - reference
    # A cell belongs to the group in which its middle lies.
    group = np.minimum((before + reference / 2) * groups // total, groups - 1)
    starts = np.flatnonzero(np.diff(group, prepend=-1.0) > 0)
    starts[0] = 0
    return starts.astype(np.int64)


def regroup_ordered(reference: Counts, window: Counts, groups: int) -> tuple[Counts, Counts]:
    """Both count vectors in the same few bins; the first and last cells are the tails outside the reference's range."""
    starts = equal_mass_groups(reference, groups)
    share = shares(window)
    extra = [1] if len(window) > 1 and reference[0] == 0 and share[0] >= TAIL_SHARE else []
    if len(window) > 1 and reference[-1] == 0 and share[-1] >= TAIL_SHARE:
        extra.append(len(window) - 1)
    if extra:
        starts = np.unique(np.concatenate([starts, np.asarray(extra, dtype=np.int64)]))
    return np.add.reduceat(reference, starts), np.add.reduceat(window, starts)


def regroup_categories(reference: Counts, window: Counts, groups: int) -> tuple[Counts, Counts]:
    """The reference's `groups - 1` most frequent categories, and everything else (the unseen too) pooled in one bin."""
    if len(reference) <= groups:
        return reference, window
    order = np.argsort(-reference, kind="stable")
    kept, pooled = order[: groups - 1], order[groups - 1 :]
    return (
        np.append(reference[kept], reference[pooled].sum()),
        np.append(window[kept], window[pooled].sum()),
    )
