"""Inhibition: while a source alert fires, target alerts with the same values of some labels tell nobody.

Source: Alertmanager, inhibit/inhibit.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from alerts.labels import Labels, Matcher, match_all
from alerts.notifications.fingerprints import fingerprint_of


@dataclass(frozen=True, slots=True, kw_only=True)
class InhibitRule:
    """Firing alerts that meet `source` mute those that meet `target` and agree on every label of `equal`."""

    source: tuple[Matcher, ...]
    target: tuple[Matcher, ...]
    equal: tuple[str, ...] = ()

    def values(self, labels: Labels) -> tuple[str, ...]:
        """The values that must agree; a missing label has the value ""."""
        known = dict(labels)
        return tuple(known.get(name, "") for name in self.equal)


class Inhibitor:
    """The rules over the alerts that fire now, indexed by the values that must agree."""

    def __init__(self, rules: Sequence[InhibitRule], firing: Iterable[Labels]) -> None:
        self._rules = rules
        # By rule and values: (fingerprint of a source, whether it is a target of the rule too), in order.
        self._sources: list[dict[tuple[str, ...], list[tuple[str, bool]]]] = [{} for _ in rules]
        for labels in firing if rules else ():
            for rule, sources in zip(rules, self._sources, strict=True):
                if match_all(rule.source, labels):
                    source = (fingerprint_of(labels), match_all(rule.target, labels))
                    sources.setdefault(rule.values(labels), []).append(source)
        for sources in self._sources:
            for found in sources.values():
                found.sort()

    def inhibited_by(self, labels: Labels) -> list[str]:
        """The fingerprint of an alert that mutes these labels, or nothing: the first rule that applies decides.

        Where the labels are a source of the rule as well, sources that are targets too do not count: an alert never
        mutes itself, nor do two of a kind mute each other.
        """
        for rule, sources in zip(self._rules, self._sources, strict=True):
            if not match_all(rule.target, labels):
                continue
            both = match_all(rule.source, labels)
            for source, is_target in sources.get(rule.values(labels), ()):
                if not (both and is_target):
                    return [source]
        return []
