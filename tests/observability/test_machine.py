"""GPUs by a stand-in for NVML that behaves as the library does, this process by the kernel, and MFU by hand."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from observability import Metrics, TrainingMonitor, machine, names
from observability.flops import peak_flops, training_flops
from observability.machine import Gpus, Machine


class NvmlError(Exception):
    """What NVML raises for all that it does not do."""


@dataclass
class Nvml:
    """One card with everything and one old card that knows only its name and memory."""

    NVMLError = NvmlError
    NVML_TEMPERATURE_GPU = NVML_MEMORY_ERROR_TYPE_CORRECTED = NVML_VOLATILE_ECC = 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    nvmlEventTypeXidCriticalError = 8
    reasons: int = 0
    uncorrected: int = 0
    events: list[Any] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        known = {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: 2,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetName": lambda handle: b"NVIDIA H100 80GB HBM3" if handle == 0 else "Old",
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=40 << 30, total=80 << 30),
            "nvmlDeviceGetUtilizationRates": self.only_new(SimpleNamespace(gpu=93)),
            "nvmlDeviceGetPowerUsage": self.only_new(412_500),
            "nvmlDeviceGetTemperature": self.only_new(71),
            "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: self.only_new(self.reasons)(handle),
            "nvmlDeviceGetTotalEccErrors": lambda handle, kind, _: self.only_new((3, self.uncorrected)[kind])(handle),
            "nvmlEventSetCreate": lambda: "set",
            "nvmlDeviceRegisterEvents": lambda *_: None,
            "nvmlEventSetWait": self.wait,
        }
        if name not in known:
            raise AttributeError(name)
        return known[name]

    def only_new(self, answer: Any) -> Any:
        def ask(handle: int, *_: Any) -> Any:
            if handle:
                raise NvmlError("not supported")
            return answer

        return ask

    def wait(self, _: Any, timeout: int) -> Any:
        assert timeout == 0
        if not self.events:
            raise NvmlError("timeout")
        return self.events.pop(0)


def xid(number: int) -> Any:
    return SimpleNamespace(device=0, eventData=number)


def test_gpus_processes_and_host_reach_the_metrics_and_what_is_not_known_is_absent() -> None:
    nvml, metrics = Nvml(reasons=0x44, uncorrected=1), Metrics()
    machine = Machine(metrics, "m", "r", lambda: {0: os.getpid(), 1: 2**22 + 1}, Gpus(nvml))
    machine.sample()

    def value(metric: names.Metric, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(metric.name, labels)

    assert value(names.GPU_UTILIZATION, gpu="0") == 0.93
    assert value(names.GPU_POWER, gpu="0") == 412.5
    assert value(names.GPU_TEMPERATURE, gpu="0") == 71
    assert value(names.GPU_MEMORY_USED, gpu="1") == 40 << 30
    assert value(names.GPU_UTILIZATION, gpu="1") is None
    assert value(names.GPU_ECC_ERRORS, gpu="1", kind="uncorrected") is None
    assert value(names.GPU_ECC_ERRORS, gpu="0", kind="uncorrected") == 1
    assert value(names.GPU_THROTTLED, gpu="0", reason="hardware_thermal") == 1
    assert value(names.GPU_THROTTLED, gpu="0", reason="power_cap") == 1
    assert value(names.GPU_THROTTLED, gpu="0", reason="software_thermal") == 0
    # Zero, not absent: an alert can tell "none" from "not known".
    assert value(names.GPU_XIDS, gpu="0", kind="device") == 0
    assert value(names.TRAINING_PROCESS_MEMORY, model="m", run="r", rank="0") > 1 << 20
    assert value(names.TRAINING_PROCESS_CPU, model="m", run="r", rank="0") > 0
    assert value(names.TRAINING_PROCESS_MEMORY, model="m", run="r", rank="1") is None
    assert value(names.HOST_MEMORY) > 0

    nvml.events, nvml.uncorrected, nvml.reasons = [xid(79), xid(79), xid(13)], 0, 0
    machine.sample()

    # Two equal Xids are two events, and a count that the driver began anew does not go back.
    assert value(names.GPU_XIDS, gpu="0", kind="device") == 2
    assert value(names.GPU_XIDS, gpu="0", kind="application") == 1
    assert value(names.GPU_LAST_XID, gpu="0") == 13
    assert value(names.GPU_ECC_ERRORS, gpu="0", kind="uncorrected") == 1
    assert value(names.GPU_THROTTLED, gpu="0", reason="hardware_thermal") == 0
    assert machine.gpus[0].xids == {79: 2, 13: 1}


def test_a_machine_that_cannot_be_asked_does_not_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def sample(self) -> list[Any]:
            raise RuntimeError("the driver is gone")

    Machine(Metrics(), "m", "r", dict, Broken()).sample()  # type: ignore[arg-type]

    assert "could not be sampled" in caplog.text


def test_peaks_are_those_of_the_data_sheets_and_unknown_devices_have_none() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989.4e12
    assert peak_flops("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "tf32") == 156e12
    assert peak_flops("Tesla V100-SXM2-16GB", "bfloat16") is None
    assert peak_flops("Some new one", "bfloat16") is None


def test_the_utilisation_is_that_of_a_hand_count() -> None:
    batch, inputs, hidden = 8, 32, 64
    network = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def step() -> None:
        network(torch.ones(batch, inputs)).sum().backward()

    # Forward both layers; backward their weights, and of the second layer its inputs, too: the first's need none.
    by_hand = 2 * batch * (2 * inputs * hidden + 3 * hidden * 1)
    assert training_flops(step) == by_hand

    now = [0]
    monitor = TrainingMonitor(
        "m", run="r", drain_seconds=0, clock=lambda: now[0], flops_per_sample=by_hand / batch, peak_flops=1e9
    )
    for _ in range(100):
        monitor.start()
        now[0] += 2_000_000
        monitor.mark("data_wait")
        now[0] += 2_000_000
        monitor.end(batch, tokens=batch * 16)
    monitor.drain()

    def value(metric: names.Metric, **labels: str) -> float | None:
        return monitor.metrics.registry.get_sample_value(metric.name, {"model": "m", **labels})

    assert value(names.TRAINING_MFU, run="r") == pytest.approx(by_hand / 0.004 / 1e9)
    assert value(names.TRAINING_FLOPS, run="r") == pytest.approx(by_hand / 0.004)
    assert value(names.TRAINING_TOKENS) == 100 * batch * 16
    assert value(names.TRAINING_TOKEN_RATE, run="r") == pytest.approx(batch * 16 / 0.004)
    assert value(names.TRAINING_DATA_WAIT, run="r") == pytest.approx(0.5)
    assert value(names.TRAINING_THROUGHPUT, run="r") == pytest.approx(batch / 0.004)


def test_a_machine_without_gpus_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    machine._unsampled.cache_clear()
    with caplog.at_level("INFO", logger="observability.machine"):
        assert Gpus.found() is Gpus.found() is None

    (told,) = caplog.messages
    assert "pip install 'trimtab[gpu]'" in told
