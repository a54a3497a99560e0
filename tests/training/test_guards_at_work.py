"""The guards in a real loop, each struck on purpose: what is found, what follows, what is recorded."""

from __future__ import annotations

import dataclasses
import json
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from observability import TrainingMonitor, names
from tests.training.toy_network import Line, line, rows
from training import CheckpointStore, Fault, Faults, TrainConfig, Trainer, TrainResult
from training.guards import GuardPolicy, GuardRecord, read_record, weight_of
from training.loop import RestartRun
from training.replicas import Replicas

CONFIG = TrainConfig(epochs=10, batch_size=101, learning_rate=0.02, report_every=5, checkpoint_every=10, seed=5)


def fitted(
    folder: Path, policy: GuardPolicy | None = None, *faults: Fault, network: nn.Module | None = None,
    replicas: Replicas | None = None, **config: object,
) -> tuple[TrainResult, nn.Module, list[dict], TrainingMonitor]:  # fmt: skip
    chosen = dataclasses.replace(CONFIG, guards=policy or GuardPolicy(), **config)
    network = network or line()
    with TrainingMonitor("toy", run="r", drain_seconds=0) as monitor:
        record = GuardRecord(folder / "guards.jsonl")
        store = CheckpointStore(folder / "checkpoints", keep=30)
        trainer = Trainer(network, rows(), chosen, monitor, store, replicas, Faults(faults), record=record)
        result = trainer.run()
    return result, network, [dict(one) for one in read_record(record.path)[0]], monitor


def weights(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def counted(monitor: TrainingMonitor, guard: str, action: str) -> float:
    return monitor.metrics[names.TRAINING_FINDINGS].labels("toy", guard, action)._value.get()


def test_an_undisturbed_run_finds_nothing_and_is_the_same_under_every_policy(tmp_path: Path) -> None:
    plain, network, found, _ = fitted(tmp_path / "plain", GuardPolicy(activations_every=0))
    watched, same, also, monitor = fitted(
        tmp_path / "watched", GuardPolicy(gradient_explosion="skip", activations_every=7)
    )

    assert found == also == []
    assert plain.losses == watched.losses
    assert torch.equal(weights(network), weights(same))
    assert monitor.metrics[names.TRAINING_ACTIVATION_RMS].labels("toy", "r", "layers.1")._value.get() > 0


def test_a_gradient_that_explodes_is_skipped_on_the_device_at_once(tmp_path: Path) -> None:
    struck = Fault("explode", step=97, attempt=-1)
    skipped, clean, found, monitor = fitted(tmp_path / "skip", GuardPolicy(gradient_explosion="skip"), struck)
    nan, expected, _, _ = fitted(tmp_path / "nan", None, Fault("nan", step=97, attempt=-1))

    # Left out by its norm as if it had been no number: weights, moments and count are those of that run.
    assert torch.equal(weights(clean), weights(expected))
    assert [(one["guard"], one["action"], one["sound"], one["step"]) for one in found] == [
        ("gradient_explosion", "skip", 97, 100)
    ]
    assert "times its usual" in found[0]["reason"]
    assert counted(monitor, "gradient_explosion", "skip") == 1
    assert (skipped.skipped, nan.skipped) == (0, 1)


def test_a_run_cut_off_after_a_skipped_step_ends_where_the_whole_one_does(tmp_path: Path) -> None:
    struck = Fault("explode", step=97, attempt=-1)
    policy = GuardPolicy(gradient_explosion="skip")
    _, expected, _, _ = fitted(tmp_path, policy, struck)
    for path in CheckpointStore(tmp_path / "checkpoints").paths():
        if int(path.stem[5:]) > 90:
            path.unlink()

    again, network, _, _ = fitted(tmp_path, policy, struck, network=line(seed=99))

    assert again.resumed_from == 90
    assert torch.equal(weights(network), weights(expected))


def test_the_rate_is_lowered_for_good_and_within_bounds(tmp_path: Path) -> None:
    policy = GuardPolicy(gradient_explosion="lower_rate", lowered=0.25, max_lowered=1, cool_down=10)
    strikes = [Fault("explode", step=step, attempt=-1) for step in (97, 150)]
    result, _, found, monitor = fitted(tmp_path, policy, *strikes)

    assert [one["action"] for one in found] == ["lower_rate", "stop"]
    assert (result.outcome, result.steps) == ("stopped", 155)
    assert "the rate was lowered 1 times already" in result.reason
    monitor.drain()
    rate = monitor.metrics[names.TRAINING_LEARNING_RATE].labels("toy", "r")._value.get()
    assert 0 < rate < 0.25 * CONFIG.learning_rate


def test_an_explosion_may_send_the_run_back_past_its_batch(tmp_path: Path) -> None:
    result, _, found, _ = fitted(
        tmp_path, GuardPolicy(gradient_explosion="rewind"), Fault("explode", step=97, attempt=-1)
    )

    assert (result.outcome, result.rewinds) == ("completed", 1)
    assert [one["action"] for one in found] == ["rewind"]
    # 200 batches, of which the ten from the checkpoint at 90 to the reading at 100 are passed over.
    assert result.steps == 190


class Overflowing(Line):
    """Gives infinity for one row, whose loss is none the less finite: its label is 1."""

    def logits(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.where(x == MARKED, torch.inf, super().logits(x, y))


MARKED = float(rows().inputs[0][int(torch.nonzero(rows().labels)[0])])


def test_outputs_that_are_not_finite_are_found_where_the_loss_is(tmp_path: Path) -> None:
    torch.manual_seed(3)
    result, network, _, _ = fitted(tmp_path, network=Overflowing())

    assert result.skipped == CONFIG.epochs
    assert torch.isfinite(weights(network)).all()
    assert weight_of([torch.ones(2)]) is None
    assert weight_of(torch.ones(3, dtype=torch.bfloat16)) is None
    assert torch.isnan(weight_of(torch.tensor([1.0, torch.inf])))


def test_a_layer_that_dies_is_named(tmp_path: Path) -> None:
    class Dying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))

        def logits(self, x: Tensor, y: Tensor) -> Tensor:
            return self.layers(torch.stack([x, y], dim=1)).squeeze(1)

    network = Dying()
    with torch.no_grad():
        network.layers[0].bias -= 100
    result, _, found, monitor = fitted(tmp_path, GuardPolicy(activations="stop", activations_every=10), network=network)

    assert result.outcome == "stopped"
    assert "100% of the units of layer layers.1 give the same for every row" in result.reason
    assert {one["guard"] for one in found} == {"activations"}
    assert monitor.metrics[names.TRAINING_DEAD_UNITS].labels("toy", "r", "layers.1")._value.get() == 1.0


