"""A network spread over the ranks of a device mesh: replicas, shards, divided layers, a pipeline, and what they make
together."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel

from training.backward_end import BackwardEnd
from training.compression import Scaled, average, bucket_mb, carrier_of, compress
from training.parallel_config import DIMENSIONS, FormError, ParallelConfig
from training.pipeline import Loss, Mark, Pipeline, stages_of, unmarked
from training.power_sgd import PowerSGD
from training.replicas import Called, Filling, Replicas, State, held, log_loss
from training.shared_gradients import SharedGradients, SharedReplica
from training.tensor_plan import plan_of, styles

# Steps from one look of DDP at its own clock to the next.
_LOOK_EVERY = 10


class Spread(Replicas):
    """This rank's part of a parallel form. The default process group must be open and have as many ranks as the form.

    Divided weights are `DTensor`s in the network; the optimizer steps their local parts, which is the same and knows
    nothing of meshes.
    """

    def __init__(self, config: ParallelConfig, device: str = "cpu") -> None:
        """FormError where the group has another number of ranks."""
        config.check(dist.get_world_size())
        super().__init__()
        self.config, self._device = config, torch.device(device)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.mesh: DeviceMesh = init_device_mesh(
            self._device.type, tuple(getattr(config, name) for name in DIMENSIONS), mesh_dim_names=DIMENSIONS
        )
        place = {name: self.mesh.get_local_rank(name) for name in DIMENSIONS}
        self.shares, self.share_index = config.shares, place["data"] * config.fsdp + place["fsdp"]
        self._stage, self.stream = place["pipeline"], place["pipeline"] * self.shares + self.share_index
        self.pipeline: Pipeline | None = None
        self._averaged: list[nn.Parameter] = []
        self._divided: list[tuple[DTensor, Tensor]] = []
        self.replicated: DistributedDataParallel | None = None
        self._backward_end: BackwardEnd | None = None
        self._shared: SharedGradients | None = None
        self._carrier: Scaled | PowerSGD | None = None
        self._rows, self._known = 0, torch.tensor(float("nan"))

    def __str__(self) -> str:
        return str(self.config)

    def take(self, network: nn.Module, *, loss: Loss = log_loss, batch_size: int = 0) -> None:
        """See `Replicas.take`."""
        self._loss, config = loss, self.config
        if config.tensor > 1:
            plan = styles(network, plan_of(network, config.plan))
        if config.pipeline == 1:
            names, calls = held(network), [cast(nn.Module, Called(network))]
            parts: list[nn.Module] = [network]
        else:
            stages = stages_of(network, config)
            indices = range(self._stage, len(stages), config.pipeline)
            elsewhere = [stage for number, stage in enumerate(stages) if number not in indices]
            calls = parts = [stages[number] for number in indices]
            names = _without(held(network), held(network, elsewhere), held(network, parts))
        if config.tensor > 1:
            inside = {id(module) for part in parts for module in part.modules()}
            mine = {name for name, module in network.named_modules() if id(module) in inside}
            parallelize_module(
                network, self.mesh["tensor"], {name: style for name, style in plan.items() if name in mine}
            )
        calls = [self._shared_out(call) for call in calls]
        if self._averaged:
            self._carrier = carrier_of(self._averaged, config, self.mesh["data"].get_group())
        self._hold(names)
        if config.pipeline == 1:
            self._called = calls[0]
        else:
            self._rows = _padded(-(-batch_size // self.shares), config.num_microbatches)
            self.pipeline = Pipeline(calls, indices, config, self.mesh["pipeline"].get_group(), self._device)

    def _shared_out(self, module: nn.Module) -> nn.Module:
        """The module as one of the replicas or shards that share out a batch."""
        config = self.config
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if config.shares == 1 or not trained:
            return module
        if config.fsdp == 1 and config.tensor == 1:
            group = self.mesh["data"].get_group()
            if config.pipeline > 1:
                # DDP's buckets fail where a schedule runs all forwards before the first backward.
                for value in (*module.parameters(), *module.buffers()):
                    dist.broadcast(value.detach(), group=group, group_src=0)
                self._averaged.extend(trained)
                return module
            self._backward_end = BackwardEnd(trained)
            if config.compress == "none" and (shared := SharedReplica.of(module, group)) is not None:
                self._shared = shared.gradients
                return shared
            self.replicated = DistributedDataParallel(
                module,
                device_ids=[self._device.index] if self._device.type == "cuda" else None,
                process_group=group,
                bucket_cap_mb=bucket_mb(config),
                gradient_as_bucket_view=config.compress == "none",
            )
            ddp: Any = self.replicated
            ddp._set_ddp_runtime_logging_sample_rate(_LOOK_EVERY)
            self._carrier = carrier_of(trained, config, group)
            compress(self.replicated, config, self._carrier)
            return self.replicated
        # Replicas of divided layers are shards of which each rank has the whole: DDP knows no DTensor.
        # Outputs of a network are often views; nothing here changes them in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        mesh = self.mesh["fsdp"] if config.data == 1 else self.mesh["data", "fsdp"]
        for block in _blocks(module):
            # Weights that are tied over blocks are gathered with the whole, where all that use them are.
            if not _shares(block, module):
                fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        return module

    def _hold(self, names: Sequence[tuple[str, nn.Module, str]]) -> None:
        super()._hold(names)
        trained = self.parameters
        self.parameters = [nn.Parameter(_local(one)) if isinstance(one, DTensor) else one for one in trained]
        pairs = zip(trained, self.parameters, strict=True)
        self._divided = [(one, own) for one, own in pairs if isinstance(one, DTensor)]

    def learn(
        self, inputs: Sequence[Tensor], targets: Tensor, total: int, *, spoil: float = 1.0, mark: Mark | None = None
    ) -> Tensor | float:
        """See `Replicas.learn`. Ranks of a pipeline without its last stage give the loss that they heard of last."""
        if self.pipeline is None:
            following = mark if self._backward_end is None or mark is None else self._backward_end.following(mark)
            found: Tensor | float = super().learn(inputs, targets, total, spoil=spoil, mark=following)
            if self._backward_end is not None:
                self._check_used()
        else:
            self.zero_grad()
            factor = self.shares / total * spoil
            told = self.pipeline.learn(
                [_filled(column, self._rows) for column in inputs],
                _filled(targets, self._rows),
                len(targets),
                lambda outputs, wanted: self._loss(outputs, wanted) * factor,
                mark or unmarked,
            )
            found = told if self.pipeline.tells else self._known
            if self._averaged:
                average(self._averaged, self.mesh["data"].get_group(), config=self.config, carrier=self._carrier)
                (mark or unmarked)("communication")
        for parameter, own in self._divided:
            # Sharding may have moved what it keeps.
            own.data = _local(parameter)
            own.grad = None if parameter.grad is None else _local(cast(DTensor, parameter.grad))
        return found

    def _check_used(self) -> None:
        """FormError where a parameter has no gradient: DDP waits for it, and says only numbers of parameters."""
        if any(one.grad is None for one in self.parameters):
            unused = [name for name, one, own in self._optimized() if own.grad is None]
            some = ", ".join(unused[:4]) + (" …" if len(unused) > 4 else "")
            raise FormError(
                f"the loss does not depend on {some}, whose gradients "
                "replicas would wait for: remove what is not used, freeze it with requires_grad_(False), or take "
                "another form (fsdp)"
            )

    @property
    def is_whole(self) -> bool:
        """See `Replicas.is_whole`."""
        return self.config.fsdp == self.config.tensor == self.config.pipeline == 1

    def gathered(self, values: Tensor) -> Tensor | None:
        """See `Replicas.gathered`."""
        if not self.is_whole or self.config.data == 1:
            return None
        found = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(found, values)
        return torch.stack(found)

    def communication(self) -> tuple[float, float] | None:
        """See `Replicas.communication`; averages of the steps in which DDP looked at its own clock. By shared memory
        nothing travels behind the backward pass: the same thread does both."""
        if self._shared is not None:
            taken = self._shared.seconds()
            return None if taken is None else (taken, 0.0)
        if self.replicated is None:
            return None
        ddp: Any = self.replicated
        said: dict[str, float] = ddp._get_ddp_logging_data()
        seconds = said.get("avg_backward_comm_time", 0) / 1e9
        return (seconds, said.get("avg_backward_compute_comm_overlap_time", 0) / 1e9) if seconds else None

    def zero_grad(self) -> None:
        """See `Replicas.zero_grad`."""
        super().zero_grad()
        for _, own in self._divided:
            own.grad = None

    def norm(self) -> Tensor | float:
        """See `Replicas.norm`; where ranks have different parts this takes one collective of one number."""
        if self.config.fsdp * self.config.tensor * self.config.pipeline == 1:
            return super().norm()
        squares = []
        for parameter, own in zip(self._trained(), self.parameters, strict=True):
            if own.grad is not None:
                squares.append(own.grad.float().square().sum() * self._share_of_norm(parameter))
        total = torch.stack(squares).sum() if squares else torch.zeros((), device=self._device)
        dist.all_reduce(total)
        return total.sqrt()

    def _share_of_norm(self, parameter: Tensor) -> float:
        """One over the number of ranks that have the same part of it."""
        parts = self.config.pipeline
        if isinstance(parameter, DTensor):
            for index, placement in enumerate(parameter.placements):
                # What is divided twice along one dimension has a placement for which `is_shard` is false.
                parts *= 1 if placement.is_replicate() else parameter.device_mesh.size(index)
        return parts / self.world_size

    def mean(self, values: Tensor) -> Tensor:
        """See `Replicas.mean`."""
        tells = self.pipeline is None or self.pipeline.tells
        total = values.clone() if tells else torch.zeros_like(values)
        dist.all_reduce(total)
        found = total * (self.config.pipeline / self.world_size)
        if self.pipeline is not None and values.dim() == 2:
            self._known = found[:, 0].mean().float()
        return found

    def agreed(self, step: int) -> int:
        """See `Replicas.agreed`."""
        said = torch.tensor([step])
        dist.broadcast(said, 0)
        return int(said)

    def random_states(self) -> dict[str, Any]:
        """See `Replicas.random_states`; with what scales gradients that travel as float16."""
        said = {"form": str(self), "states": self._of_all(torch.get_rng_state())}
        carrier = self._carrier
        return {**said, "scaled": self._of_all(carrier.state())} if isinstance(carrier, Scaled) else said

    def restore_random_state(self, said: Mapping[str, Any], step: int) -> None:
        """See `Replicas.restore_random_state`."""
        super().restore_random_state(said, step)
        if isinstance(self._carrier, Scaled) and said["form"] == str(self):
            self._carrier.restore(said["scaled"][self.rank])

    def state(self, optimizer: torch.optim.Optimizer) -> State:
        """See `Replicas.state`; with what gradients that travelled by PowerSGD left out."""
        found = super().state(optimizer)
        if isinstance(self._carrier, PowerSGD):
            found |= self._carrier.state(self._names(), self.share_index)
        return found

    def restore(self, checkpoint: Filling, optimizer: torch.optim.Optimizer) -> None:
        """See `Replicas.restore`."""
        super().restore(checkpoint, optimizer)
        if isinstance(self._carrier, PowerSGD):
            self._carrier.restore(checkpoint, self._names(), self.share_index, self.shares)

    def _names(self) -> dict[int, str]:
        return {id(one): name for name, one, _ in self._optimized()}

    def _of_all(self, own: Tensor) -> list[Tensor]:
        found = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(found, own)
        return found

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._whole if parameter.requires_grad]

    def _like(self, value: Any, parameter: nn.Parameter) -> Any:
        """A moment of a divided weight, divided as the weight is."""
        if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or not value.dim():
            return value
        return DTensor.from_local(
            value,
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )


def _local(tensor: DTensor) -> Tensor:
    with torch.no_grad():
        return tensor.to_local().detach()


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Modules of several layers in lists or sequences: each is gathered by itself. What lies inside others first."""
    found = [
        child
        for container in module.modules()
        if isinstance(container, nn.ModuleList | nn.Sequential)
        for child in container.children()
        if next(child.children(), None) is not None and next(child.parameters(), None) is not None
    ]
    # Lists and dicts of modules only hold others, and are never called: there is no moment at which to gather them.
    return [block for block in reversed(found) if type(block).forward is not nn.Module.forward]


def _shares(block: nn.Module, within: nn.Module) -> bool:
    """Whether a block has a parameter that something outside of it has, too."""
    inside, own = {id(one) for one in block.modules()}, {id(value) for value in block.parameters()}
    outside = (one for one in within.modules() if id(one) not in inside)
    return any(id(value) in own for one in outside for value in one._parameters.values())


def _without(
    every: list[tuple[str, nn.Module, str]],
    elsewhere: list[tuple[str, nn.Module, str]],
    mine: list[tuple[str, nn.Module, str]],
) -> list[tuple[str, nn.Module, str]]:
    """All but what other stages have alone; what no stage has is a constant, which everybody keeps."""
    others = {name for name, _, _ in elsewhere} - {name for name, _, _ in mine}
    return [one for one in every if one[0] not in others]


def _padded(rows: int, parts: int) -> int:
    return -(-max(rows, 1) // parts) * parts


def _filled(column: Tensor, rows: int) -> Tensor:
    """The column with zeros up to so many rows."""
    if len(column) > rows:
        raise ValueError(f"a share of {len(column)} rows, and the pipeline was set up for {rows}")
    return (
        column if len(column) == rows else torch.cat([column, column.new_zeros(rows - len(column), *column.shape[1:])])
    )
