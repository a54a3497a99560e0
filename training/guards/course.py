"""All guards of a loop over what was read of its latest steps: pure, so that any course can be replayed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from training.guards.activations import ActivationRule, LayerLook, LayerState, judge_activations
from training.guards.finding import Finding, Guard
from training.guards.gradients import GradientRule, ceiling, judge_norms
from training.guards.memory import LeakRule, MemoryState, judge_memory
from training.guards.nonfinite import GuardState, judge
from training.guards.plateau import PlateauRule, PlateauState, judge_plateau
from training.guards.policy import Standing
from training.guards.starvation import StarvationRule, StarvationState, judge_waits
from training.spikes import SpikeRule, SpikeState, judge_losses


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules of a loop's guards. `max_nonfinite` skipped steps in a row are a finding."""

    max_nonfinite: int = 10
    spike: SpikeRule = field(default_factory=SpikeRule)
    gradient: GradientRule = field(default_factory=GradientRule)
    activation: ActivationRule = field(default_factory=ActivationRule)
    plateau: PlateauRule = field(default_factory=PlateauRule)
    starvation: StarvationRule = field(default_factory=StarvationRule)
    leak: LeakRule = field(default_factory=LeakRule)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was read of the steps up to `step`, equal in all ranks.

    `losses`, `norms` and `flags` have one entry a step since the reading before; a flag above 0 says that the step was
    skipped on the device. `looks` are of the layers' activations, empty at most readings. `waited` of `seconds` went to
    waiting for data. `memory` is in bytes by what it is of.
    """

    step: int
    losses: Sequence[float]
    norms: Sequence[float]
    flags: Sequence[float]
    looks: Mapping[str, LayerLook] = field(default_factory=dict)
    waited: float = 0.0
    seconds: float = 0.0
    memory: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What the guards know of a run: what is kept with a checkpoint, and what is the process's own."""

    nonfinite: GuardState = field(default_factory=GuardState)
    spikes: SpikeState = field(default_factory=SpikeState)
    is_spiking: bool = False
    norms: tuple[float, ...] = ()
    plateau: PlateauState = field(default_factory=PlateauState)
    layers: Mapping[str, LayerState] = field(default_factory=dict)
    standing: Standing = field(default_factory=Standing)
    starvation: StarvationState = field(default_factory=StarvationState)
    memory: Mapping[str, MemoryState] = field(default_factory=dict)

    def to_state(self) -> dict[str, Any]:
        """What belongs into a checkpoint, as plain values; memory and waits are the process's, and begin anew."""
        known = asdict(self)
        return {name: known[name] for name in known if name not in ("starvation", "memory")}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Self:
        """What `to_state` gave. KeyError or TypeError for what is none."""
        standing = state["standing"]
        return cls(
            nonfinite=GuardState(**state["nonfinite"]),
            spikes=SpikeState(**state["spikes"]),
            is_spiking=state["is_spiking"],
            norms=tuple(state["norms"]),
            plateau=PlateauState(**state["plateau"]),
            layers={name: LayerState(**one) for name, one in state["layers"].items()},
            standing=Standing(tuple((name, step) for name, step in standing["acted"]), standing["lowered"]),
        )

    def ceiling(self, rule: GradientRule) -> float:
        """The gradient norm above which a step is odd, until the next reading."""
        return ceiling(rule, self.norms)


def judge_reading(rules: Rules, course: Course, reading: Reading) -> tuple[Course, tuple[Finding, ...]]:
    """Lets every guard judge what was read; gives the course to go on with, and what was found, gravest first."""
    before = reading.step - len(reading.losses)
    found: list[Finding] = []

    def tell(guard: Guard, reason: str, sound: int, score: float = math.nan) -> None:
        found.append(Finding(guard, reason, max(sound, 0), score))

    decision = judge(course.nonfinite, [flag > 0 for flag in reading.flags], rules.max_nonfinite)
    if decision.action == "stop":
        tell("nonfinite", decision.reason, reading.step - decision.state.in_a_row)
    spikes, spike = judge_losses(rules.spike, course.spikes, reading.losses)
    if spike is not None and not course.is_spiking:
        tell("loss_spike", spike.reason, before + spike.first, spike.score)
    norms, explosion = judge_norms(rules.gradient, course.norms, reading.norms)
    if explosion is not None:
        tell("gradient_explosion", explosion.reason, before + explosion.position, explosion.norm / explosion.usual)
    layers, ills = judge_activations(rules.activation, course.layers, reading.looks)
    for ill in ills:
        tell("activations", ill.reason, before, ill.look.dead if ill.fault == "dead" else ill.look.rms / ill.usual)
    plateau, flat = judge_plateau(rules.plateau, course.plateau, reading.losses)
    if flat is not None:
        tell("plateau", flat.reason, before, flat.fall)
    starvation, starving = judge_waits(rules.starvation, course.starvation, reading.waited, reading.seconds)
    if starving is not None:
        tell("starvation", starving.reason, before, starving.share)
    memory = dict(course.memory)
    for what, size in reading.memory.items():
        memory[what], leak = judge_memory(rules.leak, memory.get(what, MemoryState()), reading.step, size, what)
        if leak is not None:
            tell("leak", leak.reason, before, leak.slope)
    # Not `replace`, which takes three times as long.
    after = Course(
        nonfinite=decision.state, spikes=spikes, is_spiking=spike is not None, norms=norms, plateau=plateau,
        layers=layers, standing=course.standing, starvation=starvation, memory=memory,
    )  # fmt: skip
    return after, tuple(found)
