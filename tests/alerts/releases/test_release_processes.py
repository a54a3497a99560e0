"""A release by its policy on real processes, whose alerts service is killed while the canary is up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import torch

from serving import Input, Output, Registry, Signature, save_artifact
from trimtab.settings import Settings
from trimtab.stack import Stack, with_free_ports

pytestmark = pytest.mark.slow
NAMES = ("collector", "alerts", "serving")
POLICY = """
models:
  m:
    blessing: {require: [loads, answers, deterministic, skew]}
    verdict: {max_error_rate: 0.2}
    steps:
      - shadow: {fraction: 1, min_pairs: 30, max_failed_ratio: 0.2}
      - canary: {weight: 0.3, min_requests: 20, min_e_value: 1}
      - hold: manual
      - canary: {weight: 0.6, min_requests: 20}
"""


class Scaled(torch.nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def wait_for(true: Callable[[], Any], what: str, seconds: float = 180.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := true():
                return found
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    return pytest.fail(f"{what}: not within {seconds} s")


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    (tmp_path / "releases.yaml").write_text(POLICY)
    general = msgspec.structs.replace(Settings().trimtab, data=str(tmp_path / "data"), secret="s")
    releases = msgspec.structs.replace(Settings().releases, policies=str(tmp_path / "releases.yaml"))
    settings, _ = with_free_ports(
        msgspec.structs.replace(Settings(), trimtab=general, releases=releases), anywhere=True
    )
    stack = Stack.prepare(settings)
    registry = Registry(settings.registry_url, settings.artifacts)
    signature = Signature((Input.of("x", "FP32"),), (Output("y"),))
    for scale in (1.0, 1.01):
        save_artifact(tmp_path / str(scale), Scaled(scale), signature, {"x": [1.0]})
        lineage = {"sample": {"inputs": {"x": [1.0, 2.0]}, "outputs": {"y": [scale, 2 * scale]}}}
        registry.register("m", tmp_path / str(scale), lineage=lineage, profile=None, metrics={})
    registry.set_alias("m", "stable", 1)
    registry.close()
    yield stack
    stack.stop()


def test_a_release_walks_its_steps_although_its_leader_is_killed_and_each_step_happens_once(stack: Stack) -> None:
    settings, done = stack.settings, threading.Event()
    stack.start(NAMES)
    stack.wait_ready(NAMES, timeout=240.0)
    base, secret = settings.alerts_url, {"Authorization": "Bearer s"}

    def ask() -> None:
        body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}
        with httpx.Client(timeout=60.0) as client:
            while not done.wait(0.02):
                try:
                    client.post(f"{settings.serving_url}/v2/models/m/infer", json=body)
                except httpx.HTTPError:
                    pass

    def release() -> dict[str, Any]:
        return dict(httpx.get(f"{base}/api/v1/releases/m", timeout=60.0).raise_for_status().json())

    def page() -> dict[str, Any]:
        return dict(httpx.get(f"{settings.serving_url}/api/v1/models/m", timeout=60.0).raise_for_status().json())

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        begun = httpx.post(
            f"{base}/api/v1/releases", json={"model": "m", "version": 2, "actor": "ada"}, headers=secret, timeout=60.0
        )
        assert begun.status_code == 202, begun.text
        wait_for(lambda: (page()["canary"] or {}).get("weight") == 0.3, "the first canary")
        stack.kill("alerts")
        held = wait_for(lambda: (found := release())["held"] == "gate" and found, "the gate")
        assert "trimtab releases approve m" in " ".join(held["explanation"])
        assert held["blessing"]["checks"]["skew"]["state"] == "passed"
        httpx.post(f"{base}/api/v1/releases/m/approve", json={"actor": "ada"}, headers=secret).raise_for_status()
        ended = wait_for(lambda: (found := release())["ended_at"] and found, "the end")
    finally:
        done.set()
        asking.join()

    assert (ended["phase"], page()["stable"], page()["shadows"]) == ("promoted", 2, []), ended
    lines = [line for line in page()["history"] if line["release"] or "step:m" in str(line["reason"])]
    told = [(line["event"], str(line["reason"]).rpartition(" [")[0] or line["event"]) for line in lines]
    assert [event for event, _ in told] == ["promote", "shadow", "shadow", "canary", "canary", "promote"], lines
    actions = httpx.get(f"{base}/api/v1/actions", timeout=60.0).json()
    assert {action["state"] for action in actions} == {"done"}, actions
    assert httpx.get(f"{base}/metrics").text.count('release_state{candidate="2",model="m",state="promoted"} 1.0') == 1
