"""Some steps of a run by torch's own profiler, as a file that Perfetto and chrome://tracing open.

Steps and phases of the monitor are a row of their own in it, above the operations of the threads.
"""

from __future__ import annotations

import gzip
import json
import logging
import mmap
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from observability.training import Step, TrainingMonitor

# Steps that are passed over (allocators and caches fill), that only warm the profiler, and that are recorded.
WAIT, WARM_UP, RECORDED = 3, 1, 20

# The time that torch's times are counted from, in the beginning of its trace, and where its list of events ends.
_BASE, _HEAD_BYTES = re.compile(rb'"baseTimeNanoseconds": (\d+)'), 1 << 20
_END, _TAIL_BYTES = re.compile(rb'\s*\],\s*"traceName"[^\]]*\}\s*$'), 1 << 16
# What travels between stages is under way while its thread does something else.
_MESSAGE = re.compile(
    rb'"name": "gloo:(?:send|recv)",\s*"pid": \d+,\s*"tid": (?P<tid>\d+),'
    rb'\s*"ts": (?P<ts>[\d.]+),\s*"dur": (?P<dur>[\d.]+)'
)
# Perfetto drops a slice that reaches into the next by a nanosecond, and reads times as numbers with fractions.
_APART = 3
# Of the row of phases, and the first of messages: Linux gives no thread such a number, and 0 is the first to Perfetto.
_ROW = 1 << 22
_MESSAGES = _ROW + 1
_log = logging.getLogger(__name__)


