"""Networks and tables as users have them: unused, tied and frozen weights, layers that cannot be trained as asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from torch import Tensor, nn

from observability.training import TrainingMonitor
from serving.registry import Registry
from tests.training.conftest import TinyNet
from tests.training.toy_network import Line, rows
from training import DataError, Encoding, Gate, TrainConfig, TrainJob, train
from training.begun import way
from training.checkpoint import Checkpoint, CheckpointStore
from training.data import encode_rows, fit, labelled
from training.loop import Trainer, TrainResult
from training.parallel import ParallelError, fit_in_ranks
from training.parallel_config import FormError, ParallelConfig
from training.parameter_server import ServersForm
from training.pipeline import stages_of
from training.replicas import take_whole
from training.sharded_checkpoint import ShardedCheckpointStore
from training.tensor_plan import styles
from training.unchanged import check_same

CONFIG = TrainConfig(epochs=2, batch_size=100, learning_rate=0.02, seed=5, threads=1, checkpoint_every=5)
GATE = Gate(min_rows=100, min_groups=3)


class Spare(Line):
    """With a layer that takes no part in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


class Tied(Line):
    """With one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        inner, outer = nn.Linear(4, 4), nn.Linear(4, 4)
        outer.weight = inner.weight
        blocks = (nn.Sequential(inner, nn.Tanh()), nn.Sequential(outer, nn.Tanh()))
        self.layers = nn.Sequential(nn.Linear(2, 4), *blocks, nn.Linear(4, 1))


class TiedTiny(TinyNet):
    """The task's network with one weight in two layers."""

    def __init__(self, encoding: Encoding) -> None:
        super().__init__(encoding)
        first, second = nn.Linear(5, 5), nn.Linear(5, 5)
        second.weight = first.weight
        self.layers = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(5, 1))


class WithoutLogits(nn.Module):
    """Gives probabilities alone."""

    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, colour: Tensor, *numbers: Tensor) -> Tensor:
        return torch.sigmoid(self.layer(torch.stack(numbers, dim=1)).squeeze(1))


class Normalised(TinyNet):
    """The task's network with batch normalisation."""

    def __init__(self, encoding: Encoding) -> None:
        super().__init__(encoding)
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))


class Sparse(TinyNet):
    """The task's network with sparse gradients."""

    def __init__(self, encoding: Encoding) -> None:
        super().__init__(encoding)
        self.colour = nn.Embedding(len(encoding.vocabularies["colour"]) + 1, 2, sparse=True)


class Frozen(TinyNet):
    """The task's network of which nothing is trained."""

    def __init__(self, encoding: Encoding) -> None:
        super().__init__(encoding)
        self.requires_grad_(False)


class CutOff(BaseException):
    """Stands for the end of the process."""


class Cutting(CheckpointStore):
    """Ends the process after the checkpoint of ten steps."""

    def put(self, step: int, *said: Any, **more: Any) -> None:
        super().put(step, *said, **more)
        if step == 10:
            raise CutOff


class CuttingShards(ShardedCheckpointStore):
    """The same, of a checkpoint that a thread writes."""

    def put(self, step: int, *said: Any, **more: Any) -> None:
        super().put(step, *said, **more)
        if step == 10:
            self.wait()
            raise CutOff


def trained(network: nn.Module, store: Any = None) -> TrainResult:
    with TrainingMonitor("toy", run="r", drain_seconds=0) as monitor:
        return Trainer(network, rows(), CONFIG, monitor, store).run()


