"""Releases by their policies on real processes, which are killed while a canary is up; labels alone tell of one."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
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
# Of probabilities in [0, 1], whose label is whether they are at least 0.5, as the stable version answers them: what the
# candidates make of them.
CANDIDATES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "worse": lambda x: torch.where(x < 0.25, 1 - x, x),
    "equal": lambda x: x * 0.999999,
    "shifted": lambda x: 0.5 + (x - 0.5) * 0.3,
}
JUDGED = """
  {model}:
    blessing: none
    verdict: {{loss: zero-one, max_error_rate: 0.2, latency_floor_seconds: 1000}}
    steps: [{{canary: {{weight: 0.5, min_requests: 1000000}}}}]
"""
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
    after_promotion: {hold_back: 0.1, seconds: 15m}
"""


class Scaled(torch.nn.Module):
    """Where it scales by more than 1 it has no answer to large numbers."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))
        self.limit = torch.nn.Parameter(torch.tensor(100.0 if scale > 1.0 else 1e9))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale / (x <= self.limit).to(x.dtype)


class Made(torch.nn.Module):
    def __init__(self, make: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.make(x)


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


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    tmp_path = tmp_path_factory.mktemp("stack")
    (tmp_path / "releases.yaml").write_text(POLICY + "".join(JUDGED.format(model=model) for model in CANDIDATES))
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
    for model, make in CANDIDATES.items():
        for version, one in enumerate((torch.abs, make)):
            save_artifact(tmp_path / f"{model}{version}", Made(one), signature, {"x": [1.0]})
            registry.register(model, tmp_path / f"{model}{version}", lineage={}, profile=None, metrics={})
        registry.set_alias(model, "stable", 1)
    registry.close()
    stack.start(NAMES)
    try:
        stack.wait_ready(NAMES, timeout=240.0)
        yield stack
    finally:
        stack.stop()


def test_a_release_walks_its_steps_although_its_leader_is_killed_and_goes_back_when_it_turns_bad(stack: Stack) -> None:
    settings, done, large = stack.settings, threading.Event(), threading.Event()
    base, secret = settings.alerts_url, {"Authorization": "Bearer s"}

    def ask() -> None:
        column = {"name": "x", "shape": [1, 1], "datatype": "FP32"}
        with httpx.Client(timeout=60.0) as client:
            while not done.wait(0.02):
                try:
                    body = {"inputs": [{**column, "data": [1000.0 if large.is_set() else 1.0]}]}
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
        guarding = wait_for(lambda: (found := release())["phase"] == "guarding" and found, "the watch")
        assert (page()["stable"], page()["hold_back"]["weight"]) == (2, 0.1), guarding
        wait_for(lambda: release()["watch"]["requests"]["other"] >= 5, "requests of both versions")
        stack.kill("alerts")
        large.set()
        ended = wait_for(lambda: (found := release())["ended_at"] and found, "the end")
    finally:
        done.set()
        asking.join()

    assert (ended["phase"], page()["stable"], page()["shadows"]) == ("rolled_back", 1, []), ended
    assert page()["hold_back"] is None
    assert "after its promotion" in ended["reason"]
    lines = [line for line in page()["history"] if line["release"] or "step:m" in str(line["reason"])]
    told = [(line["event"], str(line["reason"]).rpartition(" [")[0] or line["event"]) for line in lines]
    events = ["promote", "shadow", "shadow", "canary", "canary", "promote", "hold_back", "rollback"]
    assert [event for event, _ in told] == events, lines
    actions = httpx.get(f"{base}/api/v1/actions", timeout=60.0).json()
    assert {action["state"] for action in actions} == {"done"}, actions
    assert (
        httpx.get(f"{base}/metrics").text.count('release_state{candidate="2",model="m",state="rolled_back"} 1.0') == 1
    )


def test_labels_alone_roll_a_worse_version_back_and_tell_an_equal_and_a_shifted_one_from_it(stack: Stack) -> None:
    settings, begun = stack.settings, {"actor": "ada", "version": 2}
    base, secret, rng = settings.alerts_url, {"Authorization": "Bearer s"}, random.Random(4)
    for model in CANDIDATES:
        body = {"model": model, **begun}
        httpx.post(f"{base}/api/v1/releases", json=body, headers=secret, timeout=30.0).raise_for_status()

    def page(model: str) -> dict[str, Any]:
        return dict(httpx.get(f"{settings.serving_url}/api/v1/models/{model}", timeout=10.0).json())

    def judged(model: str) -> dict[str, Any]:
        found = httpx.get(f"{base}/api/v1/evidence", timeout=10.0).raise_for_status().json()
        return next((dict(one) for one in found["releases"] if one["model"] == model), {})

    for model in CANDIDATES:
        wait_for(lambda model=model: page(model)["canary"], f"the canary of {model}")
    labels: list[dict[str, Any]] = []
    with httpx.Client(timeout=30.0) as client:
        for number in range(520):  # bins are made of the first 500 predictions
            for model in CANDIDATES if number < 250 else ("equal", "shifted"):
                x = rng.random()
                body = {"id": f"{model}-{number}",
                        "inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [x]}]}  # fmt: skip
                client.post(f"{settings.serving_url}/v2/models/{model}/infer", json=body).raise_for_status()
                labels.append({"id": body["id"], "model": model, "label": float(x >= 0.5)})

    def told(part: list[dict[str, Any]]) -> None:
        wait_for(lambda: httpx.post(f"{settings.intake_url}/v1/labels", json=part).is_success, "the labels' intake")

    # Late, half before and half after a kill of both sides, and some of them twice.
    told(labels[: len(labels) // 2])
    for name in ("collector", "alerts"):
        stack.kill(name)
    told(labels[len(labels) // 3 :])

    def release(model: str) -> dict[str, Any]:
        return dict(httpx.get(f"{base}/api/v1/releases/{model}", timeout=10.0).raise_for_status().json())

    ended = wait_for(lambda: (one := release("worse"))["ended_at"] and one, "the rollback of the worse version")
    assert page("worse")["canary"] is None
    assert ended["phase"] == "rolled_back", ended
    # By its policy, or by the rule that says the same in the same second.
    assert any(worse in ended["reason"] for worse in ("its predictions are worse", "CanaryWorse: ")), ended["reason"]
    for model in ("equal", "shifted"):
        wait_for(lambda model=model: counted(judged(model)) == 520, f"the labels of {model}")
        # The feeds are asked one after the other: a look may have all labels and no prediction yet.
        wait_for(lambda model=model: predicted(judged(model)) == 520, f"the predictions of {model}")
        seen = judged(model)
        assert page(model)["canary"]["version"] == 2
        assert seen["evidence"]["quality"]["harm"] < 10.0, seen
        assert seen["evidence"]["prediction"]["total_variation"] > 0
        assert (seen["evidence"]["prediction"]["shift"] > 100.0) is (model == "shifted"), seen
        assert "Of its labels: " in " ".join(release(model)["explanation"])


def counted(judgement: dict[str, Any]) -> int:
    """The labels that stand behind a judgement, of both arms."""
    quality = msgspec.json.decode(judgement["replay"]["state"])["quality"] if judgement else None
    return int(quality["candidate"]["labels"] + quality["stable"]["labels"]) if quality else 0


def predicted(judgement: dict[str, Any]) -> int:
    """The predictions that stand behind a judgement, of both arms."""
    parts = msgspec.json.decode(judgement["replay"]["state"])["predicted"] if judgement else []
    return int(sum(sum(part["canary"]) + sum(part["stable"]) for part in parts))
