"""Budgets, read out of recorded series."""

from __future__ import annotations

import numpy as np
import pytest

from dashboards.budgets import budgets, queries
from dashboards.series import Series


def point(value: float, **labels: str) -> Series:
    return Series(labels, np.array([1.0]), np.array([value]))


def test_budgets_are_those_of_the_model_the_emptiest_first() -> None:
    own = {"slo": "availability", "service": "serving"}
    found: dict[str, list[Series]] = {name: [] for name in queries()}
    found["budget"] = [point(0.001, **own)]
    found["info"] = [point(1.0, **own, objective="99.9", period="30d", title="Availability")]
    found["left"] = [
        point(0.9, **own, model="m", version="1"),
        point(-0.5, **own, model="m", version="2"),
        point(0.1, **own, model="n"),
    ]
    found["ratio 1h"] = [point(0.0144, **own, model="m", version="2")]

    worst, best = budgets(found, "m")

    assert (worst.labels, worst.left, worst.objective, worst.period) == (
        {"model": "m", "version": "2"},
        -0.5,
        "99.9",
        "30d",
    )
    assert worst.burns == {"1h": pytest.approx(14.4)}
    assert (best.title, best.left, best.burns) == ("Availability", 0.9, {})
