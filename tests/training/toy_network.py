"""A small tabular network without dropout, importable by the ranks of a parallel training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from training.data import Rows


class Line(nn.Module):
    """Two numbers into a little network."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))

    def logits(self, x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = self.layers(torch.stack([x, y], dim=1)).squeeze(1)
        return found

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(x, y))


def line(seed: int = 3) -> Line:
    """A network with chosen first weights."""
    torch.manual_seed(seed)
    return Line()


def rows(count: int = 2001) -> Rows:
    """Rows whose labels follow x; the count is odd, so that no batch divides evenly."""
    generator = torch.Generator().manual_seed(11)
    x, y = torch.randn(2, count, generator=generator)
    labels = (torch.rand(count, generator=generator) < torch.sigmoid(2 * x - y)).float()
    return Rows((x, y), labels, np.full(count, "day", dtype=object))
