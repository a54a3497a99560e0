"""Training over several processes: one process's losses and weights, through kills and a change of their number."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from observability.training import TrainingMonitor
from tests.training.toy_network import line, rows
from training.checkpoint import CheckpointStore
from training.faults import Fault, Faults
from training.loop import Trainer
from training.parallel import fit_in_ranks
from training.train_config import TrainConfig

CONFIG = TrainConfig(
    epochs=5, batch_size=101, learning_rate=0.01, report_every=1, checkpoint_every=10, seed=5, threads=1
)

NAN = Fault("nan", 0, 3, 0)


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@pytest.mark.slow
def test_two_ranks_learn_what_one_process_learns_through_kills_and_with_another_number(tmp_path: Path) -> None:
    alone = line()
    with TrainingMonitor("toy", run="alone", drain_seconds=0) as monitor:
        expected = Trainer(alone, rows(), CONFIG, monitor, faults=Faults((NAN,))).run()
    assert (expected.steps, expected.skipped) == (100, 1)

    network = line()
    faults = Faults((Fault("kill", 1, 25, 0), Fault("kill", 0, 57, 1), NAN))
    result, run = fit_in_ranks(
        network, rows(), CONFIG, world_size=2, folder=tmp_path, model="toy", run="r", faults=faults, echo=None
    )

    assert [one.cause for one in run.attempts] == ["killed", "killed", "completed"]
    assert (result.steps, result.samples, result.resumed_from) == (100, expected.samples, 50)
    assert [step for step, _ in result.losses] == [step for step, _ in expected.losses]
    losses = [[loss for _, loss in one.losses] for one in (result, expected)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5, nan_ok=True)
    # A loss that is no number in one rank is a step skipped in both.
    assert result.skipped == 1
    torch.testing.assert_close(weights(network), weights(alone), rtol=0, atol=1e-5)

    # One process goes on where two were cut off.
    for path in CheckpointStore(tmp_path / "checkpoints").paths()[-1:]:
        path.unlink()
    single = line(seed=99)
    with TrainingMonitor("toy", run="alone", drain_seconds=0) as monitor:
        again = Trainer(single, rows(), CONFIG, monitor, CheckpointStore(tmp_path / "checkpoints")).run()
    assert again.resumed_from == 90
    torch.testing.assert_close(weights(single), weights(alone), rtol=0, atol=1e-5)


def test_ranks_without_checkpoints_are_refused(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, checkpoint_every=0)
    with pytest.raises(ValueError, match="checkpoint_every is 0"):
        fit_in_ranks(line(), rows(), config, world_size=2, folder=tmp_path, model="toy", run="r")
