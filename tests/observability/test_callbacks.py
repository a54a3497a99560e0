"""The callbacks for Lightning and transformers, driven in the order in which those frameworks call their hooks.

The frameworks are not among the project's dependencies; stand-ins with their base classes take their place here.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from observability import TrainingMonitor, names
from observability.lightning_callback import lightning_callback, rows_of
from observability.transformers_callback import transformers_callback


class Base:
    """What both frameworks' callbacks derive from, so far as they are used."""


class LightningTrainer:
    """Lightning's trainer, so far as it is used."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        self.global_step = 0
        self.saved: list[str] = []

    def save_checkpoint(self, path: str, weights_only: bool = False) -> None:
        """Notes that it was asked."""
        self.saved.append(path)


@pytest.fixture
def monitor() -> TrainingMonitor:
    return TrainingMonitor("m", run="r", drain_seconds=0)


def phases(monitor: TrainingMonitor) -> dict[str, float]:
    family = names.TRAINING_PHASE_DURATION
    return {
        phase: monitor.metrics.registry.get_sample_value(f"{family.name}_count", {"model": "m", "phase": phase})
        for phase in names.PHASES
    }


def test_lightnings_hooks_mark_all_phases(monitor: TrainingMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    framework = ModuleType("pytorch_lightning")
    framework.Callback = Base  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytorch_lightning", framework)
    callback = lightning_callback(monitor)
    network = nn.Linear(2, 1)
    trainer = LightningTrainer([torch.optim.SGD(network.parameters(), lr=0.25)])

    callback.on_train_start(trainer, network)
    for number in range(3):
        batch = [torch.ones(7, 2), torch.ones(7)]
        callback.on_train_batch_start(trainer, network, batch, number)
        loss = network(batch[0]).sum()
        callback.on_before_backward(trainer, network, loss)
        loss.backward()
        callback.on_after_backward(trainer, network)
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, network, {"loss": loss.detach()}, batch, number)
        if number:
            callback.on_validation_start(trainer, network)
            callback.on_validation_end(trainer, network)
            trainer.save_checkpoint("epoch.ckpt", weights_only=True)
    callback.on_train_end(trainer, network)
    trainer.save_checkpoint("last.ckpt")

    assert isinstance(callback, Base)
    assert {phase for phase, count in phases(monitor).items() if count == 3} == {
        *("data_wait", "forward", "backward", "optimizer")
    }
    # What came after the last step belongs to none.
    assert (phases(monitor)["evaluation"], phases(monitor)["checkpoint"]) == (1, 1)
    assert trainer.saved == ["epoch.ckpt", "epoch.ckpt", "last.ckpt"]

    def value(metric: names.Metric, **labels: str) -> float | None:
        return monitor.metrics.registry.get_sample_value(metric.name, {"model": "m", **labels})

    assert (value(names.TRAINING_STEPS), value(names.TRAINING_SAMPLES)) == (3, 21)
    assert value(names.TRAINING_LEARNING_RATE, run="r") == 0.25
    assert value(names.TRAINING_LOSS, run="r") == pytest.approx(loss.item())
    assert value(names.TRAINING_RUNS, outcome="completed") == 1
    assert value(names.TRAINING_CHECKPOINTS, outcome="ok") == 2


def test_a_step_of_lightnings_has_all_batches_that_were_accumulated_for_it_and_the_norm_if_wanted(
    monitor: TrainingMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    framework = ModuleType("pytorch_lightning")
    framework.Callback = Base  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytorch_lightning", framework)
    callback, network = lightning_callback(monitor, gradient_norm=True), nn.Linear(2, 1, bias=False)
    trainer = LightningTrainer([torch.optim.SGD(network.parameters(), lr=0.25)])
    trainer.global_step = 100

    callback.on_train_start(trainer, network)
    for number in range(8):
        batch = [torch.ones(7, 2), torch.ones(7)]
        callback.on_train_batch_start(trainer, network, batch, number)
        network(batch[0]).sum().backward()
        callback.on_after_backward(trainer, network)
        if number % 4 == 3:
            callback.on_before_optimizer_step(trainer, network, trainer.optimizers[0])
            trainer.global_step += 1
        callback.on_train_batch_end(trainer, network, {"loss": torch.tensor(0.5)}, batch, number)
        if number % 4 == 3:
            network.zero_grad()
    callback.on_train_end(trainer, network)

    assert monitor.ring.view().records()[:, 0].tolist() == [100, 101]
    assert phases(monitor)["backward"] == 2
    assert monitor.metrics[names.TRAINING_SAMPLES].labels("m")._value.get() == 56
    # Four batches of seven ones: 28 for each of two weights.
    assert monitor.metrics[names.TRAINING_GRADIENT_NORM].labels("m", "r")._value.get() == pytest.approx(28 * 2**0.5)


def test_a_checkpoint_of_lightnings_that_fails_is_counted(
    monitor: TrainingMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    framework = ModuleType("pytorch_lightning")
    framework.Callback = Base  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytorch_lightning", framework)
    trainer = LightningTrainer([])

    def fails(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(trainer, "save_checkpoint", fails)
    lightning_callback(monitor).on_train_start(trainer, nn.Linear(1, 1))
    with pytest.raises(OSError, match="no space"):
        trainer.save_checkpoint("last.ckpt")

    assert monitor.metrics[names.TRAINING_CHECKPOINTS].labels("m", "failed")._value.get() == 1


def test_transformers_hooks_mark_all_phases_even_of_accumulated_batches(
    monitor: TrainingMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    framework = ModuleType("transformers")
    framework.TrainerCallback = Base  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", framework)
    callback, network = transformers_callback(monitor), nn.Linear(2, 1)
    args = SimpleNamespace(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    state, control = SimpleNamespace(global_step=10, num_input_tokens_seen=0), SimpleNamespace(should_log=False)

    callback.on_train_begin(args, state, control, model=network)
    for number in range(3):
        callback.on_step_begin(args, state, control)
        for _ in range(2):
            network(torch.ones(4, 2)).sum().backward()
            state.num_input_tokens_seen += 40
        callback.on_pre_optimizer_step(args, state, control)
        # Only the last step is logged, right after it: what was logged is its own, and not the next one's.
        control.should_log = number == 2
        callback.on_step_end(args, state, control)
        if control.should_log:
            callback.on_log(args, state, control, logs={"loss": 0.75, "grad_norm": 2.0, "learning_rate": 0.1})
    network.eval()
    network(torch.ones(4, 2))
    callback.on_evaluate(args, state, control, metrics={"eval_loss": 0.5, "epoch": 1.0, "eval_name": "text"})
    callback.on_save(args, state, control)
    callback.on_train_end(args, state, control)

    found = {phase for phase, count in phases(monitor).items() if count == 3}
    assert found == {"data_wait", "host_to_device", "forward", "backward", "optimizer"}
    assert monitor.metrics[names.TRAINING_TOKENS].labels("m")._value.get() == 240
    assert monitor.metrics[names.TRAINING_SAMPLES].labels("m")._value.get() == 24
    assert monitor.metrics[names.TRAINING_LOSS].labels("m", "r")._value.get() == 0.75
    assert not network._forward_hooks
    scores = monitor.metrics[names.TRAINING_EVALUATION].collect()[0].samples
    assert {one.labels["metric"]: one.value for one in scores} == {"eval_loss": 0.5}
    assert monitor.ring.view().records()[:, 0].tolist() == [10, 11, 12]


@pytest.mark.parametrize("missing", ["lightning", "transformers"])
def test_without_the_framework_the_error_names_it(
    monitor: TrainingMonitor, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    make = {"lightning": lightning_callback, "transformers": transformers_callback}[missing]

    with pytest.raises(ImportError, match=missing):
        make(monitor)


def test_rows_are_found_in_whatever_a_batch_is() -> None:
    rows = torch.ones(5, 2)
    assert [rows_of(one) for one in (rows, (rows, 1), {"x": [rows]}, torch.tensor(1.0), "text", [])] == [
        5,
        5,
        5,
        0,
        0,
        0,
    ]


def test_without_transformers_the_callback_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)

    with TrainingMonitor("delay", run="1") as monitor, pytest.raises(ImportError, match="pip install 'transformers"):
        transformers_callback(monitor)
