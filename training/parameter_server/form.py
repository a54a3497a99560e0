"""A training on parameter servers as a form of it: how many servers and workers, and how far apart workers may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from training.parallel_config import FormError, ParallelConfig, read_form
from training.parameter_server.rules import METHODS


@dataclass(frozen=True, slots=True, kw_only=True)
class ServersForm:
    """`ServersForm.parse("servers=2,workers=4,staleness=3")`; FormError for what cannot be."""

    servers: int = 1
    """Processes that keep the parameters, each a part of them."""
    workers: int = 2
    """Processes that share out each batch."""
    staleness: int = 0
    """Steps that a worker may be ahead of the slowest; 0 is synchronous training."""
    rule: str = "adam"
    """How servers apply gradients: one of `rules.METHODS`, at the rate of the configuration."""
    checkpoint_every: int = 100
    """Updates of a server between its checkpoints."""

    def __post_init__(self) -> None:
        for name, least in (("servers", 1), ("workers", 1), ("staleness", 0), ("checkpoint_every", 1)):
            if getattr(self, name) < least:
                raise FormError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if self.rule not in METHODS:
            raise FormError(f"rule is {self.rule!r}: it is one of {', '.join(METHODS)}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The form that `name=value,name=value` describes. FormError names what is wrong."""
        return cls(**read_form(cls, text))

    @property
    def world_size(self) -> int:
        """Processes that the form takes."""
        return self.servers + self.workers

    def __str__(self) -> str:
        return f"servers={self.servers},workers={self.workers},staleness={self.staleness}"


Form = ParallelConfig | ServersForm


def form_of(text: str) -> Form:
    """The form that a text describes: on parameter servers where it names servers or workers. FormError as `parse`."""
    named = {part.partition("=")[0].strip() for part in text.split(",")}
    if named & {"servers", "workers"}:
        return ServersForm.parse(text)
    try:
        return ParallelConfig.parse(text)
    except FormError as error:
        raise FormError(f"{error}; on parameter servers it begins with servers or workers") from None
