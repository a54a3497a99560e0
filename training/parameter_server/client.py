"""A worker's side: pulls and pushes over all servers at once, and brings a server that was restored up to date.

A push is kept until every server says that it is in checkpoints. A server that comes back from one is sent what it
lacks, in the order of the steps, before anything else: its shard is then what it was, to the bit.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.parameter_server.layout import Layout, Part
from training.parameter_server.links import Connect, Link, LinkLost
from training.parameter_server.shard import ShardError
from training.parameter_server.wire import Message, decode, encode

Rows = Mapping[str, Tensor]


class ServersLost(ConnectionError):
    """Servers did not answer within the patience; the message names them."""


class GradientError(ValueError):
    """A gradient that must not be applied; the message says what is wrong with it."""


@dataclass(slots=True)
class _Kept:
    clock: int
    body: bytes


class Client:
    """A worker named `worker` of the servers that `connect` reaches. One thread uses it."""

    def __init__(
        self,
        layout: Layout,
        connect: Connect,
        worker: str,
        *,
        patience: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not worker:
            raise ValueError("a worker needs a name: servers know its pushes again by it")
        self.layout, self._connect, self._worker = layout, connect, worker
        self._patience, self._now = patience, clock
        self._links: dict[int, Link] = {}
        self._kept: dict[int, list[_Kept]] = {server: [] for server in range(layout.servers)}
        self._entered = False
        self._draw = random.Random(worker)
        self.clock = 0
        self.waited, self.ahead, self.missed, self.retries, self.late = 0.0, 0, 0, 0, 0
        """Seconds waited for slower workers; steps ahead of them, and updates of others that this one had not read,
        at the last step; requests sent again; pushes that came too late for their step."""

    def enter(self) -> int:
        """Joins, or joins again, at a step that nobody who is there has to wait for; gives the step."""
        known = self._ask([Message("status", self._worker)] * self.layout.servers)
        self.clock = max(max(int(one.facts["clock"]), int(one.facts["floor"])) for one in known)
        answers = self._ask([Message("enter", self._worker, self.clock)] * self.layout.servers)
        self._entered = True
        self.clock = max(one.clock for one in answers)
        return self.clock

    def leave(self) -> None:
        """Ends: the others go on without this worker. The client cannot be used afterwards."""
        if self._entered:
            self._ask([Message("leave", self._worker)] * self.layout.servers)
        self._entered = False
        for link in self._links.values():
            link.close()
        self._links.clear()

    def pull(self, rows: Rows | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The dense vector `[dense_size]`, and of each table the values `[k, width]` of the rows `[k]` asked for.

        Waits while this worker is further ahead of the slowest than the servers allow.
        """
        shared = {name: self.layout.rows_by_server(wanted) for name, wanted in (rows or {}).items()}
        requests = [
            Message("pull", self._worker, self.clock, {}, {name: by[server][1] for name, by in shared.items()})
            for server in range(self.layout.servers)
        ]
        answers = self._ask(requests)
        self.waited += max(float(one.facts["waited"]) for one in answers)
        self.ahead = max(int(one.facts["ahead"]) for one in answers)
        tables = {}
        for table in self.layout.tables:
            if table.name in shared:
                values = torch.empty(len((rows or {})[table.name]), table.width)
                for (place, _), one in zip(shared[table.name], answers, strict=True):
                    values[place] = one.tensors[f"table.{table.name}"]
                tables[table.name] = values
        return torch.cat([one.tensors["dense"] for one in answers]), tables

    def push(self, dense: Tensor, rows: Mapping[str, tuple[Tensor, Tensor]] | None = None) -> None:
        """Hands over the gradient of a step: dense `[dense_size]`, and (rows `[k]`, gradients `[k, width]`) of tables.

        Every server applies it once, whatever is sent again. GradientError where it is not finite or has another size:
        nothing was sent then, and `skip` ends the step.
        """
        self._check(dense, rows or {})
        shared = {
            name: [(there, values[place]) for place, there in self.layout.rows_by_server(wanted)]
            for name, (wanted, values) in (rows or {}).items()
        }
        requests = []
        for server, piece in enumerate(self.layout.cut(dense)):
            tensors = {"dense": piece}
            for name, by in shared.items():
                tensors[f"rows.{name}"], tensors[f"grad.{name}"] = by[server]
            requests.append(Message("push", self._worker, self.clock, {}, tensors))
        self._end_step(requests)

    def skip(self) -> None:
        """Ends a step without a gradient: nothing is applied, and nobody waits for it."""
        self._end_step([Message("push", self._worker, self.clock)] * self.layout.servers)

    def _check(self, dense: Tensor, rows: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        if dense.shape != (self.layout.dense_size,):
            raise GradientError(f"a gradient of shape {list(dense.shape)}, [{self.layout.dense_size}] is needed")
        for name, values in (("the dense gradient", dense), *((name, values) for name, (_, values) in rows.items())):
            if not bool(torch.isfinite(values).all()):
                raise GradientError(f"{name} of step {self.clock} is not finite")

    def _end_step(self, requests: Sequence[Message]) -> None:
        for server, request in enumerate(requests):
            self._kept[server].append(_Kept(self.clock, encode(request)))
        answers = self._ask(requests)
        for server, one in enumerate(answers):
            durable = int(one.facts["durable"])
            self._kept[server] = [kept for kept in self._kept[server] if kept.clock >= durable]
        self.missed = max(int(one.facts["missed"]) for one in answers)
        self.late += any(one.facts["outcome"] == "late" for one in answers)
        self.clock = max(self.clock + 1, *(one.clock for one in answers))

    @property
    def kept(self) -> int:
        """Pushes that are kept because some server could still lose them."""
        return max(len(kept) for kept in self._kept.values())

    def _ask(self, requests: Sequence[Message]) -> list[Message]:
        """The answers of all servers, sent to all before any is awaited; what is lost is sent again."""
        answers: dict[int, Message] = {}
        bodies = [encode(request) for request in requests]
        until, pause, waiting = self._now() + self._patience, 0.02, False
        while len(answers) < len(requests):
            sent = [server for server in range(len(requests)) if server not in answers and self._sent(server, bodies)]
            heard = False
            for server in sent:
                answer = self._received(server)
                if answer is None:
                    continue
                heard = True
                if answer.kind == "error":
                    self._drain(sent[sent.index(server) + 1 :])
                    raise ShardError(f"server {server}: {answer.facts['reason']}")
                if answer.kind == "wait":
                    waiting = True
                else:
                    answers[server] = answer
            if heard:
                until, pause = self._now() + self._patience, 0.02
            elif self._now() > until:
                missing = [str(server) for server in range(len(requests)) if server not in answers]
                raise ServersLost(f"no answer from server {', '.join(missing)} for {self._patience:g} s")
            else:
                time.sleep(pause * (0.5 + self._draw.random()))
                pause = min(pause * 2, 0.5)
            self.retries += len(answers) < len(requests) and not waiting
        return [answers[server] for server in range(len(requests))]

    def _sent(self, server: int, bodies: Sequence[bytes]) -> bool:
        try:
            self._link(server).send(bodies[server])
        except LinkLost:
            self._links.pop(server, None)
            return False
        return True

    def _received(self, server: int) -> Message | None:
        try:
            return decode(self._links[server].receive())
        except LinkLost:
            self._links.pop(server, None)
            return None

    def _drain(self, servers: Sequence[int]) -> None:
        """Takes the answers that are still due, so that no later request is answered by them."""
        for server in servers:
            self._received(server)

    def _link(self, server: int) -> Link:
        link = self._links.get(server)
        if link is None:
            link = self._connect(server, self._worker)
            if self._entered:
                self._resume(server, link)
            self._links[server] = link
        return link

    def _resume(self, server: int, link: Link) -> None:
        """Enters anew at the oldest step whose push is kept, and sends what the server lacks."""
        kept = self._kept[server]
        oldest = kept[0].clock if kept else self.clock
        known = _asked(link, encode(Message("enter", self._worker, oldest)))
        for one in kept:
            if one.clock >= known.clock:
                _asked(link, one.body)


class Replica:
    """A network whose parameters the servers hold: `refresh` before a step, `push` after the backward pass.

    The network's own tensors are a copy; of a table only the rows that were asked for are brought up to date.
    """

    def __init__(self, network: nn.Module, client: Client) -> None:
        self.network, self.client = network, client
        self._parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
        self._rows: dict[str, Tensor] = {}

    def refresh(self, rows: Rows | None = None) -> None:
        """Reads the parameters, and of each table the given rows (int64, repeats allowed); clears the gradients."""
        layout = self.client.layout
        self._rows = {
            table.name: torch.unique((rows or {}).get(table.name, torch.empty(0, dtype=torch.int64)))
            for table in layout.tables
        }
        dense, tables = self.client.pull(self._rows)
        with torch.no_grad():
            for name, value in layout.unflat(dense).items():
                self._parameters[name].copy_(value)
            for name, values in tables.items():
                self._parameters[name][self._rows[name]] = values
        self.network.zero_grad(set_to_none=True)

    def push(self) -> bool:
        """Hands over the gradients: all dense ones, and of each table those of the rows that `refresh` was given.

        False where one is not finite: the step is skipped.
        """
        layout = self.client.layout
        grads = {}
        for name, shape in layout.dense:
            grad = self._parameters[name].grad
            grads[name] = torch.zeros(shape) if grad is None else grad
        rows = {}
        for name, touched in self._rows.items():
            grad = self._parameters[name].grad
            if grad is not None and len(touched):
                whole = grad.to_dense() if grad.is_sparse else grad
                rows[name] = (touched, whole[touched])
        try:
            self.client.push(layout.flat(grads), rows)
        except GradientError:
            self.client.skip()
            return False
        return True


def snapshot(layout: Layout, connect: Connect) -> dict[str, Tensor]:
    """All parameters by name, read without joining. LinkLost or ShardError where a server does not answer."""
    parts = []
    for server in range(layout.servers):
        link = connect(server, "")
        wanted = {table.name: torch.arange(len(range(server, table.rows, layout.servers))) for table in layout.tables}
        answer = _asked(link, encode(Message("pull", "", 0, {}, wanted)))
        link.close()
        tables = {name: answer.tensors[f"table.{name}"] for name in wanted}
        parts.append(Part(answer.tensors["dense"], tables))
    return layout.whole(parts)


def _asked(link: Link, body: bytes) -> Message:
    link.send(body)
    answer = decode(link.receive())
    if answer.kind == "error":
        raise ShardError(str(answer.facts["reason"]))
    return answer
