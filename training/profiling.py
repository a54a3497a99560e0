"""Some steps of a run by torch's own profiler, as a file that Perfetto and chrome://tracing open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from observability.training import TrainingMonitor

# Steps that are passed over (allocators and caches fill), that only warm the profiler, and that are recorded.
WAIT, WARM_UP, RECORDED = 3, 1, 20


@contextmanager
def profiled(monitor: TrainingMonitor, path: Path) -> Iterator[None]:
    """Records `RECORDED` steps of what the monitor watches into `path`, a Chrome trace as JSON.

    A run that ends before is recorded as far as it went; one of at most `WAIT + WARM_UP` steps leaves no file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(
        activities=activities,
        schedule=schedule(wait=WAIT, warmup=WARM_UP, active=RECORDED, repeat=1),
        on_trace_ready=lambda done: done.export_chrome_trace(str(path)),
        acc_events=True,
    ) as profiler:
        monitor.after_step = profiler.step
        try:
            yield
        finally:
            monitor.after_step = None
