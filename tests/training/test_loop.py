from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from observability import TrainingMonitor, exposition, names
from training import CheckpointStore, ResumeError, TrainConfig, Trainer
from training.data import encode_rows, fit, predict
from training.train_config import learning_rate

CONFIG = TrainConfig(epochs=3, batch_size=100, learning_rate=0.02, report_every=1, seed=5)


@pytest.fixture
def make_trainer(task, make_table, monitor):
    def make(config: TrainConfig = CONFIG, folder: Path | None = None, seed: int = 1, poison=None):
        table = make_table()
        encoding = fit(task, table)
        torch.manual_seed(seed)
        network = task.network(encoding)
        rows = encode_rows(task, encoding.vocabularies, table)
        if poison is not None:
            rows.labels[poison] = float("nan")
        store = None if folder is None else CheckpointStore(folder)
        return Trainer(network, rows, config, monitor, store), network, rows

    return make


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_training_lowers_the_loss_and_finds_the_signal(make_trainer):
    trainer, network, rows = make_trainer()

    result = trainer.run()

    probabilities = predict(network.eval(), rows.inputs)
    assert (result.outcome, result.steps, result.samples, result.skipped) == ("completed", 60, 6000, 0)
    assert result.losses[-1][1] < result.losses[0][1] - 0.05
    assert probabilities[rows.labels == 1].mean() > probabilities[rows.labels == 0].mean() + 0.15


@pytest.mark.parametrize("limit", [7, 20, 33, 1000])
def test_a_run_of_at_most_so_many_steps_ends_there_in_any_epoch(make_trainer, tmp_path: Path, limit: int):
    trainer, *_ = make_trainer(dataclasses.replace(CONFIG, max_steps=limit), tmp_path)

    result = trainer.run()

    assert (result.outcome, result.steps) == ("completed", min(limit, 60))
    assert CheckpointStore(tmp_path).newest().step == min(limit, 60)


def test_equal_seeds_give_equal_weights_to_the_bit_and_other_seeds_do_not(make_trainer):
    runs = []
    for seed in (5, 5, 6):
        trainer, network, _ = make_trainer(dataclasses.replace(CONFIG, seed=seed))
        runs.append((trainer.run().losses, weights(network)))

    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][1], runs[2][1])


def test_a_run_that_goes_on_from_a_checkpoint_ends_where_the_undisturbed_one_does(make_trainer, tmp_path: Path):
    config = dataclasses.replace(CONFIG, checkpoint_every=7, report_every=4)
    whole, expected, _ = make_trainer(config, tmp_path / "whole")
    result = whole.run()
    interrupted, _, _ = make_trainer(config, tmp_path / "cut")
    interrupted.run()
    for path in CheckpointStore(tmp_path / "cut").paths()[1:]:
        path.unlink()

    # Another seed for the fresh network: everything must come from the checkpoint.
    resumed, network, _ = make_trainer(config, tmp_path / "cut", seed=99)
    again = resumed.run()

    assert again.resumed_from == 56
    assert again.losses == result.losses
    assert torch.equal(weights(network), weights(expected))


def test_a_finished_run_does_nothing_when_started_again(make_trainer, tmp_path: Path):
    make_trainer(CONFIG, tmp_path)[0].run()

    again = make_trainer(CONFIG, tmp_path)[0].run()

    assert (again.resumed_from, again.steps, again.outcome) == (60, 60, "completed")


def test_checkpoints_of_other_settings_are_refused_with_the_remedy(make_trainer, tmp_path: Path):
    make_trainer(CONFIG, tmp_path)[0].run()

    with pytest.raises(ResumeError, match="a folder of its own"):
        make_trainer(dataclasses.replace(CONFIG, learning_rate=0.03), tmp_path)[0].run()


@pytest.mark.parametrize("altered", ["labels", "a feature", "a missing value"])
def test_checkpoints_of_other_rows_are_refused_though_number_and_labels_add_up(
    make_trainer, tmp_path: Path, altered: str
):
    make_trainer(CONFIG, tmp_path)[0].run()
    trainer, _, rows = make_trainer(CONFIG, tmp_path)
    if altered == "labels":
        rows.labels.copy_(rows.labels.flip(0))
    elif altered == "a feature":
        rows.inputs[1][17] += 1e-3
    else:
        rows.inputs[2][17] = math.nan if rows.inputs[2][17].isfinite() else 0.0

    with pytest.raises(ResumeError, match="other settings, data or network"):
        trainer.run()


def test_a_poisoned_row_costs_its_steps_and_spoils_no_weight(make_trainer, monitor: TrainingMonitor):
    trainer, network, _ = make_trainer(poison=[17])

    result = trainer.run()

    assert (result.outcome, result.skipped) == ("completed", 3)
    assert torch.isfinite(weights(network)).all()
    assert sum(math.isnan(loss) for _, loss in result.losses) == 3
    assert monitor.metrics[names.TRAINING_NONFINITE].labels("tiny")._value.get() == 3


def test_steps_that_stay_non_finite_stop_the_run_with_the_reason(make_trainer, tmp_path: Path):
    config = dataclasses.replace(CONFIG, max_nonfinite=4, report_every=10)
    trainer, network, _ = make_trainer(config, tmp_path, poison=slice(None))
    before = weights(network)

    result = trainer.run()

    assert (result.outcome, result.skipped) == ("stopped", 4)
    assert result.reason == "4 steps in a row had a loss or gradient that is not finite"
    assert torch.equal(weights(network), before)
    assert CheckpointStore(tmp_path).newest() is None


def test_phases_steps_and_checkpoints_reach_the_metrics(make_trainer, monitor: TrainingMonitor, tmp_path: Path):
    make_trainer(CONFIG, tmp_path)[0].run()
    monitor.drain()

    page = exposition(monitor.metrics)[0].decode()

    assert 'training_steps_total{model="tiny"} 60.0' in page
    assert 'training_samples_total{model="tiny"} 6000.0' in page
    assert 'training_checkpoints_total{model="tiny",outcome="ok"} 1.0' in page
    for phase in ("data_wait", "host_to_device", "forward", "backward", "optimizer"):
        assert f'training_phase_duration_seconds_count{{model="tiny",phase="{phase}"}} 60.0' in page
    assert 'training_phase_duration_seconds_count{model="tiny",phase="checkpoint"} 1.0' in page


def test_a_disk_that_takes_no_checkpoint_does_not_end_the_run(make_trainer, monitor: TrainingMonitor, tmp_path: Path):
    (tmp_path / "file").write_text("in the way of the folder")

    result = make_trainer(CONFIG, tmp_path / "file")[0].run()

    assert result.outcome == "completed"
    assert monitor.metrics[names.TRAINING_CHECKPOINTS].labels("tiny", "failed")._value.get() == 1


def test_the_rate_warms_up_peaks_and_ends_near_zero():
    with pytest.raises(ValueError, match="learning_rate is inf: it must be positive and finite"):
        TrainConfig(learning_rate=math.inf)
    config = TrainConfig(learning_rate=1.0, warmup=0.1)

    rates = [learning_rate(config, step, 100) for step in range(100)]

    assert rates[:11] == sorted(rates[:11])
    assert max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.001


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"learning_rate": 0.0}, {"warmup": 1.0}, {"checkpoint_every": -1}])
def test_settings_that_cannot_work_are_refused(wrong: dict[str, float]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainConfig(**wrong)
