"""Multivariate drift from two profiles: maximum mean discrepancy, and the error of the reference's components."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from collectors.drift.bins import Floats
from observability.joint import Joint

# NannyML's choice: components that explain so much of the reference's variance are kept.
KEPT_VARIANCE = 0.65


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """MMD² of two mean embeddings, and its standard error for the random choice of frequencies."""

    squared: float
    standard_error: float

    @property
    def distance(self) -> float:
        """The maximum mean discrepancy itself, in units of the kernel's feature space: 0 … √2."""
        return math.sqrt(max(self.squared, 0.0))


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """How well the reference's principal components describe either side."""

    components: int
    reference: float
    """Mean squared distance of the reference's standardised rows from the components' plane."""
    current: float
    """The same of the current rows."""


def mmd(reference: Joint, current: Joint) -> float:
    """Maximum mean discrepancy (Gretton et al. 2012) under the profile's Gaussian kernel; NaN when a side has no rows.

    The distance of the random-Fourier means (Rahimi & Recht 2007); see `mmd_squared` for its error. Raises `ValueError`
    when the profiles were made for different references.
    """
    return mmd_squared(reference, current).distance


def mmd_squared(reference: Joint, current: Joint) -> Discrepancy:
    """MMD² with diagonal terms (the biased form), as the mean over F frequencies of `|φ_r(w) − φ_c(w)|²`.

    Each frequency is an independent unbiased draw of the rows' MMD², so the estimate is within three standard errors of
    it but for a few in a thousand choices of frequencies; the terms lie in 0 … 4, so the error never exceeds
    `4 √(ln(2/δ) / 2F)` but with probability δ (Hoeffding).
    """
    _of_one_reference(reference, current)
    if not reference.count or not current.count:
        return Discrepancy(math.nan, math.nan)
    features = len(reference.fourier.sums) // 2
    gap = reference.fourier.mean - current.fourier.mean
    terms = (gap[:features] ** 2 + gap[features:] ** 2) * features
    return Discrepancy(float(terms.mean()), float(terms.std(ddof=1) / math.sqrt(features)))


def pca_reconstruction(reference: Joint, current: Joint, kept: float = KEPT_VARIANCE) -> Reconstruction:
    """The mean squared reconstruction error of both sides by the reference's leading components.

    Rows are in the reference's standard deviations. With the residual projector Q of the components left out, the mean
    of `|Q (x − μ)|²` is the trace of Q times the second moment about the reference's mean μ: covariances are enough,
    and equal to sklearn's PCA on the rows. NaN when a side has no rows. Raises `ValueError` for different references or
    a `kept` share outside 0 … 1.
    """
    _of_one_reference(reference, current)
    if not reference.count or not current.count:
        return Reconstruction(0, math.nan, math.nan)
    before, now = reference.covariance, current.covariance
    shift = now.mean - before.mean
    return reconstruction(before.matrix, now.matrix + np.outer(shift, shift), kept)


def reconstruction(covariance: Floats, moment: Floats, kept: float = KEPT_VARIANCE) -> Reconstruction:
    """From the reference's covariance [d, d] and the current second moment about the reference's mean [d, d].

    As many components as it takes to pass the share `kept` of the variance: `sklearn.decomposition.PCA(kept)`.
    """
    if not 0 < kept < 1:
        raise ValueError(f"the share of variance to keep lies between 0 and 1, got {kept}")
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values[::-1], 0.0)
    total = values.sum()
    if not total:
        return Reconstruction(0, 0.0, float(np.trace(moment)))
    components = int(np.searchsorted(np.cumsum(values / total), kept, side="right")) + 1
    left_out = vectors[:, ::-1][:, components:]
    current = float(np.einsum("ij,ik,kj->", left_out, moment, left_out))
    return Reconstruction(components, float(values[components:].sum()), max(current, 0.0))


def _of_one_reference(reference: Joint, current: Joint) -> None:
    same = reference.columns == current.columns and reference.fourier.bandwidth == current.fourier.bandwidth
    if not same or not (
        np.array_equal(reference.center, current.center) and np.array_equal(reference.scale, current.scale)
    ):
        raise ValueError(
            "the joint parts belong to different references; make the current profile with reference.empty()"
        )
