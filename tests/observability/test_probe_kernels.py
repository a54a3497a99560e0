"""The kernels of a probe against the reference implementation: counts to the unit, moments to a billionth."""

from __future__ import annotations

import copy
import math
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from observability import native
from observability.columns import NumericColumn
from observability.probe import Probe, profile_of_tensors
from observability.probe_dispatch import registered_in_c
from observability.probe_kernels import (
    count,
    count_codes_on_cpu,
    count_codes_with_torch,
    count_on_cpu,
    count_with_torch,
)
from observability.probe_state import rows_waiting
from observability.profile import Profile

Kernel = Callable[[Tensor, Probe], None]
EXACT = ("missing", "nan", "positive_infinite", "negative_infinite", "zeros", "minimum", "maximum")
TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def in_c(values: Tensor, probe: Probe) -> None:
    count_on_cpu(values.t(), probe.state, probe._width)


def in_the_operator(values: Tensor, probe: Probe) -> None:
    count(values.t(), probe.state, probe._width)


def waiting(values: Tensor, probe: Probe) -> None:
    """Row by row, so that most wait until they are read."""
    for row in values.t().split(1):
        count_on_cpu(row.contiguous(), probe.state, probe._width)


def in_numpy(values: Tensor, probe: Probe) -> None:
    with no_compiler():
        count_on_cpu(values.t(), probe.state, probe._width)


def in_torch(values: Tensor, probe: Probe) -> None:
    count_with_torch(values.t(), probe.state, probe._width)


KERNELS: list[Kernel] = [in_c, in_the_operator, waiting, in_numpy, in_torch]


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

    for part in (case[1][:7], case[1][7:]):
        kernel(part.unsqueeze(0), probe)

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

    kernel(torch.tensor(np.stack(list(columns.values()))), probe)

    assert_same(probe.profile(), reference.empty().updated(table))


def test_the_mean_of_numbers_whose_sum_overflows_is_finite() -> None:
    values = np.random.default_rng(4).choice([1.7e308, -1.7e308, 1e308, 3.0], 999)
    reference = Profile.of(pa.table({"x": [0.0, 1.0]}))
    probe = Probe(reference, ["x"])

    for part in np.split(values, [1, 500]):
        in_c(torch.from_numpy(part).unsqueeze(0), probe)

    column = probe.profile().columns["x"]
    assert isinstance(column, NumericColumn)
    assert column.mean == pytest.approx((values / 999).sum(), rel=1e-9)
    assert (column.minimum, column.maximum, column.count) == (-1.7e308, 1.7e308, 999)
    assert column.m2 == (math.inf if native.library() else column.m2)


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


def test_whole_tensors_are_profiled_with_and_without_a_compiler() -> None:
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
    with no_compiler():
        assert_same(profile_of_tensors(reference, tensors, categories={"kind": listed}), wanted)


def test_a_machine_without_a_compiler_has_no_library() -> None:
    for found in (None, "/bin/false"):
        with no_compiler(found):
            assert native.library() is None
            assert native.brief_calls() is None


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_every_number_of_half_the_bits_is_counted_as_its_float32(kind: torch.dtype, flushed: bool) -> None:
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(kind)
    wanted_of = values.float()
    reference = Profile.of(pa.table({"x": np.concatenate([np.geomspace(1e-40, 6e4, 500), [-5e-8, 0.0, 3e-8, -1.0]])}))
    probe, wanted = Probe(reference, ["x"]), Probe(reference, ["x"])

    torch.set_flush_denormal(flushed and kind == torch.float16)
    try:
        count(values.unsqueeze(1), probe.state, probe._width)
        found = rows_waiting(probe.state).clone() if native.library() else None
        probe.profile()
    finally:
        torch.set_flush_denormal(False)
    count(wanted_of.unsqueeze(1), wanted.state, wanted._width)

    if found is not None:
        bits = [
            numbers.masked_fill(numbers.isnan(), torch.nan).view(torch.int32) for numbers in (found[:, 0], wanted_of)
        ]
        assert torch.equal(*bits)
    assert_same(probe.profile(), wanted.profile())


