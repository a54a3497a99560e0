"""Alerts that others sent: by Alertmanager's API (kept until they end) or its webhook (acted on as they come)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from alerts.labels import LABEL_NAME, Labels, fingerprint, labels_of
from alerts.schema import RECEIVED_ALERTS
from alerts.states import Alert

RESOLVE_SECONDS = 300.0
_RETENTION_SECONDS = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedAlert:
    """An alert as Alertmanager's API takes it; times are unix seconds."""

    labels: Labels
    annotations: Labels
    starts_at: float
    ends_at: float
    generator_url: str = ""

    def as_alert(self, now: float) -> Alert:
        """The alert as the engine would hold it."""
        over = self.ends_at <= now
        return Alert(
            labels=self.labels,
            annotations=self.annotations,
            value=1.0,
            state="inactive" if over else "firing",
            active_at=self.starts_at,
            fired_at=self.starts_at,
            resolved_at=self.ends_at if over else None,
        )


class ReceivedStore:
    """Received alerts in SQL, forgotten a quarter of an hour after their end."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def put(self, alerts: Iterable[ReceivedAlert], now: float) -> None:
        """Add alerts, or renew those with the same labels (the earlier start stays)."""
        table = RECEIVED_ALERTS
        with self._engine.begin() as connection:
            connection.execute(table.delete().where(table.c.ends_at < now - _RETENTION_SECONDS))
            for alert in alerts:
                mark = fingerprint(alert.labels)
                old = connection.execute(sa.select(table).where(table.c.fingerprint == mark)).first()
                starts = min(alert.starts_at, old.starts_at) if old and old.ends_at > now else alert.starts_at
                connection.execute(table.delete().where(table.c.fingerprint == mark))
                connection.execute(
                    table.insert().values(
                        fingerprint=mark,
                        labels=dict(alert.labels),
                        annotations=dict(alert.annotations),
                        starts_at=starts,
                        ends_at=alert.ends_at,
                        updated_at=now,
                        generator_url=alert.generator_url,
                    )
                )

    def alerts(self, now: float) -> list[Alert]:
        """All that are known, firing or lately resolved."""
        with self._engine.begin() as connection:
            rows = connection.execute(
                sa.select(RECEIVED_ALERTS).where(RECEIVED_ALERTS.c.ends_at > now - _RETENTION_SECONDS)
            )
            return [
                ReceivedAlert(
                    labels=labels_of(row.labels),
                    annotations=labels_of(row.annotations),
                    starts_at=row.starts_at,
                    ends_at=row.ends_at,
                ).as_alert(now)
                for row in rows
            ]


def read_alert(item: Any, now: float) -> ReceivedAlert:
    """One alert of a request to Alertmanager's API; raises ValueError."""
    if not isinstance(item, Mapping):
        raise ValueError("an alert is an object with labels")
    labels = read_labels(item.get("labels"), "labels")
    if not labels:
        raise ValueError("at least one label pair required")
    ends = read_time(item.get("endsAt"), "endsAt", 0.0)
    starts = read_time(item.get("startsAt"), "startsAt", min(now, ends) if ends > 0 else now)
    if ends > 0 and ends < starts:
        raise ValueError("start time must be before end time")
    return ReceivedAlert(
        labels=labels,
        annotations=read_labels(item.get("annotations"), "annotations"),
        starts_at=starts,
        ends_at=ends if ends > 0 else now + RESOLVE_SECONDS,
        generator_url=str(item.get("generatorURL") or ""),
    )


def read_labels(value: Any, what: str) -> Labels:
    """Labels or annotations of a request; raises ValueError."""
    if value is None:
        return ()
    if not isinstance(value, Mapping) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError(f"{what} must be an object of texts")
    bad = [name for name in value if not LABEL_NAME.match(name)]
    if bad:
        raise ValueError(f"invalid name {bad[0]!r} in {what}")
    return labels_of(value)


def read_time(value: Any, what: str, default: float) -> float:
    """Unix seconds of an RFC 3339 time; Go's zero time is 0. Raises ValueError."""
    if value in (None, ""):
        return default
    if not isinstance(value, str):
        raise ValueError(f"{what} must be an RFC 3339 time, got {value!r}")
    if value.startswith("0001-01-01"):
        return default
    try:
        moment = datetime.fromisoformat(value.replace("Z", "+00:00"))
    except ValueError as error:
        raise ValueError(f"{what} must be an RFC 3339 time, got {value!r}") from error
    if moment.tzinfo is None:
        raise ValueError(f"{what} must name its time zone, got {value!r}")
    return moment.timestamp()
