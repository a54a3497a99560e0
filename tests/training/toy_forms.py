"""A network in stages whose layers can be divided, trained in several parallel forms by one set of ranks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from observability.training import TrainingMonitor
from tests.training.toy_network import rows
from tests.training.toy_pipeline import idle_share
from training.loop import Trainer
from training.parallel_config import ParallelConfig
from training.ranks import Rank
from training.replicas import Replicas
from training.sharded_checkpoint import ShardedCheckpointStore
from training.spread import Spread
from training.train_config import TrainConfig

ROWS = 1001
# The norm is clipped in every step: a form that takes it of the wrong parts leaves the curve.
CONFIG = TrainConfig(
    epochs=1, batch_size=101, learning_rate=0.01, report_every=1, checkpoint_every=5, seed=5, threads=1, clip_norm=0.05
)


class First(nn.Module):
    """Two numbers into `width`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(2, width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.inner(torch.stack([x, y], dim=1)))


class Block(nn.Module):
    """Out to twice the width and back, added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        found: Tensor = hidden + self.down(torch.tanh(self.up(hidden)))
        return found


class Last(nn.Module):
    """One number of each row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        found: Tensor = self.out(hidden).squeeze(1)
        return found


class Deep(nn.Module):
    """Six pieces; the four in the middle can be divided. The width of 10 goes evenly into no form of four."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.pieces = nn.ModuleList([First(width), *(Block(width) for _ in range(4)), Last(width)])

    def logits(self, x: Tensor, y: Tensor) -> Tensor:
        first, *others = self.pieces
        hidden: Tensor = first(x, y)
        for piece in others:
            hidden = piece(hidden)
        return hidden

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(x, y))

    def stages(self) -> list[nn.Module]:
        return list(self.pieces)

    def tensor_plan(self) -> dict[str, str]:
        return {"pieces.*.up": "colwise", "pieces.*.down": "rowwise"}


def deep(seed: int = 3) -> Deep:
    """The network with chosen first weights."""
    torch.manual_seed(seed)
    return Deep()


def curve(form: str, replicas: Replicas, folder: Path | None, config: TrainConfig = CONFIG) -> list[float]:
    """The losses of a training in this form, from whatever checkpoint lies in the folder."""
    with TrainingMonitor("toy", run=form, drain_seconds=0) as monitor:
        store = None if folder is None else ShardedCheckpointStore(folder)
        # Another seed where it goes on: everything must come from the checkpoint.
        network = deep(99 if folder is not None and any(folder.glob("step-*")) else 3)
        result = Trainer(network, rows(ROWS), config, monitor, store, replicas).run()
    return [loss for _, loss in result.losses]


def fit(rank: Rank, forms: Sequence[str]) -> None:
    """Trains in each of the forms. `NAME>FORM` goes on, in FORM, from the checkpoints in the folder NAME; of
    `bubble:FORM` only the bubble is taken."""
    ring = rank.ring("toy")
    with rank.group("gloo", timeout=600, ring=ring):
        ring.state("running")
        for text in forms:
            if text.startswith("bubble:"):
                said = {"losses": [idle_share(text.removeprefix("bubble:"))]}
                (rank.folder / f"{text}.json").write_text(json.dumps(said))
                continue
            name, _, form = text.rpartition(">")
            folder = rank.folder / (name or form)
            replicas = Spread(ParallelConfig.parse(form))
            losses = curve(form, replicas, folder)
            if rank.rank == 0:
                bubble = None if replicas.pipeline is None else replicas.pipeline.bubble
                said = {"losses": losses, "bubble": bubble}
                (rank.folder / f"{text}.json").write_text(json.dumps(said))
        ring.state("completed")
