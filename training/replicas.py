"""What a loop calls in a step, whatever the parallel form: here that of one process, which has nobody to agree with.

The global batch, and with it the loss and every step, is the same in every form; only the order in which sums are taken
differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from training.guards.nonfinite import begin, clipping, gradient_norm
from training.pipeline import Loss, Mark, unmarked

State = dict[str, dict[str, Any]]


class Filling(Protocol):
    """A checkpoint that fills tensors which are already there, each rank its own parts."""

    def fill(self, name: str, tensors: Mapping[str, Any]) -> None: ...

    def names(self, name: str) -> set[str]: ...


def log_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum over rows of the log loss of a binary classifier's log odds."""
    return nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")


class Called(nn.Module):
    """Called, it gives what the loss wants: a network's `logits`, where it has them. Parallel forms hook into calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any) -> Any:
        """Logits, or whatever the network gives."""
        call: Callable[..., Any] = getattr(self.network, "logits", self.network)
        return call(*inputs)


class Replicas:
    """One process: the whole batch and the whole network are its own.

    replicas = Replicas()                    # or Spread(ParallelConfig(fsdp=2)) in every rank of a group
    replicas.take(network, loss=log_loss, batch_size=512)
    optimizer = torch.optim.AdamW(replicas.parameters, fused=True)
    for inputs, targets in batches:
        *mine, wanted = replicas.share((*inputs, targets))
        loss = replicas.learn(mine, wanted, len(targets))
        norm = replicas.clip(1.0)
        optimizer.step()
    """

    rank: int = 0
    world_size: int = 1
    shares: int = 1
    """Parts in which a batch is shared out."""
    share_index: int = 0
    stream: int = 0
    """Ranks of one number must draw the same random numbers, those of others need not."""

    def __init__(self) -> None:
        self.parameters: list[Tensor] = []
        """What the optimizer steps: this rank's parts, plain tensors in every form."""
        self._held: list[tuple[str, nn.Module, str]] = []
        self._whole: list[nn.Parameter] = []
        self._loss: Loss = log_loss
        self._called: nn.Module = nn.Identity()

    @property
    def leads(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    def take(self, network: nn.Module, *, loss: Loss = log_loss, batch_size: int = 0) -> None:
        """Takes a network to train, in place; `batch_size` are the rows of the largest global batch.

        FormError where the network does not fit the form.
        """
        self._loss, self._called = loss, Called(network)
        self._hold(list(held(network)))

    def _hold(self, names: Sequence[tuple[str, nn.Module, str]]) -> None:
        self._held = list(names)
        self._whole = [
            value for _, module, name in names if isinstance(value := getattr(module, name), nn.Parameter)
        ]  # fmt: skip
        self.parameters = [parameter for parameter in self._whole if parameter.requires_grad]

    def share(self, columns: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """This rank's rows of a global batch: every `shares`-th; possibly none."""
        return tuple(column[self.share_index :: self.shares] for column in columns)

    def learn(
        self, inputs: Sequence[Tensor], targets: Tensor, total: int, *, spoil: float = 1.0, mark: Mark | None = None
    ) -> Tensor | float:
        """Forward and backward on this rank's share of a batch of `total` rows; gives the loss of the share, a number
        where the host has it.

        Gradients, summed or averaged as the form has it, are those of the mean loss over the whole batch. `spoil` is a
        factor of the loss, for faults on purpose. `mark` is told the phase that has ended.
        """
        mark = mark or unmarked
        outputs = self._called(*inputs)
        loss = self._loss(outputs, targets) * (self.shares / total * spoil)
        mark("forward")
        self.zero_grad()
        found, begun = begin(outputs, loss)
        loss.backward(None if begun is None else begun.to(loss.dtype))  # type: ignore[no-untyped-call]
        mark("backward")
        return found

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for parameter in self._whole:
            parameter.grad = None

    def clip(self, limit: float) -> Tensor:
        """Scales gradients to a norm of at most `limit`; gives the norm before, equal in all ranks."""
        told = self.norm()
        norm = told if isinstance(told, Tensor) else torch.tensor(told)
        if gradients := self._gradients():
            torch._foreach_div_(gradients, clipping(norm, limit))
        return norm

    def norm(self) -> Tensor | float:
        """The norm of all gradients, equal in all ranks: on their device, or a number where that is the host's."""
        return gradient_norm(self.parameters)

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the ranks that know the loss, equal in all."""
        return values

    def agreed(self, step: int) -> int:
        """The leading rank's number."""
        return step

    @property
    def is_whole(self) -> bool:
        """Whether this rank holds the whole network."""
        return True

    def gathered(self, values: Tensor) -> Tensor | None:
        """Every rank's values, [ranks, …]; None where no other rank holds the same network."""
        return None

    def communication(self) -> tuple[float, float] | None:
        """Seconds that a step's gradients travel between replicas, and those behind the backward pass, where known."""
        return None

    def random_states(self) -> dict[str, Any]:
        """The state of torch's generator in every rank, and in which form."""
        return {"form": str(self), "states": [torch.get_rng_state()]}

    def restore_random_state(self, said: Mapping[str, Any], step: int) -> None:
        """Takes up this rank's state; in another form one that follows from the step and the rank."""
        if said["form"] == str(self):
            torch.set_rng_state(said["states"][self.rank])
        else:
            torch.manual_seed(step * 1_000_003 + self.stream)

    def state(self, optimizer: torch.optim.Optimizer) -> State:
        """Weights, buffers and the optimizer's state by the network's own names: this rank's parts of them."""
        whole = iter(self._whole)
        network = {
            name: next(whole).detach() if local in module._parameters else getattr(module, local)
            for name, module, local in self._held
            if local not in module._non_persistent_buffers_set
        }
        moments = {
            name: {key: self._like(value, parameter) for key, value in optimizer.state[own].items()}
            for name, parameter, own in self._optimized()
            if own in optimizer.state
        }
        return {"network": network, "optimizer": moments}

    def restore(self, checkpoint: Filling, optimizer: torch.optim.Optimizer) -> None:
        """Takes weights, buffers and the optimizer's state from a checkpoint, whatever form wrote it."""
        _begin(optimizer)
        # What never had a gradient has no moments, as in the run that was cut off.
        known = checkpoint.names("optimizer")
        for name, _, own in self._optimized():
            if name not in known:
                optimizer.state.pop(own, None)
        for name, tensors in Replicas.state(self, optimizer).items():
            checkpoint.fill(name, tensors)

    def _optimized(self) -> list[tuple[str, nn.Parameter, Tensor]]:
        names = [name for name, module, local in self._held if local in module._parameters]
        trained = [(name, one) for name, one in zip(names, self._whole, strict=True) if one.requires_grad]
        return [(name, one, own) for (name, one), own in zip(trained, self.parameters, strict=True)]

    def _like(self, value: Any, parameter: nn.Parameter) -> Any:
        return value

    def __str__(self) -> str:
        return "one process"


def held(network: nn.Module, within: Sequence[nn.Module] | None = None) -> list[tuple[str, nn.Module, str]]:
    """Name, module and name in it of each parameter and buffer, each once; of the modules `within`, where given.

    What belongs to a module outside of every stage, but to no stage alone, is held by all.
    """
    chosen = None if within is None else {id(module) for one in within for module in one.modules()}
    seen: set[int] = set()
    found = []
    for prefix, module in network.named_modules():
        if chosen is not None and id(module) not in chosen:
            continue
        for local, value in [*module._parameters.items(), *module._buffers.items()]:
            if value is not None and id(value) not in seen:
                seen.add(id(value))
                found.append((f"{prefix}.{local}" if prefix else local, module, local))
    return found


def take_whole(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Loads what a checkpoint holds of a whole network, in which tied weights have one name. RuntimeError as torch's
    where something is missing or has another shape."""
    known = {id(getattr(module, local)): name for name, module, local in held(network)}
    tied = network.state_dict(keep_vars=True)
    names = {name: known.get(id(value), name) for name, value in tied.items()}
    network.load_state_dict({name: tensors[own] for name, own in names.items() if own in tensors})


def _begin(optimizer: torch.optim.Optimizer) -> None:
    """Makes the state that an optimizer else makes in its first step, by a step that changes nothing."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
