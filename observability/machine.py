"""Samples of the machine beside a training: GPUs by NVML, processes and host by the kernel; never in the loop."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Self

from observability import names
from observability.metrics import Metrics

_log = logging.getLogger(__name__)
# Xids that a program's own doing can cause (NVIDIA's Xid catalogue); all others tell of the device or its driver.
APPLICATION_XIDS = (13, 31, 43, 45)
# NVML's bits of what holds a device's clocks back (nvmlClocksEventReasons).
_THROTTLES = {
    "power_cap": 0x4,
    "hardware_slowdown": 0x8,
    "sync_boost": 0x10,
    "software_thermal": 0x20,
    "hardware_thermal": 0x40,
    "power_brake": 0x80,
}


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One GPU at one moment; None for what the device or its driver does not tell. Xids are counted by number."""

    gpu: int
    name: str = ""
    utilization: float | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    power: float | None = None
    temperature: float | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    throttled: tuple[str, ...] = ()
    xids: Mapping[int, int] | None = None
    last_xid: int | None = None


@cache
def _unsampled(reason: str) -> None:
    """Says once a process why there is nothing to show of GPUs."""
    _log.info("no GPU is sampled: %s", reason)


class Gpus:
    """The GPUs that NVML shows. `nvml` is the module `pynvml` of nvidia-ml-py, or one like it."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        nvml.nvmlInit()
        self._handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        self._xids: list[dict[int, int]] = [{} for _ in self._handles]
        self._last_xids: list[int | None] = [None for _ in self._handles]
        self._events = self._xid_events()

    @classmethod
    def found(cls) -> Self | None:
        """This machine's GPUs; None where there is no driver or nvidia-ml-py is not installed."""
        try:
            nvml: ModuleType = importlib.import_module("pynvml")
        except ImportError:
            _unsampled("nvidia-ml-py is not installed; pip install 'trimtab[gpu]' where there are GPUs")
            return None
        try:
            return cls(nvml)
        except Exception as error:  # NVMLError: no driver, no library, no permission
            _unsampled(str(error))
            return None

    def sample(self) -> list[GpuSample]:
        """One sample a GPU; takes a millisecond or so each, and waits for nothing."""
        self._count_xids()
        return [self._one(index, handle) for index, handle in enumerate(self._handles)]

    def _one(self, index: int, handle: Any) -> GpuSample:
        nvml = self._nvml
        memory = self._asked(nvml.nvmlDeviceGetMemoryInfo, handle)
        rates = self._asked(nvml.nvmlDeviceGetUtilizationRates, handle)
        power = self._asked(nvml.nvmlDeviceGetPowerUsage, handle)
        reasons_of = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None) or getattr(
            nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", None
        )
        reasons = (self._asked(reasons_of, handle) if reasons_of else None) or 0
        name = self._asked(nvml.nvmlDeviceGetName, handle)
        return GpuSample(
            gpu=index,
            name=name.decode() if isinstance(name, bytes) else name or "",
            utilization=None if rates is None else rates.gpu / 100,
            memory_used=None if memory is None else int(memory.used),
            memory_total=None if memory is None else int(memory.total),
            power=None if power is None else power / 1e3,
            temperature=self._asked(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            ecc_corrected=self._ecc(handle, nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            ecc_uncorrected=self._ecc(handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
            throttled=tuple(reason for reason, bit in _THROTTLES.items() if reasons & bit),
            xids=None if self._events is None else dict(self._xids[index]),
            last_xid=self._last_xids[index],
        )

    def _ecc(self, handle: Any, kind: int) -> int | None:
        errors = self._asked(self._nvml.nvmlDeviceGetTotalEccErrors, handle, kind, self._nvml.NVML_VOLATILE_ECC)
        return None if errors is None else int(errors)

    def _asked(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What NVML answers; None where the device does not support the question."""
        try:
            return function(*arguments)
        except self._nvml.NVMLError:
            return None

    def _xid_events(self) -> Any:
        nvml = self._nvml
        try:
            events = nvml.nvmlEventSetCreate()
            for handle in self._handles:
                nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
        except nvml.NVMLError as error:
            _log.info("Xids are not told by this driver: %s", error)
            return None
        return events

    def _count_xids(self) -> None:
        """Takes up the Xids since the last call. Each is an event: two of one number are two."""
        nvml = self._nvml
        while self._events is not None:
            try:
                event = nvml.nvmlEventSetWait(self._events, 0)
            except nvml.NVMLError:  # nothing waits
                return
            index = next((index for index, handle in enumerate(self._handles) if _same(handle, event.device)), None)
            if index is not None:
                known = self._xids[index]
                number = int(event.eventData)
                known[number] = known.get(number, 0) + 1
                self._last_xids[index] = number


def _same(one: Any, other: Any) -> bool:
    """Whether two handles are of one device; ctypes makes a new pointer object each time."""
    contents = getattr(one, "contents", None), getattr(other, "contents", None)
    return one is other or one == other or (contents[0] is not None and _address(one) == _address(other))


def _address(pointer: Any) -> int:
    import ctypes

    return ctypes.addressof(pointer.contents)


class Machine:
    """Puts samples of GPUs, processes and host into the metrics of one run.

    `processes` gives process ids by rank. `sample` costs some hundred microseconds a process and a millisecond a GPU:
    call it from a thread of its own, each few seconds. Nothing here raises.
    """

    def __init__(
        self,
        metrics: Metrics,
        model: str,
        run: str,
        processes: Callable[[], Mapping[int, int]],
        gpus: Gpus | None = None,
    ) -> None:
        self._metrics, self._model, self._run = metrics, model, run
        self._processes, self._gpus = processes, gpus
        self._known: dict[int, Any] = {}
        self._counted: dict[tuple[str, ...], float] = {}
        self.gpus: tuple[GpuSample, ...] = ()
        try:
            self._psutil: Any = importlib.import_module("psutil")
        except ImportError:
            self._psutil = None
        if self._psutil is not None:
            self._psutil.cpu_percent()  # from now on

    def sample(self) -> None:
        """Takes one sample of everything."""
        try:
            self._sample_gpus()
            if self._psutil is not None:
                self._sample_host()
                for rank, process in self._processes().items():
                    self._sample_process(rank, process)
        except Exception:  # what watches a run must not end it
            _log.exception("the machine under %s could not be sampled", self._model)

    def _sample_host(self) -> None:
        self._metrics[names.HOST_CPU].set(self._psutil.cpu_percent() / 100)
        self._metrics[names.HOST_MEMORY].set(self._psutil.virtual_memory().available)

    def _sample_process(self, rank: int, process: int) -> None:
        try:
            known = self._known.get(rank)
            if known is None or known.pid != process:
                known = self._known[rank] = self._psutil.Process(process)
            with known.oneshot():
                times, memory = known.cpu_times(), known.memory_info().rss
        except self._psutil.Error:  # it has ended
            self._known.pop(rank, None)
            return
        labels = (self._model, self._run, str(rank))
        self._metrics[names.TRAINING_PROCESS_MEMORY].labels(*labels).set(memory)
        self._count(names.TRAINING_PROCESS_CPU, labels, times.user + times.system)

    def _sample_gpus(self) -> None:
        if self._gpus is None:
            return
        self.gpus = tuple(self._gpus.sample())
        for one in self.gpus:
            gpu = str(one.gpu)
            for metric, value in (
                (names.GPU_UTILIZATION, one.utilization),
                (names.GPU_MEMORY_USED, one.memory_used),
                (names.GPU_MEMORY_TOTAL, one.memory_total),
                (names.GPU_POWER, one.power),
                (names.GPU_TEMPERATURE, one.temperature),
            ):
                if value is not None:
                    self._metrics[metric].labels(gpu).set(value)
            for reason in _THROTTLES:
                self._metrics[names.GPU_THROTTLED].labels(gpu, reason).set(reason in one.throttled)
            for kind, count in (("corrected", one.ecc_corrected), ("uncorrected", one.ecc_uncorrected)):
                if count is not None:
                    self._count(names.GPU_ECC_ERRORS, (gpu, kind), count)
            if one.xids is not None:
                caused = sum(count for number, count in one.xids.items() if number in APPLICATION_XIDS)
                self._count(names.GPU_XIDS, (gpu, "application"), caused)
                self._count(names.GPU_XIDS, (gpu, "device"), sum(one.xids.values()) - caused)
            if one.last_xid is not None:
                self._metrics[names.GPU_LAST_XID].labels(gpu).set(one.last_xid)

    def _count(self, metric: names.Metric, labels: tuple[str, ...], count: float) -> None:
        """Brings a counter up to somebody else's count, which may begin anew."""
        before = self._counted.get((metric.name, *labels), 0.0)
        self._metrics[metric].labels(*labels).inc(count - before if count >= before else count)
        self._counted[metric.name, *labels] = count
