"""The rounds of a federation: who is asked, what came, what is made of it. All of it survives a kill.

The model after each round is a checkpoint; the round in progress is a file, and every update is on disk, under its own
digest, before it is acknowledged. Whoever opens the folder again goes on with the round.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from observability import Metrics, Profile, names
from observability.cells import ProfileError
from training.checkpoint import CheckpointStore, write_whole
from training.federated.aggregation import Aggregation, clipped, suspicion
from training.federated.local import LocalPlan
from training.federated.protocol import (
    NAME,
    ProtocolError,
    Task,
    Update,
    flat,
    pack_parameters,
    unflat,
    unpack_update,
)

_log = logging.getLogger(__name__)
Drift = Callable[[Profile, Profile], Mapping[str, float]]
"""Distance of each column of a client's profile (second) from the reference (first)."""
_SUSPECTS_FROM = 4


class FederationError(RuntimeError):
    """A federation that cannot begin or go on; the message says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a federation learns, and what it asks of its rounds."""

    rounds: int = 10
    sample: float = 1.0
    """Share of the clients there that a round asks, drawn from the seed."""
    min_clients: int = 2
    """Clients that must be there before a round begins."""
    min_updates: int = 2
    """Updates below which a round is repeated instead of used."""
    enough: float = 1.0
    """Share of the clients asked whose updates end a round before its deadline: the slowest need not be awaited."""
    deadline_seconds: float = 60.0
    presence_seconds: float = 30.0
    """A client not heard of for so long is not there."""
    aggregation: Aggregation = field(default_factory=Aggregation)
    clip_norm: float = 0.0
    """Bound of an update's norm; 0: none."""
    max_rows: int = 0
    """Rows that count at most for a client, whatever it states; 0: all."""
    suspicion: float = 0.0
    """Robust deviations from the other updates above which one is left out; 0: none is. Needs four updates."""
    server_rate: float = 1.0
    """Share of the aggregate that is added to the model."""
    seed: int = 0
    local: LocalPlan = field(default_factory=LocalPlan)

    def __post_init__(self) -> None:
        if min(self.rounds, self.min_clients, self.min_updates) < 1:
            raise ValueError("rounds, min_clients and min_updates must be at least 1")
        if not (0 < self.sample <= 1 and 0 < self.enough <= 1):
            raise ValueError(f"sample {self.sample} and enough {self.enough}: above 0, at most 1")
        if not (self.deadline_seconds > 0 and self.presence_seconds > 0 and self.server_rate > 0):
            raise ValueError("deadline_seconds, presence_seconds and server_rate must be positive")
        if min(self.clip_norm, self.max_rows, self.suspicion) < 0:
            raise ValueError("clip_norm, max_rows and suspicion must not be below 0")
        if self.min_updates < self.aggregation.fewest:
            least = self.aggregation.fewest
            raise ValueError(f"{self.aggregation.method} needs {least} updates: min_updates is {self.min_updates}")


@dataclass(slots=True)
class _Round:
    number: int
    attempt: int
    asked: list[str]
    began: float
    deadline: float
    updates: dict[str, Update] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a client's update in a round: `used`, `clipped`, `rejected` or `missing`, and why."""

    client: str
    outcome: str
    norm: float = 0.0
    suspicion: float = 0.0
    drift: Mapping[str, float] = field(default_factory=dict)


