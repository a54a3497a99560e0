"""Delivers what is in the outbox: each message until it is taken, refused for good, or its time is over.

Between tries the wait grows by half from half a second to a minute, at random between half and one and a half of that;
`Retry-After` is honoured, for the integration as a whole.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from alerts.notifications.channel import Channel, DeliveryError
from alerts.notifications.ledger import Ledger, Outgoing
from alerts.notifications.threads import DeliveryThreads
from observability import names
from observability.metrics import Metrics

log = logging.getLogger(__name__)

FIRST_WAIT_SECONDS = 0.5
_GROWTH = 1.5
_LONGEST_WAIT_SECONDS = 60.0
_SHORTEST_TRY_SECONDS = 1.0
_LONGEST_TRY_SECONDS = 60.0
_MAX_FAILURES = 200


def retry_jitter() -> float:
    """A factor of the wait between tries."""
    return random.uniform(0.5, 1.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The last failure of an integration (unix seconds); `final` says that the message was given up."""

    integration: str
    at: float
    error: str
    final: bool
    title: str


@dataclass(slots=True)
class _Try:
    item: Outgoing
    channel: Channel
    due: float
    count: int = 0
    running: bool = False
    error: str = ""


class Courier:
    """`done` is called with the message and whether it was delivered, from the thread that delivered it."""

    def __init__(
        self,
        ledger: Ledger,
        done: Callable[[Outgoing, bool], None],
        *,
        clock: Callable[[], float] = time.time,
        may_send: Callable[[float], bool] = lambda now: True,
        executor: Executor | None = None,
        metrics: Metrics | None = None,
        jitter: Callable[[], float] = retry_jitter,
        threads: int = 8,
    ) -> None:
        self._ledger = ledger
        self._done = done
        self._clock = clock
        self._may_send = may_send
        self._executor = executor or DeliveryThreads(threads)
        self._metrics = metrics or Metrics()
        self._jitter = jitter
        self._tries: dict[str, _Try] = {}
        self._not_before: dict[str, float] = {}
        self._failures: dict[str, Failure] = {}
        self._lock = threading.RLock()
        self._closing = False

    def start(self, item: Outgoing, channel: Channel, now: float) -> None:
        """Deliver a message that is in the outbox."""
        with self._lock:
            if item.id in self._tries:
                return
            self._metrics[names.ALERTMANAGER_NOTIFICATIONS].labels(channel.kind).inc()
            self._tries[item.id] = _Try(item, channel, max(now, self._not_before.get(item.integration, 0.0)))
        self.tick(now)

    def tick(self, now: float) -> None:
        """Begin the tries that are due, and give up messages whose time is over."""
        begun: list[_Try] = []
        over: list[_Try] = []
        with self._lock:
            for each in list(self._tries.values()):
                if each.running or self._closing:
                    continue
                if now >= each.item.deadline and each.due <= now and each.count:
                    over.append(each)
                    del self._tries[each.item.id]
                elif now >= each.due:
                    each.running = True
                    begun.append(each)
        for each in over:
            self._give_up(each, f"not delivered in time; the last of {each.count} tries: {each.error}")
        for each in begun:
            self._executor.submit(self._deliver, each)

    def next_due(self) -> float:
        """When `tick` has something to do next; infinity if never."""
        with self._lock:
            return min((each.due for each in self._tries.values() if not each.running), default=float("inf"))

    def is_running(self, id: str) -> bool:
        """Whether a try of the message is under way."""
        with self._lock:
            return id in self._tries and self._tries[id].running

    def supersede(self, id: str) -> None:
        """Give a message up, since another takes its place; not one whose try is under way."""
        with self._lock:
            each = self._tries.get(id)
            if each is None or each.running:
                return
            del self._tries[id]
        self._give_up(each, f"not delivered in time; the last of {each.count} tries: {each.error}")

    def forget(self) -> None:
        """Let go of all messages whose try is not under way; they stay in the outbox."""
        with self._lock:
            self._tries = {id: each for id, each in self._tries.items() if each.running}

    def failures(self) -> list[Failure]:
        """The last failure of each integration that has not delivered since, newest first."""
        with self._lock:
            return sorted(self._failures.values(), key=lambda failure: -failure.at)

    def close(self) -> None:
        """Give the tries that are under way a moment; what was not delivered stays in the outbox."""
        self._closing = True
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _deliver(self, each: _Try) -> None:
        item, channel, now = each.item, each.channel, self._clock()
        if self._closing or not self._may_send(now):
            with self._lock:
                self._tries.pop(item.id, None)
            return
        error: DeliveryError | None = None
        started = time.perf_counter()
        try:
            limit = min(_LONGEST_TRY_SECONDS, max(_SHORTEST_TRY_SECONDS, item.deadline - now))
            channel.send(item.message, limit)
        except DeliveryError as failure:
            error = failure
        except Exception as failure:  # a channel may raise anything; the others must go on
            log.exception("the channel %s failed", item.integration)
            error = DeliveryError(f"{type(failure).__name__}: {failure}", final=True)
        self._metrics[names.ALERTMANAGER_NOTIFICATION_REQUESTS].labels(channel.kind).inc()
        self._metrics[names.ALERTMANAGER_NOTIFICATION_LATENCY].labels(channel.kind).observe(
            time.perf_counter() - started
        )
        try:
            if error is None:
                self._delivered(each)
            else:
                self._failed(each, error)
        except Exception:  # the database is away: the message stays in the outbox
            log.exception("cannot write what became of the notification %s", item.message.title)
            with self._lock:
                self._tries.pop(item.id, None)
            self._done(item, False)

    def _delivered(self, each: _Try) -> None:
        self._ledger.delivered(each.item, self._clock())
        with self._lock:
            self._tries.pop(each.item.id, None)
            self._failures.pop(each.item.integration, None)
        self._done(each.item, True)

    def _failed(self, each: _Try, error: DeliveryError) -> None:
        item, now = each.item, self._clock()
        self._metrics[names.ALERTMANAGER_NOTIFICATION_REQUESTS_FAILED].labels(each.channel.kind).inc()
        if each.error != str(error):
            log.warning("notification %s to %s failed: %s", item.message.title, item.integration, error)
        with self._lock:
            each.error, each.running = str(error), False
            each.count += 1
            wait = min(_LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * _GROWTH ** (each.count - 1)) * self._jitter()
            each.due = now + max(wait, error.retry_after)
            if error.retry_after:
                self._not_before[item.integration] = now + error.retry_after
            over = error.final or (each.due >= item.deadline and not error.retry_after)
            self._note(each, now, final=error.final)
            if over:
                self._tries.pop(item.id, None)
        if over:
            self._give_up(each, str(error))

    def _give_up(self, each: _Try, why: str) -> None:
        self._metrics[names.ALERTMANAGER_NOTIFICATIONS_FAILED].labels(each.channel.kind).inc()
        log.error("notification %s to %s is given up: %s", each.item.message.title, each.item.integration, why)
        self._ledger.dropped(each.item)
        self._done(each.item, False)

    def _note(self, each: _Try, now: float, *, final: bool) -> None:
        item = each.item
        if len(self._failures) >= _MAX_FAILURES:
            del self._failures[min(self._failures, key=lambda id: self._failures[id].at)]
        self._failures[item.integration] = Failure(
            integration=item.integration, at=now, error=each.error, final=final, title=item.message.title
        )