def made(kind: type[nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return kind()


@pytest.fixture
def job(task: Any, make_table: Any, tmp_path: Path) -> TrainJob:
    return TrainJob(task=task, table=make_table(), source="test", out=tmp_path / "run", config=CONFIG, gate=GATE)


@pytest.mark.parametrize("kind", [Spare, Tied])
@pytest.mark.parametrize(("cutting", "store"), [(Cutting, CheckpointStore), (CuttingShards, ShardedCheckpointStore)])
def test_a_run_goes_on_to_the_bit_though_weights_are_unused_or_tied(
    kind: type[nn.Module], cutting: Any, store: Any, tmp_path: Path
) -> None:
    whole = made(kind, 3)
    undisturbed = trained(whole)
    with pytest.raises(CutOff):
        trained(made(kind, 3), cutting(tmp_path))

    network = made(kind, 99)
    result = trained(network, store(tmp_path))

    assert (result.resumed_from, result.losses) == (10, undisturbed.losses)
    for name, value in whole.state_dict().items():
        assert name.startswith("spare") or torch.equal(network.state_dict()[name], value), name


def test_tied_weights_are_read_back_from_a_checkpoint_that_has_them_once(tmp_path: Path) -> None:
    network, other = made(Tied, 3), made(Tied, 4)
    trained(network, CheckpointStore(tmp_path))
    newest = CheckpointStore(tmp_path).newest()
    assert isinstance(newest, Checkpoint)

    take_whole(other, newest.tensors("network"))

    assert len(list(other.parameters())) == len(other.state_dict()) - 1
    assert all(torch.equal(other.state_dict()[name], value) for name, value in network.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        take_whole(other, {})


def test_a_version_with_tied_weights_is_made(job: TrainJob, registry: Registry) -> None:
    outcome = train(replace(job, task=replace(job.task, network=TiedTiny)), registry)

    assert (outcome.outcome, outcome.version) == ("completed", 1), outcome.reason


@pytest.mark.parametrize(
    ("network", "changed", "words"),
    [
        (WithoutLogits, {}, "WithoutLogits has no method logits"),
        (Frozen, {}, "no parameter of Frozen is trained"),
        (Sparse, {}, "colour is a Embedding with sparse=True"),
        (Normalised, {"config": replace(CONFIG, batch_size=533)}, "layers.1 normalises .* of 1600 rows .* one has 1"),
        (
            Normalised,
            {"config": replace(CONFIG, batch_size=8), "ranks": 5},
            "one has 8; 5 ranks share it out: choose another batch_size",
        ),
        (Normalised, {"parallel": ServersForm(workers=2)}, "layers.1 is a BatchNorm1d that keeps running statistics"),
    ],
)
def test_a_network_that_cannot_be_trained_as_asked_is_refused_before_anything_runs(
    network: Any, changed: dict[str, Any], words: str, job: TrainJob, registry: Registry
) -> None:
    outcome = train(replace(job, task=replace(job.task, network=network), **changed), registry)

    assert outcome.outcome == "failed"
    with pytest.raises(DataError, match=words):
        raise DataError(outcome.reason)
    assert not (job.out / "ranks").exists()
    assert not (job.out / "servers").exists()


def test_a_weight_of_two_divided_layers_is_refused() -> None:
    network = made(Tied, 3)

    with pytest.raises(FormError, match=r"divides 'layers\.1\.0', which shares a weight with 'layers\.2\.0'"):
        styles(network, {"layers.1.0": "colwise"})
    assert list(styles(network, {"layers.0": "colwise", "layers.3": "rowwise"})) == ["layers.0", "layers.3"]


def test_a_weight_of_two_stages_is_refused() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = network[0].weight

    with pytest.raises(FormError, match=r"0\.weight belongs to stages 0 and 1 of the pipeline"):
        stages_of(network, ParallelConfig(pipeline=2))


@pytest.mark.slow
def test_replicas_name_the_weights_that_take_no_part(tmp_path: Path) -> None:
    network = made(Spare, 3)
    with pytest.raises(ParallelError, match=r"the loss does not depend on spare\.weight, spare\.bias"):
        fit_in_ranks(network, rows(), CONFIG, world_size=2, folder=tmp_path, model="toy", run="r", echo=None)


@pytest.mark.slow
@pytest.mark.parametrize("form", [None, ParallelConfig(fsdp=2)])
def test_ranks_train_tied_weights(form: ParallelConfig | None, tmp_path: Path) -> None:
    alone, network = made(Tied, 3), made(Tied, 3)
    trained(alone)
    fit_in_ranks(network, rows(), CONFIG, world_size=2, folder=tmp_path, model="toy", run="r", echo=None, parallel=form)

    for name, value in alone.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kept", "name"),
    [
        (lambda table: table["colour"].combine_chunks().dictionary_encode(), "colour"),
        (lambda table: pc.cast(table["colour"], pa.large_string()), "colour"),
        (lambda table: pc.cast(table["colour"], pa.string_view()), "colour"),
        (lambda table: table["day"].combine_chunks().dictionary_encode(), "day"),
        (lambda table: pc.cast(table["x"], pa.string()), "x"),
        (lambda table: pc.cast(table["label"], pa.bool_()), "label"),
    ],
)
def test_columns_are_learned_from_however_they_are_kept(kept: Any, name: str, task: Any, make_table: Any) -> None:
    table = make_table()
    other = table.set_column(table.column_names.index(name), name, kept(table))

    encoding = fit(task, labelled(task, other))

    wanted = encode_rows(task, encoding.vocabularies, labelled(task, table))
    found = encode_rows(task, encoding.vocabularies, labelled(task, other))
    assert encoding == fit(task, table)
    for one, own in zip(wanted.inputs, found.inputs, strict=True):
        torch.testing.assert_close(own, one, rtol=0, atol=0, equal_nan=True)
    assert np.array_equal(wanted.groups, found.groups)
    assert torch.equal(wanted.labels, found.labels)


@pytest.mark.parametrize(
    ("name", "column", "words"),
    [
        ("colour", pa.array([1, 2]), "column 'colour' is int64: a categorical column must hold text"),
        ("label", pa.array(["yes", "no"]), "column 'label' is string and cannot be read as numbers"),
        ("x", pa.array(["a", "b"]), "column 'x' is string and cannot be read as numbers"),
    ],
)
def test_a_column_of_another_kind_is_named(name: str, column: pa.Array, words: str, task: Any, make_table: Any) -> None:
    table = make_table(2, 2)

    with pytest.raises(DataError, match=words):
        labelled(task, table.set_column(table.column_names.index(name), name, column))
    with pytest.raises(DataError, match="column 'x' is there twice"):
        labelled(task, table.append_column("x", table["x"]))


def test_what_was_begun_on_some_rows_is_not_gone_on_with_on_others(job: TrainJob, registry: Registry) -> None:
    assert train(job, registry).passed
    turned = job.table.set_column(1, "x", pc.negate(job.table["x"]))

    outcome = train(replace(job, table=turned), registry)

    assert (outcome.outcome, outcome.version) == ("failed", None)
    assert "the run began with other rows (rows " in outcome.reason
    assert outcome.reason.endswith("begin a new run, without --resume")
    assert train(job, registry).version == 1


def begun(out: Path, *names: str) -> Path:
    """A run's folder with these files."""
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"")
    return out


PLAIN, SHARDS = "ranks/checkpoints/step-000000000010.ckpt", "ranks/checkpoints/step-000000000010/manifest.json"
ALONE, SERVED = "checkpoints/step-000000000010.ckpt", "servers/server-0/step-000000000010.ckpt"


@pytest.mark.parametrize(
    ("file", "world", "form", "expected"),
    [
        ("steps/run.json", 1, None, (False, None)),
        ("steps/run.json", 2, None, (True, None)),
        ("steps/run.json", 2, ParallelConfig(fsdp=2), (True, ParallelConfig(fsdp=2))),
        (PLAIN, 1, None, (True, None)),
        (PLAIN, 4, ParallelConfig(data=4), (True, None)),
        (SHARDS, 1, None, (True, ParallelConfig())),
        (SHARDS, 2, None, (True, ParallelConfig(data=2))),
        (SHARDS, 2, ParallelConfig(tensor=2), (True, ParallelConfig(tensor=2))),
        (ALONE, 1, None, (False, None)),
        (ALONE, 2, None, (True, None)),
        (SERVED, 1, ServersForm(workers=4), (False, ServersForm(workers=4))),
    ],
)
def test_a_run_goes_on_in_another_form(file: str, world: int, form: Any, expected: Any, tmp_path: Path) -> None:
    assert way(begun(tmp_path, file), world, form) == expected
    assert (tmp_path / PLAIN).exists() == (file == PLAIN or (file == ALONE and world == 2))


@pytest.mark.parametrize(
    ("file", "form", "words"),
    [
        (PLAIN, ParallelConfig(fsdp=2), "began as plain replicas, whose checkpoints have no parts for fsdp=2"),
        (ALONE, ParallelConfig(tensor=2), "began as one process, .* resume it with --ranks alone"),
        (SERVED, None, "began on parameter servers: resume it with --parallel servers="),
        (SHARDS, ServersForm(), "did not begin on parameter servers"),
    ],
)
def test_a_run_that_another_form_cannot_read_is_not_begun_anew(
    file: str, form: Any, words: str, tmp_path: Path
) -> None:
    with pytest.raises(FormError, match=words):
        way(begun(tmp_path, file), 2, form)


@pytest.mark.slow
def test_one_process_goes_on_where_two_ranks_were(job: TrainJob, registry: Registry) -> None:
    job = replace(job, config=replace(CONFIG, checkpoint_every=5))
    assert train(replace(job, ranks=2), registry).passed
    for path in (job.out / "steps" / "train.json", *CheckpointStore(job.out / "ranks" / "checkpoints").paths()[-1:]):
        path.unlink()

    outcome = train(job, registry)

    assert outcome.passed, outcome.reason
    ledger = [json.loads(line) for line in (job.out / "ranks" / "ledger.jsonl").read_text().splitlines()]
    assert [one["resumed"] for one in ledger] == [0, 30]


def test_parameter_servers_go_on_with_nothing_but_the_same_settings(tmp_path: Path) -> None:
    path = tmp_path / "servers" / "settings.json"
    check_same(path, {"servers": 2, "learning_rate": 0.1}, "settings")
    check_same(path, {"servers": 2, "learning_rate": 0.1}, "settings")

    with pytest.raises(DataError, match=r"began with other settings \(servers 2 is now 1\): begin a new run"):
        check_same(path, {"servers": 1, "learning_rate": 0.1}, "settings")
    path.write_text("{")
    check_same(path, {"servers": 1}, "settings")
