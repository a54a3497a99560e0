"""A network in stages: each rank of a pipeline has one or more, and microbatches go through them by a schedule."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.parallel_config import FormError, ParallelConfig

Loss = Callable[[Tensor, Tensor], Tensor]
"""From outputs and targets of some rows to the sum of their losses."""

Mark = Callable[[str], None]


class Stage(nn.Module):
    """Consecutive pieces of a network; the first of all takes the inputs."""

    def __init__(self, pieces: Sequence[nn.Module]) -> None:
        super().__init__()
        self.pieces = nn.ModuleList(pieces)

    def forward(self, *inputs: Tensor) -> Any:
        """What the last piece gives."""
        first, *others = self.pieces
        value = first(*inputs)
        for piece in others:
            value = piece(value)
        return value


def pieces_of(network: nn.Module) -> list[nn.Module]:
    """The network as modules that follow each other. FormError where it does not say how it is cut."""
    said: Any = getattr(network, "stages", None)
    if callable(said):
        found = list(said())
    elif isinstance(network, nn.Sequential):
        found = list(network)
    else:
        raise FormError(
            f"{type(network).__name__} has no stages, so that no pipeline can be made of it: give it a method stages() "
            "that returns modules of which each takes what the one before gives, or make it an nn.Sequential"
        )
    if not all(isinstance(piece, nn.Module) for piece in found):
        raise FormError(f"stages() of {type(network).__name__} returns something that is no module")
    return found


def stages_of(network: nn.Module, config: ParallelConfig) -> list[Stage]:
    """All stages of the pipeline, in order; each has as many pieces as the others, or one more."""
    pieces, wanted = pieces_of(network), config.pipeline * config.num_chunks
    if len(pieces) < wanted:
        raise FormError(
            f"{type(network).__name__} has {len(pieces)} stages, and {wanted} are needed "
            f"(pipeline {config.pipeline} x {config.num_chunks} a rank): lower the degree or cut it into more"
        )
    bounds = [round(index * len(pieces) / wanted) for index in range(wanted + 1)]
    stages = [Stage(pieces[first:end]) for first, end in itertools.pairwise(bounds)]
    _check_untied(network, stages)
    return stages


def _check_untied(network: nn.Module, stages: Sequence[Stage]) -> None:
    """FormError where stages have a trained parameter in common: each would step a copy of its own."""
    names = {id(value): name for name, value in network.named_parameters()}
    homes: dict[int, int] = {}
    for number, stage in enumerate(stages):
        for value in stage.parameters():
            home = homes.setdefault(id(value), number)
            if home != number and value.requires_grad:
                raise FormError(
                    f"{names.get(id(value), 'a parameter')} belongs to stages {home} and {number} of the pipeline, "
                    "which would step it apart: give them weights of their own, or take another form"
                )


class Pipeline:
    """This rank's stages and the schedule by which microbatches go through them."""

    def __init__(
        self,
        stages: Sequence[nn.Module],
        indices: Sequence[int],
        config: ParallelConfig,
        group: dist.ProcessGroup,
        device: torch.device,
    ) -> None:
        # Half of what importing this package would take, and few runs are pipelines.
        from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

        self._mark: Mark = unmarked
        self.wall = self.busy = 0.0
        self._losses: list[Tensor] = []
        total = config.pipeline * config.num_chunks
        self._first, self._last = 0 in indices, total - 1 in indices
        self._wanted: Tensor = torch.empty(0)
        self._loss: Callable[[Tensor, Tensor], Tensor] | None = None
        self._rows, self._shape = 0, 0
        made = [
            PipelineStage(stage, index, total, device, group=group)
            for stage, index in zip(stages, indices, strict=True)
        ]
        for stage in made:
            for name, phase in (("forward_one_chunk", "forward"), ("backward_one_chunk", "backward")):
                setattr(stage, name, self._timed(getattr(stage, name), phase))
        count = config.num_microbatches
        if config.schedule == "interleaved":
            self._schedule: Any = ScheduleInterleaved1F1B([*made], count, loss_fn=self._judge, scale_grads=False)
        else:
            kind = ScheduleGPipe if config.schedule == "gpipe" else Schedule1F1B
            self._schedule = kind(made[0], count, loss_fn=self._judge, scale_grads=False)

    @property
    def tells(self) -> bool:
        """Whether this rank has the last stage, and so the loss."""
        return self._last

    @property
    def bubble(self) -> float:
        """Share of the steps so far, but for the first, in which this rank's stages did nothing."""
        return 1.0 - self.busy / self.wall if self.wall else float("nan")

    def learn(self, inputs: Sequence[Tensor], targets: Tensor, rows: int, loss: Loss, mark: Mark) -> Tensor:
        """Forward and backward of a batch; gives the sum of its losses where `tells`, else NaN.

        Of `inputs` and `targets`, whose length is always the same, only the first `rows` rows count.
        """
        self._wanted, self._rows, self._loss, self._mark = targets, rows, loss, mark
        began, busy = time.perf_counter(), self.busy
        # Targets are row numbers, so that a loss sees which rows of its microbatch count.
        target = torch.arange(len(targets)) if self._last else None
        losses: list[Tensor] | None = [] if self._last else None
        self._schedule.step(*(inputs if self._first else ()), target=target, losses=losses)
        mark("communication")
        if self._shape:
            self.wall += time.perf_counter() - began
        else:  # the first step asks for shapes and sets up
            self._shape, self.busy = len(targets), busy
        return torch.stack([one.detach() for one in losses]).sum() if losses else torch.tensor(float("nan"))

    def _judge(self, outputs: Tensor, numbers: Tensor) -> Tensor:
        assert self._loss is not None
        real = numbers < self._rows
        return self._loss(outputs[real], self._wanted[numbers[real]])

    def _timed(self, call: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            self._mark("communication")
            began = time.perf_counter()
            found = call(*arguments, **named)
            self.busy += time.perf_counter() - began
            self._mark(phase)
            return found

        return timed


def unmarked(phase: str) -> None:
    """Nobody is told."""
