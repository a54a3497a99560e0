"""How a server applies gradients: torch's own optimizers, one for the dense range and one for the tables' rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

METHODS = ("sgd", "adagrad", "adam")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """An optimizer as plain data. Of tables only the rows that were touched move: `adam` is SparseAdam there, and
    `momentum` (of `sgd`) is for the dense parameters alone."""

    method: str = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"there is no rule {self.method!r}; there are: {', '.join(METHODS)}")
        if not self.learning_rate > 0 or not 0 <= self.momentum < 1:
            raise ValueError(f"learning_rate {self.learning_rate}, momentum {self.momentum}: > 0 and in [0, 1)")
        if self.momentum and self.method != "sgd":
            raise ValueError(f"momentum is {self.momentum} and the method {self.method}: only sgd has one")

    def dense(self, parameters: Iterable[Tensor]) -> Optimizer:
        """For the dense range."""
        if self.method == "sgd":
            return torch.optim.SGD(parameters, lr=self.learning_rate, momentum=self.momentum)
        if self.method == "adagrad":
            return torch.optim.Adagrad(parameters, lr=self.learning_rate)
        return torch.optim.Adam(parameters, lr=self.learning_rate)

    def rows(self, parameters: Iterable[Tensor]) -> Optimizer:
        """For tables, whose gradients are sparse."""
        if self.method == "sgd":
            return torch.optim.SGD(parameters, lr=self.learning_rate)
        if self.method == "adagrad":
            return torch.optim.Adagrad(parameters, lr=self.learning_rate)
        return torch.optim.SparseAdam(list(parameters), lr=self.learning_rate)
