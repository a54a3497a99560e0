"""The guard against loss spikes: sure of real ones, silent on noise, and a run that goes back before them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from observability import TrainingMonitor, names
from tests.training.toy_network import line, rows
from training.checkpoint import CheckpointStore
from training.data import predict
from training.faults import Fault, Faults
from training.loop import Trainer, TrainResult
from training.spikes import SpikeRule, SpikeState, _are_quiet, _first_spike, judge_losses
from training.train_config import TrainConfig

CONFIG = TrainConfig(
    epochs=10, batch_size=101, learning_rate=0.05, report_every=5, checkpoint_every=10, seed=5, on_spike="rewind"
)  # fmt: skip


def falling(steps: int, seed: int, noise: float = 0.1) -> list[float]:
    """Losses that fall as those of a training do, with noise whose tails are heavy (Student, 4 degrees of freedom)."""
    generator = np.random.default_rng(seed)
    level = 0.5 + 2.0 * np.exp(-np.arange(steps) / 300)
    found: list[float] = (level * (1 + noise * generator.standard_t(4, steps))).tolist()
    return found


@pytest.mark.skipif(_are_quiet() is None, reason="there is no compiler")
@given(
    seed=st.integers(0, 10_000),
    rule=st.sampled_from(
        [SpikeRule(), SpikeRule(score=2.0, history=50, least=12), SpikeRule(score=3.0, history=41, least=9, span=4)]
    ),
    steps=st.integers(1, 300),
    fresh=st.integers(0, 40),
    kind=st.sampled_from(["noise", "rise", "flat", "two values", "spike"]),
)
def test_what_is_passed_over_as_quiet_holds_no_spike(
    seed: int, rule: SpikeRule, steps: int, fresh: int, kind: str
) -> None:
    generator = np.random.default_rng(seed)
    losses = 1 + 0.1 * generator.standard_t(4, steps)
    if kind == "rise":
        losses += 0.01 * np.arange(steps)
    elif kind == "flat":
        losses[:] = 1.0
    elif kind == "two values":
        losses = generator.integers(0, 2, steps).astype(float)
    elif kind == "spike":
        losses[steps - min(steps, fresh) :] += generator.uniform(0, 3)
    fresh, count = min(fresh, steps), int(generator.integers(steps, steps + 50))
    state = SpikeState(tuple(losses[: steps - fresh].tolist()), count - fresh)
    known = (*state.losses, *losses[steps - fresh :].tolist())

    quiet = _are_quiet()(known, count, fresh, rule.span, rule.history, rule.least, rule.score, 1e-3)
    found = _first_spike(rule, state, known, range(fresh))

    assert quiet == (found is None)


def test_losses_that_are_none_or_too_few_are_refused() -> None:
    if (are_quiet := _are_quiet()) is None:
        return
    with pytest.raises(TypeError):
        are_quiet(("high",) * 80, 80, 60, 5, 200, 50, 6.0, 1e-3)
    with pytest.raises(ValueError, match="fresh"):
        are_quiet((1.0,), 80, 60, 5, 200, 50, 6.0, 1e-3)


@pytest.mark.parametrize("chunk", [1, 7, 20])
@pytest.mark.parametrize("seed", range(5))
def test_a_doubled_loss_is_found_within_ten_steps_however_it_is_read(seed: int, chunk: int) -> None:
    losses = falling(400, seed)
    losses[300:] = [2.5 * loss for loss in losses[300:]]
    state, found = SpikeState(), None
    for first in range(0, 400, chunk):
        state, found = judge_losses(SpikeRule(), state, losses[first : first + chunk])
        if found is not None:
            # Where it is seen: at the end of the span.
            assert 300 < first + found.first + 2 * SpikeRule().span <= 310
            assert first + found.first <= 300
            break
    assert found is not None
    assert not set(losses[300:]) & set(state.losses)


def test_a_hundred_thousand_steps_of_noise_raise_no_alarm() -> None:
    state = SpikeState()
    for seed in range(10):
        state, spike = judge_losses(SpikeRule(), SpikeState(), falling(10_000, seed))
        assert spike is None, f"seed {seed}: {spike.reason}"
    assert len(state.losses) == SpikeRule().history + SpikeRule().span


def test_single_odd_batches_and_losses_that_are_no_numbers_are_not_spikes() -> None:
    losses = falling(300, 1)
    losses[200], losses[220], losses[240] = 50.0, math.nan, math.inf
    assert judge_losses(SpikeRule(), SpikeState(), losses)[1] is None


def test_a_constant_loss_does_not_make_the_least_rise_a_spike() -> None:
    assert judge_losses(SpikeRule(), SpikeState(), [0.5] * 100 + [0.502] * 10)[1] is None
    assert judge_losses(SpikeRule(), SpikeState(), [0.5] * 100 + [0.6] * 10)[1] is not None


@pytest.mark.parametrize("wrong", [{"score": 0.0}, {"span": 0}, {"span": 60}, {"history": 20}])
def test_a_rule_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"it must be positive|1 <= span < least <= history"):
        SpikeRule(**wrong)  # type: ignore[arg-type]


def fitted(
    config: TrainConfig, folder: Path, faults: Faults | None = None
) -> tuple[TrainResult, torch.nn.Module, TrainingMonitor]:
    network = line()
    with TrainingMonitor("toy", run="r", drain_seconds=0) as monitor:
        result = Trainer(network, rows(), config, monitor, CheckpointStore(folder), faults=faults).run()
    return result, network, monitor


def log_loss(network: torch.nn.Module) -> float:
    known = rows()
    probabilities = predict(network.eval(), known.inputs)
    return float(torch.nn.functional.binary_cross_entropy(torch.from_numpy(probabilities), known.labels.double()))


def test_a_run_goes_back_before_the_spike_past_its_data_and_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    whole, undisturbed, _ = fitted(CONFIG, tmp_path / "whole")
    assert (whole.outcome, whole.steps, whole.rewinds) == ("completed", 200, 0)

    result, network, monitor = fitted(CONFIG, tmp_path / "spiked", Faults((Fault("spike", 0, 117, steps=6),)))

    assert (result.outcome, result.rewinds) == ("completed", 1)
    # Back to the state after 110 steps, and on with the batch after the one at which it was seen.
    assert 185 <= result.steps < 190
    assert abs(log_loss(network) - log_loss(undisturbed)) < 0.02 * log_loss(undisturbed)
    value = monitor.metrics.registry.get_sample_value(names.TRAINING_SPIKES.name, {"model": "toy"})
    assert value == 1


def test_a_run_that_may_not_go_back_stops_with_the_reason(tmp_path: Path) -> None:
    spiked = Faults((Fault("spike", 0, 117, steps=6),))
    stopped, _, _ = fitted(dataclasses.replace(CONFIG, on_spike="stop"), tmp_path / "stop", spiked)
    assert stopped.outcome == "stopped"
    assert "robust deviations above its usual" in stopped.reason

    again = Faults((Fault("spike", 0, 117, steps=83),))
    given_up, _, _ = fitted(dataclasses.replace(CONFIG, max_rewinds=1), tmp_path / "again", again)
    assert given_up.outcome == "stopped"
    assert given_up.reason.endswith("after 1 rewinds")

    reported, _, _ = fitted(dataclasses.replace(CONFIG, on_spike="report"), tmp_path / "report", spiked)
    assert (reported.outcome, reported.steps) == ("completed", 200)


def test_a_rewind_without_checkpoints_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to rewind to"):
        TrainConfig(on_spike="rewind")
