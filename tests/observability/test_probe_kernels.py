"""The kernels of a probe against the reference implementation: counts to the unit, moments to a billionth."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from observability import native, probe_kernels
from observability.columns import NumericColumn
from observability.probe import Probe, profile_of_tensors
from observability.probe_kernels import count_codes_on_cpu, count_codes_with_torch, count_on_cpu, count_with_torch
from observability.profile import Profile

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor], None]
EXACT = ("missing", "nan", "positive_infinite", "negative_infinite", "zeros", "minimum", "maximum")
TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def in_numpy(values: Tensor, edges: Tensor, counts: Tensor, moments: Tensor) -> None:
    probe_kernels.count_with_numpy(values.numpy(), edges.numpy(), counts.numpy(), moments.numpy())


KERNELS: list[Kernel] = [count_on_cpu, in_numpy, count_with_torch]


def assert_same(found: Profile, wanted: Profile) -> None:
    assert list(found.columns) == list(wanted.columns)
    for name, column in found.columns.items():
        other = wanted.columns[name]
        assert column.counts.tolist() == other.counts.tolist(), name
        if not isinstance(column, NumericColumn):
            assert column.missing == other.missing
            continue
        assert isinstance(other, NumericColumn)
        for field in EXACT:
            assert getattr(column, field) == getattr(other, field), (name, field)
        scale = math.sqrt(other.variance) if other.count else 0.0
        assert column.mean == pytest.approx(other.mean, rel=1e-9, abs=1e-9 * scale + 1e-300)
        assert column.m2 == pytest.approx(other.m2, rel=1e-9, abs=1e-22 * other.count * max(other.mean**2, 1e-300))


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[float], Tensor]:
    """A reference's values, and a batch in some type that has values on, just above and just below its edges."""
    number = st.one_of(st.floats(-1e6, 1e6), st.integers(-5, 5).map(float), st.sampled_from([0.0, -0.0, 5e-324, 1e-40]))
    reference = draw(st.lists(number, min_size=1, max_size=60))
    kind = TYPES[draw(st.sampled_from(sorted(TYPES)))]
    near = st.sampled_from(reference).flatmap(
        lambda value: st.sampled_from([value, math.nextafter(value, math.inf), math.nextafter(value, -math.inf)])
    )
    special = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 6e4, -6e4])
    values = draw(st.lists(st.one_of(near, near, number, special), max_size=80))
    return reference, torch.tensor(values, dtype=torch.float64).to(kind)


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_every_kernel_counts_what_the_profile_counts(kernel: Kernel, case: tuple[list[float], Tensor]) -> None:
    reference = Profile.of(pa.table({"x": case[0]}))
    probe = Probe(reference, ["x"])
    values = case[1].float() if case[1].dtype in (torch.float16, torch.bfloat16) else case[1]

    for part in (values[:7], values[7:]):
        edges = probe.edges_float32 if part.dtype == torch.float32 else probe.edges
        kernel(part.unsqueeze(0), edges, probe.counts, probe.moments)

    wanted = reference.empty().updated(pa.table({"x": pa.array(case[1].double().numpy())}))
    assert_same(probe.profile(), wanted)


@pytest.mark.parametrize("kernel", KERNELS)
def test_moments_survive_numbers_far_from_zero_and_blocks_of_any_size(kernel: Kernel) -> None:
    draw = np.random.default_rng(3)
    columns = {
        "far": 1e9 + draw.normal(size=40_000),
        "tiny": 1e-30 * draw.normal(size=40_000),
        "skewed": np.exp(4 * draw.normal(size=40_000)),
        "holes": np.where(draw.random(40_000) < 0.3, np.nan, draw.normal(size=40_000)),
    }
    table = pa.table(columns)
    reference = Profile.of(table.slice(0, 5000))
    probe = Probe(reference, list(columns))

    kernel(torch.tensor(np.stack(list(columns.values()))), probe.edges, probe.counts, probe.moments)

    assert_same(probe.profile(), reference.empty().updated(table))


@pytest.mark.parametrize("kernel", [count_codes_on_cpu, count_codes_with_torch])
def test_codes_outside_the_list_are_code_zero_and_negative_ones_are_missing(kernel: Callable[..., None]) -> None:
    counts = torch.zeros(4, 6, dtype=torch.int64)
    columns = [
        torch.tensor([0, 1, 2, 2, 3, 99, -1]),
        torch.tensor([0.0, 1.0, math.nan, 2.0, 0.0, -3.0, 0.5]),
        torch.tensor([True, False, True, True, True, True, True]),
        torch.tensor([[4, 0], [4, 0], [5, 0], [1, 0], [1, 0], [0, 0], [-7, 0]])[:, 0],
    ]

    kernel(columns, [3, 2, 2, 5], [False, True, True, False], counts)

    assert counts.tolist() == [[3, 1, 2, 0, 0, 1], [2, 4, 0, 0, 0, 1], [1, 6, 0, 0, 0, 0], [2, 2, 0, 0, 2, 1]]


def test_whole_tensors_are_profiled_with_and_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(5)
    table = pa.table(
        {
            "x": draw.normal(size=30_000),
            "n": draw.integers(-(2**62), 2**62, 30_000),
            "flag": draw.random(30_000) < 0.3,
            "kind": draw.choice(["a", "b", "c"], 30_000),
            "absent": draw.normal(size=30_000),
        }
    )
    reference = Profile.of(table)
    listed = ["c", "strange", "a", "b"]
    codes = {"c": 1, "a": 3, "b": 4}
    tensors = {
        "x": torch.tensor(table["x"].to_numpy()),
        "n": torch.tensor(table["n"].to_numpy()),
        "flag": torch.tensor(table["flag"].to_numpy()),
        "kind": torch.tensor([codes[kind] for kind in table["kind"].to_pylist()]),
        "other": torch.zeros(30_000),
    }
    wanted = reference.empty().updated(table.drop_columns("absent"))

    assert_same(profile_of_tensors(reference, tensors, categories={"kind": listed}), wanted)
    monkeypatch.setattr(probe_kernels, "library", lambda: None)
    assert_same(profile_of_tensors(reference, tensors, categories={"kind": listed}), wanted)


def test_a_machine_without_a_compiler_has_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    native.library.cache_clear()
    try:
        monkeypatch.setattr(native.shutil, "which", lambda name: None)
        assert native.library() is None
        native.library.cache_clear()
        monkeypatch.setattr(native.shutil, "which", lambda name: "/bin/false")
        assert native.library() is None
    finally:
        native.library.cache_clear()
