"""A trace of some steps: whole, with the monitor's phases where torch's operations are, and at no price afterwards."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from observability import TrainingMonitor
from observability.step_clock import PlainClock
from tests.training.forks import forked
from tests.training.toy_forms import deep
from tests.training.toy_network import line, rows
from training.faults import Fault, Faults, disk_full
from training.loop import Trainer
from training.parallel import fit_in_ranks
from training.parallel_config import ParallelConfig
from training.profiling import RECORDED, WAIT, WARM_UP, of_rank, profiled
from training.supervisor import Limits
from training.train_config import TrainConfig
from training.watch import HangLimits

BEFORE = WAIT + WARM_UP
CONFIG = TrainConfig(epochs=5, batch_size=101, report_every=1, checkpoint_every=10, max_steps=30, threads=1)
PHASES = ("data_wait", "host_to_device", "forward", "backward", "optimizer")


def trainer(monitor: TrainingMonitor, steps: int = 30) -> Trainer:
    return Trainer(line(), rows(), dataclasses.replace(CONFIG, max_steps=steps), monitor)


def events(path: Path) -> list[dict]:
    return json.loads(path.read_text())["traceEvents"]


def ours(found: list[dict]) -> list[dict]:
    return [one for one in found if one.get("cat") == "trimtab"]


def lies_in(inner: dict, outer: dict, slack: float = 0.0) -> bool:
    """Whether a slice is within another, so far as two clocks that are set by each other can tell."""
    ends = inner["ts"] + inner["dur"], outer["ts"] + outer["dur"]
    return outer["ts"] - slack <= inner["ts"] and ends[0] <= ends[1] + slack


def dropped(found: list[dict]) -> list[str]:
    """The slices that Perfetto drops: those that reach beyond the end of what they begin in on the same row.

    It reads times as nanoseconds, takes slices that begin together in the order of the file, and has what is said of
    the thread 0 in the row of the process's first thread.
    """
    lost, ends = list[str](), dict[tuple[str, str], list[int]]()
    for one in sorted((one for one in found if one["ph"] == "X"), key=lambda one: int(one["ts"] * 1000)):
        since = int(one["ts"] * 1000)
        around = ends.setdefault((str(one["pid"]), str(one["tid"] or one["pid"])), [])
        while around and around[-1] <= since:
            around.pop()
        if around and since + int(one["dur"] * 1000) > around[-1]:
            lost.append(one["name"])
        around.append(since + int(one["dur"] * 1000))
    return lost


def monitor_with(clock: type | None, monkeypatch: pytest.MonkeyPatch) -> TrainingMonitor:
    if clock is not None:
        monkeypatch.setattr("observability.training.step_clock", clock)
    return TrainingMonitor("toy", run="r", drain_seconds=0)


def test_steps_are_written_as_the_profiler_saw_them_and_phases_above_them(
    monitor: TrainingMonitor, tmp_path: Path
) -> None:
    with profiled(monitor, tmp_path / "trace" / "steps.json"):
        trainer(monitor).run()

    found = events(tmp_path / "trace" / "steps.json")
    steps = {one["name"] for one in found if one["name"].startswith("ProfilerStep#")}
    assert steps == {f"ProfilerStep#{number}" for number in range(BEFORE, BEFORE + RECORDED)}
    assert any(one["name"] == "aten::addmm" for one in found)
    named = Counter(one["name"] for one in ours(found))
    assert {phase: named[phase] for phase in PHASES} == dict.fromkeys(PHASES, RECORDED)
    whole = [one for one in ours(found) if one["name"].startswith("step ")]
    assert [one["name"] for one in whole] == [f"step {number}" for number in range(BEFORE, BEFORE + RECORDED)]
    assert all(any(lies_in(one, step, 0.01) for step in whole) for one in ours(found))
    assert dropped(found) == []
    assert {one["tid"] for one in ours(found)}.isdisjoint(one["tid"] for one in found if one.get("cat") == "cpu_op")
    # Both clocks were set by the same one: what torch saw of an optimizer lies in the phase of that name.
    optimizers = [one for one in ours(found) if one["name"] == "optimizer"]
    seen = [one for one in found if one["name"].startswith("Optimizer.step")]
    assert len(seen) == RECORDED
    assert all(any(lies_in(one, phase, 100.0) for phase in optimizers) for one in seen)
    threads = {(one["pid"], one["tid"]) for one in found if one["ph"] == "X" and isinstance(one["pid"], int)}
    assert threads == {(one["pid"], one["tid"]) for one in found if one["name"] == "thread_name"}


@pytest.mark.parametrize("clock", [None, PlainClock])
def test_steps_and_phases_as_blocks_are_seen_with_and_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: type | None
) -> None:
    with monitor_with(clock, monkeypatch) as monitor, profiled(monitor, tmp_path / "steps.json"):
        monitor.resumed(1000)
        for _ in range(BEFORE + 3):
            with monitor.step(samples=2) as step:
                for phase in ("forward", "backward", "forward", "backward"):
                    with monitor.phase(phase):
                        torch.ones(2)
                step.loss = 1.0

    found = [one["name"] for one in ours(events(tmp_path / "steps.json"))]
    assert found == [
        name for number in range(3) for name in (f"step {1000 + BEFORE + number}", *("forward", "backward") * 2)
    ]


@pytest.mark.parametrize("clock", [None, PlainClock])
def test_after_the_last_step_that_is_written_the_monitor_is_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: type | None
) -> None:
    with monitor_with(clock, monkeypatch) as monitor:
        before = dict(vars(monitor))
        with profiled(monitor, tmp_path / "steps.json"):
            for _ in range(BEFORE + RECORDED):
                monitor.start()
                assert monitor.after_step is not None
                monitor.end(1)

            assert monitor.after_step is None
            assert vars(monitor) == before
            assert not torch.autograd.profiler._is_profiler_enabled
            assert len(ours(events(tmp_path / "steps.json"))) == RECORDED


@pytest.mark.parametrize("steps", [1, BEFORE])
def test_a_run_that_the_profiler_passes_over_leaves_no_file_not_even_an_old_one(
    monitor: TrainingMonitor, tmp_path: Path, caplog: pytest.LogCaptureFixture, steps: int
) -> None:
    (tmp_path / "steps.json").write_text("of an earlier run")

    with profiled(monitor, tmp_path / "steps.json"):
        trainer(monitor, steps).run()

    assert list(tmp_path.iterdir()) == []
    assert f"of {steps} steps none was left, the profiler passes over the first {BEFORE}" in caplog.text


def test_a_run_that_is_interrupted_while_it_is_recorded_leaves_what_was_recorded(
    monitor: TrainingMonitor, tmp_path: Path
) -> None:
    def interrupted() -> None:
        with profiled(monitor, tmp_path / "steps.json.gz"):
            for number in range(BEFORE + 5):
                monitor.start()
                if number == BEFORE + 2:
                    raise KeyboardInterrupt
                monitor.mark("forward")
                monitor.end(1)

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    found = json.loads(gzip.decompress((tmp_path / "steps.json.gz").read_bytes()))["traceEvents"]
    assert [one["name"] for one in ours(found)] == [f"step {BEFORE}", "forward", f"step {BEFORE + 1}", "forward"]
    assert monitor.after_step is None


@pytest.mark.parametrize("part", [0.02, 1.01])
def test_a_full_disk_costs_the_trace_and_not_the_run(
    monitor: TrainingMonitor, tmp_path: Path, caplog: pytest.LogCaptureFixture, part: float
) -> None:
    """It is full while torch writes, and while our events are put to torch's."""
    with profiled(monitor, tmp_path / "steps.json"):
        trainer(monitor).run()
    size = len((tmp_path / "steps.json").read_bytes())
    bare = size - sum(len(json.dumps(one)) + 2 for one in ours(events(tmp_path / "steps.json")))

    with disk_full(int(bare * part)), profiled(monitor, tmp_path / "steps.json"):
        result = trainer(monitor).run()

    assert (result.outcome, result.steps) == ("completed", 30)
    assert list(tmp_path.iterdir()) == []
    assert "steps.json was not written: " in caplog.text


