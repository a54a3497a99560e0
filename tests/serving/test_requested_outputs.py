"""Requests for some of a model's outputs: what they do not ask for is neither sent nor judged."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from serving import CachePolicy, Input, Output, Registry, Service, Signature, save_artifact
from serving.batching.execution import execute
from serving.errors import NonFinite, ServingError
from serving.protocol.tensors import Array
from serving.routing.disagreement import Pair, compare
from tests.serving.lane_fakes import Recorded

Start = Callable[..., Awaitable[Service]]
SIGNATURE = Signature((Input.of("x", "FP32"),), (Output("log"), Output("double")))


class LogAndDouble(torch.nn.Module):
    """log(x), infinite for 0 and NaN below; and 2 x."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.log(x), 2 * x


class Columns:
    """The same in numpy."""

    signature = SIGNATURE

    def run(self, columns: Sequence[Array]) -> list[Array]:
        with np.errstate(all="ignore"):
            return [np.log(columns[0]), 2 * columns[0]]


@pytest.fixture
def numbers(registry: Registry, tmp_path: Path) -> str:
    """The model `numbers` with two outputs."""
    save_artifact(tmp_path / "numbers", LogAndDouble(), SIGNATURE, {"x": [2.0]})
    registry.register("numbers", tmp_path / "numbers", lineage={}, profile=None, metrics={})
    registry.set_alias("numbers", "stable", 1)
    return "numbers"


def asking(x: float, *outputs: str) -> dict[str, Any]:
    body: dict[str, Any] = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [x]}]}
    return body | ({"outputs": [{"name": name} for name in outputs]} if outputs else {})


def request(x: float, *outputs: str) -> Recorded:
    recorded = Recorded([x])
    recorded.wanted = outputs or None
    return recorded


def test_of_a_batch_only_those_fail_that_ask_for_what_is_not_finite() -> None:
    asked = [request(0.0, "double"), request(0.0, "log"), request(0.0), request(1.0), request(-1.0, "double", "log")]
    results = execute(Columns(), asked, 8, lambda: 0.0).results

    kinds = ["NonFinite" if isinstance(result, NonFinite) else result[1].tolist() for result in results]  # type: ignore[index]
    assert kinds == [[0.0], "NonFinite", "NonFinite", [2.0], "NonFinite"]
    assert str(results[4]).endswith(": log of row 0")
    assert not isinstance(results[3], ServingError)


async def test_a_finite_output_is_answered_although_another_of_its_row_is_infinite(start: Start, numbers: str) -> None:
    service = await start(models=(numbers,))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}") as client:
        path = f"/v2/models/{numbers}/infer"
        answers = await asyncio.gather(
            *(client.post(path, json=asking(0.0, *outputs)) for outputs in (("double",), ("log",), ()))
        )

    assert [answer.status_code for answer in answers] == [200, 500, 500]
    assert answers[0].json()["outputs"] == [{"name": "double", "datatype": "FP32", "shape": [1], "data": [0.0]}]
    assert "log of row 0" in answers[1].json()["error"]


async def test_an_answer_with_an_infinite_output_is_shared_and_kept_for_none_that_ask_for_it(
    start: Start, numbers: str
) -> None:
    service = await start(models=(numbers,), cache={numbers: CachePolicy(min_hit_ratio=0.0)})
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}") as client:
        path = f"/v2/models/{numbers}/infer"
        statuses = [
            (await client.post(path, json=asking(0.0, *outputs))).status_code
            for outputs in (("double",), (), ("log",), ("double",))
        ]
        together = await asyncio.gather(
            *(client.post(path, json=asking(-1.0, *outputs)) for outputs in (("double",), ("log",), ("double",)))
        )

    assert statuses == [200, 500, 500, 200]
    assert [answer.status_code for answer in together] == [200, 500, 200]


def test_a_shadows_infinities_that_nobody_asked_for_are_no_difference() -> None:
    names = ("log", "double")
    answer = [np.array([-math.inf, 1.0], np.float32), np.array([0.0, 5.0], np.float32)]
    shadow = [np.array([-math.inf, math.nan], np.float32), np.array([0.5, 5.0], np.float32)]

    found = compare([Pair(names, answer, names, shadow)])
    assert (found.absolute.tolist(), found.incomparable) == ([0.5], 0)
