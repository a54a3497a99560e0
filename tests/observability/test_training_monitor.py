"""The monitor of a training loop, with the host's clock and with a device that lags behind."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from observability import names
from observability.device_timer import DeviceTimer
from observability.training import TrainingMonitor


@dataclass
class Clock:
    """Nanoseconds that pass only when told."""

    now: int = 1_000_000

    def __call__(self) -> int:
        return self.now

    def passes(self, milliseconds: float) -> None:
        self.now += round(milliseconds * 1e6)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def monitor(clock: Clock) -> TrainingMonitor:
    return TrainingMonitor("delay", run="r1", drain_seconds=0, clock=clock, capacity=64)


def value(monitor: TrainingMonitor, family: names.Metric, suffix: str = "", **labels: str) -> float | None:
    of_run = {"run": "r1"} if "run" in family.labels else {}
    return monitor.metrics.registry.get_sample_value(family.name + suffix, {"model": "delay", **of_run, **labels})


def phase(monitor: TrainingMonitor, name: str) -> tuple[float | None, float | None]:
    counts = [value(monitor, names.TRAINING_PHASE_DURATION, suffix, phase=name) for suffix in ("_count", "_sum")]
    return counts[0], counts[1]


def test_steps_and_phases_are_timed_and_counted(monitor: TrainingMonitor, clock: Clock) -> None:
    for _ in range(10):
        with monitor.step(samples=32) as step:
            with monitor.phase("forward"):
                clock.passes(2)
            clock.passes(1)
            with monitor.phase("backward"):
                clock.passes(3)
            step.loss, step.gradient_norm, step.learning_rate = torch.tensor(0.5), 2.0, 1e-3
    monitor.drain()

    assert value(monitor, names.TRAINING_STEPS) == 10
    assert value(monitor, names.TRAINING_SAMPLES) == 320
    assert value(monitor, names.TRAINING_STEP_DURATION, "_sum") == pytest.approx(0.06)
    assert phase(monitor, "forward") == (10, pytest.approx(0.02))
    assert phase(monitor, "backward") == (10, pytest.approx(0.03))
    assert phase(monitor, "data_wait") == (0, 0)
    assert value(monitor, names.TRAINING_THROUGHPUT) == pytest.approx(320 / 0.06)
    assert value(monitor, names.TRAINING_LOSS) == 0.5
    assert value(monitor, names.TRAINING_GRADIENT_NORM) == 2.0
    assert value(monitor, names.TRAINING_LEARNING_RATE) == 1e-3


def test_marks_part_a_step_without_gaps(monitor: TrainingMonitor, clock: Clock) -> None:
    monitor.start()
    for name, milliseconds in (("data_wait", 1), ("forward", 2), ("backward", 3), ("forward", 4)):
        clock.passes(milliseconds)
        monitor.mark(name)
    monitor.end(8)
    monitor.drain()

    assert phase(monitor, "forward") == (1, pytest.approx(0.006))
    assert value(monitor, names.TRAINING_STEP_DURATION, "_sum") == pytest.approx(0.010)


def test_draining_twice_counts_nothing_twice(monitor: TrainingMonitor, clock: Clock) -> None:
    for _ in range(3):
        monitor.start()
        clock.passes(1)
        monitor.end(4)
        monitor.drain()
        monitor.drain()

    assert value(monitor, names.TRAINING_STEPS) == 3
    assert value(monitor, names.TRAINING_STEP_DURATION, "_count") == 3
    assert value(monitor, names.TRAINING_SAMPLES) == 12


def test_a_drain_that_comes_too_late_loses_times_but_no_counts(monitor: TrainingMonitor, clock: Clock) -> None:
    for _ in range(200):
        monitor.start()
        clock.passes(1)
        monitor.end(2)
    monitor.drain()

    assert value(monitor, names.TRAINING_STEPS) == 200
    assert value(monitor, names.TRAINING_SAMPLES) == 400
    assert value(monitor, names.TRAINING_STEP_DURATION, "_count") == 63


def test_a_step_that_raises_is_not_recorded(monitor: TrainingMonitor, clock: Clock) -> None:
    def failing_step() -> None:
        with monitor.step(samples=8), monitor.phase("forward"):
            clock.passes(5)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        failing_step()
    with monitor.step(samples=8), monitor.phase("backward"):
        clock.passes(1)
    monitor.drain()

    assert value(monitor, names.TRAINING_STEPS) == 1
    assert phase(monitor, "forward") == (0, 0)


def test_the_loss_is_kept_without_its_graph_and_read_only_in_the_drain(monitor: TrainingMonitor) -> None:
    weight = torch.ones(1, requires_grad=True)
    loss = (weight * 3).sum()
    monitor.start()
    monitor.end(1, loss=loss)

    assert monitor._steps.latest[0].grad_fn is None
    assert value(monitor, names.TRAINING_LOSS) is None
    monitor.drain()
    assert value(monitor, names.TRAINING_LOSS) == 3


def test_an_unknown_phase_is_refused(monitor: TrainingMonitor) -> None:
    with pytest.raises(KeyError, match="foreward"):
        monitor.mark("foreward")
    with pytest.raises(KeyError, match="foreward"), monitor.phase("foreward"):
        pass


def test_rare_events_are_counted(monitor: TrainingMonitor) -> None:
    monitor.skipped()
    monitor.checkpointed()
    monitor.evaluated(log_loss=0.4, roc_auc=0.7)
    monitor.finished("rejected")

    assert value(monitor, names.TRAINING_NONFINITE) == 1
    assert value(monitor, names.TRAINING_CHECKPOINTS, outcome="ok") == 1
    assert value(monitor, names.TRAINING_EVALUATION, metric="roc_auc") == 0.7
    assert value(monitor, names.TRAINING_RUNS, outcome="rejected") == 1


def test_the_background_thread_drains_and_close_drains_the_rest() -> None:
    with TrainingMonitor("delay", run="r1", drain_seconds=0.01) as monitor:
        for _ in range(100):
            with monitor.step(samples=1), monitor.phase("forward"):
                pass

    assert value(monitor, names.TRAINING_STEPS) == 100
    assert phase(monitor, "forward")[0] == 100


@dataclass
class Device:
    """A stream that has reached only part of its marks: the clock of `torch.cuda.Event`s, by hand."""

    reached: int = 0
    marks: list[FakeEvent] = field(default_factory=list)
    num_events: int = 0

    def event(self) -> FakeEvent:
        self.num_events += 1
        return FakeEvent(self)


@dataclass(eq=False)
class FakeEvent:
    """Each mark lies 10 ms of device time behind the one before."""

    device: Device
    position: int = -1

    def record(self) -> None:
        self.device.marks.append(self)
        self.position = len(self.device.marks)

    def query(self) -> bool:
        return self.position <= self.device.reached

    def elapsed_time(self, end_event: Any) -> float:
        assert self.query()
        assert end_event.query(), "the time to an event that is not over must not be asked"
        return 10.0 * (end_event.position - self.position)


def device_step(monitor: TrainingMonitor) -> None:
    monitor.start()
    monitor.mark("forward")
    monitor.mark("backward")
    monitor.end(1)


def test_a_device_is_timed_by_its_own_clock_and_never_waited_for(clock: Clock) -> None:
    device = Device()
    timer = DeviceTimer(device.event)
    monitor = TrainingMonitor("delay", run="r1", drain_seconds=0, clock=clock, device_timer=timer)
    for _ in range(3):
        device_step(monitor)

    monitor.drain()
    assert phase(monitor, "forward") == (0, 0)
    device.reached = 5
    monitor.drain()
    assert phase(monitor, "forward") == (1, pytest.approx(0.010))
    device.reached = 9
    monitor.drain()
    assert phase(monitor, "backward") == (3, pytest.approx(0.030))
    assert value(monitor, names.TRAINING_STEPS) == 3


def test_the_time_between_two_phase_blocks_belongs_to_neither_on_a_device(clock: Clock) -> None:
    device = Device(reached=10**6)
    timer = DeviceTimer(device.event)
    monitor = TrainingMonitor("delay", run="r1", drain_seconds=0, clock=clock, device_timer=timer)
    with monitor.step():
        for name in ("forward", "backward"):
            with monitor.phase(name):
                pass
    monitor.drain()

    assert phase(monitor, "forward") == (1, pytest.approx(0.010))
    assert phase(monitor, "backward") == (1, pytest.approx(0.010))


def test_device_events_are_used_again_and_bounded(clock: Clock) -> None:
    device = Device()
    timer = DeviceTimer(device.event, max_events=7)
    monitor = TrainingMonitor("delay", run="r1", drain_seconds=0, clock=clock, device_timer=timer)
    for _ in range(5):
        device_step(monitor)

    assert device.num_events == 7
    assert timer.num_untimed == 3
    device.reached = 10**6
    monitor.drain()
    assert phase(monitor, "backward")[0] == 2
    device_step(monitor)
    monitor.drain()
    assert phase(monitor, "backward")[0] == 3
    assert device.num_events == 7


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_cuda_the_phases_add_up_to_the_work() -> None:
    with TrainingMonitor("delay", run="r1", device="cuda", drain_seconds=0) as monitor:
        x = torch.ones(2048, 2048, device="cuda")
        for _ in range(20):
            with monitor.step(samples=1) as step, monitor.phase("forward"):
                step.loss = (x @ x).mean()
        torch.cuda.synchronize()
        monitor.drain()
        monitor.drain()

    assert phase(monitor, "forward")[0] == 20
    assert value(monitor, names.TRAINING_LOSS) == pytest.approx(2048)


@pytest.fixture(params=["compiled where it can be", "in Python"])
def real(request: pytest.FixtureRequest) -> Iterator[TrainingMonitor]:
    clock = time.perf_counter_ns if request.param.startswith("compiled") else lambda: time.perf_counter_ns()
    with TrainingMonitor("delay", run="r", drain_seconds=0, clock=clock) as made:
        yield made


def test_blocks_record_a_step_its_phases_and_what_it_says_of_itself(real: TrainingMonitor) -> None:
    loss = (torch.ones(1, requires_grad=True) * 3).sum()
    with real.step(samples=4) as step:
        with real.phase("forward"):
            pass
        with real.phase("backward"):
            assert real.ring.view().now().phase == "backward"
        assert real.ring.view().now().phase == "after backward"
        step.samples, step.tokens, step.loss = step.samples + 1, 70, loss
        step.gradient_norm, step.learning_rate = torch.tensor(2.0), 0.5
    (record,) = real.ring.view().records()
    now = real.ring.view().now()
    real.drain()

    assert (now.num_steps, now.num_samples, now.num_tokens) == (1, 5, 70)
    assert [place for place, spent in enumerate(record[4:]) if spent] == [
        names.PHASES.index(phase) for phase in ("forward", "backward")
    ]
    assert getattr(real._steps.latest[0], "grad_fn", None) is None
    shown = real.ring.view().now()
    assert (shown.loss, shown.gradient_norm, shown.learning_rate) == (3.0, 2.0, 0.5)


def test_blocks_that_raise_are_not_recorded_and_those_of_no_phase_are_refused(real: TrainingMonitor) -> None:
    with pytest.raises(RuntimeError, match="enough"), real.step(4), real.phase("forward"):
        raise RuntimeError("enough")
    with pytest.raises(KeyError, match="lunch"), real.step(4), real.phase("lunch"):
        pass
    with real.step(), real.phase("backward"):
        pass
    with pytest.raises(TypeError):
        real.step(4, 5)
    with pytest.raises(TypeError):
        real.step(rows=4)
    with pytest.raises(TypeError):
        real.end(4, rows=2)

    (record,) = real.ring.view().records()
    assert record[3] == 0
    assert not record[4 + names.PHASES.index("forward")]


def test_a_loss_keeps_no_graph_whatever_it_is(real: TrainingMonitor) -> None:
    weight = torch.ones(2, requires_grad=True)
    for loss in (weight.sum(), weight * 2, 0.5, 1, None, "a word"):
        real.start()
        real.end(samples=1, loss=loss, gradient_norm=weight.sum(), tokens=2)
        kept = real._steps.latest[0]
        assert getattr(kept, "grad_fn", None) is None
        assert isinstance(loss, torch.Tensor) or kept == loss
    assert float(real._steps.latest[1]) == 2.0
    real.start()
    real.end(1)
    real.drain()


@pytest.mark.parametrize("loss", [{"total": torch.tensor(1.0)}, torch.ones(3), "0.5 nats", object()])
def test_a_loss_that_is_no_number_costs_a_warning_and_not_the_training(
    real: TrainingMonitor, loss: object, caplog: pytest.LogCaptureFixture
) -> None:
    for said in (0.25, loss, loss):
        with real.step(samples=2) as step:
            step.loss = said
        real.drain()
    real.close()

    warned = [one.message for one in caplog.records]
    assert [f"a {type(loss).__name__} is not shown" in one for one in warned] == [True]
    assert real.metrics.registry.get_sample_value("training_steps_total", {"model": real.model}) == 3
    assert real.metrics[names.TRAINING_LOSS].labels(real.model, real.run)._value.get() == 0.25


def test_a_drain_that_fails_does_not_end_the_training_it_watched(
    real: TrainingMonitor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        raise RuntimeError("no metrics today")

    monkeypatch.setattr(real, "drain", fails)
    with real, real.step(samples=1) as step:
        step.loss = 1.0

    assert "could not be drained" in caplog.text


def test_who_asks_is_called_after_every_step_and_may_stop_it(real: TrainingMonitor) -> None:
    seen: list[int] = []
    real.after_step = lambda: seen.append(real.ring.view().now().num_steps)
    for _ in range(2):
        with real.step(1):
            pass
    assert real.after_step is not None
    real.after_step = None
    real.start()
    real.end(1)

    assert seen == [1, 2]

    def failing() -> None:
        raise RuntimeError("enough")

    real.after_step = failing
    with pytest.raises(RuntimeError, match="enough"), real.step(1):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_monitor_can_be_closed_in_a_process_that_was_forked_while_it_was_drained() -> None:
    monitor = TrainingMonitor("m", run="r", machine_seconds=0)
    with monitor.step(samples=1):
        pass
    with monitor._draining, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads beside a fork: that is what this is about
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            with monitor.step(samples=1):
                pass
            monitor.close()
            steps = monitor.metrics.registry.get_sample_value(names.TRAINING_STEPS.name, {"model": "m"})
            os._exit(0 if steps == 2 else 1)
    monitor.close()

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
