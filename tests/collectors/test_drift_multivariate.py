"""Multivariate drift: MMD, PCA reconstruction and the domain classifier, from rows and from two profiles."""

from __future__ import annotations

import builtins
import math
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from collectors.drift import (
    domain_classifier,
    mmd,
    mmd_rows,
    mmd_squared,
    multivariate_rows,
    pca_reconstruction,
    pca_reconstruction_rows,
)
from collectors.drift.domain_classifier import _ranked
from observability.joint import Joint


def correlated(generator: np.random.Generator, rows: int, columns: int = 6, angle: float = 0.0) -> np.ndarray:
    hidden = generator.normal(size=(rows, 2))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    weights = np.random.default_rng(99).normal(size=(2, columns))
    return hidden @ turn @ weights * [1, 10, 0.1, 1, 1, 1000][:columns] + 0.3 * generator.normal(size=(rows, columns))


def joints(reference: np.ndarray, current: np.ndarray) -> tuple[Joint, Joint]:
    names = tuple(f"x{i}" for i in range(reference.shape[1]))
    layout = Joint.layout(names, reference.mean(axis=0), reference.std(axis=0), reference[:500])
    return layout.updated(reference), layout.updated(current)


def dense_mmd(a: np.ndarray, b: np.ndarray, width: float, unbiased: bool) -> float:
    xx, yy, xy = (np.exp(-cdist(p, q, "sqeuclidean") / (2 * width**2)) for p, q in ((a, a), (b, b), (a, b)))
    n, m = len(a), len(b)
    if not unbiased:
        return float(xx.mean() + yy.mean() - 2 * xy.mean())
    return float((xx.sum() - n) / (n * (n - 1)) + (yy.sum() - m) / (m * (m - 1)) - 2 * xy.mean())


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_mmd_of_rows_is_the_dense_formula_whatever_the_blocks(
    monkeypatch: pytest.MonkeyPatch, unbiased: bool, offset: float
) -> None:
    generator = np.random.default_rng(1)
    a, b = generator.normal(size=(70, 3)) + offset, generator.normal(0.4, 1.3, size=(45, 3)) + offset
    width = float(np.median(pdist(np.concatenate([a, b]))))
    expected = dense_mmd(a, b, width, unbiased)

    whole = mmd_rows(a, b, unbiased=unbiased)
    monkeypatch.setattr(multivariate_rows, "_BLOCK_VALUES", 500)
    blocks = mmd_rows(a, b, unbiased=unbiased, permutations=3)

    assert whole.statistic == pytest.approx(expected, abs=1e-9)
    assert blocks.statistic == pytest.approx(expected, abs=1e-9)
    assert math.isnan(whole.pvalue)
    assert blocks.pvalue in (0.25, 0.5, 0.75, 1.0)


def test_the_permutation_test_holds_its_level_and_has_power() -> None:
    generator = np.random.default_rng(5)
    same = [mmd_rows(*generator.normal(size=(2, 25, 2)), permutations=39, seed=i).pvalue <= 0.1 for i in range(300)]
    shifted = mmd_rows(generator.normal(size=(150, 2)), generator.normal(0.5, 1, (150, 2)), permutations=199)

    # 30 expected of 300, within about three and a half standard deviations.
    assert 12 <= sum(same) <= 48
    assert shifted.pvalue == pytest.approx(1 / 200)


def test_mmd_of_profiles_is_that_of_rows_within_its_standard_error() -> None:
    generator = np.random.default_rng(3)
    errors = []
    for shift in (0.0, 0.1, 0.3, 0.6, 1.0, 2.0):
        a, b = generator.normal(size=(600, 3)), generator.normal(shift, 1 + shift / 3, size=(500, 3))
        first, second = joints(a, b)
        found = mmd_squared(first, second)
        standard = [np.clip((side - first.center) / first.scale, -10, 10) for side in (a, b)]
        exact = mmd_rows(*standard, bandwidth=first.fourier.bandwidth, unbiased=False).statistic

        assert mmd(first, second) == pytest.approx(math.sqrt(found.squared))
        assert abs(found.squared - exact) <= 4 * found.standard_error
        errors.append(abs(found.squared - exact) / found.standard_error)
    assert np.mean(errors) < 2


@pytest.mark.parametrize("kept", [0.3, 0.65, 0.95])
def test_pca_reconstruction_is_sklearns(kept: float) -> None:
    generator = np.random.default_rng(8)
    a, b = correlated(generator, 900), correlated(generator, 400)[:, ::-1].copy()
    scaler = StandardScaler().fit(a)
    pca = PCA(kept, svd_solver="full").fit(scaler.transform(a))

    def error(rows: np.ndarray) -> float:
        standard = scaler.transform(rows)
        return float(np.mean(np.sum((standard - pca.inverse_transform(pca.transform(standard))) ** 2, axis=1)))

    found = pca_reconstruction_rows(a, b, kept)

    assert found.components == pca.n_components_
    assert found.reference == pytest.approx(error(a), rel=1e-9)
    assert found.current == pytest.approx(error(b), rel=1e-9)


