"""Parts by a column of many values: tenths of floating-point numbers, profiles where there are many."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from collectors.drift import compare


def table(seed: int, by: np.ndarray, moved: float = 0.0) -> pa.Table:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=len(by)) + moved * (by > 900)
    return pa.table({"by": by, "x": x})


def test_numbers_with_many_values_are_split_into_tenths_of_the_reference() -> None:
    drawn = [np.random.default_rng(seed).integers(0, 1000, 20_000).astype(float) for seed in (1, 2)]
    drawn[1][:100] = np.nan
    found = compare(table(1, drawn[0]), table(2, drawn[1], moved=1.0), by="by")
    assert len(found.values) == 10
    assert found.values_only_in.current == ("(missing)",)
    worst = found.values[0]
    assert worst.label.endswith("and above")
    assert worst.comparison.drifted
    assert worst.comparison.rows.reference == int((drawn[0] >= float(worst.label.split()[0])).sum())
    assert sum(part.comparison.rows.current for part in found.values) == 19_900
    assert not any(part.comparison.drifted for part in found.values[1:])


def test_few_numbers_stay_what_they_are() -> None:
    drawn = [np.random.default_rng(seed).integers(0, 4, 2_000) / 2 for seed in (1, 2)]
    found = compare(table(1, drawn[0]), table(2, drawn[1]), by="by")
    assert sorted(part.label for part in found.values) == ["0", "0.5", "1", "1.5"]
    assert all(part.comparison.mode == "exact" for part in found.values)


@pytest.mark.parametrize("mode", [None, "exact", "profile"])
def test_many_parts_are_compared_by_profiles_unless_the_mode_is_given(mode: str | None) -> None:
    drawn = [np.random.default_rng(seed).integers(0, 60, 3_000) for seed in (1, 2)]
    found = compare(table(1, drawn[0]), table(2, drawn[1]), by="by", mode=mode)  # type: ignore[arg-type]
    assert len(found.values) == 60
    assert {part.comparison.mode for part in found.values} == {mode or "profile"}
    assert found.mode == (mode or "exact")