@contextmanager
def profiled(monitor: TrainingMonitor, path: Path, label: str = "") -> Iterator[None]:
    """Records `RECORDED` steps of what the monitor watches into `path`, a Chrome trace as JSON (`.gz`: compressed).

    A run that ends before is recorded as far as it went; one of at most `WAIT + WARM_UP` steps leaves no file, nor does
    a disk that is full: both cost a warning, and the run goes on. Steps after the recorded ones cost nothing more.
    `label` names the process in the trace, such as one rank of several. OSError where there can be no such file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # what an earlier run left must not be taken for this one's
    window = _Window(monitor, path, label)
    try:
        yield
    finally:
        window.close()


def of_rank(path: Path, rank: int) -> Path:
    """The file of one rank of several: `steps.json` becomes `steps.rank-1.json`."""
    name, dot, kind = path.name.partition(".")
    return path.with_name(f"{name}.rank-{rank}{dot}{kind}")


class _Window:
    """The profiler over some steps of a monitor, from `WAIT` steps on until they are recorded or `close` says so."""

    def __init__(self, monitor: TrainingMonitor, path: Path, label: str) -> None:
        self._monitor, self._path, self._label = monitor, path, label
        self._steps, self._open = 0, True
        self._phases = _Phases(monitor)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._profiler = profile(
            activities=activities,
            schedule=schedule(wait=WAIT, warmup=WARM_UP, active=RECORDED, repeat=1),
            on_trace_ready=self._write,
            acc_events=True,
        )
        self._profiler.start()
        monitor.after_step = self._stepped

    def _stepped(self) -> None:
        self._steps += 1
        if self._steps == WAIT + WARM_UP + RECORDED:
            # To write takes long, where nothing is heard of this process.
            self._monitor.entering("checkpoint")
        self._profiler.step()
        if self._steps == WAIT + WARM_UP:
            self._phases.begin()
        if self._steps == WAIT + WARM_UP + RECORDED:
            self.close()

    def close(self) -> None:
        """Leaves the monitor as it was; a second call does nothing."""
        if not self._open:
            return
        self._open = False
        self._monitor.after_step = None
        self._phases.end()
        self._profiler.stop()
        if self._steps <= WAIT + WARM_UP:
            _log.warning(
                "%s was not written: of %d steps none was left, the profiler passes over the first %d",
                self._path, self._steps, WAIT + WARM_UP,
            )  # fmt: skip

    def _write(self, done: Any) -> None:
        """Writes what was recorded, beside its place first: a trace that is cut off does not open."""
        self._phases.end()
        if self._steps <= WAIT + WARM_UP:
            return
        bare, partial = (self._path.with_name(f".{self._path.name}.{what}") for what in ("torch.json", "partial"))
        try:
            done.export_chrome_trace(str(bare))
            _joined(bare, partial, self._phases.events(self._label), packed=self._path.suffix == ".gz")
            partial.replace(self._path)
        except (OSError, ValueError, RuntimeError) as error:  # a profile is not worth the run
            free = shutil.disk_usage(self._path.parent).free
            _log.warning("%s was not written: %s (%d bytes are free there)", self._path, error, free)
        finally:
            for left in (bare, bare.with_name(f"{bare.name}.tmp"), partial):
                left.unlink(missing_ok=True)


class _Phases:
    """Steps and phases as they are marked on a monitor between `begin` and `end`, in nanoseconds of one clock."""

    def __init__(self, monitor: TrainingMonitor) -> None:
        self._monitor = monitor
        self._before: dict[str, Any] = {}
        self._slices: list[tuple[str, int, int]] = []
        self._step = self._since = 0

    def begin(self) -> None:
        """Listens to the marks from now on."""
        monitor: Any = self._monitor
        # The compiled clock's blocks do not pass by the monitor's own `start` and `end`.
        wraps: dict[str, Callable[[Any], Any]] = {
            "start": self._start, "mark": self._mark, "end": self._end, "phase": self._phase
        }  # fmt: skip
        if "step" in vars(monitor):
            wraps["step"] = self._block
        for name, wrap in wraps.items():
            self._before[name] = vars(monitor).get(name)
            setattr(monitor, name, wrap(getattr(monitor, name)))

    def end(self) -> None:
        """Leaves the monitor's methods as they were; a second call does nothing."""
        monitor: Any = self._monitor
        for name, before in self._before.items():
            delattr(monitor, name) if before is None else setattr(monitor, name, before)
        self._before = {}

    def events(self, label: str) -> list[dict[str, Any]]:
        """The row as events of a trace, what encloses others before them; times are Unix nanoseconds."""
        process, offset = os.getpid(), time.time_ns() - time.perf_counter_ns()
        found = _row(process, _ROW, "steps and phases", -1)
        for name, since, until in sorted(self._slices, key=lambda one: (one[1], -one[2])):
            said = {"ph": "X", "cat": "trimtab", "name": name, "pid": process, "tid": _ROW}
            found.append(said | {"ts": since + offset, "dur": max(0, until - since - _APART)})
        if label:
            # torch has given it a name: Perfetto takes the one of the latest time, chrome://tracing the last.
            said = {"ph": "M", "name": "process_name", "pid": process, "tid": _ROW, "args": {"name": label}}
            found.append(said | {"ts": time.time_ns()})
        return found

    def _ended_step(self) -> None:
        number = self._monitor.ring.view().now().step
        self._slices.append((f"step {number}", self._step, time.perf_counter_ns()))

    def _start(self, inner: Callable[[], None]) -> Callable[[], None]:
        def start() -> None:
            self._step = self._since = time.perf_counter_ns()
            inner()

        return start

    def _mark(self, inner: Callable[[str], None]) -> Callable[[str], None]:
        def mark(phase: str) -> None:
            inner(phase)
            now = time.perf_counter_ns()
            self._slices.append((phase, self._since, now))
            self._since = now

        return mark

    def _end(self, inner: Callable[..., None]) -> Callable[..., None]:
        def end(*told: Any, **said: Any) -> None:
            self._ended_step()  # before what is told of the end, which may write all this
            inner(*told, **said)

        return end

    def _block(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        @contextmanager
        def step(samples: int = 0) -> Iterator[Step]:
            self._step = time.perf_counter_ns()
            with inner(samples) as one:
                yield one
                self._ended_step()

        return step

    def _phase(self, inner: Callable[[str], Any]) -> Callable[[str], Any]:
        @contextmanager
        def phase(name: str) -> Iterator[None]:
            since = time.perf_counter_ns()
            with inner(name):
                yield
            self._since = time.perf_counter_ns()
            self._slices.append((name, since, self._since))

        return phase


def _row(process: int, number: int, name: str, place: int) -> list[dict[str, Any]]:
    """What names a row of a process and says where it stands."""
    said = {"thread_name": {"name": name}, "thread_sort_index": {"sort_index": place}}
    return [{"ph": "M", "name": what, "pid": process, "tid": number, "args": args} for what, args in said.items()]


def _joined(bare: Path, to: Path, events: list[dict[str, Any]], *, packed: bool) -> None:
    """Copies torch's trace with our events behind its own, without reading it whole. ValueError where it is cut off."""
    if not bare.exists() or not bare.stat().st_size:
        raise ValueError("torch could not write it")
    with (
        bare.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as source,
        gzip.open(to, "wb") if packed else to.open("wb") as target,
    ):
        base = _BASE.search(source, 0, _HEAD_BYTES)
        end = _END.search(source, max(0, len(source) - _TAIL_BYTES))
        if end is None:
            raise ValueError("torch wrote no whole trace")
        counted = (("ts", int(base[1]) if base else 0), ("dur", 0))
        ours = [one | {key: (one[key] - zero) / 1e3 for key, zero in counted if key in one} for one in events]
        moved, rows = _messages(source)
        for number in range(rows):
            ours += _row(os.getpid(), _MESSAGES + number, f"messages {number + 1}", _MESSAGES + number)
        at, added = 0, b"".join(b",\n" + json.dumps(one).encode() for one in ours)
        for since, until, text in (*moved, (end.start(), end.start(), added)):
            for start in range(at, since, 1 << 20):
                target.write(source[start : min(since, start + (1 << 20))])
            target.write(text)
            at = until
        target.write(source[at:])


def _messages(source: mmap.mmap) -> tuple[list[tuple[int, int, bytes]], int]:
    """What puts each message of a trace into the first row in which it reaches into no other; and how many rows."""
    found = list(_MESSAGE.finditer(source))
    free, moved = list[float](), list[tuple[int, int, bytes]]()
    for one in sorted(found, key=lambda one: float(one["ts"])):
        since, until = float(one["ts"]), float(one["ts"]) + float(one["dur"]) + _APART / 1e3
        row = next((number for number, ends in enumerate(free) if ends <= since), len(free))
        free[row : row + 1] = [until]
        moved.append((*one.span("tid"), str(_MESSAGES + row).encode()))
    return sorted(moved), len(free)
