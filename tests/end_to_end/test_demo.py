"""The whole loop, as separate processes, on the real flights."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from dashboards.testing.browser import CHROMIUM, walk
from observability.lake import read_events, read_labelled
from trimtab.demo.plan import FAST, MODEL, Plan
from trimtab.demo.story import Story

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
StoryOf = Callable[[Plan], Story]


def _actions(story: Story) -> list[dict[str, Any]]:
    answer = httpx.get(f"{story.settings.alerts_url}/api/v1/actions", params={"limit": 100})
    answer.raise_for_status()
    rows: list[dict[str, Any]] = answer.json()
    return rows


def test_the_command_closes_the_loop_and_reports_every_step(folder: Path) -> None:
    argv = [
        sys.executable,
        "-m",
        "trimtab",
        "demo",
        "--fast",
        "--headless",
        "--json",
        "--data",
        str(folder / "command"),
    ]

    done = subprocess.run(argv, capture_output=True, text=True, timeout=540, check=False)

    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
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
    # Only the bad release failed anybody, in the whole run.
    assert report["requests"]["failed"] == rollback["bad_requests"]


async def test_without_the_fault_no_rollback_comes(story_of: StoryOf) -> None:
    story = story_of(replace(FAST, fault=False, rollback_seconds=40.0))

    report = await story.tell()

    assert report.rollback is None
    assert report.missing is not None
    assert report.missing.startswith("no rollback within")
    kinds = {action["action"] for action in _actions(story)}
    assert "rollback" not in kinds
    assert "promote" in kinds  # the same evidence, asked the other way round, proves the honest release safe
    model = httpx.get(f"{story.settings.serving_url}/api/v1/models/{MODEL}").json()
    assert str(model["stable"]) == "2"
    assert report.requests["failed"] == 0


async def test_the_loop_closes_with_the_collector_killed_and_restarted(story_of: StoryOf) -> None:
    story = story_of(FAST)
    kills: list[float] = []

    async def kill_the_collector() -> None:
        """Once while all is well, once while the seasons are watched."""
        while story.replay is None:
            await asyncio.sleep(0.1)
        for pause in (4.0, 40.0):
            await asyncio.sleep(pause)
            kills.append(time.time())
            await asyncio.to_thread(story.stack.kill, "collector")

    chaos = asyncio.create_task(kill_the_collector())
    report = await story.tell()
    await chaos

    assert len(kills) == 2
    assert report.complete, report.missing
    assert report.rollback is not None
    assert report.requests["failed"] == report.rollback["bad_requests"]
    await _check_pages(story)
    serving = httpx.get(f"{story.settings.serving_url}/metrics").text
    dropped = [line for line in serving.splitlines() if line.startswith("telemetry_dropped_batches_total")]
    assert [line for line in dropped if 'signal="events"' in line] == []
    await asyncio.to_thread(story.stack.stop)
    # Every answer that serving gave is in the lake once, and every label that was sent is there too.
    events = read_events(story.settings.lake, MODEL)
    assert len(set(events.column("id").to_pylist())) == report.requests["sent"]
    labelled = read_labelled(story.settings.lake, MODEL)
    assert len(labelled) == report.requests["labels"]


async def _check_pages(story: Story) -> None:
    """Metrics that promtool accepts, and a dashboard on which nothing is broken."""
    urls = (story.settings.collector_url, story.settings.alerts_url, story.settings.serving_url)
    for url in urls:
        page = httpx.get(f"{url}/metrics").text
        if shutil.which("promtool"):
            checked = subprocess.run(
                ["promtool", "check", "metrics"], input=page, capture_output=True, text=True, check=False
            )
            assert checked.returncode == 0, checked.stdout + checked.stderr
    if Path(CHROMIUM).exists():
        assert await asyncio.to_thread(walk, story.settings.dashboard_url) == []
