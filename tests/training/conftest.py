"""A small tabular task of known truth, a registry, a run's monitor without a thread, warm processes made by a fork."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from observability import TrainingMonitor
from serving.registry import Registry
from tests.training.forks import ForkedZygote
from training import Encoding, TabularTask

torch.set_num_threads(1)


class TinyNet(nn.Module):
    """One embedding and three numbers into a logistic regression with dropout, so that random state matters."""

    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        self.colour = nn.Embedding(len(encoding.vocabularies["colour"]) + 1, 2)
        self.register_buffer("means", torch.tensor([encoding.means[name] for name in ("x", "y", "z")]))
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))

    def logits(self, colour: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        numbers = torch.nan_to_num(torch.stack([x, y, z], dim=1) - self.means)
        return self.layers(torch.cat([self.colour(colour), numbers], dim=1)).squeeze(1)

    def forward(self, colour: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(colour, x, y, z))


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(f"sqlite:///{tmp_path / 'registry.db'}", tmp_path / "artifacts")
    yield registry
    registry.close()


@pytest.fixture
def task() -> TabularTask:
    return TabularTask(
        model="tiny",
        categorical=("colour",),
        numeric=("x", "y", "z"),
        label="label",
        group="day",
        output="probability",
        network=TinyNet,
    )


@pytest.fixture
def make_table():
    """Rows over days; the label follows `slope` times x and the colour."""

    def make(rows: int = 2000, days: int = 20, slope: float = 1.5, seed: int = 0) -> pa.Table:
        generator = np.random.default_rng(seed)
        colour = generator.choice(["red", "green", "blue"], rows)
        numbers = {name: generator.normal(size=rows) for name in ("x", "y", "z")}
        odds = slope * numbers["x"] + (colour == "red") - 0.5
        label = (generator.random(rows) < 1 / (1 + np.exp(-odds))).astype(float)
        missing = pa.array(numbers["y"], mask=generator.random(rows) < 0.1)
        day = [f"2024-01-{1 + index * days // rows:02d}" for index in range(rows)]
        return pa.table(
            {"colour": colour, "x": numbers["x"], "y": missing, "z": numbers["z"], "label": label, "day": day}
        )

    return make


@pytest.fixture
def monitor() -> Iterator[TrainingMonitor]:
    with TrainingMonitor("tiny", run="test", drain_seconds=0) as monitor:
        yield monitor


@pytest.fixture(autouse=True)
def _forked_zygotes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm processes that this process starts are forks; those of the processes that tests start are none."""
    monkeypatch.setattr("training.warm.subprocess", SimpleNamespace(Popen=ForkedZygote, DEVNULL=subprocess.DEVNULL))
