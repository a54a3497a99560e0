"""The parallel form of a training: how many ways each thing is divided, read from text, checked against the ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

DIMENSIONS = ("pipeline", "data", "fsdp", "tensor")
"""Outermost first: ranks that differ in the last only are neighbours, and those speak most."""

SCHEDULES = ("gpipe", "1f1b", "interleaved")
COMPRESSIONS = ("none", "fp16", "bf16", "powersgd")


class FormError(ValueError):
    """A parallel form that does not fit the ranks or the network; the message says what would."""


def read_form(form: type, text: str) -> dict[str, Any]:
    """The fields of a form, texts and whole numbers, in `name=value,name=value`. FormError names what is wrong."""
    known = {field.name: str if isinstance(field.default, str) else int for field in fields(form)}
    said: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in known:
            raise FormError(f"{part!r} in a parallel form: write NAME=VALUE, where NAME is one of {', '.join(known)}")
        if name in said:
            raise FormError(f"{name} is given twice in {text!r}")
        if known[name] is int and not value.isdigit():
            raise FormError(f"{name} is {value!r}: it must be a whole number")
        said[name] = known[name](value)
    return said


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelConfig:
    """Degrees of a device mesh; their product is the number of ranks. All 1 is one process.

    `ParallelConfig.parse("fsdp=2,tensor=2")` is the same as `ParallelConfig(fsdp=2, tensor=2)`.
    """

    data: int = 1
    """Replicas that share out each batch and average their gradients."""
    fsdp: int = 1
    """Ranks that share out each batch, and each keep one part of every weight, gradient and moment."""
    tensor: int = 1
    """Ranks that divide single layers, as a plan says."""
    pipeline: int = 1
    """Ranks that have one part of the layers each."""
    schedule: Literal["gpipe", "1f1b", "interleaved"] = "1f1b"
    microbatches: int = 0
    """Parts in which a batch goes through a pipeline; 0: four for each rank of it."""
    chunks: int = 0
    """Parts of the layers that each rank of a pipeline has; 0: two where it is interleaved, else one."""
    plan: str = ""
    """How `tensor` divides layers: a name of `training.tensor_plan.PLANS`, or `module:callable`; "": as the network
    says."""
    compress: Literal["none", "fp16", "bf16", "powersgd"] = "none"
    """How the gradients of replicas travel: whole, as 16-bit numbers (of 11 bits' precision, scaled, or of 8), or as
    products of two thin matrices. Of 100 losses the farthest from one process's is 4e-6, 4e-5 and 2e-3 away."""
    powersgd_rank: int = 2
    """Columns of those matrices."""

    def __post_init__(self) -> None:
        for name in DIMENSIONS:
            if getattr(self, name) < 1:
                raise FormError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("microbatches", "chunks"):
            if getattr(self, name) < 0:
                raise FormError(f"{name} is {getattr(self, name)}: it must be at least 0")
        for name, known in (("schedule", SCHEDULES), ("compress", COMPRESSIONS)):
            if getattr(self, name) not in known:
                raise FormError(f"{name} is {getattr(self, name)!r}: it is one of {', '.join(known)}")
        if self.powersgd_rank < 1:
            raise FormError(f"powersgd_rank is {self.powersgd_rank}: it must be at least 1")
        if self.compress != "none" and (self.data == 1 or self.fsdp * self.tensor > 1):
            raise FormError(
                f"compress is {self.compress} and the form is {self}: gradients are compressed between plain replicas "
                "(data of at least 2, fsdp and tensor 1)"
            )
        if self.schedule != "interleaved" and self.chunks > 1:
            raise FormError(f"chunks is {self.chunks}: only the schedule interleaved has more than one a rank")
        if self.schedule == "interleaved" and self.chunks == 1:
            raise FormError("chunks is 1: the schedule interleaved needs at least 2 a rank")
        stages = self.pipeline * self.num_chunks
        if self.pipeline > 1 and self.num_microbatches < stages and self.schedule != "gpipe":
            raise FormError(
                f"{self.num_microbatches} microbatches through {stages} stages: the schedule {self.schedule} needs at "
                f"least {stages}"
            )
        if self.pipeline > 1 and self.schedule == "interleaved" and self.num_microbatches % self.pipeline:
            raise FormError(
                f"{self.num_microbatches} microbatches over {self.pipeline} ranks: the schedule interleaved needs a "
                f"multiple of {self.pipeline}"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """The form that `name=value,name=value` describes; empty text is one process. FormError names what is wrong."""
        return cls(**read_form(cls, text))

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Self:
        """The form that `to_json` gave."""
        return cls(**said)

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    def check(self, world_size: int) -> None:
        """FormError where the degrees do not make up that many ranks."""
        if self.world_size != world_size:
            product = " x ".join(f"{name} {getattr(self, name)}" for name in DIMENSIONS if getattr(self, name) > 1)
            raise FormError(f"{product or 'one process'} makes {self.world_size} ranks, and there are {world_size}")

    @property
    def world_size(self) -> int:
        """Ranks that the form takes."""
        return self.pipeline * self.data * self.fsdp * self.tensor

    @property
    def shares(self) -> int:
        """Parts in which a batch is shared out."""
        return self.data * self.fsdp

    @property
    def num_microbatches(self) -> int:
        """Parts in which a share goes through the pipeline."""
        return (self.microbatches or 4 * self.pipeline) if self.pipeline > 1 else 1

    @property
    def num_chunks(self) -> int:
        """Parts of the layers that a rank has."""
        return self.chunks or (2 if self.schedule == "interleaved" else 1)

    @property
    def bubble(self) -> float:
        """Share of a pipeline's step in which a rank has nothing to do, if all parts take equally long.

        (p - 1) / (v m + p - 1) for p ranks, m microbatches and v parts a rank; source: Narayanan et al., SC'21,
        "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM", section 2.2, where the
        bubble is given as a share of the ideal time, (p - 1) / (v m).
        """
        return (self.pipeline - 1) / (self.num_chunks * self.num_microbatches + self.pipeline - 1)

    def __str__(self) -> str:
        parts = [f"{name}={getattr(self, name)}" for name in DIMENSIONS if getattr(self, name) > 1]
        if self.pipeline > 1:
            parts.append(f"schedule={self.schedule}")
        if self.compress != "none":
            parts.append(f"compress={self.compress}")
        return ",".join(parts) or "one process"
