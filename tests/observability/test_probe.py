"""The probe as a module: it changes nothing, survives what models go through, and counts every row once."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from observability import probe_memory
from observability.cells import ProfileError
from observability.native import brief_calls
from observability.probe import Probe, ignored_by_ddp, profile_of_tensors
from observability.probe_state import views_of
from observability.profile import Profile

NAMES = ["a", "b", "c"]


@pytest.fixture
def reference() -> Profile:
    draw = np.random.default_rng(1)
    return Profile.of(pa.table({name: draw.normal(place, 1 + place, 3000) for place, name in enumerate(NAMES)}))


def rows(number: int, seed: int = 0) -> Tensor:
    return torch.randn(number, 3, generator=torch.Generator().manual_seed(seed)) * 2


def counted(reference: Profile, values: Tensor) -> dict[str, list[int]]:
    table = pa.table({name: values[:, place].double().numpy() for place, name in enumerate(NAMES)})
    return counts_of(reference.empty().updated(table))


def counts_of(profile: Profile) -> dict[str, list[int]]:
    return {name: column.counts.tolist() for name, column in profile.columns.items()}


class Model(nn.Module):
    def __init__(self, reference: Profile) -> None:
        super().__init__()
        self.probe, self.linear = Probe(reference, NAMES), nn.Linear(3, 2)

    def forward(self, values: Tensor) -> Tensor:
        return self.linear(self.probe(values))


def test_it_returns_what_it_is_given_and_counts_it_in_every_form(reference: Profile) -> None:
    values = rows(100).requires_grad_()
    probe = Probe(reference, NAMES)

    assert probe(values) is values
    columns = tuple(values.unbind(1))
    assert all(given is taken for given, taken in zip(columns, probe(*columns), strict=True))
    with torch.inference_mode():
        probe(*(column.unsqueeze(1) for column in columns))
    with torch.no_grad():
        probe(values.half().double().reshape(10, 10, 3))
    probe(values[:0])
    values.sum().backward()

    twice = {name: [3 * n for n in counts] for name, counts in counted(reference, values.detach()).items()}
    half = counted(reference, values.detach().half().double())
    assert counts_of(probe.profile()) == {n: (np.array(twice[n]) + half[n]).tolist() for n in NAMES}
    assert probe.profile().rows == 400
    assert probe.snapshot() == probe.profile()
    probe.reset()
    assert probe.profile() == reference.empty()


def test_the_serving_contract_reaches_the_references_cells() -> None:
    draw = np.random.default_rng(2)
    table = pa.table(
        {
            "city": draw.choice(["rome", "oslo", "lima"], 500, p=[0.6, 0.3, 0.1]),
            "flag": draw.random(500) < 0.4,
            "size": draw.integers(0, 9, 500),
        }
    )
    reference = Profile.of(table)
    probe = Probe(reference, ["size", "city", "flag"], categories={"city": ["oslo", "cairo", "rome"]})
    cities, flags, sizes = ["oslo", None, "rome", "paris", "rome", "cairo"], [1, 0, 1, None, 1, 1], [0, 3, 50, 1, 1, 2]

    probe(
        torch.tensor(sizes),
        torch.tensor([1, -1, 3, 0, 3, 2]),
        torch.tensor([torch.nan if flag is None else float(flag) for flag in flags]),
    )

    rows_seen = pa.table({"city": cities, "flag": pa.array(flags).cast(pa.bool_()), "size": sizes})
    wanted, found = reference.empty().updated(rows_seen), probe.profile()
    assert counts_of(found) == {name: counts_of(wanted)[name] for name in ("size", "city", "flag")}
    assert {name: column.missing for name, column in found.columns.items()} == {"size": 0, "city": 1, "flag": 1}
    # Of what code 0 stood for nobody knows the name.
    assert getattr(found.columns["city"], "strangers", None) == {"cairo": 1}


def test_hooks_see_what_passes_a_probe(reference: Profile) -> None:
    probe, seen = Probe(reference, NAMES), []
    values = rows(5)
    probe(values)

    own = probe.register_forward_hook(lambda module, inputs, output: seen.append(output is values))
    probe(values)
    own.remove()
    everywhere = nn.modules.module.register_module_forward_pre_hook(lambda module, inputs: seen.append(True))
    probe(values)
    everywhere.remove()
    probe(values)

    assert seen == [True, True]
    assert probe.profile().rows == 20


@pytest.mark.parametrize("headers", [True, False])
def test_any_layout_of_a_batch_is_counted_once_by_the_short_way_or_the_long(
    reference: Profile, monkeypatch: pytest.MonkeyPatch, headers: bool
) -> None:
    if not headers:
        monkeypatch.setattr(
            probe_memory, "brief_calls", lambda name="count": None if name == "offer" else brief_calls()
        )
    probe, wide = Probe(reference, NAMES), torch.randn(40, 6)
    probe(rows(1))
    given = [
        rows(7, 1), rows(7, 2).double(), rows(40, 3)[5:], rows(40, 4)[::2], wide[:, :3], wide[:, ::2], rows(3, 5).t(),
        rows(0, 6), rows(1, 7), rows(30_000, 8), rows(9, 9).requires_grad_(), rows(4, 10).half(),
        rows(3, 11).t().contiguous().t(), rows(12, 12).reshape(4, 3, 3), nn.Parameter(rows(5, 13)),
    ]  # fmt: skip
    for values in given:
        assert probe(values) is values

    flat = torch.cat([rows(1), *(values.detach().double().reshape(-1, 3) for values in given)])
    profile = probe.profile()
    assert counts_of(profile) == counted(reference, flat)
    assert profile.rows == len(flat)
    assert profile.columns["a"].mean == pytest.approx(float(flat[:, 0].mean()), rel=1e-9, abs=1e-12)
    copied = copy.deepcopy(probe)
    copied(rows(2))
    probe.reset()
    probe(rows(3))
    assert (copied.profile().rows, probe.profile().rows) == (len(flat) + 2, 3)


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.float16])
def test_the_one_column_may_come_as_rows_or_as_a_matrix(kind: torch.dtype, rows: int) -> None:
    probe = Probe(Profile.of(pa.table({"x": np.linspace(-2, 2, 50)})), ["x"])
    values = torch.linspace(-1, 1, rows, dtype=kind)

    compiled = torch.compile(nn.Sequential(probe, nn.Identity()), backend="eager")
    for given in (values, values.view(-1, 1), values.repeat(2)[::2][:rows]):
        assert probe(given) is given
        compiled(given)

    assert probe.profile().rows == 6 * rows


def test_nan_is_missing_where_that_is_what_it_means(reference: Profile) -> None:
    values = rows(50)
    values[:20, 1] = torch.nan

    probe = Probe(reference, NAMES, nan_is_missing=True)
    probe(values)

    column = probe.profile().columns["b"]
    assert (column.missing, column.rows, getattr(column, "nan", None)) == (20, 50, 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_it_survives_compilation_with_changing_batch_sizes(reference: Profile) -> None:
    model = Model(reference).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    parts = [rows(size, size) for size in (8, 33, 5)]

    for part in parts:
        torch.testing.assert_close(compiled(part), model.linear(part))

    assert counts_of(model.probe.profile()) == counted(reference, torch.cat(parts))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_compiled_it_counts_what_it_counts_eagerly(reference: Profile, kind: torch.dtype) -> None:
    probes = [Probe(reference, NAMES) for _ in range(4)]
    compiled = [torch.compile(probe, fullgraph=True) for probe in probes[:2]]
    values = torch.cat([rows(300), torch.tensor([[torch.nan, torch.inf, 0.0], [-torch.inf, -0.0, 1e-40]])]).to(kind)
    apart = tuple(values.t().contiguous())

    with torch.inference_mode():
        for by_row in (compiled[0], probes[2]):
            by_row(values)
        for by_column in (compiled[1], probes[3]):
            by_column(*apart)

    found = [probe.profile() for probe in probes]
    assert [counts_of(profile) for profile in found] == 4 * [counted(reference, values)]
    assert all(profile.rows == 302 for profile in found)


def test_it_survives_export_saving_and_loading(reference: Profile) -> None:
    model = Model(reference).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (rows(4),), dynamic_shapes=({0: batch},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()

    for size in (3, 40):
        loaded(rows(size, size))

    found = model.probe.profile_in(loaded, "probe")
    assert counts_of(found) == counted(reference, torch.cat([rows(3, 3), rows(40, 40)]))
    assert model.probe.profile().rows == 0
    with pytest.raises(KeyError, match="is there a probe at 'elsewhere'"):
        model.probe.profile_in(loaded, "elsewhere")


def test_checkpoints_leave_the_counts_out_and_types_do_not_round_them(reference: Profile) -> None:
    model = Model(reference)
    assert list(model.state_dict()) == ["linear.weight", "linear.bias"]
    model(rows(10))
    model.load_state_dict(model.state_dict())

    half = copy.deepcopy(model).half()
    half.probe(rows(10).half())

    assert half.linear.weight.dtype == torch.float16
    edges = [views_of(each.probe.state, 3, each.probe._width).edges for each in (half, model)]
    assert torch.equal(*edges)
    assert (half.probe.profile().rows, model.probe.profile().rows) == (20, 10)
    again = pickle.loads(pickle.dumps(model))
    assert again.probe.profile() == model.probe.profile()


def test_threads_that_call_one_module_lose_no_row(reference: Profile) -> None:
    model = Model(reference).eval()
    parts = [rows(257, seed) for seed in range(8)]

    def work(part: Tensor) -> None:
        with torch.inference_mode():
            for _ in range(30):
                model(part)

    threads = [threading.Thread(target=work, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    wanted = counted(reference, torch.cat(parts))
    assert counts_of(model.probe.profile()) == {name: [30 * n for n in counts] for name, counts in wanted.items()}


@pytest.fixture
def one_process() -> Iterator[None]:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_data_parallel_processes_keep_their_own_counts(reference: Profile) -> None:
    model = Model(reference)
    model.register_buffer("shared", torch.zeros(1))
    ignored_by_ddp(model)

    parallel = nn.parallel.DistributedDataParallel(model)
    parallel(rows(10)).sum().backward()

    assert [tensor.shape for tensor in parallel.modules_buffers] == [torch.Size([1])]
    assert model.probe.profile().rows == 10


def test_batches_in_any_partition_make_one_profile(reference: Profile) -> None:
    values = rows(1000)
    probe = Probe(reference, NAMES)
    for start, end in pairwise([0, 1, 2, 500, 500, 999, 1000]):
        probe(values[start:end])

    whole = profile_of_tensors(reference, dict(zip(NAMES, values.unbind(1), strict=True)))

    assert counts_of(probe.profile()) == counts_of(whole) == counted(reference, values)


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a", "z"], "no column 'z'"), ([], "at least one"), (["a", "a"], "more than once: a")],
)
def test_a_probe_of_unknown_columns_says_so(reference: Profile, names: list[str], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        Probe(reference, names)


def test_inputs_of_the_wrong_shape_are_named(reference: Profile) -> None:
    probe = Probe(reference, NAMES)
    with pytest.raises(ValueError, match=r"3 columns.*\[5, 2\]"):
        probe(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="2, 2, 3 rows"):
        probe(torch.zeros(2), torch.zeros(2), torch.zeros(3))
    with pytest.raises(ProfileError, match="different numbers of rows"):
        profile_of_tensors(reference, {"a": torch.zeros(2), "b": torch.zeros(3)})


def test_observability_does_not_import_torch() -> None:
    check = "import sys, observability; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
