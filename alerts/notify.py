"""Notification: alerts grouped by routes, told once and again after the repeat interval, by threads of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

import sqlalchemy as sa

from alerts.channels import Channel, DeliveryError, Notification
from alerts.route import Group, Route, Told, grouped, is_due
from alerts.schema import NOTIFIED
from alerts.states import Alert
from observability import names
from observability.metrics import Metrics

log = logging.getLogger(__name__)

_TRIES = 5


class Notifier:
    """Tells receivers of alerts. What was told is saved, so a restart does not tell it again."""

    def __init__(
        self,
        engine: sa.Engine,
        routes: Sequence[Route],
        receivers: Mapping[str, Sequence[Channel]],
        *,
        external_url: str = "",
        backoff_seconds: float = 0.5,
        executor: Executor | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        unknown = {route.receiver for route in routes} - set(receivers)
        if unknown:
            raise ValueError(f"routes name receivers that do not exist: {', '.join(sorted(unknown))}")
        self._engine = engine
        self._routes = list(routes)
        self._receivers = receivers
        self._external_url = external_url
        self._backoff_seconds = backoff_seconds
        self._executor = executor or ThreadPoolExecutor(max_workers=4, thread_name_prefix="notify")
        self._metrics = metrics or Metrics()
        self._told = self._load()
        self._waiting: dict[tuple[str, str], float] = {}
        self._sending: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def update(self, alerts: Sequence[Alert], now: float) -> None:
        """Send what is due. `alerts` are those that nothing silences; called from one thread."""
        for group in grouped(self._routes, alerts):
            for place, channel in enumerate(self._receivers[group.route.receiver]):
                key = (f"{group.route.receiver}/{place}", group.key)
                with self._lock:
                    since = self._waiting.setdefault(key, now)
                    if key in self._sending or not is_due(group, self._told.get(key), since, now):
                        continue
                    self._sending.add(key)
                self._executor.submit(self._send, key, channel, group, now)

    def close(self) -> None:
        """Finish or give up what is being sent."""
        self._closing.set()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _send(self, key: tuple[str, str], channel: Channel, group: Group, now: float) -> None:
        notification = Notification(group, group.route.receiver, self._external_url)
        try:
            delivered = self._deliver(channel, notification)
            if delivered:
                self._save(key, Told(group.firing, group.resolved, now))
        except Exception:  # a channel may raise anything; the others must go on
            log.exception("the notification %s failed", notification.title)
        finally:
            with self._lock:
                self._sending.discard(key)

    def _deliver(self, channel: Channel, notification: Notification) -> bool:
        count = self._metrics[names.NOTIFICATIONS]
        for attempt in range(_TRIES):
            try:
                channel.send(notification)
            except DeliveryError as error:
                log.warning("notification %s by %s failed: %s", notification.title, channel.name, error)
                count.labels(channel.name, "failed").inc()
                if error.final:
                    return True  # told again at the repeat interval, not at each look
                if self._closing.wait(self._backoff_seconds * 1.5**attempt):
                    return False
            else:
                count.labels(channel.name, "done").inc()
                return True
        return False

    def _load(self) -> dict[tuple[str, str], Told]:
        with self._engine.begin() as connection:
            return {
                (row.receiver, row.group_key): Told(frozenset(row.firing), frozenset(row.resolved), row.sent_at)
                for row in connection.execute(sa.select(NOTIFIED))
            }

    def _save(self, key: tuple[str, str], told: Told) -> None:
        with self._engine.begin() as connection:
            connection.execute(NOTIFIED.delete().where(NOTIFIED.c.receiver == key[0], NOTIFIED.c.group_key == key[1]))
            connection.execute(
                NOTIFIED.insert().values(
                    receiver=key[0],
                    group_key=key[1],
                    firing=sorted(told.firing),
                    resolved=sorted(told.resolved),
                    sent_at=told.sent_at,
                )
            )
        with self._lock:
            self._told[key] = told
