"""The guards' judgements on courses whose truth is known: found when it is there, silent when it is not."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from observability.machine import GpuSample
from training.guards import (
    ActivationRule,
    Course,
    DeviceRule,
    DeviceState,
    Finding,
    GradientRule,
    GuardPolicy,
    GuardRecord,
    LeakRule,
    MemoryState,
    PlateauRule,
    PlateauState,
    Reading,
    Rules,
    Standing,
    StarvationRule,
    StarvationState,
    checksums,
    guarded_step,
    judge_activations,
    judge_checksums,
    judge_gpu,
    judge_memory,
    judge_norms,
    judge_plateau,
    judge_reading,
    judge_waits,
    looking,
    nonfinite,
    read_record,
    respond,
)
from training.guards.activations import judged_layers, read_look

MIB = 1 << 20


def looks(norms: np.ndarray, size: int = 20) -> list[tuple[int, float]]:
    history, found = (), []
    for first in range(0, len(norms), size):
        history, explosion = judge_norms(GradientRule(), history, norms[first : first + size].tolist())
        if explosion is not None:
            found.append((first + explosion.position, explosion.norm))
    return found


def test_a_gradient_that_explodes_is_found_at_its_step_and_heavy_tails_are_not() -> None:
    noise = np.random.default_rng(3).lognormal(0.0, 0.4, 60_000) * np.linspace(3, 0.5, 60_000)
    assert looks(noise) == []

    noise[50_007] *= 200
    assert [step for step, _ in looks(noise)] == [50_007]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 0.0])
def test_norms_that_tell_nothing_neither_explode_nor_count(wrong: float) -> None:
    history, found = judge_norms(GradientRule(), tuple([1.0] * 60), [wrong, 1.0])

    assert found is None
    assert history == tuple([1.0] * 61)


def plateaus(losses: np.ndarray, rule: PlateauRule) -> list[int]:
    state, found = PlateauState(), []
    for first in range(0, len(losses), 20):
        state, plateau = judge_plateau(rule, state, losses[first : first + 20].tolist())
        if plateau is not None:
            found.append(first + 20)
    return found


def test_a_plateau_is_told_once_where_the_loss_stops_falling_and_never_before() -> None:
    noise = np.random.default_rng(1).normal(0, 0.02, 8000)
    steps = np.arange(8000)
    rule = PlateauRule(window=1000)
    assert plateaus(3.0 - steps * 3e-4 + noise, rule) == []

    told = plateaus(np.maximum(3.0 - steps * 6e-4, 1.2) + noise, rule)

    assert len(told) == 1
    assert 3500 <= told[0] <= 4500


def test_no_plateau_is_told_where_noise_hides_whether_the_loss_falls() -> None:
    noise, falling = np.random.default_rng(2).normal(0, 0.5, 8000), 1.0 - np.arange(8000) * 4e-6

    assert plateaus(falling + noise, PlateauRule(window=1000, improvement=0.003)) == []


def leaks(sizes: np.ndarray, rule: LeakRule | None = None) -> list[int]:
    state, found = MemoryState(), []
    for index, size in enumerate(sizes):
        state, leak = judge_memory(rule or LeakRule(), state, index * 100, int(size), "resident memory")
        if leak is not None:
            found.append(index)
            assert leak.slope > 0
    return found


def test_memory_that_grows_steadily_leaks_and_what_saw_teeth_or_levels_off_do_does_not() -> None:
    draw, at = np.random.default_rng(4), np.arange(2000)
    noise = draw.normal(0, 8 * MIB, 2000)
    teeth = (at % 40) * 6 * MIB

    assert leaks(1000 * MIB + noise + teeth) == []
    assert leaks(1000 * MIB + 500 * MIB * (1 - np.exp(-at / 10)) + noise) == []
    found = leaks(1000 * MIB + at * MIB + noise + teeth)
    assert found
    assert found[0] < 500
    assert len(found) <= 5


def test_starvation_is_told_once_when_it_begins_and_again_after_it_ended() -> None:
    state, told = StarvationState(), []
    for look, share in enumerate([0.6, 0.2, 0.7, 0.8, 0.9, 0.9, 0.1, 0.6, 0.6, 0.6]):
        state, found = judge_waits(StarvationRule(), state, share, 1.0)
        told += [look] if found else []

    assert told == [4, 9]
    assert judge_waits(StarvationRule(), StarvationState(9), 0.0, 0.0)[1] is None


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 3), st.integers(0, 63), st.integers(0, 15), st.integers(3, 5))
def test_any_flipped_bit_of_any_rank_is_found_and_named(parameter: int, bit: int, place: int, ranks: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(torch.float64)
    names = [name for name, _ in network.named_parameters()]
    twin = copy.deepcopy(network)
    weights = list(twin.parameters())[parameter].data.view(torch.int64).flatten()
    weights[place % len(weights)] ^= (1 << bit) if bit < 63 else -(1 << 63)
    gathered = [checksums(network).tolist()] * (ranks - 1) + [checksums(twin).tolist()]

    found = judge_checksums(names, gathered)

    assert judge_checksums(names, gathered[:-1]) is None
    assert found is not None
    assert (found.rank, found.parameters) == (ranks - 1, (names[parameter],))


def test_of_two_replicas_that_differ_none_is_blamed() -> None:
    found = judge_checksums(["a", "b"], [[1, 2], [1, 3]])

    assert found is not None
    assert found.rank == -1
    assert found.reason.startswith("the ranks differ in b")


def seen(network: nn.Module, inputs: torch.Tensor) -> dict:
    with looking(judged_layers(network)) as look:
        network(inputs)
    return read_look(look.layers, look.read())


def test_dead_units_and_growing_activations_are_found_on_real_layers() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 1))
    inputs, states, rule = torch.randn(32, 3, 10), {}, ActivationRule()
    for _ in range(8):
        states, found = judge_activations(rule, states, seen(network, inputs))
        assert found == ()

    told = []
    with torch.no_grad():
        network[0].bias -= 100.0
        for _ in range(4):
            states, found = judge_activations(rule, states, seen(network, inputs))
            told.append([(one.layer, one.fault) for one in found])

    assert told[2][:1] == [("0", "exploding")]
    assert ("1", "dead") in told[2]
    assert told[3] == []
    assert not any(module._forward_hooks for module in network.modules())


def test_looks_do_not_change_what_a_network_gives() -> None:
    torch.manual_seed(0)
    network, inputs = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), torch.randn(5, 4)
    expected = network(inputs)
    with looking(judged_layers(network)):
        assert torch.equal(network(inputs), expected)


def test_heat_is_told_when_it_stays_errors_and_xids_at_once_and_old_ones_not() -> None:
    rule, state = DeviceRule(looks=2), DeviceState()
    hot, told = ("hardware_thermal",), []
    for sample in (
        GpuSample(0, ecc_uncorrected=7, xids={}),
        GpuSample(0, throttled=hot, temperature=91.0, ecc_uncorrected=7, xids={13: 1}),
        GpuSample(0, throttled=hot, temperature=92.0, ecc_uncorrected=9, xids={13: 1, 79: 1}),
        GpuSample(0, throttled=("power_cap",), ecc_uncorrected=9, xids={13: 1, 79: 2}),
    ):
        state, found = judge_gpu(rule, state, sample)
        told.append([one.reason for one in found])

    assert told == [
        [],
        [],
        [
            "heat slows GPU 0 down at 92 °C",
            "GPU 0 had 2 memory errors that could not be corrected",
            "the driver reported Xid 79 of GPU 0",
        ],
        ["the driver reported Xid 79 of GPU 0"],
    ]


def test_actions_cool_down_are_bounded_and_reports_are_free() -> None:
    policy, standing = GuardPolicy(gradient_explosion="lower_rate", cool_down=100, max_lowered=2), Standing()
    done = []
    for step in (10, 50, 120, 300, 500):
        finding = Finding("gradient_explosion", "it rose", step)
        response = respond(policy, standing, finding, step, policy.action("gradient_explosion"))
        standing = response.standing
        done.append(response.action)

    assert done == ["lower_rate", "report", "lower_rate", "stop", "stop"]
    assert standing.lowered == 2
    assert respond(policy, standing, finding, 501, "report").standing is standing


@pytest.mark.parametrize("wrong", [{"plateau": "rewind"}, {"nonfinite": "report"}, {"lowered": 1.0}, {"cool_down": -1}])
def test_policies_that_make_no_sense_are_refused_by_name(wrong: dict) -> None:
    with pytest.raises(ValueError, match=f"guards.{next(iter(wrong))} is"):
        GuardPolicy(**wrong)


def test_a_course_comes_back_from_a_checkpoint_as_it_was_and_goes_on_alike() -> None:
    draw = np.random.default_rng(5)
    losses, norms = (1 + draw.normal(0, 0.1, 400)).tolist(), draw.lognormal(0, 0.3, 400).tolist()

    def reading(first: int) -> Reading:
        end = first + 20
        return Reading(step=end, losses=losses[first:end], norms=norms[first:end], flags=[0.0] * 20)

    whole = cut = Course()
    for first in range(0, 200, 20):
        whole, _ = judge_reading(Rules(), whole, reading(first))
    cut = Course.of_state(json.loads(json.dumps(whole.to_state())))
    for first in range(200, 400, 20):
        whole, found = judge_reading(Rules(), whole, reading(first))
        cut, same = judge_reading(Rules(), cut, reading(first))
        assert found == same == ()

    assert json.dumps(cut.to_state()) == json.dumps(whole.to_state())


def test_the_record_keeps_whole_lines_and_is_read_on_from_where_it_was(tmp_path: Path) -> None:
    record = GuardRecord(tmp_path / "run" / "guards.jsonl")
    assert read_record(record.path) == ([], 0)
    record.add(Finding("plateau", "flat", 3, math.inf), "report", "flat", 20)
    first, offset = read_record(record.path)
    record.add(Finding("leak", "grows", 5), "stop", "grows and grows", 40)
    with record.path.open("ab") as file:
        file.write(b'{"guard": "cut')
    second, _ = read_record(record.path, offset)

    assert [(one["guard"], one["action"], one["step"], one["score"]) for one in first] == [
        ("plateau", "report", 20, None)
    ]
    assert [(one["guard"], one["reason"], one["sound"]) for one in second] == [("leak", "grows and grows", 5)]


OPTIMIZERS = {
    "fused AdamW": lambda weights: torch.optim.AdamW(weights, lr=0.1, fused=True),
    "foreach AdamW": lambda weights: torch.optim.AdamW(weights, lr=0.1, foreach=True),
    "one by one Adam": lambda weights: torch.optim.Adam(weights, lr=0.1, foreach=False, weight_decay=0.1),
    "SGD with momentum": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.1),
    "RMSprop": lambda weights: torch.optim.RMSprop(weights, lr=0.1),
    "Adagrad": lambda weights: torch.optim.Adagrad(weights, lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("bad", [0, 2])
def test_a_bad_step_is_as_if_it_had_not_been_bit_by_bit(name: str, bad: int) -> None:
    def run(with_bad: bool) -> list[torch.Tensor]:
        torch.manual_seed(1)
        weights = [nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(3))]
        optimizer = OPTIMIZERS[name](weights)
        draw = torch.Generator().manual_seed(2)
        for step in range(5):
            if step == bad and with_bad:
                for weight in weights:
                    weight.grad = torch.full_like(weight, math.nan)
                guarded_step(optimizer, torch.tensor(1.0))
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=draw)
            guarded_step(optimizer, torch.tensor(0.0))
        state = [value for weight in weights for value in optimizer.state[weight].values()]
        return [*weights, *(value for value in state if isinstance(value, torch.Tensor))]

    clean, struck = run(False), run(True)

    assert len(clean) == len(struck)
    assert all(torch.equal(one, other) for one, other in zip(clean, struck, strict=True))


def test_a_step_skipped_on_the_device_asks_the_host_for_nothing() -> None:
    """No value is read but by torch's own kernel, which on a CPU reads the flag; on a GPU it does so there."""
    weight = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([weight], fused=True)
    for loss in (1.0, math.nan):
        weight.grad = torch.ones(4)
        value, norm = torch.tensor(loss), torch.tensor(1.0)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            guarded_step(optimizer, nonfinite(value, norm))
        waits = ("_local_scalar_dense", "item", "is_nonzero", "all_reduce", "all_gather", "Synchronize", "c10d")
        reading = [event for event in profile.events() if any(wait in event.name for wait in waits)]
        for event in reading:
            within = event
            while within is not None and within.name != "aten::_fused_adamw_":
                within = within.cpu_parent
            assert within is not None, event.name


def test_rules_that_cannot_judge_are_refused() -> None:
    for rule, wrong in (
        (GradientRule, {"factor": 1.0}),
        (PlateauRule, {"window": 3}),
        (LeakRule, {"looks": 10}),
        (ActivationRule, {"dead": 0.0}),
        (StarvationRule, {"share": 1.0}),
        (DeviceRule, {"looks": 0}),
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            rule(**wrong)
    assert dataclasses.is_dataclass(Rules())
