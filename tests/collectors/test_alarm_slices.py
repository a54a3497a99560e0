"""Slices that explain an alarm: those that changed are named with evidence, those that always differed are not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from collectors.alarm_slices import AlarmSlice, Asked, alarm_slices
from collectors.drift import DriftThresholds
from collectors.windows import Pane
from observability.profile import Profile

THRESHOLDS = DriftThresholds()


def slice_panes(
    sizes: dict[str, int], offsets: dict[str, float], generator: np.random.Generator, of: Profile, missing: float = 0
) -> Pane:
    """One pane whose slices by `s` have so many rows, with `x` about their offsets and a share of it missing in b."""
    parts = {}
    for value, size in sizes.items():
        x = generator.normal(size=size) + offsets.get(value, 0.0)
        x[generator.random(size) < (missing if value == "b" else 0)] = np.nan
        parts[value] = Pane("m", "1", 0.0, 60.0, size, profile=of.empty().updated(pa.table({"x": x})))
    return Pane("m", "1", 0.0, 60.0, sum(sizes.values()), slices={"s": parts})


def layout(generator: np.random.Generator) -> Profile:
    return Profile.of({"x": generator.normal(size=20_000)})


def named(before: list[Pane], since: list[Pane], reference: Profile) -> list[AlarmSlice]:
    return alarm_slices([Asked("x", before, since)], reference, THRESHOLDS)["x"]


def test_a_slice_that_changed_is_named_and_those_that_always_differed_are_not() -> None:
    generator = np.random.default_rng(0)
    reference = layout(generator)
    sizes, usual = {"a": 500, "b": 300, "c": 200}, {"a": -1.0, "c": 2.0}
    before = [slice_panes(sizes, usual, generator, reference) for _ in range(5)]
    since = [slice_panes(sizes, usual | {"b": 0.5}, generator, reference) for _ in range(2)]

    (found,) = named(before, since, reference)

    assert (found.slice, found.value, found.rows, found.against, found.cause) == ("s", "b", 600, "before", "values")
    assert found.p_value <= found.q_value <= THRESHOLDS.alpha
    assert found.effect == found.score == pytest.approx(0.15, abs=0.04)


def test_a_slice_whose_values_are_missing_is_named_for_that() -> None:
    generator = np.random.default_rng(1)
    reference, sizes = layout(generator), {"a": 500, "b": 500}
    before = [slice_panes(sizes, {}, generator, reference) for _ in range(3)]

    (found,) = named(before, [slice_panes(sizes, {}, generator, reference, missing=0.3)], reference)

    assert (found.value, found.cause) == ("b", "missing")
    assert found.effect == pytest.approx(0.3, abs=0.08)


def test_without_rows_before_the_reference_is_compared_with_and_that_is_said() -> None:
    generator = np.random.default_rng(2)
    reference, sizes = layout(generator), {"a": 500, "b": 500}

    (found,) = named([], [slice_panes(sizes, {"b": 1.0}, generator, reference)], reference)

    assert (found.value, found.against) == ("b", "reference")


def test_a_slice_of_all_rows_or_of_few_explains_nothing() -> None:
    generator = np.random.default_rng(3)
    reference, sizes = layout(generator), {"a": 500, "b": 49}
    before = [slice_panes(sizes, {}, generator, reference) for _ in range(3)]

    assert named(before, [slice_panes(sizes, {"a": 1.0, "b": 1.0}, generator, reference)], reference) == []


@pytest.mark.parametrize(("slices", "rows"), [(10, 50), (10, 2_000), (100, 50), (100, 500), (1_000, 50)])
def test_of_slices_named_few_are_false_and_without_a_change_hardly_any_is_named(slices: int, rows: int) -> None:
    """False at most 1 % on average: of `trials` null sets 3 named would be beyond one in ten thousand."""
    generator = np.random.default_rng([slices, rows])
    reference = layout(generator)
    sizes = dict.fromkeys(map(str, range(slices)), rows)
    bad = {str(value): 1.0 for value in range(max(1, slices // 20))}
    nothing, false, power = 0, [], []
    for _ in range(40 if slices == 10 else 4):
        before = [slice_panes(sizes, {}, generator, reference)]
        nothing += bool(named(before, [slice_panes(sizes, {}, generator, reference)], reference))
        found = {item.value for item in named(before, [slice_panes(sizes, bad, generator, reference)], reference)}
        false.append(len(found - set(bad)) / max(len(found), 1))
        power.append(len(found & set(bad)) / min(len(bad), 5))

    assert nothing <= 3
    assert np.mean(false) <= 0.06
    assert np.mean(power) >= 0.8
