"""An append that returned survives kill -9."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from collectors.store import Matcher, Store

T0 = 1_700_000_000_000
ROOT = Path(__file__).resolve().parents[2]

WRITER = """
import sys, threading
from collectors.store import Store
store = Store(sys.argv[1], clock=lambda: 1_700_000_000)
lock = threading.Lock()
def work(number):
    for step in range(1_000_000):
        store.append(f"t{number}", 1_700_000_000_000 + step, [({"__name__": "x", "i": str(number)}, float(step))])
        with lock:
            print(number, step, flush=True)
for number in range(3):
    threading.Thread(target=work, args=(number,)).start()
"""


@pytest.mark.slow
@pytest.mark.parametrize("lines", [333])
def test_what_was_acknowledged_is_there_after_kill_9(tmp_path: Path, lines: int) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, url], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = [writer.stdout.readline() for _ in range(lines)]
    writer.send_signal(signal.SIGKILL)
    acknowledged += [line for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    writer.wait(60)
    writer.stdout.close()
    newest: dict[str, int] = {}
    for line in acknowledged:
        number, step = line.split()
        newest[number] = max(newest.get(number, 0), int(step))
    store = Store(url, clock=lambda: 1_700_000_000.0)
    found = {s.labels["i"]: s for s in store.select([Matcher("__name__", "=", "x")], 0, 2 * T0)}
    store.close()

    assert sum(newest.values()) + len(newest) >= lines - 3
    for number, step in newest.items():
        assert found[number].v[: step + 1].tolist() == [float(k) for k in range(step + 1)]


@pytest.mark.slow
def test_kills_amid_ingest_compaction_and_retention_lose_nothing() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "store_kills.py"), "--kills", "3", "--seed", "5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills" in done.stdout
