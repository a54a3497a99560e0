"""A training of 300 steps for the test that kills it."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from observability import TrainingMonitor
from training import CheckpointStore, Rows, TrainConfig, Trainer


class Net(nn.Module):
    """Has dropout, so that random state matters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, 1))

    def logits(self, *inputs: Tensor) -> Tensor:
        """Of rows, from their four columns."""
        return self.layers(torch.stack(inputs, dim=1)).squeeze(1)


def train(folder: Path, line: Connection) -> None:
    """Trains with checkpoints in the folder; says "running" over the line, then every step with its loss."""
    generator = torch.Generator().manual_seed(0)
    inputs = tuple(torch.randn(6400, generator=generator) for _ in range(4))
    rows = Rows(inputs, (inputs[0] > inputs[1]).float(), np.zeros(6400, object))
    torch.manual_seed(3)
    config = TrainConfig(epochs=3, batch_size=64, checkpoint_every=5, report_every=1, seed=4)
    with TrainingMonitor("killed", run="test") as monitor:
        line.send("running")
        result = Trainer(Net(), rows, config, monitor, CheckpointStore(folder)).run()
    line.send([(step, loss.hex()) for step, loss in result.losses])