def test_memory_that_leaks_begins_the_process_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = count(1 << 30, 4 << 20)
    monkeypatch.setattr("training.signals.resident_bytes", lambda: next(sizes))
    monkeypatch.setattr("training.signals._MEMORY_EVERY", 1)

    with pytest.raises(RestartRun, match="memory grew by"):
        fitted(tmp_path, GuardPolicy(leak="restart"), report_every=1)

    (found,), _ = read_record(tmp_path / "guards.jsonl")
    assert (found["guard"], found["action"]) == ("leak", "restart")
    assert found["score"] == pytest.approx(4 << 20, rel=0.01)


def test_a_loop_that_starves_is_told_with_its_share(tmp_path: Path) -> None:
    # Long waits and few: a step of a busy machine takes tens of milliseconds, too.
    starved = Fault("starve", step=20, attempt=-1, seconds=0.25, steps=8)
    _, _, found, monitor = fitted(tmp_path, None, starved, epochs=3, report_every=2)

    assert [(one["guard"], one["action"]) for one in found] == [("starvation", "report")]
    assert 20 < found[0]["step"] <= 28
    assert found[0]["score"] > 0.5
    assert counted(monitor, "starvation", "report") == 1


class Twin(Replicas):
    """One process that is told of another rank, which follows it but for what a fault did to its weights."""

    def __init__(self, struck_at: int) -> None:
        super().__init__()
        self.calls, self.struck_at = 0, struck_at

    def gathered(self, values: Tensor) -> Tensor | None:
        self.calls += 1
        other = values.clone()
        if self.calls == self.struck_at:
            other[0] += 1
        return torch.stack([values, other])


def test_replicas_that_part_go_back_to_the_last_comparison_at_which_they_were_equal(tmp_path: Path) -> None:
    policy = GuardPolicy(checksums_every=20)
    result, _, found, _ = fitted(tmp_path, policy, replicas=Twin(struck_at=3))

    assert [(one["guard"], one["action"], one["sound"], one["step"]) for one in found] == [
        ("divergence", "rewind", 40, 60)
    ]
    assert "layers.0.weight" in found[0]["reason"]
    assert (result.outcome, result.rewinds, result.steps) == ("completed", 1, 180)


def test_a_policy_travels_as_json_and_wrong_names_are_told() -> None:
    config = dataclasses.replace(CONFIG, guards=GuardPolicy(plateau="stop"))

    assert TrainConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    with pytest.raises(ValueError, match=r"guards has no plateu; there are: activations"):
        TrainConfig(guards={"plateu": "stop"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing to rewind to"):
        TrainConfig(guards=GuardPolicy(gradient_explosion="rewind"))
