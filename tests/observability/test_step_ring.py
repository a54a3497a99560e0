"""The ring of step records: read by others while it is written, and after its writer was killed."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from observability.names import PHASES
from observability.step_ring import DURATION, FIRST_PHASE, NUMBER, RingError, RingView, StepRing
from observability.training import TrainingMonitor

NO_TIME = [0] * len(PHASES)


def test_what_is_written_is_read_by_another_opening(tmp_path: Path) -> None:
    ring = StepRing.create(
        tmp_path / "rank-3.ring", model="délai", run="r1", rank=3, world_size=4, attempt=2, capacity=8
    )
    for step in range(5):
        ring.begin(step, 100 + step)
        ring.doing(1)
        ring.write(step, 100 + step, 7, 32, [*range(len(PHASES))])
    ring.checkpointed(4)
    ring.collectives(9, 8)
    ring.readings(0.5, math.nan, 1e-3)
    ring.state("running")

    view = RingView.open(tmp_path / "rank-3.ring")

    assert (view.owner.model, view.owner.run, view.owner.rank, view.owner.attempt) == ("délai", "r1", 3, 2)
    now = view.now()
    assert (now.num_steps, now.num_samples, now.state, now.phase, now.step) == (5, 160, "running", PHASES[1], 4)
    assert (now.checkpoint, now.enqueued, now.completed, now.loss) == (4, 9, 8, 0.5)
    assert math.isnan(now.gradient_norm)
    records = view.records()
    assert records[:, NUMBER].tolist() == [0, 1, 2, 3, 4]
    assert records[:, FIRST_PHASE:].tolist() == [[*range(len(PHASES))]] * 5
    assert view.records(3)[:, NUMBER].tolist() == [3, 4]
    assert view.records(2, 4)[:, NUMBER].tolist() == [2, 3]


def test_a_full_ring_keeps_the_latest_and_leaves_out_the_one_about_to_go() -> None:
    ring = StepRing.in_memory(capacity=8)
    for step in range(21):
        ring.write(step, 0, step, 1, NO_TIME)

    assert ring.view().records()[:, DURATION].tolist() == [*range(14, 21)]
    assert ring.view().now().num_samples == 21


def test_a_reader_beside_the_writer_never_sees_half_a_record() -> None:
    ring, stop = StepRing.in_memory(capacity=64), threading.Event()

    def write() -> None:
        step = 0
        while not stop.is_set():
            ring.write(step, step, step, 1, [step] * len(PHASES))
            step += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(2_000):
            records = ring.view().records()
            assert (records[:, FIRST_PHASE:] == records[:, [NUMBER]]).all()
            assert (np.diff(records[:, NUMBER]) == 1).all()
    finally:
        stop.set()
        writer.join()


@pytest.mark.parametrize(("content", "message"), [(b"short", "5 bytes"), (b"x" * 4096, "begins with b'xxxx")])
def test_what_is_no_ring_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rank-0.ring"
    path.write_bytes(content)
    with pytest.raises(RingError, match=message) as caught:
        RingView.open(path)
    assert str(path) in str(caught.value)


def test_the_last_steps_of_a_killed_process_are_still_there(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.ring"
    script = f"""
import time
from pathlib import Path
from observability.step_ring import StepRing
from observability.training import TrainingMonitor
ring = StepRing.create(Path({str(path)!r}), model="m", run="r")
monitor = TrainingMonitor("m", run="r", drain_seconds=0, ring=ring)
for step in range(1000):
    monitor.start()
    monitor.mark("forward")
    if step == 37:
        print("there", flush=True)
        time.sleep(600)
    monitor.end(4)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"there\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()

    view = RingView.open(path)

    assert view.owner.process_id == process.pid
    assert (view.now().num_steps, view.now().num_samples) == (37, 148)
    assert (view.now().step, view.now().phase) == (37, "after forward")
    assert view.records()[-1, NUMBER] == 36


def test_a_ring_has_all_of_its_disk_from_the_beginning(tmp_path: Path) -> None:
    """A page of a file that cannot be had when it is written kills the process, and nothing says why."""
    StepRing.create(tmp_path / "rank-0.ring", model="m", run="r")

    found = (tmp_path / "rank-0.ring").stat()
    assert found.st_blocks * 512 >= found.st_size > 100_000


def test_a_monitor_that_resumes_numbers_its_steps_on(tmp_path: Path) -> None:
    ring = StepRing.create(tmp_path / "rank-0.ring", model="m", run="r")
    monitor = TrainingMonitor("m", run="r", drain_seconds=0, ring=ring)
    monitor.resumed(40)
    for _ in range(3):
        with monitor.step(samples=2) as step:
            step.loss = 0.25
    monitor.drain()

    now = RingView.open(tmp_path / "rank-0.ring").now()
    assert now.checkpoint == 40
    assert now.loss == 0.25
    assert ring.view().records()[:, NUMBER].tolist() == [40, 41, 42]
