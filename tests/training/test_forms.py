"""Every parallel form follows the loss curve of one process, and goes on where another form was cut off."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.training.toy_forms import CONFIG, ROWS, Deep, curve, deep
from tests.training.toy_network import line, rows
from training.checkpoint import Checkpoint
from training.compression import Scaled
from training.faults import Fault, Faults
from training.parallel import fit_in_ranks
from training.parallel_config import COMPRESSIONS, FormError, ParallelConfig
from training.power_sgd import PowerSGD
from training.replicas import Replicas
from training.sharded_checkpoint import ShardedCheckpointStore
from training.spread import _blocks
from training.supervisor import Limits, Supervisor
from training.watch import HangLimits

Losses = dict[str, list[float]]
PIPELINES = [
    f"pipeline=2,schedule={kind},microbatches={m}" for kind in ("gpipe", "1f1b", "interleaved") for m in (4, 8)
]
LIMITS = Limits(restarts=0, hang=HangLimits(step=300.0, first=300.0))


def trained(folder: Path, world_size: int, forms: Sequence[str]) -> Losses:
    """The losses of each form, by one set of warm processes."""
    supervisor = Supervisor(
        "tests.training.toy_forms:fit", world_size=world_size, folder=folder, model="toy",
        arguments={"forms": list(forms)}, limits=LIMITS, echo=None,
    )  # fmt: skip
    result = supervisor.run()
    assert result.outcome == "completed", result.reason
    return {form: json.loads((folder / f"{form}.json").read_text())["losses"] for form in forms}


def cut_off(folder: Path) -> Path:
    """A copy of a run's checkpoints without the last."""
    copied = folder.with_name(f"{folder.name}-cut")
    shutil.copytree(folder, copied)
    shutil.rmtree(ShardedCheckpointStore(copied).paths()[-1])
    return copied


@pytest.fixture(scope="module")
def alone() -> list[float]:
    return curve("one process", Replicas(), None)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Losses]:
    folder = tmp_path_factory.mktemp("pairs")
    forms = (
        "fsdp=2", "tensor=2", "pipeline=2,schedule=1f1b", "pipeline=2,schedule=interleaved",
        "data=2,compress=fp16", "data=2,compress=bf16", "data=2,compress=powersgd", "fsdp=2>tensor=2",
        *(f"bubble:{form}" for form in PIPELINES),
    )  # fmt: skip
    return folder, trained(folder, 2, forms)


@pytest.mark.slow
def test_two_ranks_follow_the_curve_of_one_in_every_form(pairs: tuple[Path, Losses], alone: list[float]) -> None:
    _, found = pairs
    assert len(alone) == 10
    lossy = {"data=2,compress=bf16": 1e-3, "data=2,compress=powersgd": 0.1}
    for form, losses in found.items():
        if ">" not in form and ":" not in form:
            assert losses == pytest.approx(alone, abs=lossy.get(form, 1e-5)), form
    # What is lossy must have lost something, or it was not at work.
    for way in COMPRESSIONS[1:]:
        assert found[f"data=2,compress={way}"] != pytest.approx(alone, abs=1e-7)
    # A run that is at its end is not begun again.
    assert found["fsdp=2>tensor=2"] == found["fsdp=2"]


@pytest.mark.slow
def test_the_order_in_which_a_schedule_runs_has_the_bubble_of_the_formula(pairs: tuple[Path, Losses]) -> None:
    for form in PIPELINES:
        assert pairs[1][f"bubble:{form}"] == [pytest.approx(ParallelConfig.parse(form).bubble, abs=1e-6)], form


@pytest.mark.slow
def test_one_process_goes_on_where_shards_and_stages_were_cut_off(
    pairs: tuple[Path, Losses], alone: list[float]
) -> None:
    for form in ("fsdp=2", "pipeline=2,schedule=interleaved"):
        assert curve("one process", Replicas(), cut_off(pairs[0] / form)) == pytest.approx(alone, abs=1e-5)


@pytest.mark.slow
def test_four_ranks_follow_it_in_combined_forms_and_one_goes_on(tmp_path: Path, alone: list[float]) -> None:
    thin = "pipeline=2,data=2,compress=powersgd"
    found = trained(tmp_path, 4, ("fsdp=2,tensor=2", "pipeline=2,data=2", "pipeline=2,data=2,compress=fp16", thin))
    for form, losses in found.items():
        assert losses == pytest.approx(alone, abs=0.1 if form == thin else 1e-5), form
    assert found[thin] != pytest.approx(alone, abs=1e-7)
    cut = cut_off(tmp_path / "fsdp=2,tensor=2")
    assert curve("one process", Replicas(), cut) == pytest.approx(alone, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["fsdp=2", "data=2,compress=fp16", "data=2,compress=powersgd"])
