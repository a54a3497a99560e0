"""Tells receivers of alerts: groups them by the routing tree, looks at each group in its rhythm, sends what is due.

One process of those that share a database does this, the one that holds the lease. Time comes from the caller or from
the clock given, so that waits of hours are tested in milliseconds. Source: Alertmanager, dispatch and notify.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor
from dataclasses import replace

import sqlalchemy as sa

from alerts.notifications.alert_store import AlertStore, KnownAlert
from alerts.notifications.channel import Channel
from alerts.notifications.configuration import Configuration
from alerts.notifications.courier import Courier, Failure, retry_jitter
from alerts.notifications.groups import Group
from alerts.notifications.intervals import any_contains
from alerts.notifications.lease import Lease
from alerts.notifications.ledger import Key, Ledger, Outgoing, Timer, Told, expiry, needs_update
from alerts.notifications.message import Message, MessageAlert
from alerts.notifications.muting import Muting
from alerts.notifications.receivers import Integration
from alerts.notifications.route import Route, group_key
from alerts.silence import SilenceStore
from observability import names
from observability.metrics import Metrics

log = logging.getLogger(__name__)

CLEAN_UP_SECONDS = 30.0
_SHORTEST_DEADLINE_SECONDS = 10.0
_LONGEST_SLEEP_SECONDS = 1.0
_REFRESH_SECONDS = 1.0


class Dispatcher:
    """`tick` does all that is due at a time; `start` calls it from a thread whenever something is."""

    def __init__(
        self,
        engine: sa.Engine,
        configuration: Configuration,
        alerts: AlertStore,
        silences: SilenceStore,
        *,
        external_url: str = "",
        clock: Callable[[], float] = time.time,
        executor: Executor | None = None,
        metrics: Metrics | None = None,
        jitter: Callable[[], float] = retry_jitter,
        lease: Lease | None = None,
    ) -> None:
        self.configuration = configuration
        self._alerts = alerts
        self._silences = silences
        self._external_url = external_url
        self._clock = clock
        self._metrics = metrics or Metrics()
        self._ledger = Ledger(engine)
        self._lease = lease or Lease(engine, "notifications")
        self._courier = Courier(
            self._ledger,
            self._finished,
            clock=clock,
            may_send=self._lease.held,
            executor=executor,
            metrics=self._metrics,
            jitter=jitter,
        )
        self._leads = False
        self._groups: dict[tuple[str, tuple[tuple[str, str], ...]], Group] = {}
        self._by_id: dict[str, Group] = {}
        self._seen: dict[str, KnownAlert] = {}
        self._clean_up_at = 0.0
        self._refreshed_at = 0.0
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Do what is due, when it is due, until `close`."""
        self._thread = threading.Thread(target=self._run, name="dispatch", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Alerts or silences have changed."""
        self._wake.set()

    def close(self) -> None:
        """Finish what is being sent; the rest is sent at the next start."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self._courier.close()
        for channel in self._integrations().values():
            channel.close()
        self._ledger.close()
        try:
            self._lease.release()
        except sa.exc.SQLAlchemyError:
            log.warning("cannot give the lease of notifications back; it ends by itself")

    def reconfigure(self, configuration: Configuration, now: float) -> None:
        """Use another configuration from now on; what was told stays told."""
        with self._lock:
            self.configuration = configuration
            if self._leads:
                self._take_over(now)

    def failures(self) -> list[Failure]:
        """The last failure of each integration that has not delivered since."""
        return self._courier.failures()

    def waiting(self) -> list[Outgoing]:
        """What is decided and not delivered yet, by any process."""
        return self._ledger.waiting()

    def muting(self, now: float) -> Muting:
        """What mutes alerts at a time."""
        firing = [alert.labels for alert in self._alerts.firing(now)] if self.configuration.inhibit_rules else []
        return Muting(self.configuration.inhibit_rules, firing, self._silences.all(), now)

    def tick(self, now: float) -> float:
        """Do all that is due at `now`; the time at which something is due next."""
        with self._lock:
            if not self._lease.hold(now):
                self._stand_down()
                return now + _LONGEST_SLEEP_SECONDS
            if now - self._refreshed_at >= _REFRESH_SECONDS:
                self._refreshed_at = now
                self._alerts.refresh()
            if not self._leads:
                self._leads = True
                self._take_over(now)
            else:
                self._observe(now)
            self._courier.tick(now)
            due = [group for group in self._by_id.values() if self._is_due(group, now)]
            if due:
                self._look(due, now)
            if now >= self._clean_up_at:
                self._clean_up(now)
            self._metrics[names.ALERTMANAGER_GROUPS].set(len(self._by_id))
            looks = (group.next_flush for group in self._by_id.values())
            return min(self._courier.next_due(), self._clean_up_at, min(looks, default=float("inf")))

    # --- gathering ----------------------------------------------------------------------------------------------------
    def _observe(self, now: float) -> None:
        """Put alerts that are new or were renewed into their groups."""
        born: dict[str, Timer] = {}
        for mark, alert in self._alerts.items():
            if self._seen.get(mark) is not alert:
                self._seen[mark] = alert
                for route in self.configuration.route.match(alert.labels):
                    self._insert(route, alert, now, {}, born)
        if born:
            self._ledger.decide(born, (), {})

    def _insert(
        self, route: Route, alert: KnownAlert, now: float, timers: dict[str, Timer], born: dict[str, Timer]
    ) -> None:
        labels = route.group_labels(alert.labels)
        group = self._groups.get((route.place, labels))
        if group is None:
            group = Group(route, labels, now + route.group_wait_seconds)
            if (timer := timers.get(group.id)) is not None:
                group.flushed, group.next_flush = (
                    timer.flushed,
                    max(timer.next_flush, now),
                )  # a missed look is made up for
            self._groups[route.place, labels] = self._by_id[group.id] = group
            group.insert(alert, now)
            born[group.id] = Timer(group.next_flush, group.flushed)
            return
        group.insert(alert, now)

    def _take_over(self, now: float) -> None:
        """Build the groups from the alerts that are known, and take up what waits in the outbox."""
        self._courier.forget()
        self._groups, self._by_id, self._seen = {}, {}, {}
        waiting, timers = self._ledger.load()
        told = {item.message.group_key: item.firing for item in waiting}
        born: dict[str, Timer] = {}
        for mark, alert in self._alerts.items():
            self._seen[mark] = alert
            for route in self.configuration.route.match(alert.labels):
                if not alert.resolved(now) or self._is_told_firing(route, alert, told):
                    self._insert(route, alert, now, timers, born)
        self._ledger.decide({id: timer for id, timer in born.items() if id not in timers}, (), {})
        self._clean_up_at = now + CLEAN_UP_SECONDS
        integrations = self._integrations()
        for item in waiting:
            channel = integrations.get(item.integration)
            if channel is None:
                log.warning("%s is no receiver any more: %s is not sent", item.integration, item.message.title)
                self._ledger.dropped(item)
                continue
            if (group := self._by_id.get(item.group)) is not None:
                group.waiting.add(item.id)
                group.deadline = max(group.deadline, item.deadline, now + _SHORTEST_DEADLINE_SECONDS)
            self._courier.start(_prolonged(item, now + _SHORTEST_DEADLINE_SECONDS), channel, now)

    def _stand_down(self) -> None:
        if self._leads:
            log.info("another process tells receivers now")
            self._leads = False
            self._courier.forget()
            self._groups, self._by_id, self._seen = {}, {}, {}

    def _is_told_firing(self, route: Route, alert: KnownAlert, waiting: Mapping[str, Collection[str]]) -> bool:
        """Whether somebody was told, or is about to be, that the alert fires and not that it ended."""
        key, mark = group_key(route, route.group_labels(alert.labels)), alert.fingerprint
        if mark in waiting.get(key, ()):
            return True
        logged = (self._ledger.told((each.id, key)) for each in self._receiver(route))
        return any(told is not None and mark in told.firing for told in logged)

    # --- telling ------------------------------------------------------------------------------------------------------
    def _is_due(self, group: Group, now: float) -> bool:
        if now < group.next_flush or any(map(self._courier.is_running, group.waiting)):
            return False
        return not group.waiting or now >= group.deadline

    def _look(self, groups: list[Group], now: float) -> None:
        """Look at groups that are due: decide and commit what is sent, then send it."""
        muting = self.muting(now)
        timers: dict[str, Timer] = {}
        silently: dict[Key, tuple[Told, float]] = {}
        outgoing: list[Outgoing] = []
        for group in groups:
            for id in list(group.waiting):
                self._courier.supersede(id)
            group.waiting.clear()
            items, quiet = self._decide(group, muting, now)
            if items or quiet:
                timers[group.id] = Timer(group.next_flush, True)
                outgoing += items
                silently |= quiet
            if items:
                group.waiting = {item.id for item in items}
                group.deadline = items[0].deadline
            else:
                group.settle()
        if timers:
            self._ledger.decide(timers, outgoing, silently)
        integrations = self._integrations()
        for item in outgoing:
            self._courier.start(item, integrations[item.integration], now)

    def _decide(self, group: Group, muting: Muting, now: float) -> tuple[list[Outgoing], dict[Key, tuple[Told, float]]]:
        """What a look at a group makes: messages, and entries of the log for those who do not want to hear of it."""
        route, intervals = group.route, self.configuration.intervals
        alerts = [alert for alert in group.look(now) if not muting.inhibited_by(alert.labels)]
        if route.active_time_intervals and not any_contains(intervals, route.active_time_intervals, now):
            return [], {}
        if any_contains(intervals, route.mute_time_intervals, now):
            return [], {}
        alerts = [alert for alert in alerts if not muting.silenced_by(alert.labels)]
        if not alerts:
            return [], {}
        key = group.key
        firing = frozenset(alert.fingerprint for alert in alerts if not alert.resolved(now))
        resolved = frozenset(alert.fingerprint for alert in alerts if alert.resolved(now))
        items: list[Outgoing] = []
        quiet: dict[Key, tuple[Told, float]] = {}
        for integration in self._receiver(route):
            due = needs_update(
                self._ledger.told((integration.id, key)),
                firing,
                resolved,
                send_resolved=integration.send_resolved,
                repeat_seconds=route.repeat_interval_seconds,
                now=now,
            )
            if not due:
                continue
            if not integration.send_resolved and not firing:
                self._metrics[names.ALERTMANAGER_NOTIFICATIONS].labels(integration.channel.kind).inc()
                quiet[integration.id, key] = (
                    Told(firing, resolved, now), expiry(route.repeat_interval_seconds, now)
                )  # fmt: skip
                continue
            told_of = [alert for alert in alerts if integration.send_resolved or not alert.resolved(now)]
            items.append(
                Outgoing(
                    integration=integration.id,
                    group=group.id,
                    message=Message(
                        id=str(uuid.uuid4()),
                        receiver=route.receiver,
                        group_key=key,
                        group_labels=group.labels,
                        alerts=tuple(_told(alert, now) for alert in told_of),
                        external_url=self._external_url,
                    ),
                    firing=firing,
                    resolved=resolved,
                    repeat_seconds=route.repeat_interval_seconds,
                    created_at=now,
                    deadline=now + max(route.group_interval_seconds, _SHORTEST_DEADLINE_SECONDS),
                )
            )
        return items, quiet

    def _finished(self, item: Outgoing, delivered: bool) -> None:
        with self._lock:
            group = self._by_id.get(item.group)
            if group is None or item.id not in group.waiting:
                return
            group.waiting.discard(item.id)
            group.failed = group.failed or not delivered
            if not group.waiting and not group.failed:
                group.settle()
        self._wake.set()

    def _clean_up(self, now: float) -> None:
        """Forget groups without alerts, alerts that ended long ago, and entries of the log that are of no use."""
        self._clean_up_at = now + CLEAN_UP_SECONDS
        gone = [place for place, group in self._groups.items() if not group.alerts and not group.waiting]
        ids = [self._groups.pop(place).id for place in gone]
        for id in ids:
            del self._by_id[id]
        self._ledger.forget(ids, now)
        self._alerts.forget(now, {mark for group in self._by_id.values() for mark in group.alerts})
        known = {mark for mark, _ in self._alerts.items()}
        self._seen = {mark: alert for mark, alert in self._seen.items() if mark in known}

    def _receiver(self, route: Route) -> tuple[Integration, ...]:
        return self.configuration.receivers[route.receiver].integrations

    def _integrations(self) -> dict[str, Channel]:
        receivers = self.configuration.receivers.values()
        return {each.id: each.channel for receiver in receivers for each in receiver.integrations}

    def _run(self) -> None:
        while not self._closing:
            self._wake.clear()
            now = self._clock()
            try:
                due = self.tick(now)
            except Exception:  # a lost second is better than receivers that never hear again
                log.exception("a look at the groups of alerts failed")
                due = now + _LONGEST_SLEEP_SECONDS
            self._wake.wait(min(max(due - self._clock(), 0.01), _LONGEST_SLEEP_SECONDS))


def _told(alert: KnownAlert, now: float) -> MessageAlert:
    return MessageAlert(
        labels=alert.labels,
        annotations=alert.annotations,
        starts_at=alert.starts_at,
        ends_at=alert.ends_at if alert.resolved(now) else None,
        generator_url=alert.generator_url,
    )


def _prolonged(item: Outgoing, deadline: float) -> Outgoing:
    """The message with time for a try at least, however long nobody was there to send it."""
    return item if item.deadline >= deadline else replace(item, deadline=deadline)
