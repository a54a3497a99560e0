"""One server's parameters and what it knows of its workers: who is how far, what was applied, who must wait.

Bounded staleness (stale synchronous parallel, Ho et al. 2013): a worker that has ended c steps may read while the
slowest has ended at least c - s. With s = 0 the pushes of a step are gathered, summed in the order of the workers'
names and applied once, as their mean: that is synchronous training. With s > 0 every push is applied as it comes,
divided by the number of workers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from training.checkpoint import CheckpointStore
from training.parameter_server.layout import Part
from training.parameter_server.rules import Rule

_log = logging.getLogger(__name__)


class ShardError(RuntimeError):
    """A request that a server cannot carry out; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a server treats its workers."""

    staleness: int = 0
    """Steps that a worker may be ahead of the slowest and still read."""
    checkpoint_every: int = 100
    """Applied updates between checkpoints, where there is a store for them."""
    lease_seconds: float = 60.0
    """A worker silent for so long has left; also how long one is awaited that a checkpoint names."""
    grace_seconds: float = 2.0
    """A worker whose link has ended, and which has not come back by then, has left."""

    def __post_init__(self) -> None:
        if self.staleness < 0 or self.checkpoint_every < 1:
            raise ValueError(f"staleness {self.staleness}, checkpoint_every {self.checkpoint_every}: >= 0 and >= 1")
        if not 0 < self.grace_seconds <= self.lease_seconds:
            raise ValueError(f"grace_seconds {self.grace_seconds}: above 0 and at most lease_seconds")


@dataclass(frozen=True, slots=True, eq=False)
class Gradient:
    """A worker's gradient of a server's part: dense `[n]`; of each table rows `[k]` and their gradients `[k, width]`.

    `dense` is None where the worker skipped its step: the step is counted, and nothing is applied.
    """

    dense: Tensor | None
    rows: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Pulled:
    """Parameters as read: dense `[n]` and the rows of tables that were asked for; how far the reader was ahead."""

    part: Part
    ahead: int
    waited: float


@dataclass(frozen=True, slots=True)
class Pushed:
    """What became of a push: applied, or known already; or, with s = 0, too late for its step.

    `clock` is the worker's next step here; pushes of steps before `durable` are in checkpoints and need not be kept.
    `missed` is how many updates of others came between the worker's reading and this.
    """

    outcome: str
    clock: int
    durable: int
    missed: int


@dataclass(frozen=True, slots=True)
class Status:
    """Where a worker stands on a server: its next step (-1: unknown), and the slowest live worker's."""

    clock: int
    floor: int
    updates: int
    live: int


@dataclass(slots=True)
class _Member:
    clock: int
    until: float
    read_at: int = 0
    waiting_since: float | None = None
    live: bool = True