def test_two_profiles_give_the_rows_reconstruction_error() -> None:
    generator = np.random.default_rng(4)
    a, b = correlated(generator, 800), correlated(generator, 300, angle=0.3)
    b[:, 2] *= -1

    first, second = joints(a, b)
    found, expected = pca_reconstruction(first, second), pca_reconstruction_rows(a, b)
    # The same state from parts.
    again = pca_reconstruction(first, second.empty().updated(b[:100]) + second.empty().updated(b[100:]))

    assert abs(b - a.mean(axis=0)).max() / a.std(axis=0).min() > 1
    assert found.components == expected.components
    assert found.reference == pytest.approx(expected.reference, rel=1e-9)
    assert found.current == pytest.approx(expected.current, rel=1e-9)
    assert again.current == pytest.approx(found.current, rel=1e-9)
    assert found.current > 1.3 * found.reference


def test_a_constant_column_and_a_constant_table_are_no_trouble() -> None:
    generator = np.random.default_rng(6)
    a, b = generator.normal(size=(50, 3)), generator.normal(size=(50, 3))
    a[:, 1], b[:, 1] = 0.1, 2.1

    found = pca_reconstruction_rows(a, b)
    flat = pca_reconstruction_rows(np.ones((10, 2)), np.full((5, 2), 3.0))

    assert found.current == pytest.approx(4.0, abs=2.5)
    assert flat.components == 0
    assert flat.reference == 0
    assert flat.current == pytest.approx(8.0)
    assert mmd_rows(np.ones((10, 2)), np.ones((5, 2)), permutations=19).pvalue == 1


def test_empty_sides_and_bad_rows_are_told_apart() -> None:
    rows, none = np.ones((10, 2)), np.zeros((0, 2))

    assert math.isnan(mmd_rows(rows, none).statistic)
    assert math.isnan(pca_reconstruction_rows(none, rows).current)
    assert math.isnan(domain_classifier(rows, none).auc)
    first, second = joints(rows + np.arange(10)[:, None], none)
    assert math.isnan(mmd(first, second))
    assert math.isnan(pca_reconstruction(first, second).current)
    for wrong in (np.ones(10), np.ones((10, 3)), np.full((10, 2), np.nan)):
        with pytest.raises(ValueError, match="rows"):
            mmd_rows(rows, wrong)
    with pytest.raises(ValueError, match="bandwidth"):
        mmd_rows(rows, rows, bandwidth=0)
    with pytest.raises(ValueError, match="share"):
        pca_reconstruction_rows(rows, rows, 1.5)
    with pytest.raises(ValueError, match="different references"):
        mmd(first, joints(rows * 3 + np.arange(10)[:, None], none)[0])


def test_the_classifier_finds_what_no_single_column_shows() -> None:
    generator = np.random.default_rng(2)
    a, b = generator.normal(size=(400, 2)), generator.normal(size=(400, 2))
    b[:, 1] = np.abs(b[:, 1]) * np.sign(b[:, 0])  # Same margins, other company.
    a[::7, 0] = np.nan

    found = domain_classifier(a, b)

    assert found.auc > 0.7
    assert found.drifted
    assert found.pvalue < 1e-6
    assert found.low < found.auc < found.high
    assert found == domain_classifier(a, b)


def test_the_classifier_sees_nothing_in_random_halves() -> None:
    generator = np.random.default_rng(12)
    found = [domain_classifier(*generator.normal(size=(2, 120, 3)), folds=3, seed=i) for i in range(6)]

    assert sum(one.drifted for one in found) <= 2
    assert np.mean([one.auc for one in found]) == pytest.approx(0.5, abs=0.06)


def test_the_auc_is_sklearns_and_its_interval_covers() -> None:
    generator = np.random.default_rng(9)
    negative, positive = np.round(generator.normal(size=200), 1), np.round(generator.normal(0.7, 1, 150), 1)
    truth = np.repeat([0, 1], [200, 150])

    auc, variance, _ = _ranked(negative, positive)
    draws = [_ranked(generator.normal(size=200), generator.normal(0.7, 1, 150))[:2] for _ in range(400)]

    assert auc == pytest.approx(roc_auc_score(truth, np.concatenate([negative, positive])), abs=1e-12)
    assert np.var([one for one, _ in draws]) == pytest.approx(np.mean([v for _, v in draws]), rel=0.25)
    assert variance > 0


def test_without_sklearn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return load(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ModuleNotFoundError, match=r"trimtab\[classifier\]"):
        domain_classifier(np.ones((9, 2)), np.ones((9, 2)))