def test_a_run_in_a_form_that_is_killed_ends_to_the_bit_as_one_that_is_not(
    tmp_path: Path, pairs: tuple[Path, Losses], form: str
) -> None:
    network = deep()
    faults = Faults((Fault("kill", 1, 7, 0), Fault("kill", 0, 8, 1)))
    result, run = fit_in_ranks(
        network, rows(ROWS), CONFIG, world_size=2, folder=tmp_path, model="toy", run="r", faults=faults, echo=None,
        parallel=ParallelConfig.parse(form), limits=Limits(hang=LIMITS.hang),
    )  # fmt: skip

    assert [one.cause for one in run.attempts] == ["killed", "killed", "completed"]
    assert [loss for _, loss in result.losses] == pairs[1][form]
    whole = ShardedCheckpointStore(pairs[0] / form).newest()
    assert whole is not None
    for name, tensor in whole.tensors("network").items():
        assert torch.equal(network.state_dict()[name], tensor), name


@pytest.fixture
def lone() -> Iterator[dist.ProcessGroup]:
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        assert dist.group.WORLD is not None
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def test_gradients_as_float16_keep_what_is_small_and_say_of_all_that_one_does_not_fit(lone: dist.ProcessGroup) -> None:
    scaled = Scaled(lone)

    def carried(*values: float) -> list[float]:
        flat = torch.tensor(values)
        scaled.average(flat)
        return flat.tolist()

    tiny = [3e-9, -1e-3, 2e-13]  # float16 of its own ends at 6e-8
    assert carried(*tiny) == [pytest.approx(one, rel=1e-7) for one in tiny]  # whole
    assert carried(*tiny)[:2] == [pytest.approx(one, rel=2**-11) for one in tiny[:2]]
    assert carried(0.5, 1.0) == [0.5, 1.0]
    # More than a thousand times what was: the step is not finite, and the next one's fits.
    assert math.isinf(carried(5e3)[0])
    assert carried(5e3) == [pytest.approx(5e3, rel=2**-11)]
    assert math.isnan(carried(math.nan)[0])
    # Small again: by two a step it comes back to where it was, and a step without gradients leaves it there.
    for _ in range(40):
        carried(*tiny)
    assert carried(0.0) == [0.0]
    assert carried(*tiny)[0] == pytest.approx(tiny[0], rel=2**-11)
    # Another that is told of it goes on with the same numbers.
    other = Scaled(lone)
    other.restore(scaled.state())
    flat = torch.tensor(tiny)
    other.average(flat)
    assert flat.tolist() == carried(*tiny)


def thin(lone: dist.ProcessGroup, *gradients: torch.Tensor) -> tuple[PowerSGD, dict[int, str]]:
    """One that has averaged these gradients of a 20 by 10 matrix and of a bias, the first two of them whole."""
    parameters = [nn.Parameter(torch.zeros(20, 10)), nn.Parameter(torch.zeros(20))]
    power = PowerSGD(parameters, lone, 2)
    for gradient in gradients:
        power.average([gradient.clone(), gradient[:, 0].clone()])
    return power, {id(one): name for one, name in zip(parameters, ("weight", "bias"), strict=True)}


def drawn(count: int) -> list[torch.Tensor]:
    return list(torch.randn(count, 20, 10, generator=torch.Generator().manual_seed(7)))


def test_what_thin_matrices_leave_out_is_sent_with_the_next_gradients(lone: dist.ProcessGroup) -> None:
    gradients = drawn(5)
    power, names = thin(lone)
    sent = [gradient.clone() for gradient in gradients]
    biases = [gradient[:, 0].clone() for gradient in gradients]
    for one, bias in zip(sent, biases, strict=True):
        power.average([one, bias])

    assert all(torch.equal(one, gradient[:, 0]) for one, gradient in zip(biases, gradients, strict=True))
    assert all(torch.equal(one, gradient) for one, gradient in zip(sent[:2], gradients[:2], strict=True))
    assert all(torch.linalg.matrix_rank(one) == 2 for one in sent[2:])
    left = power.state(names, 0)["powersgd_2.left_out_0"]["weight"]
    torch.testing.assert_close(torch.stack(sent).sum(0) + left, torch.stack(gradients).sum(0))


def test_a_step_that_is_not_finite_leaves_nothing_behind_in_thin_matrices(lone: dist.ProcessGroup) -> None:
    *gradients, last = drawn(5)
    power, names = thin(lone, *gradients)
    before = {name: one.clone() for name, one in power.state(names, 0)["powersgd_2.left_out_0"].items()}
    spoiled = last.clone()
    spoiled[3, 4] = math.nan
    power.average([spoiled, last[:, 0].clone()])

    assert not torch.isfinite(spoiled).all()
    assert torch.equal(power.state(names, 0)["powersgd_2.left_out_0"]["weight"], before["weight"])
    power.average([last, last[:, 0].clone()])
    assert torch.isfinite(last).all()


