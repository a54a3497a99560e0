"""One server of parameters: answers messages from its shard, and counts what it does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import Tensor

from observability import Metrics, names
from training.parameter_server.shard import Gradient, Shard, ShardError
from training.parameter_server.wire import Message, WireError, decode, encode

_log = logging.getLogger(__name__)
PATIENCE_SECONDS = 1.0


class Server:
    """Answers requests for one shard: hand `handle` to a transport, and `lost` for workers whose link has ended."""

    def __init__(
        self,
        shard: Shard,
        *,
        model: str,
        number: int = 0,
        metrics: Metrics | None = None,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self.shard = shard
        self._patience = patience
        metrics = Metrics() if metrics is None else metrics
        self._count = _Counted(metrics, model, str(number))
        if shard.restored:
            self._count.restores.inc()
        self._saves = {"ok": 0, "failed": 0}
        self._saved = {
            outcome: metrics[names.TRAINING_CHECKPOINTS].labels(model, outcome) for outcome in ("ok", "failed")
        }

    def handle(self, body: bytes) -> bytes:
        """The answer to a request: `ok`, `wait` (ask again) or `error` with the reason. Never raises."""
        self._count.received.inc(len(body))
        try:
            request = decode(body)
            answer = self._answer(request)
        except (WireError, ShardError, KeyError, TypeError, ValueError) as error:
            answer = _error(str(error) or type(error).__name__)
        except Exception as error:  # a worker must hear of it, or it would wait for ever
            _log.exception("a request failed")
            answer = _error(f"{type(error).__name__}: {error}")
        said = encode(answer)
        self._count.sent.inc(len(said))
        return said

    def lost(self, worker: str) -> None:
        """A worker's link has ended."""
        self.shard.lost(worker)
        self._show()

    def _answer(self, request: Message) -> Message:
        worker, clock, shard = request.worker, request.clock, self.shard
        if request.kind == "pull":
            pulled = shard.pull(worker, clock, dict(request.tensors), self._patience)
            if pulled is None:
                return Message("wait")
            if worker:
                self._count.ahead.observe(pulled.ahead)
                self._count.waits.observe(pulled.waited)
            facts = {"ahead": pulled.ahead, "waited": pulled.waited}
            tables = {f"table.{name}": rows for name, rows in pulled.part.tables.items()}
            return Message("ok", worker, clock, facts, {"dense": pulled.part.dense, **tables})
        if request.kind == "push":
            done = shard.push(worker, clock, _gradient(request.tensors))
            self._count.pushes(done.outcome).inc()
            if done.outcome == "applied":
                self._count.missed.observe(done.missed)
            self._show()
            return Message("ok", worker, done.clock, asdict(done))
        if request.kind == "status":
            return Message("ok", worker, clock, asdict(shard.status(worker)))
        if request.kind in ("enter", "leave"):
            if request.kind == "enter":
                clock = shard.enter(worker, clock)
            else:
                shard.leave(worker)
            self._show()
            return Message("ok", worker, clock)
        raise WireError(f"there is no request {request.kind!r}")

    def _show(self) -> None:
        self._count.live.set(self.shard.status("").live)
        self._count.updates.set(self.shard.updates)
        for outcome, count in self.shard.saves.items():
            if count > self._saves[outcome]:
                self._saved[outcome].inc(count - self._saves[outcome])
                self._saves[outcome] = count


class _Counted:
    """The metrics of one server, each bound to its labels once."""

    def __init__(self, metrics: Metrics, model: str, server: str) -> None:
        def of(metric: names.Metric, *labels: str) -> Any:
            return metrics[metric].labels(model, server, *labels)

        self.updates, self.live = of(names.PARAMETER_SERVER_UPDATES), of(names.PARAMETER_SERVER_WORKERS)
        self.ahead, self.missed = of(names.PARAMETER_SERVER_AHEAD), of(names.PARAMETER_SERVER_MISSED)
        self.waits, self.restores = of(names.PARAMETER_SERVER_WAIT), of(names.PARAMETER_SERVER_RESTORES)
        self.received = of(names.PARAMETER_SERVER_BYTES, "received")
        self.sent = of(names.PARAMETER_SERVER_BYTES, "sent")
        self.pushes: Callable[[str], Any] = lambda outcome: of(names.PARAMETER_SERVER_PUSHES, outcome)


def _gradient(tensors: Any) -> Gradient:
    rows: dict[str, tuple[Tensor, Tensor]] = {
        name.removeprefix("rows."): (tensor, tensors["grad." + name.removeprefix("rows.")])
        for name, tensor in tensors.items()
        if name.startswith("rows.")
    }
    return Gradient(tensors.get("dense"), rows)


def _error(reason: str) -> Message:
    return Message("error", facts={"reason": reason})
