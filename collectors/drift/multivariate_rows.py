"""Multivariate drift from rows: maximum mean discrepancy with a permutation test, and PCA reconstruction error."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from collectors.drift.bins import Floats
from collectors.drift.joint import KEPT_VARIANCE, Reconstruction, reconstruction
from collectors.drift.outcome import UNDEFINED, Test

# Kernel rows that are in memory at a time: a block of so many by all the rows.
_BLOCK_VALUES = 4_000_000
_HEURISTIC_ROWS = 1000


def mmd_rows(
    reference: Floats,
    current: Floats,
    *,
    bandwidth: float | None = None,
    unbiased: bool = True,
    permutations: int = 0,
    seed: int = 0,
) -> Test:
    """MMD² of rows [n, d] and [m, d] under `exp(−|x−y|² / 2 bandwidth²)` (Gretton et al. 2012, eq. 3 and 5).

    Without a bandwidth the median distance of up to 1,000 pooled rows is taken. `unbiased` leaves the diagonal out and
    may be negative; otherwise it is kept, and the square root is a distance. The p-value is that of `permutations`
    random relabellings, `(1 + those at least as large) / (1 + permutations)` (Phipson & Smyth 2010); NaN with none.

    Time grows with (n + m)², memory does not: the kernel is made in blocks, and every relabelling is read off one pass.
    Undefined (NaN) with fewer than two rows on a side. Raises `ValueError` for missing or infinite values, for other
    than two dimensions or different widths, and for a bandwidth that is not positive.
    """
    a, b = _matrices(reference, current)
    n, m = len(a), len(b)
    if min(n, m) < 2:
        return UNDEFINED
    rows = np.concatenate([a, b])
    rows = rows - rows.mean(axis=0)  # Distances are unchanged, and large offsets lose no digits.
    width = median_distance(rows, seed) if bandwidth is None else bandwidth
    if not width > 0:
        raise ValueError(f"the kernel's bandwidth must be positive, got {width}")
    generator = np.random.default_rng(seed)
    first = np.zeros((n + m, permutations + 1))
    first[:n, 0] = 1.0
    for column in range(1, permutations + 1):
        first[generator.permutation(n + m)[:n], column] = 1.0
    within, touching, total = _kernel_sums(rows, width, first)
    across = touching - within
    other = total - 2 * touching + within
    if unbiased:
        found = (within - n) / (n * (n - 1)) + (other - m) / (m * (m - 1)) - 2 * across / (n * m)
    else:
        found = np.maximum(within / n**2 + other / m**2 - 2 * across / (n * m), 0.0)
    # Relabellings that differ by rounding alone are ties.
    at_least = int(np.sum(found[1:] >= found[0] - 1e-12))
    return Test(float(found[0]), (1 + at_least) / (1 + permutations) if permutations else math.nan)


def median_distance(rows: Floats, seed: int = 0) -> float:
    """The median distance between different rows of a random sample of up to 1,000; 1 when they are all equal."""
    if len(rows) > _HEURISTIC_ROWS:
        rows = rows[np.random.default_rng(seed).choice(len(rows), _HEURISTIC_ROWS, replace=False)]
    squares = _squared_distances(rows, rows)[np.triu_indices(len(rows), 1)]
    median = math.sqrt(float(np.median(squares))) if len(squares) else 0.0
    if median == 0 and (positive := squares[squares > 0]).size:
        median = math.sqrt(float(np.median(positive)))
    return median or 1.0


def pca_reconstruction_rows(reference: Floats, current: Floats, kept: float = KEPT_VARIANCE) -> Reconstruction:
    """Mean squared reconstruction error of rows [n, d] and [m, d] in the reference's standard deviations.

    `StandardScaler` and `PCA(kept)` fitted on the reference, as NannyML's data reconstruction does, and the mean of the
    squared distances of the rows from their reconstructions. A column that the reference holds constant has unit 1.
    NaN when a side is empty. Raises `ValueError` for missing or infinite values, or different widths.
    """
    a, b = _matrices(reference, current)
    if not len(a) or not len(b):
        return Reconstruction(0, math.nan, math.nan)
    mean = a.mean(axis=0)
    centred = a - mean
    deviation = np.sqrt(np.mean(centred * centred, axis=0))
    # Rounding alone must not make a constant column look like one with spread.
    scale = np.where(deviation > 10 * np.finfo(np.float64).eps * np.abs(mean), deviation, 1.0)
    first, second = centred / scale, (b - mean) / scale
    return reconstruction(first.T @ first / len(a), second.T @ second / len(b), kept)


def _matrices(reference: npt.ArrayLike, current: npt.ArrayLike) -> tuple[Floats, Floats]:
    a, b = np.asarray(reference, np.float64), np.asarray(current, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not a.shape[1]:
        raise ValueError(f"both sides must be rows by the same columns, got the shapes {a.shape} and {b.shape}")
    for side, values in (("reference", a), ("current", b)):
        if not np.isfinite(values).all():
            raise ValueError(f"the {side} rows hold missing or infinite values; drop or fill those rows first")
    return a, b


def _kernel_sums(rows: Floats, width: float, first: Floats) -> tuple[Floats, Floats, float]:
    """The kernel summed over all pairs of rows of which both, the first, or any have the label [N, p], 0 or 1."""
    within, touching, total = np.zeros(first.shape[1]), np.zeros(first.shape[1]), 0.0
    size = max(1, _BLOCK_VALUES // len(rows))
    for start in range(0, len(rows), size):
        labels = first[start : start + size]
        with np.errstate(under="ignore"):
            kernel = np.exp(_squared_distances(rows[start : start + size], rows) / (-2 * width * width))
        sums = kernel.sum(axis=1)
        within += np.sum(labels * (kernel @ first), axis=0)
        touching += sums @ labels
        total += float(sums.sum())
    return within, touching, total


def _squared_distances(a: Floats, b: Floats) -> Floats:
    squares = np.sum(a * a, axis=1)[:, None] + np.sum(b * b, axis=1)[None, :] - 2 * (a @ b.T)
    return np.asarray(np.maximum(squares, 0.0), np.float64)
