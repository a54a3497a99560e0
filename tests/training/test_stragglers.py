"""Which rank is slow: judged from noise that is known, and on real ranks whose gradients are averaged."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from observability import Metrics, names
from observability.names import PHASES
from observability.step_ring import FIRST_PHASE, RECORD, Records
from tests.training.toy_network import line, rows
from training import Fault, Faults, Limits, TrainConfig
from training.backward_end import BackwardEnd
from training.guards import read_record
from training.parallel import fit_in_ranks
from training.watch import StragglerRule, StragglerWatch

USUAL = {"data_wait": 0.1, "host_to_device": 0.05, "forward": 0.6, "backward": 1.2, "optimizer": 0.3}


def course(draw: np.random.Generator, ranks: int, steps: int) -> dict[int, Records]:
    """Steps of ranks that share a machine: noise with a heavy tail, a drift of each rank's own, jobs of others."""
    found = {}
    for rank in range(ranks):
        own, load = np.empty(steps), 0.0
        for step in range(steps):
            load = own[step] = 0.95 * load + draw.normal(0, 0.006)
        factor = np.exp(own + draw.normal(0, 0.01))
        begin = 0
        while (begin := begin + int(draw.exponential(1000))) < steps:
            factor[begin : begin + int(draw.integers(5, 26))] *= 1.5
        records = np.zeros((steps, RECORD.size // 8), np.int64)
        records[:, 0] = np.arange(steps)
        for phase, milliseconds in USUAL.items():
            noise = draw.lognormal(0, 0.15, steps)
            records[:, FIRST_PHASE + PHASES.index(phase)] = 1e6 * milliseconds * factor * noise
        found[rank] = records
    # All wait for the slowest: that is in nobody's own work.
    slowest = np.max([records[:, FIRST_PHASE:].sum(1) for records in found.values()], axis=0)
    for records in found.values():
        records[:, FIRST_PHASE + PHASES.index("communication")] = slowest - records[:, FIRST_PHASE:].sum(1)
    return found


def named(records: dict[int, Records], every: int) -> list[tuple[int, int]]:
    watch, found = StragglerWatch(), []
    for end in range(every, len(records[0]) + 1, every):
        one = watch.look({rank: each[max(0, end - 150) : end] for rank, each in records.items()})
        found += [(end, one.rank)] if one else []
    return found


@pytest.mark.parametrize("ranks", [2, 4])
def test_ten_thousand_steps_of_equal_ranks_on_a_busy_machine_name_none(ranks: int) -> None:
    assert named(course(np.random.default_rng(ranks), ranks, 10_000), 50) == []


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_that_becomes_slower_by_a_third_is_named_within_fifty_steps(ranks: int) -> None:
    late = []
    for seed in range(20):
        records = course(np.random.default_rng(seed), ranks, 300)
        slow = seed % ranks
        for phase in USUAL:
            records[slow][200:, FIRST_PHASE + PHASES.index(phase)] *= 13
            records[slow][200:, FIRST_PHASE + PHASES.index(phase)] //= 10
        found = [one for one in named(records, 5) if one[0] > 200]
        assert found
        assert found[0][1] == slow
        late.append(found[0][0] - 200)
    assert np.quantile(late, 0.9) <= 50
    assert max(late) <= 75


def noise(draw: np.random.Generator, kind: str, ranks: int, steps: int) -> np.ndarray:
    """Factors of a phase's time, [ranks, steps, phases]; kinds that the rule was not chosen by."""
    place, few = np.arange(steps), len(USUAL)
    own = np.exp(draw.normal(0, 0.01, (ranks, 1, 1)))
    if kind == "heavy tails":
        far = np.where(draw.random((ranks, steps, 1)) < 0.01, 10.0, 1.0)
        return own * far * np.exp(0.08 * np.clip(draw.standard_t(2.5, (ranks, steps, few)), -8, 20))
    if kind == "drift":
        waves = 0.03 * np.sin(
            place[None, :, None] / draw.uniform(200, 900, (ranks, 1, 1)) + draw.uniform(0, 6, (ranks, 1, 1))
        )
        return own * np.exp(waves) * np.linspace(1, 1.5, steps)[:, None] * draw.lognormal(0, 0.1, (ranks, steps, few))
    if kind == "stalls":
        collected = (place + draw.integers(0, 100, (ranks, 1))) % 100 < 3
        factor = np.where(collected, 3.0, 1.0) * np.where(place % 500 < 4, 4.0, 1.0)
        return own * factor[:, :, None] * draw.lognormal(0, 0.12, (ranks, steps, few))
    spreads = (0.8, 0.5, 0.08, 0.06, 0.2)
    return own * np.stack([draw.lognormal(0, one, (ranks, steps)) for one in spreads], axis=2)


def recorded(factors: np.ndarray) -> dict[int, Records]:
    """Records of ranks whose phases take their usual time, times the factors."""
    found = {}
    for rank, own in enumerate(factors):
        found[rank] = np.zeros((len(own), RECORD.size // 8), np.int64)
        found[rank][:, 0] = np.arange(len(own))
        for index, (phase, milliseconds) in enumerate(USUAL.items()):
            found[rank][:, FIRST_PHASE + PHASES.index(phase)] = 1e6 * milliseconds * own[:, index]
    return found


@pytest.mark.parametrize("kind", ["heavy tails", "drift", "stalls", "uneven phases"])
def test_other_kinds_of_noise_name_none_falsely_and_hide_no_slow_rank(kind: str) -> None:
    draw = np.random.default_rng(90210)
    for ranks in (2, 4):
        assert named(recorded(noise(draw, kind, ranks, 10_000)), 50) == []
    late = []
    for trial in range(20):
        factors = noise(draw, kind, 4, 300)
        factors[trial % 4, 200:] *= 1.3
        found = [one for one in named(recorded(factors), 5) if one[0] > 200]
        assert found[0][1] == trial % 4
        late.append(found[0][0] - 200)
    assert np.quantile(late, 0.9) <= 50


def test_of_two_slow_ranks_among_five_one_is_named_and_by_the_phase_that_is_slow() -> None:
    factors = noise(np.random.default_rng(5), "heavy tails", 5, 300)
    # All that is lost is lost in the forward pass.
    factors[[1, 3], 200:, 2] *= 1 + 0.3 * sum(USUAL.values()) / USUAL["forward"]
    watch, records = StragglerWatch(), recorded(factors)
    looked = [watch.look({rank: one[:end] for rank, one in records.items()}) for end in range(5, 301, 5)]
    found = [one for one in looked if one]

    assert found[0].rank in (1, 3)
    assert found[0].phase == "forward"


@pytest.mark.parametrize("wrong", [{"ratio": 1.0}, {"every": 60}, {"looks": 0}, {"share": 0.9}])
def test_rules_that_cannot_compare_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        StragglerRule(**wrong)


def test_the_end_of_a_ranks_own_backward_pass_is_told_apart_from_what_follows() -> None:
    network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    end, told = BackwardEnd(list(network.parameters())), []
    for _ in range(3):
        mark = end.following(told.append)
        loss = network(torch.ones(3, 2)).sum()
        mark("forward")
        loss.backward()
        mark("backward")

    assert told == ["forward", "backward", *["forward", "backward", "communication"] * 2]
    assert sum(len(parameter._post_accumulate_grad_hooks or ()) for parameter in network.parameters()) == 1


@pytest.mark.slow
def test_a_slow_rank_is_named_counted_recorded_and_begun_anew_while_the_others_wait(tmp_path: Path) -> None:
    config = TrainConfig(epochs=8, batch_size=101, learning_rate=0.02, report_every=5, checkpoint_every=20, seed=5)
    slow = Faults((Fault("slow", rank=1, step=0, attempt=0, seconds=0.05, steps=1000),))
    metrics, network = Metrics(), line()
    limits = Limits(on_straggler="restart")

    result, run = fit_in_ranks(
        network, rows(), config, world_size=2, folder=tmp_path, model="toy", run="r", metrics=metrics, faults=slow,
        limits=limits, echo=None,
    )  # fmt: skip

    assert result.steps == 160
    assert [(one.cause, one.rank) for one in run.attempts][:1] == [("straggler", 1)]
    assert run.attempts[0].steps < 160
    (first, *_), _ = read_record(tmp_path / "guards.jsonl")
    assert (first["guard"], first["action"], first["rank"]) == ("straggler", "restart", 1)
    assert "rank 1 takes" in first["reason"]
    assert metrics[names.TRAINING_FINDINGS].labels("toy", "straggler", "restart")._value.get() == 1
    assert metrics[names.TRAINING_RESTARTS].labels("toy", "straggler")._value.get() == 1


@pytest.mark.slow
def test_replicas_that_part_silently_are_found_and_set_back_and_end_as_if_they_had_not(tmp_path: Path) -> None:
    config = TrainConfig(epochs=4, batch_size=101, learning_rate=0.02, report_every=10, checkpoint_every=10, seed=5)
    config = dataclasses.replace(config, guards=dataclasses.replace(config.guards, checksums_every=10))
    first, network = line(), line()
    faults = Faults((Fault("diverge", rank=1, step=35, attempt=-1),))
    metrics = Metrics()

    result, _ = fit_in_ranks(
        network, rows(), config, world_size=2, folder=tmp_path, model="toy", run="r", metrics=metrics, faults=faults,
        echo=None,
    )  # fmt: skip

    found, _ = read_record(tmp_path / "guards.jsonl")
    # A busy machine may make a straggler of a rank, besides.
    (found,) = [one for one in found if one["guard"] == "divergence"]
    assert (found["guard"], found["action"], found["sound"], found["step"]) == ("divergence", "rewind", 30, 40)
    assert (result.rewinds, result.steps) == (1, 70)
    assert metrics[names.TRAINING_FINDINGS].labels("toy", "divergence", "rewind")._value.get() == 1
    assert not torch.equal(first.layers[0].weight, copy.deepcopy(network).layers[0].weight)
