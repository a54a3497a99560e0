"""Which server holds what: the dense parameters as one vector cut into even ranges, tables by row number."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn


class LayoutError(ValueError):
    """Parameters that cannot be shared out as asked; the message names the parameter and what to change."""


@dataclass(frozen=True, slots=True)
class Table:
    """A parameter of which a step touches few rows: row r lies on server r mod servers, as its row r div servers."""

    name: str
    rows: int
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What one server holds: a range `[n]` of the dense vector, and its rows `[k, width]` of every table."""

    dense: Tensor
    tables: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Layout:
    """The parameters of a network over `servers` servers.

    All are float32. The rules that the servers apply work element by element (or row by row): where the dense vector is
    cut changes nothing.
    """

    servers: int
    dense: tuple[tuple[str, tuple[int, ...]], ...]
    tables: tuple[Table, ...] = ()

    @classmethod
    def of(cls, network: nn.Module, servers: int, tables: Sequence[str] = ()) -> Layout:
        """The layout of a network's trainable parameters; `tables` names those of which steps touch few rows."""
        if servers < 1:
            raise LayoutError(f"servers is {servers}: at least one must hold the parameters")
        trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
        unknown = [name for name in tables if name not in trained]
        if unknown:
            raise LayoutError(
                f"there is no parameter {unknown[0]!r} to make a table of; there are: {', '.join(trained)}"
            )
        for name, value in trained.items():
            if value.dtype != torch.float32:
                raise LayoutError(f"{name} is {value.dtype}: servers hold float32, convert it with .float()")
            if name in tables and value.dim() != 2:
                raise LayoutError(f"{name} has the shape {list(value.shape)}: a table has rows and a width")
        return cls(
            servers,
            tuple((name, tuple(value.shape)) for name, value in trained.items() if name not in tables),
            tuple(Table(name, *trained[name].shape) for name in trained if name in tables),
        )

    @property
    def dense_size(self) -> int:
        """Elements of the dense vector."""
        return sum(math.prod(shape) for _, shape in self.dense)

    @property
    def fingerprint(self) -> str:
        """Equal for equal layouts: a checkpoint of another one is refused."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()

    def range_of(self, server: int) -> tuple[int, int]:
        """First element, and the one after the last, of a server's range of the dense vector."""
        return self.dense_size * server // self.servers, self.dense_size * (server + 1) // self.servers

    def flat(self, values: Mapping[str, Tensor]) -> Tensor:
        """The dense vector of parameters (or gradients) by name."""
        return torch.cat([torch.empty(0), *(values[name].detach().reshape(-1) for name, _ in self.dense)])

    def cut(self, vector: Tensor) -> list[Tensor]:
        """The dense vector's range of each server (views)."""
        return [vector[slice(*self.range_of(server))] for server in range(self.servers)]

    def part(self, state: Mapping[str, Tensor], server: int) -> Part:
        """A server's part of a network's state, copied. KeyError where a parameter is missing."""
        dense = self.flat(state)[slice(*self.range_of(server))].clone()
        tables = {one.name: state[one.name].detach()[server :: self.servers].clone() for one in self.tables}
        return Part(dense, tables)

    def unflat(self, vector: Tensor) -> dict[str, Tensor]:
        """The dense parameters by name, as views of the vector `[dense_size]`."""
        sizes = [math.prod(shape) for _, shape in self.dense]
        pieces = torch.split(vector, sizes) if sizes else ()
        return {name: piece.view(shape) for (name, shape), piece in zip(self.dense, pieces, strict=True)}

    def whole(self, parts: Sequence[Part]) -> dict[str, Tensor]:
        """The network's parameters from the parts of all servers, in their order."""
        state = self.unflat(torch.cat([part.dense for part in parts]))
        for table in self.tables:
            rows = torch.empty(table.rows, table.width)
            for server, part in enumerate(parts):
                rows[server :: self.servers] = part.tables[table.name]
            state[table.name] = rows
        return state

    def rows_by_server(self, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each server: the positions in `rows` (int64, distinct) that are its own, and their numbers there."""
        at = rows % self.servers
        places = [torch.nonzero(at == server).squeeze(1) for server in range(self.servers)]
        return [(place, rows[place] // self.servers) for place in places]