def test_a_torch_without_its_plain_functions_leaves_the_kernel_to_python() -> None:
    assert not registered_in_c(("library_init_impl", "no_such_function"))
    with no_compiler():
        assert not registered_in_c()


def test_values_of_other_columns_than_a_states_are_not_counted_anywhere() -> None:
    reference = Profile.of(pa.table({"x": np.linspace(-2, 2, 50), "y": np.linspace(0, 9, 50)}))
    probe = Probe(reference, ["x", "y"])
    before = probe.state.clone()

    with pytest.raises(ValueError, match=r"3 columns of .* and a state of 2 columns"):
        count_on_cpu(torch.zeros(9, 3), probe.state, probe._width)
    count_if_it_fits(torch.zeros(9, 3), probe.state, probe._width)
    count_if_it_fits(torch.zeros(9, 2), probe.state, probe._width + 1)

    assert torch.equal(probe.state, before)


def count_if_it_fits(values: Tensor, state: Tensor, width: int) -> None:
    """The operator: its C kernel cannot raise, and prints what Python says; without C it raises."""
    with suppress(ValueError, RuntimeError):
        count(values, state, width)


def test_a_state_made_without_a_compiler_is_counted_by_the_operator_with_one() -> None:
    reference = Profile.of(pa.table({"x": np.linspace(-2, 2, 50), "y": np.linspace(0, 9, 50)}))
    values = torch.randn(300, 2, generator=torch.Generator().manual_seed(3))
    with no_compiler():
        probe = Probe(reference, ["x", "y"])
    before = sys.getrefcount(values), values._use_count()

    for part in (values, values.half(), values.double(), values.t().contiguous().t()):
        count(part, probe.state, probe._width)
    count(values[:0], probe.state, probe._width)

    assert (sys.getrefcount(values), values._use_count()) == before
    there = Probe(reference, ["x", "y"])
    for part in (values, values.half(), values.double(), values.t().contiguous().t()):
        count(part, there.state, there._width)
    assert (sys.getrefcount(values), values._use_count()) == before
    assert_same(probe.profile(), there.profile())
    assert there.profile().rows == 1200