def test_a_file_of_a_rank_has_its_number_before_its_kind() -> None:
    names = [of_rank(Path("a.b/steps.json.gz"), 3), of_rank(Path("steps"), 0)]

    assert names == [Path("a.b/steps.rank-3.json.gz"), Path("steps.rank-0")]


@pytest.mark.slow
def test_every_rank_of_several_writes_its_own_steps_with_their_communication(tmp_path: Path) -> None:
    fit_in_ranks(
        line(), rows(), CONFIG, world_size=2, folder=tmp_path / "run", model="toy", run="r", echo=None,
        profile=tmp_path / "steps.json",
    )  # fmt: skip

    assert sorted(one.name for one in tmp_path.iterdir()) == ["run", "steps.rank-0.json", "steps.rank-1.json"]
    for rank in range(2):
        found = events(of_rank(tmp_path / "steps.json", rank))
        # Of the names of a process the latest counts, and in other viewers the last.
        named = [one for one in found if one["name"] == "process_name"]
        assert named[-1]["args"]["name"] == f"rank {rank} of 2"
        assert named[-1]["ts"] > max(one["ts"] for one in found if one["name"] != "process_name" and "ts" in one)
        assert sum(one["name"] == "communication" for one in ours(found)) == RECORDED
        assert any(one["name"] == "gloo:all_reduce" for one in found)


