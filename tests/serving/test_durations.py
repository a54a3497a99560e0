"""Histograms of many requests' stages, counted at once: the same as each observed by itself."""

from __future__ import annotations

from array import array
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability import names
from observability.metrics import Metrics, bounds_of
from serving.telemetry.durations import Durations, native


def _samples(metrics: Metrics) -> dict[tuple[str, str], float]:
    collected = [sample for family in metrics.registry.collect() for sample in family.samples]
    return {(s.name, str(s.labels)): s.value for s in collected if not s.name.endswith("_created")}


def _histograms(metrics: Metrics) -> list[tuple[object, int, int]]:
    """Of different bounds: stages of the first moments, and from the first to the last."""
    stages = metrics[names.INFERENCE_STAGE_DURATION]
    of_stages = [(stages.labels("m", "1", names.STAGES[k]), k, k + 1) for k in range(2)]
    return [(metrics[names.TRAINING_STEP_DURATION].labels("m"), 0, 2), *of_stages]


BOUNDS = sorted({*bounds_of(Metrics()[names.TRAINING_STEP_DURATION].labels("m"))})


@given(
    st.lists(st.tuples(*[st.floats(0, 200, allow_nan=False) | st.sampled_from(BOUNDS[:-1])] * 2), max_size=20),
    st.sampled_from([1, 7, 300]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_counted_in_parts_they_are_as_observed_one_by_one(
    stages: list[tuple[float, float]], times: int, nan: bool, compiled: bool, written_between: bool
) -> None:
    one, many = Metrics(), Metrics()
    rows = [[0.0, first, first + second] for first, second in stages] * times
    for row in rows:
        for histogram, begun, ended in _histograms(one):
            histogram.observe(row[ended] - row[begun])  # type: ignore[attr-defined]
    if nan:
        rows.append([np.nan] * 3)

    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr("serving.telemetry.durations.native", lambda: None)
        durations = Durations(3, _histograms(many))  # type: ignore[arg-type]
        for part in (rows[:9], [], rows[9:]):
            durations.add(array("d", [moment for row in part for moment in row]).tobytes())
            if written_between:
                durations.write()
        durations.write()
        durations.write()

    _histograms(one)
    assert _samples(many) == pytest.approx(_samples(one))


@pytest.mark.skipif(native() is None, reason="needs a C compiler")
def test_spans_that_are_not_among_the_moments_are_refused() -> None:
    library = native()
    assert library is not None
    bounds = np.full((1, 2), np.inf)

    for span in ((0, 3), (-1, 2)):
        with pytest.raises(ValueError, match="places of moments"):
            library.Cells(3, np.array([span], np.int64), bounds)
    with pytest.raises(ValueError, match="as many bounds"):
        library.Cells(3, np.array([(0, 1), (1, 2)], np.int64), np.full((1, 3), np.inf))
    with pytest.raises(ValueError, match="places of moments"):
        library.Cells(0, np.array([(0, 0)], np.int64), bounds)


@pytest.mark.skipif(native() is None, reason="needs a C compiler")
def test_cells_that_were_not_made_count_nothing() -> None:
    library = native()
    assert library is not None
    cells = library.Cells.__new__(library.Cells)

    with pytest.raises(ValueError, match="not made"):
        cells.add(array("d", [0.0] * 6))
    assert cells.take() == []


def test_bounds_of_a_histogram_end_with_infinity() -> None:
    assert all(lower < upper for lower, upper in pairwise(BOUNDS))
    assert BOUNDS[-1] == np.inf
