"""A training process is killed with SIGKILL at random moments and started again until it ends by itself."""

from __future__ import annotations

import random
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.training.forks import forked, pipe
from tests.training.toy_killed import train

LIMIT_SECONDS = 240.0


def start(folder: Path) -> tuple[BaseProcess, Connection]:
    """Starts a training in a process of its own; returns when it has begun."""
    ours, theirs = pipe(duplex=False)
    process = forked(train, folder, theirs)
    theirs.close()
    assert said(ours) == "running"
    return process, ours


def said(line: Connection) -> object:
    assert line.poll(LIMIT_SECONDS)
    return line.recv()


def _await_checkpoints(folder: Path, count: int) -> None:
    """Returns when so many checkpoints have been written since the call: by time alone it might come too late."""
    seen: set[Path] = set(folder.glob("*.ckpt"))
    wanted, until = len(seen) + count, time.monotonic() + LIMIT_SECONDS
    while len(seen) < wanted and time.monotonic() < until:
        time.sleep(0.001)
        seen |= set(folder.glob("*.ckpt"))


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_with_the_loss_curve_of_one_that_was_not(tmp_path: Path) -> None:
    process, line = start(tmp_path / "whole")
    undisturbed = said(line)
    process.join(LIMIT_SECONDS)
    chance = random.Random(11)

    for _ in range(3):
        process, line = start(tmp_path / "killed")
        _await_checkpoints(tmp_path / "killed", chance.randint(1, 12))
        time.sleep(chance.uniform(0.0, 0.02))
        process.kill()
        process.join(LIMIT_SECONDS)
        assert process.exitcode == -9
        line.close()
    process, line = start(tmp_path / "killed")
    losses = said(line)
    process.join(LIMIT_SECONDS)

    assert process.exitcode == 0
    assert losses == undisturbed
    assert isinstance(undisturbed, list)
    assert len(undisturbed) == 300
