"""Columns that are judged together, and made into objects when asked for, are what each is by itself."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from collectors.drift import automatic, compare
from collectors.drift.comparison import ColumnComparison
from observability.profile import Profile


def table(rows: int, shift: float, seed: int) -> pa.Table:
    generator = np.random.default_rng(seed)
    numbers = {f"x{i}": generator.normal(shift * (i % 3 == 0), 1, rows) for i in range(9)}
    some = generator.random(rows)
    return pa.table(
        numbers
        | {
            "infinite": np.where(some < 0.02 + shift / 5, np.inf, numbers["x1"]),
            "holes": pa.array(numbers["x2"], mask=some < 0.05 + shift / 2),
            "constant": np.ones(rows),
            "few": np.floor(some * 4),
            "emptied": pa.array(numbers["x4"], mask=np.full(rows, shift > 0)),
            "nothing": pa.nulls(rows, pa.float64()),
            "category": pa.array([f"c{int(value)}" for value in np.floor(some * (6 + 10 * shift))]),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(generator.normal(shift, 1, rows * 4)), 4),
        }
    )


@pytest.fixture(params=[(3_000, 2_000), (300, 30), (40, 5)])
def profiles(request: pytest.FixtureRequest) -> tuple[Profile, Profile]:
    reference = Profile.of(table(request.param[0], 0.0, 1))
    return reference, reference.empty().updated(table(request.param[1], 0.5, 2))


@pytest.mark.parametrize("method", ["auto", "psi", "ks", "chi2", "cramer_von_mises", "z"])
def test_the_share_is_that_of_the_columns(profiles: tuple[Profile, Profile], method: str) -> None:
    found = compare(*profiles, method=method)
    judged = [column for column in found.columns.values() if column.judged]
    assert found.drifted_share == sum(column.drifted for column in judged) / len(judged)
    assert list(found.columns) == list(profiles[0].columns)
    assert dict(found.columns) == found.columns
    assert found.columns["x0"] is found.columns["x0"]


def test_the_order_of_the_columns_changes_nothing(profiles: tuple[Profile, Profile]) -> None:
    reference, current = profiles
    turned = [Profile(dict(reversed(side.columns.items()))) for side in profiles]
    forward, backward = compare(reference, current).columns, compare(*turned).columns
    assert list(backward) == list(forward)[::-1]
    for name in forward:
        first, second = forward[name].to_json(), backward[name].to_json()
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert second[key] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), (name, key)


def test_statistics_wait_until_a_column_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Profile.of({f"x{i}": np.arange(100.0) + i for i in range(20)})
    made: list[str] = []
    original = automatic.number_comparisons
    monkeypatch.setattr(
        automatic, "number_comparisons", lambda block, *rest: (made.extend(block.names), original(block, *rest))[1]
    )
    found = compare(reference, reference)
    assert not found.drifted
    assert not made
    column = found.columns["x7"]
    assert isinstance(column, ColumnComparison)
    assert column.ks == 0.0
    # All of a kind at once, and once only.
    assert dict(found.columns) == found.columns
    assert made == list(reference.columns)
    with pytest.raises(KeyError):
        found.columns["x20"]


@pytest.mark.parametrize("method", ["auto", "psi", "ks", "z"])
def test_a_column_is_the_same_among_others_and_alone(profiles: tuple[Profile, Profile], method: str) -> None:
    reference, current = profiles
    together = compare(reference, current, method=method).columns
    for name in reference.columns:
        alone = compare(reference, current, method=method, columns=[name]).columns[name].to_json()
        among = together[name].to_json()
        # Held to one rate of false discoveries, these differ with the number of columns.
        for key in alone.keys() - {"threshold", "drifted", "reason", "missing_changed"}:
            value = among[key]
            assert alone[key] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), (name, key)
