"""Shares of missing, out-of-range and unseen values."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from collectors.computed import pane_values
from collectors.panes import Pane
from collectors.quality import column_quality
from observability import names
from observability.profile import Profile


def test_shares_are_of_the_rows_that_could_show_them() -> None:
    reference = Profile.of(pa.table({"x": np.arange(100.0), "c": ["a", "b"] * 50, "b": [True, False] * 50}))
    window = reference.empty().updated(
        pa.table(
            {
                "x": pa.array([1.0, 2.0, None, float("nan"), 500.0, float("inf"), 3.0, -1.0]),
                "c": ["a", "z", None, "b", "a", "a", "a", "z"],
                "b": [True] * 7 + [None],
            }
        )
    )

    x, c, b = (column_quality(window.columns[name]) for name in ("x", "c", "b"))

    assert (x.missing_ratio, x.out_of_range_ratio, x.unseen_ratio) == (2 / 8, 3 / 6, None)
    assert (c.missing_ratio, c.out_of_range_ratio, c.unseen_ratio) == (1 / 8, None, 2 / 7)
    assert (b.missing_ratio, b.out_of_range_ratio, b.unseen_ratio) == (1 / 8, None, None)


def test_a_window_without_values_has_no_shares_but_zero() -> None:
    reference = Profile.of(pa.table({"x": np.arange(100.0), "c": ["a", "b"] * 50}))

    for column in reference.empty().columns.values():
        quality = column_quality(column)
        assert quality.missing_ratio == 0
        assert (quality.out_of_range_ratio or 0, quality.unseen_ratio or 0) == (0, 0)


def test_what_the_reference_itself_lacks_is_told_beside_the_shares() -> None:
    generator = np.random.default_rng(0)
    sparse = np.where(generator.random(2_000) < 0.6, np.nan, generator.normal(size=2_000))
    sparse[:40] = np.inf
    reference = Profile.of(pa.table({"feature.sparse": sparse, "feature.full": generator.normal(size=2_000)}))
    pane = Pane("m", "1", 0.0, 60.0)
    pane.profile = reference.empty().updated(pa.table({"feature.sparse": [np.nan, 1.0], "feature.full": [1.0, 2.0]}))

    values = pane_values(pane, pane, reference, {})

    found = {
        (value.labels["column"], value.labels["check"]): value.value
        for value in values
        if value.metric is names.QUALITY_EXPECTED
    }
    assert found == {
        ("feature.sparse", "missing"): np.isnan(sparse).mean(),
        ("feature.sparse", "non_finite"): 40 / 2_000,
    }
