"""The guards of a training: each a pure judgement with a reason, and the policy that says what follows."""

from training.guards.activations import ActivationRule, Ill, LayerLook, LayerState, judge_activations, looking
from training.guards.course import Course, Reading, Rules, judge_reading
from training.guards.device import DeviceRule, DeviceState, DeviceTrouble, judge_gpu
from training.guards.divergence import Divergence, checksums, judge_checksums
from training.guards.finding import Action, Finding, Guard
from training.guards.gradients import Explosion, GradientRule, judge_norms
from training.guards.memory import Leak, LeakRule, MemoryState, judge_memory
from training.guards.nonfinite import (
    GuardDecision,
    GuardState,
    begin,
    clipped_step,
    clipping,
    gradient_norm,
    guarded_step,
    judge,
    nonfinite,
    skip_if,
    total_norm,
    weight_of,
)
from training.guards.plateau import Plateau, PlateauRule, PlateauState, judge_plateau
from training.guards.policy import GuardPolicy, Response, Standing, respond
from training.guards.record import GuardRecord, read_record
from training.guards.starvation import Starvation, StarvationRule, StarvationState, judge_waits

__all__ = [
    "Action",
    "ActivationRule",
    "Course",
    "DeviceRule",
    "DeviceState",
    "DeviceTrouble",
    "Divergence",
    "Explosion",
    "Finding",
    "GradientRule",
    "Guard",
    "GuardDecision",
    "GuardPolicy",
    "GuardRecord",
    "GuardState",
    "Ill",
    "LayerLook",
    "LayerState",
    "Leak",
    "LeakRule",
    "MemoryState",
    "Plateau",
    "PlateauRule",
    "PlateauState",
    "Reading",
    "Response",
    "Rules",
    "Standing",
    "Starvation",
    "StarvationRule",
    "StarvationState",
    "begin",
    "checksums",
    "clipped_step",
    "clipping",
    "gradient_norm",
    "guarded_step",
    "judge",
    "judge_activations",
    "judge_checksums",
    "judge_gpu",
    "judge_memory",
    "judge_norms",
    "judge_plateau",
    "judge_reading",
    "judge_waits",
    "looking",
    "nonfinite",
    "read_record",
    "respond",
    "skip_if",
    "total_norm",
    "weight_of",
]
