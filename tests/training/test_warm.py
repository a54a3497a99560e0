"""The warm process: killed while it prepares it is started anew; it ends with the process that asked for it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.warm import WarmError, WarmProcess

pytestmark = pytest.mark.slow
WORK = "tests.training.toy_warm:work"


def test_it_is_started_anew_when_it_is_killed_while_it_prepares(tmp_path: Path) -> None:
    warm = WarmProcess(WORK, {"folder": str(tmp_path)}, prepare="tests.training.toy_warm:killed_once")
    warm.close()

    assert (tmp_path / "killed").exists()


def test_it_is_given_up_when_it_is_killed_each_time(tmp_path: Path) -> None:
    with pytest.raises(WarmError, match=r"has gone \(exit status -9\)"):
        WarmProcess(WORK, {"folder": str(tmp_path)}, prepare="tests.training.toy_warm:killed_always")

    assert (tmp_path / "times").read_text() == "xxx"


def test_it_ends_in_the_midst_of_its_preparations_when_the_other_end_is_gone(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-m", "training.zygote", str(theirs.fileno())], pass_fds=[theirs.fileno()]
    )
    try:
        theirs.close()
        prepare = "tests.training.toy_warm:endless"
        said = {"target": WORK, "prepare": prepare, "arguments": {"folder": str(tmp_path)}, "path": sys.path}
        ours.sendall(json.dumps(said).encode() + b"\n")
        while not (tmp_path / "begun").exists():
            assert process.poll() is None
            time.sleep(0.05)
        ours.close()

        assert process.wait(timeout=60) == -signal.SIGIO
    finally:
        process.kill()
        process.wait()