@st.composite
def matrices(draw: st.DrawFn) -> tuple[dict[str, list[float]], Tensor]:
    """References of any shape, and rows with values on, just above and just below their edges."""
    columns = draw(st.sampled_from([1, 2, 3, 5, 8, 15, 16, 17, 20, 33, 70]))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    shapes: list[Callable[[int], np.ndarray]] = [
        lambda n: random.normal(size=n),
        lambda n: np.exp(random.choice([1, 4, 12]) * random.normal(size=n)),
        lambda n: 1e9 + random.normal(size=n),
        lambda n: random.integers(0, 5, n).astype(float),
        lambda n: np.full(n, 7.0),
        lambda n: random.standard_cauchy(n),
        lambda n: np.concatenate([random.normal(size=n - n // 2), 1e30 * random.normal(size=n // 2)]),
        lambda n: np.nextafter(1.0, 2.0) ** random.integers(0, 300, n),
        lambda n: random.choice([-3e38, -1.0, 0.0, 1e-300, 3e38], n),
    ]
    chosen = draw(st.lists(st.sampled_from(range(len(shapes))), min_size=columns, max_size=columns))
    reference = {f"x{place}": shapes[shape](400) for place, shape in enumerate(chosen)}
    rows = draw(st.sampled_from([1, 2, 7, 31, 64, 100, 1_100]))
    values = np.empty((rows, columns))
    for place, column in enumerate(reference.values()):
        near = random.choice(column, rows)
        single = near.astype(np.float32)
        kind = random.integers(0, 6, rows)
        options = [
            near,
            np.nextafter(near, np.inf),
            np.nextafter(near, -np.inf),
            np.nextafter(single, np.float32(np.inf)),
            np.nextafter(single, np.float32(-np.inf)),
            random.choice([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -5.0], rows),
        ]
        values[:, place] = np.choose(kind, options)
    exact = torch.from_numpy(values)
    return {name: list(column) for name, column in reference.items()}, exact if draw(st.booleans()) else exact.float()


@pytest.fixture(params=["", "WITHOUT_SHIFTS", "WITHOUT_REGISTERS"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiled for this processor, and for those that lack what the fastest ones have."""
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, *(f"-D{name}" for name in [request.param] if name)))
    native.library.cache_clear()
    native.brief_calls.cache_clear()
    yield
    monkeypatch.undo()
    native.library.cache_clear()
    native.brief_calls.cache_clear()


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.usefixtures("processor")
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=matrices())
def test_rows_of_any_width_are_counted_in_the_references_cells(case: tuple[dict[str, list[float]], Tensor]) -> None:
    reference = Profile.of(pa.table(case[0]))
    names = list(reference.columns)
    probe, values = Probe(reference, names), case[1]
    apart = Probe(reference, names)

    for part in (values[:1], values[1:3], values[3:]):
        probe(part)
        apart(*part.unbind(1))

    table = pa.table({name: values[:, place].double().numpy() for place, name in enumerate(names)})
    assert_same(probe.profile(), reference.empty().updated(table))
    assert_same(apart.profile(), probe.profile())


@pytest.mark.parametrize("bins", [1, 3, 200, 254, 255, 256, 400])
def test_references_of_few_and_of_very_many_bins(bins: int) -> None:
    draw = np.random.default_rng(bins)
    edges = np.sort(draw.standard_cauchy(bins + 1))
    reference = Profile({"x": NumericColumn.over(edges), "y": NumericColumn.over(edges * 1e-3)})
    values = torch.from_numpy(np.concatenate([edges, draw.standard_cauchy(500)]))
    table = {name: values.float().double().numpy() for name in ("x", "y")}

    probe = Probe(reference, ["x", "y"])
    probe(values.float().unsqueeze(1).expand(-1, 2).contiguous())
    probe(values.unsqueeze(1).expand(-1, 2))

    wanted = reference.updated(pa.table(table)).updated(pa.table({"x": values.numpy(), "y": values.numpy()}))
    assert_same(probe.profile(), wanted)


@pytest.mark.usefixtures("processor")
def test_batches_of_wide_tables_are_counted_once_however_many_and_whoever_reads_them() -> None:
    draw = np.random.default_rng(8)
    shapes = [draw.normal(size=400), draw.integers(0, 3, 400).astype(float), np.full(400, 7.0)]
    reference = Profile.of(pa.table({f"x{place}": shapes[place % 3] for place in range(40)}))
    probe = Probe(reference, list(reference.columns))
    parts = [
        torch.from_numpy(np.stack([draw.choice(shapes[place % 3] * 1.2, rows) for place in range(40)], 1)).float()
        for rows in (192, 300, 511, 512, 700, 1000, 250)
    ]
    # So many rows of one value that no 16 bits hold them.
    parts += 140 * [torch.full((500, 40), 7.0)]
    parts.append(torch.full((70_000, 40), 7.0))
    parts[2][5], parts[3][7] = torch.nan, -torch.inf

    for part in parts:
        probe(part)
    with no_compiler():
        elsewhere = probe.profile()

    whole = torch.cat(parts).double().numpy()
    table = pa.table({name: whole[:, place] for place, name in enumerate(reference.columns)})
    assert_same(probe.profile(), reference.empty().updated(table))
    assert_same(elsewhere, probe.profile())
    probe.reset()
    assert probe.profile() == reference.empty()


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("columns", [16, 33])
def test_odd_numbers_in_wide_batches_are_counted_in_their_cells(columns: int) -> None:
    draw = np.random.default_rng(columns)
    small = np.float32(1e-45)
    # The references' edges are among these values.
    shapes = [
        draw.integers(-60, 60, 600),
        1e9 + 64 * draw.integers(0, 200, 600),
        draw.choice([-1e-30, 0.0, 1e-30, 7e30], 600),
        draw.integers(-50, 50, 600) * small,
        1e-3 * draw.normal(size=600) + 3,
    ]
    own = [shapes[place % 5].astype(np.float32).astype(float) for place in range(columns)]
    reference = Profile.of(pa.table({f"x{place}": values for place, values in enumerate(own)}))
    probe = Probe(reference, list(reference.columns))
    rows = (700, 1024, 640, 4100)
    parts = [np.stack([draw.choice(values, count) for values in own], 1).astype(np.float32) for count in rows]
    for part in parts:
        part[draw.random(part.shape) < 0.1] = -0.0
    # One begins with what is not finite, which is no pivot; another has nothing else in some columns.
    parts[1][0, ::2] = np.nan
    parts[2][:, 1::4] = np.inf
    parts[0][2, 3] = parts[3][9, 3] = -np.inf
    # What lies far from everything before, in a column whose moments are summed about a value of that.
    parts[3][7:, 4] += np.float32(1e6)

    for part in parts:
        probe(torch.from_numpy(part))
    with no_compiler():
        elsewhere = probe.profile()

    whole = np.concatenate(parts).astype(float)
    table = pa.table({name: whole[:, place] for place, name in enumerate(reference.columns)})
    wanted = reference.empty().updated(table)
    assert_same(probe.profile(), wanted)
    assert_same(elsewhere, wanted)


def test_one_number_far_from_all_others_costs_wide_batches_no_digits() -> None:
    draw = np.random.default_rng(10)
    values = draw.normal(size=(400_000, 16)).astype(np.float32)
    # The first of all, about which the moments of what follows may be summed.
    values[0] = 1e6
    names = [f"x{place}" for place in range(16)]
    reference = Profile.of(pa.table({name: values[:1000, place] for place, name in enumerate(names)}))
    probe = Probe(reference, names)

    for part in np.split(values, 400):
        probe(torch.from_numpy(part))

    table = pa.table({name: values[:, place].astype(float) for place, name in enumerate(names)})
    assert_same(probe.profile(), reference.empty().updated(table))


def test_rows_that_wait_are_counted_once_whoever_reads_them() -> None:
    draw = np.random.default_rng(7)
    reference = Profile.of(pa.table({"x": draw.normal(size=500), "y": draw.normal(size=500)}))
    probe = Probe(reference, ["x", "y"])
    values = torch.randn(40, 2)
    probe(values)
    waited = len(rows_waiting(probe.state))

    again = pickle.loads(pickle.dumps(probe))
    twice = copy.deepcopy(probe)
    twice(values)
    with no_compiler():
        elsewhere = probe.profile()

    wanted = reference.updated(pa.table({"x": values[:, 0].double().numpy(), "y": values[:, 1].double().numpy()}))
    empty = reference.empty()
    assert waited == (40 if native.library() else 0)
    for found in (probe, again, probe.double()):
        assert [column.counts.tolist() for column in found.profile().columns.values()] == [
            (column.counts - reference.columns[name].counts).tolist() for name, column in wanted.columns.items()
        ]
        assert found.profile().rows == 40
    assert_same(elsewhere, probe.profile())
    assert (twice.profile().rows, probe.profile().rows) == (80, 40)
    probe.reset()
    assert probe.profile() == empty


@contextmanager
def no_compiler(found: str | None = None) -> Iterator[None]:
    """As on a machine that has none, or one that fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native.shutil, "which", lambda name: found)
        native.library.cache_clear()
        native.brief_calls.cache_clear()
        try:
            yield
        finally:
            native.library.cache_clear()
            native.brief_calls.cache_clear()
