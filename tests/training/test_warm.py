"""The warm process: killed while it prepares it is started anew; it ends with the process that asked for it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from training.warm import WarmError, WarmProcess

pytestmark = pytest.mark.slow
TOYS = "tests.training.toy_warm"
WORK = f"{TOYS}:work"


def test_it_is_started_anew_when_it_is_killed_while_it_prepares(tmp_path: Path) -> None:
    warm = WarmProcess(WORK, {"folder": str(tmp_path)}, prepare=f"{TOYS}:killed_once")
    warm.close()

    assert (tmp_path / "killed").exists()


def test_it_is_given_up_when_it_is_killed_each_time(tmp_path: Path) -> None:
    with pytest.raises(WarmError, match=r"has gone \(exit status -9\)"):
        WarmProcess(WORK, {"folder": str(tmp_path)}, prepare=f"{TOYS}:killed_always")

    assert (tmp_path / "times").read_text() == "xxx"


def test_what_keeps_its_process_from_starting_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.warm.subprocess", subprocess)  # no fork, a process of its own
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))

    with pytest.raises(FileNotFoundError, match="python"):
        WarmProcess(WORK, {"folder": str(tmp_path)})


def test_it_prepares_nothing_for_a_supervisor_that_was_killed_while_it_imported(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    said = {
        "target": WORK,
        "prepare": f"{TOYS}:killed_always",
        "arguments": {"folder": str(tmp_path)},
        "path": sys.path,
    }
    ours.sendall(json.dumps({**said, "arguments": {"folder": str(tmp_path)}}).encode() + b"\n")
    ours.close()
    command = [sys.executable, "-m", "training.zygote", str(theirs.fileno())]
    with theirs, subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
        assert process.wait() == 0

    assert not (tmp_path / "times").exists()


def test_nobody_waits_where_there_is_nothing_to_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for no ranks is not told after a minute that they were not forked."""
    monkeypatch.setattr("training.warm._FORK_SECONDS", 0.0)
    warm = WarmProcess(WORK, {"folder": str(tmp_path)})
    try:
        warm.fork([], [])

        assert list(warm.ends(0.0)) == []
    finally:
        warm.close()