def test_thin_matrices_go_on_as_they_were_and_share_what_other_numbers_of_replicas_left_out(
    lone: dist.ProcessGroup, caplog: pytest.LogCaptureFixture
) -> None:
    *gradients, last = drawn(6)
    first, names = thin(lone, *gradients)
    second, other = thin(lone, *reversed(gradients))
    left = [
        power.state(known, 0)["powersgd_2.left_out_0"]["weight"] for power, known in ((first, names), (second, other))
    ]
    state = {**second.state(other, 1), **first.state(names, 0)}
    saved = Checkpoint(
        6, {name: {key: one.clone() for key, one in said.items()} for name, said in state.items()}, Path()
    )

    same, known = thin(lone)
    same.restore(saved, known, share=0, shares=2)
    sent = [last.clone(), last.clone()]
    first.average([sent[0], last[:, 0].clone()])
    same.average([sent[1], last[:, 0].clone()])
    assert torch.equal(sent[0], sent[1])

    for shares in (1, 3):
        third, known = thin(lone)
        third.restore(saved, known, share=0, shares=shares)
        mean = third.state(known, 0)["powersgd_2.left_out_0"]["weight"]
        torch.testing.assert_close(mean, (left[0] + left[1]) / 2)

    assert not caplog.records
    anew, known = thin(lone, *gradients)
    anew.restore(Checkpoint(6, {}, Path()), known, share=0, shares=2)
    assert "PowerSGD begins anew" in caplog.text
    assert not anew.state(known, 0)["powersgd_2.left_out_0"]["weight"].any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fsdp=x", "fsdp is 'x': it must be a whole number"),
        ("shards=2", "'shards=2' in a parallel form: write NAME=VALUE, where NAME is one of data, fsdp"),
        ("data=2,data=2", "data is given twice"),
        ("data=0", "data is 0: it must be at least 1"),
        ("pipeline=2,schedule=zigzag", "schedule is 'zigzag': it is one of gpipe, 1f1b, interleaved"),
        ("fsdp=2,compress=bf16", "gradients are compressed between plain replicas"),
        ("pipeline=4,microbatches=2", "2 microbatches through 4 stages: the schedule 1f1b needs at least 4"),
        ("pipeline=2,schedule=interleaved,microbatches=5", "needs a multiple of 2"),
        ("pipeline=2,chunks=2", "only the schedule interleaved"),
    ],
)
def test_a_form_that_cannot_be_says_why(text: str, message: str) -> None:
    with pytest.raises(FormError, match=message):
        ParallelConfig.parse(text)


def test_a_form_is_read_from_text_and_back() -> None:
    form = ParallelConfig.parse("pipeline=2, data=2, schedule=interleaved")
    assert form == ParallelConfig(pipeline=2, data=2, schedule="interleaved")
    assert ParallelConfig.from_json(json.loads(json.dumps(form.to_json()))) == form
    assert (form.world_size, form.shares, form.num_chunks, form.num_microbatches) == (4, 2, 2, 8)
    assert form.bubble == pytest.approx(1 / 17)
    assert ParallelConfig.parse("") == ParallelConfig()


class Wrong(nn.Module):
    """Says nothing of how it is divided, or what is not true."""

    def __init__(self, plan: object = None) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        if plan is not None:
            self.tensor_plan = plan


@pytest.mark.parametrize(
    ("network", "form", "message"),
    [
        (Deep(), "fsdp=3", "fsdp 3 makes 3 ranks, and there are 2"),
        (Deep(), "fsdp=2,tensor=2", "fsdp 2 x tensor 2 makes 4 ranks, and there are 2"),
        (Deep(), "", "one process makes 1 ranks, and there are 2"),
        (line(), "pipeline=2", r"Line has no stages.* give it a method stages\(\)"),
        (nn.Sequential(nn.Linear(2, 1)), "pipeline=2", "Sequential has 1 stages, and 2 are needed"),
        (line(), "tensor=2", r"Line does not say how its layers are divided: give it a method tensor_plan\(\)"),
        (Wrong({"layre": "colwise"}), "tensor=2", "names 'layre', and the network has no such module; it has: layer"),
        (Wrong({"layer": "diagonal"}), "tensor=2", "divides 'layer' by 'diagonal'"),
        (Wrong({}), "tensor=2", "names no module"),
        (Wrong(["layer"]), "tensor=2", "not a list"),
        (Deep(), "tensor=2,plan=megatron", "there is no plan 'megatron'"),
        (Deep(), "tensor=2,plan=transformer", "names no module"),
    ],
)
def test_a_form_that_fits_neither_ranks_nor_network_is_refused_before_anything_runs(
    network: nn.Module, form: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(FormError, match=message):
        fit_in_ranks(
            network, rows(50), CONFIG, world_size=2, folder=tmp_path, model="toy", run="r",
            parallel=ParallelConfig.parse(form),
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_modules_that_only_hold_others_are_not_gathered_by_themselves(lone: dist.ProcessGroup) -> None:
    layers = [nn.ModuleDict({"up": nn.Sequential(nn.Linear(4, 8), nn.Tanh()), "down": nn.Linear(8, 4)}) for _ in "ab"]
    network = nn.ModuleDict({"layers": nn.ModuleList(layers), "out": nn.Sequential(nn.Sequential(nn.Linear(4, 1)))})
    found = _blocks(network)

    assert [type(block) for block in found] == [nn.Sequential]
    for block in found:
        fully_shard(block, mesh=init_device_mesh("cpu", (1,)))  # ValueError for a module without a forward
