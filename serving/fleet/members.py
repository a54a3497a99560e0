"""Who is in a fleet: replicas, fronts, and which replica leads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serving.fleet.channel import Channel
from serving.fleet.exposition import Dump


@dataclass(slots=True, eq=False)
class Member:
    """A replica. `generations` are the policies in force in it, by model."""

    number: int
    path: Path
    channel: Channel
    up: bool = False
    generations: Mapping[str, int] = field(default_factory=dict)
    unready: str | None = None
    families: list[Dump] = field(default_factory=list)
    rows: int = 0
    asked: bool = False


@dataclass(slots=True, eq=False)
class Gate:
    """A front. `reaches` are the replicas that it sends requests to."""

    number: int
    channel: Channel
    listening: bool = False
    reaches: frozenset[int] = frozenset()
    families: list[Dump] = field(default_factory=list)


class Roster:
    """The processes that are there now, by number."""

    def __init__(self) -> None:
        self.replicas: dict[int, Member] = {}
        self.fronts: dict[int, Gate] = {}
        self.leader: int | None = None

    def up(self) -> list[Member]:
        """The replicas that take requests."""
        return [member for member in self.replicas.values() if member.up]

    def others(self, member: Member) -> list[Member]:
        """The replicas that take requests, but this one."""
        return [other for other in self.up() if other is not member]

    def served(self) -> dict[str, int]:
        """The models that some replica serves, with their newest generation."""
        served: dict[str, int] = {}
        for member in self.up():
            for model, generation in member.generations.items():
                served[model] = max(generation, served.get(model, 0))
        return served
