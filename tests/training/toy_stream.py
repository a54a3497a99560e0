"""A small model, its champion's artifact and a lake of labelled events, and a process that learns from it and dies."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from observability.events import event_batch, label_batch
from observability.lake import write_events, write_labels
from training import Champion, Encoding, Gate, TabularTask, write_artifact
from training.online import LabelledStream, OnlineConfig, OnlineJob, OnlineSession

START = 1_700_000_000
CONFIG = OnlineConfig(batch_rows=50, learning_rate=0.02, publish_every=0)
GATE = Gate(min_rows=200, min_groups=5)


class Line(nn.Module):
    """The log odds are a line in x and y."""

    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        self.line = nn.Linear(2, 1)
        self.drop = nn.Dropout(0.1)

    def logits(self, x: Tensor, y: Tensor) -> Tensor:
        return self.line(self.drop(torch.stack([x, y], dim=1))).squeeze(1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(x, y))


TASK = TabularTask(
    model="line", categorical=(), numeric=("x", "y"), label="label", group="day", output="probability", network=Line
)


def task() -> TabularTask:
    """The task, as settings name it."""
    return TASK


def table(folder: Path) -> pa.Table:
    """Rows to judge a version by, as settings name them."""
    return pa.table(rows(3000, slope=3.0, seed=9))


def rows(count: int, slope: float = 1.5, seed: int = 0, first: int = 0) -> dict[str, list]:
    """Rows a second apart; the label follows slope times x."""
    draw = np.random.default_rng(seed)
    x, y = draw.normal(size=count), draw.normal(size=count)
    label = (draw.random(count) < 1 / (1 + np.exp(-slope * x))).astype(float)
    numbers = range(first, first + count)
    return {
        "id": [f"r{number}" for number in numbers],
        "time": [START + number for number in numbers],
        "x": x.tolist(),
        "y": y.tolist(),
        "label": label.tolist(),
        "day": [f"2024-01-{1 + number // 100:02d}" for number in numbers],
    }


def write(
    lake: Path, given: dict[str, list], labels: list[int] | None = None, times_ns: list[int] | None = None
) -> None:
    """Writes events, and the labels of the rows at `labels` (all by default)."""
    times = np.array(given["time"], np.int64) * 1_000_000_000 if times_ns is None else np.array(times_ns)
    batch = event_batch(
        ids=given["id"],
        time_ns=times,
        model="line",
        version="1",
        arm="stable",
        features={name: np.array(given[name]) for name in "xy"},
        predictions={"probability": np.full(len(times), 0.5)},
        attributes=pa.array([json.dumps({"day": day}) for day in given["day"]]),
    )
    write_events(lake, pa.Table.from_batches([batch]), name=given["id"][0])
    write_label(lake, given, list(range(len(times))) if labels is None else labels)


def write_label(lake: Path, given: dict[str, list], at: list[int]) -> None:
    if at:
        ids, values = [given["id"][one] for one in at], pa.array([given["label"][one] for one in at])
        write_labels(lake, pa.Table.from_batches([label_batch(ids, "line", values, START * 1_000_000_000)]), ids[0])


def champion(folder: Path, slope: float = 1.0) -> Champion:
    """A version 1 whose log odds are slope times x."""
    network = Line(Encoding({}, {}, {}))
    with torch.no_grad():
        network.line.weight.copy_(torch.tensor([[slope, 0.0]]))
        network.line.bias.zero_()
    write_artifact(folder, TASK, network, {}, {"x": [0.5], "y": [0.5]})
    return Champion(1, folder)


class Nowhere:
    """A registry that keeps what is registered in a list, the same artifact once."""

    def __init__(self) -> None:
        self.versions: list[tuple[str, dict]] = []

    def register(self, model, artifact_dir, *, lineage, profile, metrics):
        digest = (Path(artifact_dir) / "manifest.json").read_text()
        found = [number for number, (one, _) in enumerate(self.versions) if one == digest]
        if not found:
            self.versions.append((digest, {"lineage": lineage, "profile": profile, "metrics": metrics}))
        return SimpleNamespace(version=2 + (found[0] if found else len(self.versions) - 1))


def session(folder: Path, lake: Path, own: Champion, config: OnlineConfig = CONFIG, **given) -> OnlineSession:
    job = OnlineJob(stream=LabelledStream(task=TASK, lake=lake), out=folder, config=config, gate=GATE, save_every=3)
    return OnlineSession(job, given.pop("registry", None) or Nowhere(), own, **given)


if __name__ == "__main__":
    out, lake_, artifact, death = sys.argv[1:]
    torch.set_num_threads(1)
    learning = session(Path(out), Path(lake_), Champion(1, Path(artifact)))

    def die(*_: object) -> None:
        if learning.learner.batches == int(death):
            os.kill(os.getpid(), signal.SIGKILL)

    learning.learn(drain=True, tested=die)
