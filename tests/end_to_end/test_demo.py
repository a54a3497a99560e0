"""The whole loop, as separate processes, on the real flights."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from dashboards.testing.browser import CHROMIUM, walk
from observability.lake import read_events, read_labelled
from trimtab.demo.plan import FAST, MODEL, Plan
from trimtab.demo.story import Story
from trimtab.settings import Settings, load

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
StoryOf = Callable[[Plan], Story]


class Demo:
    """`trimtab demo` as a newcomer runs it: it tells its story, prints its report, and stays until Ctrl-C."""

    def __init__(self, data: Path) -> None:
        self.data = data
        argv = [sys.executable, "-m", "trimtab", "demo", "--fast", "--json", "--data", str(data)]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.told: list[str] = []
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            print(line, end="")
            self.told.append(line)

    @property
    def settings(self) -> Settings:
        return load(self.data / "stack.toml", {})

    def wait_for(self, words: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not any(words in line for line in self.told):
            assert self.process.poll() is None, "".join(self.told)
            assert time.monotonic() < deadline, f"{words!r} was not told:\n" + "".join(self.told)
            time.sleep(0.1)

    def kill(self, service: str) -> None:
        """SIGKILL, as the kernel does it to a process that takes too much memory."""
        [found] = [
            process
            for process in psutil.Process(self.process.pid).children()
            if process.cmdline()[1:4] == ["-m", "trimtab", service]
        ]
        found.kill()

    def report(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if line == "}\n":
                break
        body: dict[str, Any] = json.loads("".join(lines))
        return body

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)

    def close(self) -> None:
        """Whatever has happened: the stack is stopped, and the pipes are closed."""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(60)
        self._listener.join(60)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


def test_the_loop_closes_though_the_collector_is_killed_twice(folder: Path) -> None:
    demo = Demo(folder / "whole")
    try:
        demo.wait_for("replaying", 300)
        time.sleep(4.0)
        demo.kill("collector")  # while all is well
        demo.wait_for("rolled back to v1", 300)
        time.sleep(20.0)
        demo.kill("collector")  # while the seasons are watched
        report = demo.report()

        _check_report(report)
        _check_metrics(demo.settings)
        if Path(CHROMIUM).exists():
            assert walk(demo.settings.dashboard_url, menu=False, settle_seconds=1.0) == []
        assert demo.interrupt() == 0
    finally:
        demo.close()

    # Every answer that serving gave is in the lake, and so is every label that was sent: the kills lost nothing.
    events = read_events(demo.settings.lake, MODEL)
    assert len(set(events.column("id").to_pylist())) == report["requests"]["sent"]
    assert len(read_labelled(demo.settings.lake, MODEL)) == report["requests"]["labels"]


def _check_report(report: dict[str, Any]) -> None:
    assert report["missing"] is None
    assert report["trained"]["gate"]["upper_bound"] < 0
    rollback = report["rollback"]
    assert rollback["alert"] == "CanaryHarmful"
    assert rollback["release_at"] < rollback["detected_at"] <= rollback["completed_at"]
    assert rollback["bad_requests"] > 0
    assert rollback["failed_by_switch"] == 0
    assert rollback["answered_after_switch"] == 0
    assert report["drift"]["alert"] == "DriftDetected"
    assert "temp" in report["drift"]["columns"]
    assert report["retrain"]["parent"] == 1
    assert report["retrain"]["gate"]["upper_bound"] <= 0
    assert report["promoted"]["version"] == str(report["retrain"]["version"]) == "3"
    # Only the bad release failed anybody, in the whole run: serving did not notice that the collector was away.
    assert report["requests"]["failed"] == rollback["bad_requests"]


def _check_metrics(settings: Settings) -> None:
    """promtool accepts every page; serving gave up no events."""
    for url in (settings.collector_url, settings.alerts_url, settings.serving_url):
        page = httpx.get(f"{url}/metrics").text
        assert page
        if shutil.which("promtool"):
            checked = subprocess.run(
                ["promtool", "check", "metrics"], input=page, capture_output=True, text=True, check=False
            )
            assert checked.returncode == 0, checked.stdout + checked.stderr
    serving = httpx.get(f"{settings.serving_url}/metrics").text.splitlines()
    dropped = [line for line in serving if line.startswith("telemetry_dropped_batches_total")]
    assert [line for line in dropped if 'signal="events"' in line] == []


async def test_without_the_fault_no_rollback_comes(story_of: StoryOf) -> None:
    story = story_of(replace(FAST, fault=False, rollback_seconds=120.0))

    report = await story.tell()

    assert report.rollback is None
    assert report.missing is not None
    assert report.missing.startswith("no rollback: ")
    assert report.missing.endswith(" came to a promote")
    async with httpx.AsyncClient() as http:
        actions = (await http.get(f"{story.settings.alerts_url}/api/v1/actions", params={"limit": 100})).json()
        model = (await http.get(f"{story.settings.serving_url}/api/v1/models/{MODEL}")).json()
    kinds = {action["action"] for action in actions}
    assert "rollback" not in kinds
    assert "promote" in kinds  # the same evidence, asked the other way round, proves the honest release safe
    assert str(model["stable"]) == "2"
    assert report.requests["failed"] == 0
