"""The guard of devices: heat that slows a GPU down, memory errors that cannot be corrected, and Xids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from observability.machine import APPLICATION_XIDS, GpuSample

_HEAT = ("hardware_thermal", "software_thermal")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRule:
    """Heat is told after `looks` looks in a row at which it slows the device; errors and Xids at once."""

    looks: int = 3

    def __post_init__(self) -> None:
        if self.looks < 1:
            raise ValueError(f"looks is {self.looks}: at least 1")


@dataclass(frozen=True, slots=True)
class DeviceState:
    """Looks in a row at which heat slowed a GPU, its uncorrected memory errors, and its Xids by number."""

    hot: int = 0
    uncorrected: int | None = None
    xids: Mapping[int, int] | None = None


@dataclass(frozen=True, slots=True)
class DeviceTrouble:
    """What is wrong with a GPU."""

    gpu: int
    reason: str


def judge_gpu(rule: DeviceRule, state: DeviceState, sample: GpuSample) -> tuple[DeviceState, tuple[DeviceTrouble, ...]]:
    """Judges one sample. Errors from before the first sample are history; of Xids a program's own are left out."""
    found = []
    hot = state.hot + 1 if any(reason in _HEAT for reason in sample.throttled) else 0
    if hot == rule.looks:
        degrees = "" if sample.temperature is None else f" at {sample.temperature:.0f} °C"
        found.append(f"heat slows GPU {sample.gpu} down{degrees}")
    before = state.uncorrected
    if sample.ecc_uncorrected is not None and before is not None and sample.ecc_uncorrected > before:
        new = sample.ecc_uncorrected - before
        found.append(f"GPU {sample.gpu} had {new} memory errors that could not be corrected")
    for number, count in (sample.xids or {}).items():
        if number not in APPLICATION_XIDS and count > (state.xids or {}).get(number, 0):
            found.append(f"the driver reported Xid {number} of GPU {sample.gpu}")
    after = DeviceState(hot, sample.ecc_uncorrected if sample.ecc_uncorrected is not None else before, sample.xids)
    return after, tuple(DeviceTrouble(sample.gpu, reason) for reason in found)
