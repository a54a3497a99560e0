"""Gradients of replicas on one machine, averaged in memory that they share: no socket carries them.

In the backward pass every rank lays its part of the mean where the others can read it, each gradient as soon as it is
there and the core still has it in its cache; at the end all wait until all have, and each adds up. No thread but the
training's takes part, and nothing goes through buckets. The sum is that of the ranks in their order, the same bits in
all of them, and of two ranks the bits that gloo gives.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.utils import _sync_module_states, _verify_param_shape_across_processes

from training.shared_memory import LINE, SharedMemory

_BROADCAST_BYTES = 250 << 20


class _Span(NamedTuple):
    """Bytes of a place, and the type of the numbers in them."""

    start: int
    stop: int
    dtype: torch.dtype

    def of(self, place: Tensor) -> Tensor:
        """The numbers there, [n]."""
        return place[self.start : self.stop].view(self.dtype)


class SharedGradients:
    """What the ranks of a group share: two places a rank, taken in turns, each of all gradients' bytes.

    A rank that lays down the gradients of a pass has met all others at the pass before, and by then they had read what
    lay in the same place. For the same reason the mean may lie in the rank's other place, until the next pass.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], spans: Sequence[_Span], memory: SharedMemory, rank: int
    ) -> None:
        """`spans` of a place hold the gradients of `parameters`, of one type those that follow each other."""
        self._parameters, self._spans, self._memory, self._rank = list(parameters), list(spans), memory, rank
        self._turns = [[place.view(2, -1)[turn] for place in memory.places] for turn in range(2)]  # a tensor a rank
        kinds = [list(one) for _, one in groupby(spans, key=lambda span: span.dtype)]
        self._kinds = [_Span(one[0].start, one[-1].stop, one[0].dtype) for one in kinds]
        # What each gradient is laid into; behind a pass of the other turn, what it is.
        self._mine = [
            [_like(one, span.of(places[rank])) for one, span in zip(parameters, spans, strict=True)]
            for places in self._turns
        ]
        self._pass, self._laid = -1, list[int]()
        self._passes = self._timed = 0
        self._seconds = 0.0
        for index, parameter in enumerate(self._parameters):
            parameter.register_post_accumulate_grad_hook(partial(self._lay, index))  # type: ignore[no-untyped-call]

    @classmethod
    def meet(cls, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup) -> Self | None:
        """Has the gradients of these parameters averaged from now on; None, in all ranks, where they are on GPUs or
        cannot reach each other's memory, as on several machines. A collective."""
        if any(one.device.type != "cpu" for one in parameters):
            return None
        ordered, spans, at = sorted(parameters, key=lambda one: str(one.dtype)), [], 0
        for one in ordered:
            spans.append(_Span(at, at + one.nbytes, one.dtype))
            at += -(-one.nbytes // LINE) * LINE
        memory = SharedMemory.meet(2 * at, group)
        return None if memory is None else cls(ordered, spans, memory, group.rank())

    def seconds(self) -> float | None:
        """What this took a step, on average since the last look, the waiting for slower ranks included."""
        found = self._seconds / self._timed if self._timed else None
        self._seconds, self._timed = 0.0, 0
        return found

    def _lay(self, index: int, parameter: Tensor) -> None:
        began, this_pass = time.perf_counter(), torch._C._current_graph_task_id()
        if this_pass != self._pass:
            self._pass, self._laid = this_pass, []
            torch.autograd.Variable._execution_engine.queue_callback(self._average)
        gradient = parameter.grad
        assert gradient is not None
        torch.mul(gradient, 1 / len(self._memory.places), out=self._mine[self._passes % 2][index])
        # Its memory, which the cache has, is that of the next one.
        parameter.grad = None
        self._laid.append(index)
        self._seconds += time.perf_counter() - began

    def _average(self) -> None:
        began, turn = time.perf_counter(), self._passes % 2
        places, found = self._turns[turn], self._turns[1 - turn][self._rank]
        # Of a pass over a part of the network, other gradients stay as they are.
        spans = self._kinds if len(self._laid) == len(self._spans) else [self._spans[index] for index in self._laid]
        self._memory.barrier.wait()
        if len(places) == 2:
            for span in spans:
                torch.add(*(span.of(place) for place in places), out=span.of(found))
        else:
            self._add_slices([([span.of(place) for place in places], span.of(found)) for span in spans])
        for index in self._laid:
            self._parameters[index].grad = self._mine[1 - turn][index]
        self._pass, self._laid = -1, []
        self._passes += 1
        self._timed += 1
        self._seconds += time.perf_counter() - began

    def _add_slices(self, sums: Sequence[tuple[Sequence[Tensor], Tensor]]) -> None:
        """Each rank adds up one slice of all ranks' parts, in the place of its own, where nobody else reads it."""
        sliced = [[part.tensor_split(len(parts)) for part in parts] for parts, _ in sums]
        for slices in sliced:
            mine = [one[self._rank] for one in slices]
            total = torch.add(mine[0], mine[1])
            for one in mine[2:]:
                total.add_(one)
            mine[self._rank].copy_(total)
        self._memory.barrier.wait()
        for (_, found), slices in zip(sums, sliced, strict=True):
            torch.cat([one[rank] for rank, one in enumerate(slices)], out=found)


class SharedReplica(nn.Module):
    """A network of which every rank has a replica, called as the network is; behind a backward pass its gradients are
    the mean of all ranks'. What `DistributedDataParallel` is over sockets.

    Weights and buffers are at first those of the group's first rank, buffers again at every call.
    """

    def __init__(self, network: nn.Module, gradients: SharedGradients, group: dist.ProcessGroup) -> None:
        """A collective. RuntimeError where the ranks' networks differ in shape."""
        super().__init__()
        self.network, self.gradients, self._group = network, gradients, group
        _verify_param_shape_across_processes(group, list(network.parameters()))
        _sync_module_states(network, group, _BROADCAST_BYTES, 0, ())
        self._told = list(network.buffers())

    @classmethod
    def of(cls, network: nn.Module, group: dist.ProcessGroup) -> Self | None:
        """A network's replica; None, in all ranks, where there is no such way (`SharedGradients.meet`), or for
        gradients of few rows. A collective."""
        if group.size() < 2 or any(getattr(module, "sparse", False) for module in network.modules()):
            return None
        gradients = SharedGradients.meet([one for one in network.parameters() if one.requires_grad], group)
        return None if gradients is None else cls(network, gradients, group)

    def forward(self, *inputs: Any) -> Any:
        """What the network gives."""
        if self._told:
            with torch.no_grad():
                dist._broadcast_coalesced(self._group, self._told, _BROADCAST_BYTES, 0)  # type: ignore[attr-defined]
        return self.network(*inputs)


def _like(parameter: Tensor, numbers: Tensor) -> Tensor:
    """Numbers of a gradient, in the order that autograd gives it: the parameter's own, where that leaves no gaps."""
    whole = torch.empty_like(parameter).stride() == parameter.stride()
    return numbers.as_strided(parameter.shape, parameter.stride()) if whole else numbers.view(parameter.shape)
