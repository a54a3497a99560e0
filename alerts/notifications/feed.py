"""Our own rules' alerts on their way to receivers: sent as a Prometheus sends its own, to us and to Alertmanagers.

Source: Prometheus, rules/alerting.go, `needsSending` and `sendAlerts`.
"""

from __future__ import annotations

from collections.abc import Iterable

from alerts.labels import Labels
from alerts.notifications.alert_store import RULES, KnownAlert
from alerts.states import Alert

RESEND_SECONDS = 60.0
_LIVES = 4  # an alert that is not sent again ends after so many times the resend interval


class RuleFeed:
    """Which alerts are to be sent: those that are new, that just resolved, or that were not sent for a minute."""

    def __init__(self, *, external_url: str = "", resend_seconds: float = RESEND_SECONDS) -> None:
        self._external_url = external_url
        self._resend_seconds = resend_seconds
        self._sent: dict[Labels, tuple[float, float | None, float]] = {}

    def due(self, alerts: Iterable[Alert], now: float) -> list[KnownAlert]:
        """The alerts to send at `now` (unix seconds), which count as sent then. Pending ones never are."""
        found = []
        present = set()
        for alert in alerts:
            if alert.state == "pending":
                continue
            present.add(alert.labels)
            starts = alert.fired_at if alert.fired_at is not None else alert.active_at
            before = self._sent.get(alert.labels)
            if before is None or before[:2] != (starts, alert.resolved_at) or now >= before[2] + self._resend_seconds:
                self._sent[alert.labels] = (starts, alert.resolved_at, now)
                found.append(self._known(alert, starts, now))
        self._sent = {labels: sent for labels, sent in self._sent.items() if labels in present}
        return found

    def _known(self, alert: Alert, starts: float, now: float) -> KnownAlert:
        ends = alert.resolved_at if alert.resolved_at is not None else now + _LIVES * self._resend_seconds
        return KnownAlert(
            labels=alert.labels,
            annotations=alert.annotations,
            starts_at=starts,
            ends_at=ends,
            updated_at=now,
            generator_url=self._external_url,
            origin=RULES,
        )
