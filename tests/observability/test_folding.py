from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given

from observability.cells import ProfileError
from observability.columns import Column, reference_column
from observability.folding import Fold
from observability.numeric import NumericColumn

NUMBERS = st.lists(st.none() | st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, 2.0]), max_size=60)


def folded(column: Column, batches: list[pa.Array]) -> Column:
    fold = Fold("x", column)
    for batch in batches:
        fold.add(batch)
    return fold.column()


@given(st.lists(NUMBERS, max_size=5))
def test_batches_of_numbers_fold_to_the_counts_of_all_of_them(batches: list[list[float | None]]) -> None:
    column = NumericColumn.layout(pa.chunked_array([pa.array(np.linspace(-2.0, 2.0, 50))]))
    arrays = [pa.array(batch, pa.float64()) for batch in batches]

    found = folded(column, arrays)
    whole = column.updated(pa.chunked_array(arrays, pa.float64()))

    assert isinstance(found, NumericColumn)
    assert found.counts.tolist() == whole.counts.tolist()
    for name in ("missing", "nan", "positive_infinite", "negative_infinite", "zeros", "minimum", "maximum"):
        assert getattr(found, name) == getattr(whole, name)
    assert found.mean == pytest.approx(whole.mean, rel=1e-9, abs=1e-12)
    assert found.m2 == pytest.approx(whole.m2, rel=1e-9, abs=1e-12)


def test_columns_of_other_kinds_fold_as_they_are_updated() -> None:
    for kind, values in (("categorical", ["a", "b", None, "a"]), ("boolean", [True, None, False]), ("text", ["a b"])):
        array = pa.array(values)
        column = reference_column(kind, pa.chunked_array([array]))  # type: ignore[arg-type]

        assert folded(column, [array, array]) == column.updated(array).updated(array)


def test_values_of_another_kind_name_their_column() -> None:
    with pytest.raises(ProfileError, match="column 'x'"):
        folded(NumericColumn.over(np.array([0.0, 1.0])), [pa.array(["one"])])
