"""kill -9 in the midst of evaluating: alerts wait, fire and are kept firing as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from alerts.engine import RuleEngine
from alerts.querier import EngineQuerier, StoreWriter
from alerts.rules import load
from alerts.schema import open_database
from alerts.state_store import NoStateStore, StateStore
from collectors.query import Engine
from collectors.store import Store

START = 1_700_000_000.0
STEPS = 50
KILLS = 12
RULES = """
groups:
  - name: g
    interval: 1s
    rules:
      - {record: "m:sum", expr: sum by (x) (m)}
      - {alert: Now, expr: "m:sum > 0"}
      - {alert: Waits, expr: "m:sum > 0", for: 3s}
      - {alert: Kept, expr: m > 0, keep_firing_for: 4s, annotations: {summary: "{{ $value }}"}}
      - {alert: Both, expr: m > 0, for: 2s, keep_firing_for: 3s}
      - {alert: Watches, expr: 'count(ALERTS{alertstate="firing"}) > 3'}
"""


def holds(step: int, series: int) -> bool:
    """Whether a series is above zero: runs of some seconds, other ones for each series."""
    return random.Random(series * 1000 + step // (2 + series)).random() < 0.55


def seen(engine: RuleEngine, querier: EngineQuerier, ts: float) -> dict[str, Any]:
    """Everything that an evaluation leaves behind: states, and the series in the store."""
    alerts = [
        [sorted(alert.labels), alert.state, alert.active_at, alert.fired_at, alert.keep_firing_since, alert.resolved_at]
        for alert in engine.alerts()
    ]
    series = [[sorted(sample.labels), sample.value] for sample in querier.instant('{__name__=~"ALERTS.*|m:sum"}', ts)]
    return {"alerts": sorted(alerts, key=str), "series": sorted(series, key=str)}


def evaluate(folder: Path, first: int, *, lasting: bool = True) -> list[dict[str, Any]]:
    """Evaluate every second from a step on; what was seen is logged before the next step begins."""
    # What a killed process wrote is safe in the system's cache; only a power cut would need the disk.
    store = Store(f"sqlite:///{folder / 'store.db'}", clock=lambda: START, synchronous="OFF")
    querier = EngineQuerier(Engine(store))
    states = StateStore(open_database(f"sqlite:///{folder / 'alerts.db'}")) if lasting else NoStateStore()
    engine = RuleEngine(load([folder / "rules.yml"]), querier, StoreWriter(store), states)
    lines = []
    for step in range(first, STEPS):
        ts = START + step
        (folder / "next").write_text(str(step))
        (folder / "next").replace(folder / "step")
        scraped = [({"__name__": "m", "x": str(n)}, float(holds(step, n))) for n in range(3)]
        store.append("scrape", round(ts * 1000), scraped)
        for status, at in engine.due(ts):
            engine.evaluate(status, at)
        line = json.dumps({"step": step, **seen(engine, querier, ts)})
        lines.append(json.loads(line))
        log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(log, line.encode() + b"\n")  # at once: a killed process leaves no half line
        os.close(log)
    store.close()
    return lines


def _await_step(folder: Path, step: int) -> None:
    """Returns when a step is begun: by time alone a child may have ended before it is killed."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if (folder / "step").exists() and int((folder / "step").read_text()) >= step:
            return
        time.sleep(0.001)


def killed_often(folder: Path, kills: int, seed: int, longest: float) -> int:
    """Run to the end in children that are killed at random moments; gives how many were."""
    chance, done = random.Random(seed), 0
    while True:
        first = int((folder / "step").read_text()) if (folder / "step").exists() else 0
        child = os.fork()
        if child == 0:
            status = 1
            try:
                evaluate(folder, first)
                status = 0
            finally:
                os._exit(status)
        if done < kills:
            _await_step(folder, (done + 1) * STEPS // (kills + 2))
            time.sleep(chance.uniform(0.0, longest))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert status == 0
            return done
        done += 1


@pytest.mark.slow
def test_alerts_go_on_where_they_were_however_often_the_process_dies(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
        (folder / "rules.yml").write_text(RULES)

    began = time.monotonic()
    expected = {line["step"]: line for line in evaluate(whole, 0, lasting=False)}
    longest = 2.0 * (time.monotonic() - began) / STEPS
    killed = killed_often(broken, KILLS, seed=5, longest=longest)

    logged = [json.loads(line) for line in (broken / "log").read_text().splitlines()]
    assert killed >= KILLS - 2
    assert {line["step"] for line in logged} == set(range(STEPS))
    for line in logged:
        assert line == expected[line["step"]]
    kinds = {(alert[0][0][1], alert[1]) for line in logged for alert in line["alerts"]}
    assert {("Waits", "pending"), ("Waits", "firing"), ("Kept", "inactive"), ("Watches", "firing")} <= kinds
