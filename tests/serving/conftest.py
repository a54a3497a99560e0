"""Small models as artifacts, a registry, and a real service on a free port."""

from __future__ import annotations

import asyncio
import importlib
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from serving import Input, Output, Registry, Service, ServingConfig, Signature, save_artifact

torch.set_num_threads(1)


class LogOfAmount(torch.nn.Module):
    """log(amount) * scale + an offset by carrier: NaN for a negative amount, infinite for 0."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))
        self.register_buffer("offsets", torch.tensor([0.0, 10.0, 20.0]))

    def forward(self, amount: torch.Tensor, carrier: torch.Tensor) -> torch.Tensor:
        return torch.log(amount) * self.scale + self.offsets[carrier]


@pytest.fixture(scope="session")
def signature() -> Signature:
    return Signature((Input.of("amount", "FP32"), Input.of("carrier", "BYTES", ["AA", "UA"])), (Output("score"),))


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory, signature: Signature) -> list[Path]:
    """Three versions of one model: score = version * log(amount) + offset."""
    folders = []
    for scale in (1.0, 2.0, 3.0):
        folder = tmp_path_factory.mktemp("artifact")
        save_artifact(folder, LogOfAmount(scale), signature, {"amount": [2.0], "carrier": ["AA"]})
        folders.append(folder)
    return folders


@pytest.fixture
def registry_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/registry.db"


@pytest.fixture
def registry(tmp_path: Path, registry_url: str, artifacts: list[Path]) -> Registry:
    """Versions 1, 2 and 3 of `fares`; 1 is stable."""
    registry = Registry(registry_url, tmp_path / "artifacts")
    for folder in artifacts:
        registry.register(
            "fares", folder, lineage={"run": folder.name}, profile=b'{"columns": {}}', metrics={"auc": 0.7}
        )
    registry.set_alias("fares", "stable", 1)
    yield registry
    registry.close()


Start = Callable[..., Awaitable[Service]]


@pytest.fixture
async def start(registry: Registry, registry_url: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts services on free ports; drains them at the end."""
    running: list[Service] = []

    async def begin(**settings: Any) -> Service:
        given = {"registry_url": registry_url, "artifacts_dir": tmp_path / "artifacts", "port": 0, "drain_notice": 0.0}
        service = Service(ServingConfig(**(given | settings)))
        await service.start()
        running.append(service)
        return service

    yield begin
    for service in running:
        if service.health.state != "draining":
            await service.drain()
    await asyncio.sleep(0)


@pytest.fixture
def gated_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """`module:callable` of a model that waits for the file `open` beside it, and raises for an amount of 666."""
    (tmp_path / "gate_architecture.py").write_text(
        textwrap.dedent(
            f"""
            import pathlib, time, torch

            OPEN = pathlib.Path({str(tmp_path / "open")!r})

            class Gate(torch.nn.Module):
                def __init__(self):
                    super().__init__()
                    self.scale = torch.nn.Parameter(torch.tensor(1.0))

                def forward(self, amount, carrier):
                    while not OPEN.exists():
                        time.sleep(0.002)
                    if (amount == 666).any():
                        raise RuntimeError("an amount of 666")
                    return amount * self.scale
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    # Each test has its own file; the module that the last one imported is not it.
    monkeypatch.delitem(sys.modules, "gate_architecture", raising=False)
    return "gate_architecture:Gate"


@pytest.fixture
def gate(gated_architecture: str, tmp_path: Path, registry: Registry, signature: Signature) -> tuple[str, Path]:
    """The model `gate` (version 1 stable) and the file whose presence lets it work; it is open at first."""
    gate_file = tmp_path / "open"
    gate_file.touch()
    module = importlib.import_module(gated_architecture.partition(":")[0]).Gate()
    save_artifact(
        tmp_path / "gate", module, signature, {"amount": [2.0], "carrier": ["AA"]},
        format="safetensors", architecture=gated_architecture,
    )  # fmt: skip
    registry.register("gate", tmp_path / "gate", lineage={}, profile=None, metrics={})
    registry.set_alias("gate", "stable", 1)
    return gated_architecture, gate_file