@pytest.mark.slow
def test_messages_between_stages_are_in_rows_where_none_reaches_into_another(tmp_path: Path) -> None:
    fit_in_ranks(
        deep(), rows(1001), dataclasses.replace(CONFIG, max_steps=BEFORE + 4), world_size=2, folder=tmp_path / "run",
        model="toy", run="r", echo=None, profile=tmp_path / "steps.json", parallel=ParallelConfig(pipeline=2),
    )  # fmt: skip

    for rank in range(2):
        found = events(of_rank(tmp_path / "steps.json", rank))
        messages = [one for one in found if one["name"] in ("gloo:send", "gloo:recv")]
        assert len(messages) == 4 * 2 * ParallelConfig(pipeline=2).num_microbatches
        assert dropped(found) == []
        threads = {one["tid"]: one["args"]["name"] for one in found if one["name"] == "thread_name"}
        assert {threads[one["tid"]] for one in messages} == {"messages 1", "messages 2"}


@pytest.mark.slow
def test_ranks_write_what_they_recorded_when_ctrl_c_ends_the_run(tmp_path: Path) -> None:
    """As far as they came: rank 0 sleeps in a step, and rank 1 waits for it. The supervisor alone is signalled."""
    stuck = Faults((Fault("slow", rank=0, step=12, seconds=3600.0),))
    run = forked(profiled_in_ranks, tmp_path, stuck)
    try:
        limit = time.monotonic() + 120.0
        while not list(tmp_path.glob("run/checkpoints/step-*10.ckpt")):
            assert time.monotonic() < limit
            time.sleep(0.05)
        assert run.pid is not None
        os.kill(run.pid, signal.SIGINT)
        run.join(60.0)
    finally:
        run.kill()

    assert (tmp_path / "ended").read_text() == "KeyboardInterrupt"
    for rank in range(2):
        whole = [one["name"] for one in ours(events(of_rank(tmp_path / "steps.json", rank))) if "step" in one["name"]]
        assert whole[:6] == [f"step {number}" for number in range(BEFORE, 10)]
        assert not list((tmp_path / "run").glob(f"attempt-*/rank-{rank}.error.json"))


def profiled_in_ranks(folder: Path, faults: Faults) -> None:
    """A run of two ranks in a process of its own, which says how it ended."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        fit_in_ranks(
            line(), rows(), CONFIG, world_size=2, folder=folder / "run", model="toy", run="r", echo=None,
            profile=folder / "steps.json", faults=faults, limits=Limits(hang=HangLimits(step=300.0, first=300.0)),
        )  # fmt: skip
    except BaseException as error:
        (folder / "ended").write_text(type(error).__name__)
