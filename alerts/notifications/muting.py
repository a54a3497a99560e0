"""What keeps an alert from being told: inhibition and silences, at one moment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from alerts.labels import Labels
from alerts.notifications.inhibition import Inhibitor, InhibitRule
from alerts.silence import Silence, silenced_by


class Muting:
    """The answer for any label set. `firing` are the labels of the alerts that fire now; times are unix seconds."""

    def __init__(
        self, rules: Sequence[InhibitRule], firing: Iterable[Labels], silences: Iterable[Silence], now: float
    ) -> None:
        self._inhibitor = Inhibitor(rules, firing)
        self._silences = [silence for silence in silences if silence.state(now) == "active"]
        self._now = now

    def inhibited_by(self, labels: Labels) -> list[str]:
        """The fingerprint of an alert that mutes these labels, if there is one."""
        return self._inhibitor.inhibited_by(labels)

    def silenced_by(self, labels: Labels) -> list[str]:
        """The ids of the silences that cover these labels, in order."""
        return sorted(silenced_by(self._silences, labels, self._now))

    def mutes(self, labels: Labels) -> bool:
        """Whether either does."""
        return bool(self.silenced_by(labels) or self.inhibited_by(labels))