class Shard:
    """The state of one server; any thread may ask. With `store` it goes on from the newest checkpoint that verifies.

    `expected` are the workers of a beginning: where no checkpoint names others, a step is not taken before they have
    pushed it, or were silent for a lease. Else the first to reach a server that was started anew would take the steps
    that it lacks alone.
    """

    def __init__(
        self,
        part: Part,
        rule: Rule,
        terms: Terms,
        *,
        store: CheckpointStore | None = None,
        fingerprint: str = "",
        expected: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._terms, self._store, self._fingerprint, self._now = terms, store, fingerprint, clock
        self._dense = nn.Parameter(part.dense.clone())
        self._tables = {name: nn.Parameter(rows.clone()) for name, rows in part.tables.items()}
        self._optimizers = [rule.dense([self._dense])]
        if self._tables:
            self._optimizers.append(rule.rows(list(self._tables.values())))
        self._changed = threading.Condition()
        self._members: dict[str, _Member] = {}
        self._waiting: dict[int, dict[str, Gradient]] = {}
        self._step = 0
        self._updates = 0
        self._saved: dict[str, int] = {}
        self._durable: dict[str, int] = {}
        self.saves = {"ok": 0, "failed": 0}
        self.restored = self._restore()
        if not self.restored:
            self._members = {worker: _Member(0, self._now() + terms.lease_seconds) for worker in expected}

    @property
    def updates(self) -> int:
        """Updates that were applied: with s = 0 one a step, else one a push."""
        return self._updates

    def status(self, worker: str) -> Status:
        """Where the worker stands; nothing is changed."""
        with self._changed:
            self._reap()
            member = self._members.get(worker)
            return Status(-1 if member is None else member.clock, self._floor(), self._updates, self._live())

    def enter(self, worker: str, clock: int) -> int:
        """The worker is live from here on; its next step is `clock`, or a later one if it is known to be further."""
        with self._changed:
            member = self._members.setdefault(worker, _Member(clock, 0.0))
            member.clock, member.live = max(member.clock, clock), True
            self._saw(member)
            self._advance()
            return member.clock

    def leave(self, worker: str) -> None:
        """The worker has ended; nobody waits for it any more."""
        with self._changed:
            if worker in self._members:
                self._members[worker].live = False
                self._advance()

    def lost(self, worker: str) -> None:
        """The worker's link has ended: it has left unless it is back within the grace."""
        with self._changed:
            if worker in self._members:
                member = self._members[worker]
                member.until = min(member.until, self._now() + self._terms.grace_seconds)

    def pull(self, worker: str, clock: int, rows: Mapping[str, Tensor], patience: float) -> Pulled | None:
        """The parameters, and the named rows of tables; None where the worker must wait longer than `patience` seconds.

        Whoever has not entered (an empty name, say) reads without waiting and without being counted.
        """
        with self._changed:
            until = self._now() + patience
            self._reap()
            member = self._members.get(worker)
            if member is not None:
                member.live = True
                self._saw(member)
                if clock - self._floor() > self._terms.staleness and member.waiting_since is None:
                    member.waiting_since = self._now()
                while clock - self._floor() > self._terms.staleness:
                    if self._now() >= until:
                        return None
                    self._changed.wait(min(0.05, until - self._now()))
                    self._reap()
                    self._saw(member)
            taken = {}
            for name, wanted in rows.items():
                table = self._table(name)
                _check_rows(name, wanted, len(table))
                taken[name] = table.detach()[wanted]
            waited, ahead = 0.0, 0
            if member is not None:
                waited = 0.0 if member.waiting_since is None else self._now() - member.waiting_since
                ahead = max(0, clock - self._floor())
                member.waiting_since, member.read_at = None, self._updates
            return Pulled(Part(self._dense.detach().clone(), taken), ahead, waited)

    def push(self, worker: str, clock: int, gradient: Gradient) -> Pushed:
        """Applies the gradient of a worker's step, once however often it is sent. ShardError where it does not fit."""
        with self._changed:
            self._reap()
            member = self._members.get(worker)
            if member is None:
                raise ShardError(f"{worker!r} has not entered")
            self._check(gradient)
            member.live = True
            self._saw(member)
            missed = self._updates - member.read_at
            if clock < member.clock:
                return self._pushed("duplicate", worker, missed)
            member.clock = clock + 1
            if self._terms.staleness:
                self._apply([] if gradient.dense is None else [gradient], self._live())
                self._changed.notify_all()
                return self._pushed("applied", worker, missed)
            if clock < self._step:
                member.clock = max(member.clock, self._step)
                return self._pushed("late", worker, missed)
            self._waiting.setdefault(clock, {})[worker] = gradient
            self._advance()
            return self._pushed("applied", worker, missed)

    def rows_of(self, name: str) -> int:
        """Rows of a table that lie here."""
        return len(self._table(name))

    def save(self) -> None:
        """Takes a checkpoint now, if there is a store."""
        with self._changed:
            self._save()

    # --- with the lock held -------------------------------------------------------------------------------------------
    def _table(self, name: str) -> nn.Parameter:
        if name not in self._tables:
            raise ShardError(f"there is no table {name!r}; there are: {', '.join(self._tables) or 'none'}")
        return self._tables[name]

    def _check(self, gradient: Gradient) -> None:
        if gradient.dense is None:
            return
        if gradient.dense.shape != self._dense.shape:
            raise ShardError(f"a gradient of {gradient.dense.numel()} elements, {self._dense.numel()} lie here")
        for name, (rows, values) in gradient.rows.items():
            table = self._table(name)
            if values.shape != (len(rows), table.shape[1]):
                raise ShardError(f"{len(rows)} rows of {name} with gradients of shape {list(values.shape)}")
            _check_rows(name, rows, len(table))
        tensors = [gradient.dense, *(values for _, values in gradient.rows.values())]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            raise ShardError("the gradient is not finite: skip the step on the worker")

    def _saw(self, member: _Member) -> None:
        member.until = self._now() + self._terms.lease_seconds

    def _live(self) -> int:
        return sum(member.live for member in self._members.values())

    def _floor(self) -> int:
        clocks = [member.clock for member in self._members.values() if member.live]
        return min(clocks, default=max((member.clock for member in self._members.values()), default=0))

    def _reap(self) -> None:
        now, found = self._now(), False
        for member in self._members.values():
            if member.live and now > member.until:
                member.live, found = False, True
        if found:
            self._advance()

    def _advance(self) -> None:
        """Applies every gathered step that no live worker is still to push, and wakes those who wait."""
        while self._waiting:
            step = min(self._waiting)
            if any(member.live and member.clock <= step for member in self._members.values()):
                break
            gathered = self._waiting.pop(step)
            self._step = step + 1
            given = [gathered[worker] for worker in sorted(gathered)]
            self._apply([one for one in given if one.dense is not None])
        self._changed.notify_all()

    def _apply(self, gradients: list[Gradient], count: int = 0) -> None:
        """One update by the sum of the gradients over `count` (their number if 0); none without a gradient."""
        if not gradients:
            return
        count = count or len(gradients)
        dense = torch.zeros(0)
        for number, one in enumerate(gradients):
            assert one.dense is not None
            dense = dense + one.dense if number else one.dense.clone()
        self._dense.grad = dense.div_(count)
        for name, table in self._tables.items():
            touched = [one.rows[name] for one in gradients if name in one.rows]
            rows = torch.cat([torch.empty(0, dtype=torch.int64), *(rows for rows, _ in touched)])
            values = torch.cat([torch.empty(0, table.shape[1]), *(values for _, values in touched)])
            table.grad = None
            if len(rows):
                grad = torch.sparse_coo_tensor(rows[None], values, table.shape, check_invariants=False)
                table.grad = grad.coalesce() / count
        for optimizer in self._optimizers:
            optimizer.step()
        self._updates += 1
        if self._store is not None and self._updates % self._terms.checkpoint_every == 0:
            self._save()

    def _pushed(self, outcome: str, worker: str, missed: int) -> Pushed:
        clock = self._members[worker].clock
        durable = clock if self._store is None else self._durable.get(worker, 0)
        return Pushed(outcome, clock, durable, missed)

    # --- checkpoints --------------------------------------------------------------------------------------------------
    def _save(self) -> None:
        if self._store is None:
            return
        clocks = {worker: member.clock for worker, member in self._members.items()}
        waiting = {
            step: {worker: (one.dense, dict(one.rows)) for worker, one in gathered.items()}
            for step, gathered in self._waiting.items()
        }
        state: dict[str, Any] = {
            "layout": self._fingerprint,
            "dense": self._dense.detach(),
            "tables": {name: table.detach() for name, table in self._tables.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "clocks": clocks,
            "live": [worker for worker, member in self._members.items() if member.live],
            "waiting": waiting,
            "step": self._step,
            "updates": self._updates,
            "saved": self._saved,
        }
        try:
            self._store.save(self._updates, state)
        except OSError as error:
            # A full disk costs a checkpoint, not the run: workers keep their pushes until one is written.
            _log.warning("the checkpoint of update %d was not written: %s", self._updates, error)
            self.saves["failed"] += 1
            return
        self.saves["ok"] += 1
        # The newest may be found broken later, and the one before it is gone on from: only that one's pushes are safe.
        self._durable, self._saved = self._saved, clocks

    def _restore(self) -> bool:
        newest = None if self._store is None else self._store.newest()
        if newest is None:
            return False
        state = newest.state
        if state["layout"] != self._fingerprint:
            raise ShardError(f"{newest.path} holds parameters of another layout; give this run a folder of its own")
        with torch.no_grad():
            self._dense.copy_(state["dense"])
            for name, table in self._tables.items():
                table.copy_(state["tables"][name])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        until = self._now() + self._terms.lease_seconds
        live = set(state["live"])
        self._members = {
            worker: _Member(clock, until, live=worker in live) for worker, clock in state["clocks"].items()
        }
        self._waiting = {
            step: {worker: Gradient(dense, rows) for worker, (dense, rows) in gathered.items()}
            for step, gathered in state["waiting"].items()
        }
        self._step, self._updates = state["step"], state["updates"]
        self._saved, self._durable = state["clocks"], state["saved"]
        return True


def _check_rows(name: str, rows: Tensor, count: int) -> None:
    if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= count):
        raise ShardError(f"rows {int(rows.min())} to {int(rows.max())} of {name}, which has {count} here")
