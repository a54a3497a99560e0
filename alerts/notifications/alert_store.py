"""Alerts with an end, in SQL and in memory: those posted by others and those that our own rules keep posting.

An alert is renewed by its sender; one that is not ends by itself. Source of the merging: Alertmanager, types/types.go
and provider/mem/mem.go.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from alerts.labels import Labels, labels_of
from alerts.notifications.fingerprints import fingerprint_of
from alerts.notifications.tables import ALERTS
from alerts.states import Alert

RETENTION_SECONDS = 900.0
RULES, API = "rules", "api"
_CHUNK = 500
_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownAlert:
    """An alert as Alertmanager holds it; times are unix seconds. `timeout`: its sender gave no end."""

    labels: Labels
    annotations: Labels
    starts_at: float
    ends_at: float
    updated_at: float
    timeout: bool = False
    generator_url: str = ""
    origin: str = API

    @property
    def fingerprint(self) -> str:
        """The identity as Alertmanager writes it."""
        return fingerprint_of(self.labels)

    def resolved(self, now: float) -> bool:
        """Whether it has ended."""
        return self.ends_at <= now

    def as_alert(self, now: float) -> Alert:
        """The alert as the rules' engine would hold it."""
        over = self.resolved(now)
        return Alert(
            labels=self.labels,
            annotations=self.annotations,
            value=1.0,
            state="inactive" if over else "firing",
            active_at=self.starts_at,
            fired_at=self.starts_at,
            resolved_at=self.ends_at if over else None,
            generator_url=self.generator_url,
        )


def merged(old: KnownAlert, new: KnownAlert, now: float) -> KnownAlert:
    """What is held once `new` has come: one alert where the two overlap, the new one alone where they do not."""
    overlaps = old.starts_at < new.ends_at < old.ends_at or old.starts_at < new.starts_at < old.ends_at
    if not overlaps:
        return new
    older, younger = (new, old) if new.updated_at < old.updated_at else (old, new)
    starts, ends = min(older.starts_at, younger.starts_at), younger.ends_at
    later = older.ends_at > younger.ends_at
    if younger.resolved(now):
        if older.resolved(now) and later:
            ends = older.ends_at
    elif later and not older.timeout:
        ends = older.ends_at
    return replace(younger, starts_at=starts, ends_at=ends)


class AlertStore:
    """All known alerts. `put` is durable; `refresh` sees what other processes on the same database put."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._alerts: dict[str, KnownAlert] = {}
        self._signature: tuple[Any, ...] = ()
        self._lock = threading.RLock()
        self.refresh()

    def put(self, alerts: Iterable[KnownAlert], now: float) -> None:
        """Add alerts, or renew those with the same labels."""
        given = list(alerts)
        for attempt in range(_TRIES if given else 0):
            try:
                return self._put(given, now)
            except sa.exc.IntegrityError:  # another process put the same alert in the same moment
                if attempt == _TRIES - 1:
                    raise
        return None

    def _put(self, given: Sequence[KnownAlert], now: float) -> None:
        with self._lock, self._engine.begin() as connection:
            held = self._held(connection, {alert.fingerprint for alert in given})
            for alert in given:
                mark = alert.fingerprint
                old = held.get(mark)
                if old is None:
                    held[mark] = alert
                    continue
                new = merged(old, alert, now)
                # What somebody else sends stays theirs, though our own rules may fire it as well.
                held[mark] = replace(new, origin=API) if old.origin == API and not old.resolved(now) else new
            _delete(connection, held)
            connection.execute(ALERTS.insert(), [_row(mark, alert) for mark, alert in held.items()])
            signature = _signature(connection)
        with self._lock:
            self._alerts.update(held)
            self._signature = signature

    def refresh(self) -> None:
        """Read the table again if somebody else has written it."""
        with self._lock, self._engine.begin() as connection:
            signature = _signature(connection)
            if signature == self._signature:
                return
            self._alerts = {row.fingerprint: _alert(row) for row in connection.execute(sa.select(ALERTS))}
            self._signature = signature

    def all(self) -> list[KnownAlert]:
        """Every alert: firing, and lately resolved."""
        with self._lock:
            return list(self._alerts.values())

    def items(self) -> list[tuple[str, KnownAlert]]:
        """Every alert with its fingerprint."""
        with self._lock:
            return list(self._alerts.items())

    def firing(self, now: float) -> list[KnownAlert]:
        """Those that have not ended, by fingerprint."""
        with self._lock:
            return [alert for _, alert in sorted(self._alerts.items()) if not alert.resolved(now)]

    def forget(self, now: float, but: Collection[str]) -> None:
        """Delete those that ended a quarter of an hour ago, except for some fingerprints."""
        with self._lock:
            old = [
                mark
                for mark, alert in self._alerts.items()
                if alert.ends_at < now - RETENTION_SECONDS and mark not in but
            ]
            if not old:
                return
            with self._engine.begin() as connection:
                _delete(connection, old)
                signature = _signature(connection)
            for mark in old:
                del self._alerts[mark]
            self._signature = signature

    def _held(self, connection: sa.Connection, marks: Collection[str]) -> dict[str, KnownAlert]:
        query = sa.select(ALERTS)
        return {
            row.fingerprint: _alert(row)
            for part in _chunks(sorted(marks))
            for row in connection.execute(query.where(ALERTS.c.fingerprint.in_(part)))
        }


def _delete(connection: sa.Connection, marks: Iterable[str]) -> None:
    for part in _chunks(list(marks)):
        connection.execute(ALERTS.delete().where(ALERTS.c.fingerprint.in_(part)))


def _chunks(items: Sequence[str]) -> Iterable[Sequence[str]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))


def _signature(connection: sa.Connection) -> tuple[Any, ...]:
    """Changes with every change of the table."""
    parts = (sa.func.count(), sa.func.max(ALERTS.c.updated_at), sa.func.sum(ALERTS.c.updated_at - ALERTS.c.ends_at))
    return tuple(connection.execute(sa.select(*parts)).one())


def _row(mark: str, alert: KnownAlert) -> dict[str, Any]:
    return {
        "fingerprint": mark,
        "labels": dict(alert.labels),
        "annotations": dict(alert.annotations),
        "starts_at": alert.starts_at,
        "ends_at": alert.ends_at,
        "updated_at": alert.updated_at,
        "timeout": alert.timeout,
        "generator_url": alert.generator_url,
        "origin": alert.origin,
    }


def _alert(row: Any) -> KnownAlert:
    return KnownAlert(
        labels=labels_of(row.labels),
        annotations=tuple(sorted(row.annotations.items())),
        starts_at=row.starts_at,
        ends_at=row.ends_at,
        updated_at=row.updated_at,
        timeout=bool(row.timeout),
        generator_url=row.generator_url,
        origin=row.origin,
    )
