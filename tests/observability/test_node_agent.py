"""The agent of a node: one page for ranks that nobody supervises, also of one that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dashboards import queries
from observability import Metrics, exposition, names
from observability.names import PHASES
from observability.node_agent import NodeAgent
from observability.rank_agent import RankAgent
from observability.step_ring import StepRing

RANK = """
import sys, time
from pathlib import Path
from observability import TrainingMonitor
from observability.step_ring import StepRing
ring = StepRing.create(Path(sys.argv[1]), model="mine", run="r", rank=1, world_size=2)
monitor = TrainingMonitor("mine", run="r", ring=ring, drain_seconds=0)
for _ in range(7):
    with monitor.step(samples=4), monitor.phase("forward"):
        pass
print("there", flush=True)
time.sleep(600)
"""


def write(folder: Path, rank: int, steps: int, attempt: int = 0) -> None:
    path = folder / f"attempt-{attempt:04d}" / f"rank-{rank}.ring"
    ring = StepRing.create(path, model="mine", run="r", rank=rank, world_size=2, attempt=attempt)
    for step in range(steps):
        ring.write(step, step, 1000, 4, [100] * len(PHASES))


def value(metrics: Metrics, name: names.Metric, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name.name, {"model": "mine", **labels})


def test_a_killed_ranks_last_steps_are_on_the_page_and_it_is_down(tmp_path: Path) -> None:
    write(tmp_path, 0, steps=9)
    path = tmp_path / "attempt-0000" / "rank-1.ring"
    process = subprocess.Popen([sys.executable, "-c", RANK, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        agent = NodeAgent(tmp_path, Metrics())
        agent.look()
        assert agent.ranks == {0: os.getpid(), 1: process.pid}
        assert value(agent.metrics, names.TRAINING_RANK_UP, run="r", rank="1") == 1
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
    agent.look()

    # Over the time that the ranks take, not over that since this process first looked: the steps of `write` began at 0.
    assert 0 < (value(agent.metrics, names.TRAINING_THROUGHPUT, run="r") or 0) < 10
    assert value(agent.metrics, names.TRAINING_RANK_UP, run="r", rank="1") == 0
    assert value(agent.metrics, names.TRAINING_RANK_UP, run="r", rank="0") == 1
    # The run's steps are rank 0's, and samples are everybody's.
    assert value(agent.metrics, names.TRAINING_STEPS) == 9
    assert value(agent.metrics, names.TRAINING_SAMPLES) == 36 + 28


def test_the_latest_attempt_is_followed_and_what_is_no_ring_is_left_alone(tmp_path: Path) -> None:
    agent = NodeAgent(tmp_path, Metrics())
    agent.look()
    write(tmp_path, 0, steps=5)
    (tmp_path / "other.ring").write_bytes(b"x" * 5000)
    agent.look()
    write(tmp_path, 0, steps=3, attempt=1)
    agent.look()
    agent.look()

    assert value(agent.metrics, names.TRAINING_STEPS) == 8
    assert sum(line.startswith(b"training_rank_up{") for line in exposition(agent.metrics)[0].splitlines()) == 1


def test_throughput_is_of_a_second_however_often_the_rings_are_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "attempt-0000" / "rank-0.ring"
    ring = StepRing.create(path, model="mine", run="r")
    agent = RankAgent("mine", "r", Metrics(), since_ns=time.perf_counter_ns() - 2_000_000_000)
    agent.follow([path])
    for step in range(100):
        ring.write(step, 0, 1000, 4, [100] * len(PHASES))
        agent.look()

    # The first look came two seconds after the start, all others within the next one.
    assert 0 < (value(agent.metrics, names.TRAINING_THROUGHPUT, run="r") or 0) <= 400
    assert value(agent.metrics, names.TRAINING_SAMPLES) == 400


def test_phases_over_the_steps_of_all_ranks_are_the_time_of_one(tmp_path: Path) -> None:
    for rank in range(2):
        write(tmp_path, rank, steps=10)
    agent = NodeAgent(tmp_path, Metrics())
    agent.look()

    phase = agent.metrics.registry.get_sample_value(
        f"{names.TRAINING_PHASE_DURATION.name}_sum", {"model": "mine", "phase": "forward"}
    )
    steps = agent.metrics.registry.get_sample_value(f"{names.TRAINING_STEP_DURATION.name}_count", {"model": "mine"})
    assert phase is not None
    assert steps == 20
    assert phase / steps == pytest.approx(100e-9)
    assert f"{names.TRAINING_STEP_DURATION.name}_count" in queries.phases("mine", 60)["steps"]
