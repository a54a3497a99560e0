"""The README's code runs as it stands, with a loop, a model and an application like a reader's around it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import torch

from trimtab.cli import COMMANDS
from trimtab.settings import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_training_example_measures_the_readers_loop() -> None:
    model = torch.nn.Linear(4, 1)
    names: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
        "criterion": torch.nn.functional.mse_loss,
        "batches": [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(5)],
    }
    # Nobody need run a collector to read this page.
    example = _blocks("python")[0].replace("http://127.0.0.1:4318", "http://127.0.0.1:9")

    exec(compile(example, "README.md", "exec"), names)

    registry = names["monitor"].metrics.registry
    assert registry.get_sample_value("training_steps_total", {"model": "my-model"}) == 5.0
    assert registry.get_sample_value("training_samples_total", {"model": "my-model"}) == 40.0


async def test_the_serving_example_measures_the_readers_application() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        names["predict"]({"x": np.ones(3)})
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    names: dict[str, Any] = {"app": app, "model": lambda features: features["x"] * 0.5}
    example = _blocks("python")[1].replace("http://127.0.0.1:4318", "http://127.0.0.1:9")
    exec(compile(example, "README.md", "exec"), names)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=names["app"]), base_url="http://server") as client:
        answer = await client.post("/predict")
        page = (await client.get("/metrics")).text
    names["events"].close(timeout=0)

    assert answer.status_code == 200
    assert 'inference_requests_total{model="my-model",outcome="ok",version="3"} 1.0' in page
    assert 'inference_rows_total{model="my-model",version="3"} 3.0' in page


def test_the_examples_are_as_short_as_they_claim() -> None:
    assert [len(block.splitlines()) for block in _blocks("python") if len(block.splitlines()) > 15] == []


def test_the_settings_in_the_page_are_settings() -> None:
    for block in _blocks("toml"):
        msgspec.convert(tomllib.loads(block), Settings)


def test_every_command_and_link_in_the_page_exists() -> None:
    commands = set(re.findall(r"`trimtab (\w+)", README))
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", README)

    assert commands
    assert commands <= set(COMMANDS)
    assert [link for link in links if not (ROOT / link).exists()] == []