class Federation:
    """The server's state and rules; any thread may call.

    `drift` compares clients' profiles to `reference`; `setup` is handed to clients that ask for it.
    """

    def __init__(
        self,
        model: str,
        start: Mapping[str, Tensor],
        plan: Plan,
        folder: Path,
        *,
        reference: Profile | None = None,
        setup: bytes | None = None,
        drift: Drift | None = None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.model, self.plan, self.metrics = model, plan, Metrics() if metrics is None else metrics
        self.reference, self.setup, self._drift, self._folder, self._now = reference, setup, drift, folder, clock
        wrong = [name for name, value in start.items() if value.dtype != torch.float32]
        if wrong:
            raise FederationError(f"{wrong[0]} is {start[wrong[0]].dtype}: clients exchange float32 parameters")
        self._shapes = {name: tuple(value.shape) for name, value in start.items()}
        self._fingerprint = hashlib.sha256(json.dumps(sorted(self._shapes.items())).encode()).hexdigest()
        self._lock = threading.RLock()
        self._models = CheckpointStore(folder / "model")
        self._seen: dict[str, float] = {}
        self.verdicts: tuple[Verdict, ...] = ()
        """Of the last round that ended."""
        self._round: _Round | None = None
        newest = self._models.newest()
        if newest is None:
            self.round, self._values = 0, {name: value.detach().clone() for name, value in start.items()}
            self._models.save(0, self._state())
        else:
            if newest.state["fingerprint"] != self._fingerprint:
                raise FederationError(f"{newest.path} holds another network; give this federation a folder of its own")
            self.round, self._values = newest.step, dict(newest.state["values"])
            self._resume()
        self._packed = pack_parameters(self._values)
        self.metrics[names.FEDERATED_ROUND].labels(model).set(self.round)

    @property
    def finished(self) -> bool:
        """Whether all rounds are done."""
        return self.round >= self.plan.rounds

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The global parameters after the last round, copied."""
        with self._lock:
            return {name: value.clone() for name, value in self._values.items()}

    @property
    def size_limit(self) -> int:
        """Bytes that an update may have."""
        return len(self._packed) + 4 * 1024 * 1024

    def task(self, client: str) -> Task:
        """What a client is to do now; those who ask are there. ProtocolError for a bad name."""
        if not NAME.fullmatch(client):
            raise ProtocolError(f"the client's name is {client[:80]!r}: letters, digits, '.', '_' and '-' make one")
        with self._lock:
            self._seen[client] = self._now()
            self.tick()
            current = self._round
            if self.finished:
                return Task(state="done", round=self.round)
            if current is None or client not in current.asked or client in current.updates:
                return Task(state="wait", round=self.round, seconds=min(1.0, self.plan.deadline_seconds / 10))
            return Task(
                state="train",
                round=current.number,
                attempt=current.attempt,
                seconds=max(0.0, current.deadline - self._now()),
                seed=_seed(self.plan.seed, current.number, client),
                plan=self.plan.local,
            )

    def parameters_of(self, number: int) -> bytes | None:
        """The parameters that a round starts from (safetensors); None where that round is over."""
        with self._lock:
            return self._packed if number == self.round else None

    def submit(self, client: str, number: int, attempt: int, body: bytes) -> str:
        """Takes an update: `taken`, `duplicate` or `late`. Durable when it returns. ProtocolError for a bad one."""
        with self._lock:
            self._seen[client] = self._now()
            self.tick()
            current = self._round
            if current is None or (number, attempt) != (current.number, current.attempt):
                self._count(client, "late")
                return "late"
            if client not in current.asked:
                self._count(client, "invalid")
                raise ProtocolError(f"{client} was not asked in round {number}")
            if client in current.updates:
                return "duplicate"
            try:
                update = unpack_update(body, self._shapes)
            except ProtocolError:
                self._count(client, "invalid")
                raise
            digest = hashlib.sha256(body).hexdigest()
            write_whole(self._updates(current) / f"{client}.{digest}.safetensors", body)
            current.updates[client] = update
            self.tick()
            return "taken"

    def tick(self) -> None:
        """Begins a round where enough clients are there, and ends it when enough have answered or time is up."""
        with self._lock:
            now = self._now()
            if self._round is not None:
                wanted = max(self.plan.min_updates, -(-len(self._round.asked) * self.plan.enough // 1))
                if len(self._round.updates) >= min(len(self._round.asked), wanted) or now >= self._round.deadline:
                    self._end(self._round)
            if self._round is None and not self.finished:
                self._begin(now)

    def status(self) -> dict[str, Any]:
        """Where the federation stands, as JSON."""
        with self._lock:
            current = self._round
            return {
                "model": self.model,
                "round": self.round,
                "rounds": self.plan.rounds,
                "finished": self.finished,
                "there": sorted(self._there(self._now())),
                "asked": sorted(current.asked) if current else [],
                "answered": sorted(current.updates) if current else [],
                "last": [asdict(one) for one in self.verdicts],
            }

    # --- with the lock held -------------------------------------------------------------------------------------------
    def _there(self, now: float) -> list[str]:
        return [client for client, seen in self._seen.items() if now - seen <= self.plan.presence_seconds]

    def _begin(self, now: float, attempt: int = 0) -> None:
        there = sorted(self._there(now))
        self.metrics[names.FEDERATED_CLIENTS].labels(self.model).set(len(there))
        if len(there) < self.plan.min_clients:
            return
        attempt = max(attempt, self._attempts)
        draw = random.Random(_seed(self.plan.seed, self.round, f"sample {attempt}"))
        count = min(len(there), max(self.plan.min_updates, round(len(there) * self.plan.sample)))
        current = _Round(self.round, attempt, sorted(draw.sample(there, count)), now, now + self.plan.deadline_seconds)
        said = {name: getattr(current, name) for name in ("number", "attempt", "asked", "began", "deadline")}
        write_whole(self._folder / "round.json", json.dumps(said).encode())
        self._round = current

    _attempts = 0

    def _end(self, current: _Round) -> None:
        """Aggregates what came, or repeats the round. The saved checkpoint is what makes it done."""
        verdicts, total = self._judged(current)
        self.verdicts = tuple(verdicts)
        missing = [client for client in current.asked if client not in current.updates]
        for one in verdicts:
            self._show(one, current)
        for client in missing:
            self._count(client, "missing")
        used = [one for one in verdicts if one.outcome in ("used", "clipped")]
        self.metrics[names.FEDERATED_PARTICIPATION].labels(self.model).set(len(used) / len(current.asked))
        self.metrics[names.FEDERATED_ROUND_DURATION].labels(self.model).observe(self._now() - current.began)
        self._round = None
        if total is None:
            _log.warning(
                "round %d: %d of %d updates can be used, %d are needed; it is repeated",
                current.number, len(used), len(current.asked), self.plan.min_updates,
            )  # fmt: skip
            self.metrics[names.FEDERATED_ROUNDS].labels(self.model, "repeated").inc()
            self._attempts = current.attempt + 1
            # Whoever did not answer must be heard of again before it is asked again.
            for client in missing:
                self._seen.pop(client, None)
        else:
            moved = flat(self._values) + self.plan.server_rate * total
            self._values = unflat(moved, self._shapes)
            self.round, self._attempts = current.number + 1, 0
            self._models.save(self.round, self._state())
            self._packed = pack_parameters(self._values)
            self.metrics[names.FEDERATED_ROUNDS].labels(self.model, "aggregated").inc()
            self.metrics[names.FEDERATED_ROUND].labels(self.model).set(self.round)
        for path in self._updates(current).glob("*"):
            path.unlink()

    def _judged(self, current: _Round) -> tuple[list[Verdict], Tensor | None]:
        """Each update's verdict, and the aggregate of those that are used; None where they are too few."""
        clients = sorted(current.updates)
        if not clients:
            return [], None
        plan, updates = self.plan, [current.updates[client] for client in clients]
        raw = torch.stack([update.vector for update in updates])
        norms = torch.linalg.vector_norm(raw.double(), dim=1).tolist()
        bounded = [clipped(row, plan.clip_norm) for row in raw]
        scores = suspicion(raw).tolist() if len(clients) >= _SUSPECTS_FROM else [0.0] * len(clients)
        verdicts, rows, weights = [], [], []
        for client, update, (row, is_clipped), norm, score in zip(
            clients, updates, bounded, norms, scores, strict=True
        ):
            outcome = "clipped" if is_clipped else "used"
            if plan.suspicion and score > plan.suspicion:
                outcome = "rejected"
                _log.warning(
                    "round %d: the update of %s is left out, %.1f deviations off", current.number, client, score
                )
            else:
                rows.append(row)
                weights.append(float(min(update.rows, plan.max_rows) if plan.max_rows else update.rows))
            verdicts.append(Verdict(client, outcome, norm, score, self._drift_of(client, update)))
        if len(rows) < plan.min_updates:
            return verdicts, None
        return verdicts, plan.aggregation(torch.stack(rows), torch.tensor(weights))

    def _drift_of(self, client: str, update: Update) -> Mapping[str, float]:
        if update.profile is None or self.reference is None or self._drift is None:
            return {}
        try:
            return dict(self._drift(self.reference, Profile.from_json(update.profile)))
        except (ProfileError, ValueError, KeyError) as error:
            _log.warning("the profile of %s cannot be compared: %s", client, error)
            return {}

    def _show(self, one: Verdict, current: _Round) -> None:
        self._count(one.client, one.outcome)
        labels = self.model, one.client
        self.metrics[names.FEDERATED_UPDATE_NORM].labels(*labels).set(one.norm)
        self.metrics[names.FEDERATED_SUSPICION].labels(*labels).set(one.suspicion)
        self.metrics[names.FEDERATED_LOSS].labels(*labels).set(current.updates[one.client].loss)
        if one.drift:
            self.metrics[names.FEDERATED_CLIENT_DRIFT].labels(*labels).set(max(one.drift.values()))

    def _count(self, client: str, outcome: str) -> None:
        self.metrics[names.FEDERATED_UPDATES].labels(self.model, client, outcome).inc()

    def _updates(self, current: _Round) -> Path:
        return self._folder / "updates" / f"{current.number:06d}-{current.attempt:03d}"

    def _state(self) -> dict[str, Any]:
        return {"fingerprint": self._fingerprint, "values": dict(self._values)}

    def _resume(self) -> None:
        """Takes up the round that was in progress, with the updates whose digests fit."""
        try:
            said = json.loads((self._folder / "round.json").read_bytes())
            current = _Round(**said)
        except (FileNotFoundError, ValueError, TypeError):
            return
        if current.number != self.round:
            return  # it was aggregated, and the server was killed before it could begin the next
        for path in sorted(self._updates(current).glob("*.safetensors")):
            client, _, digest = path.name.removesuffix(".safetensors").rpartition(".")
            body = path.read_bytes()
            try:
                if hashlib.sha256(body).hexdigest() != digest:
                    raise ProtocolError("its digest does not fit")
                current.updates[client] = unpack_update(body, self._shapes)
            except ProtocolError as error:
                _log.warning("%s is left out: %s", path, error)
                path.unlink()
        # Clients could not answer while nobody listened.
        current.deadline = max(current.deadline, self._now() + self.plan.deadline_seconds)
        self._seen = dict.fromkeys(current.asked, self._now())
        self._round = current


def _seed(seed: int, number: int, word: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number} {word}".encode()).digest()[:6], "little")
