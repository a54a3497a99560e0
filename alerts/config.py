"""What the alerts service is told when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from alerts.actions import PROMOTE, RETRAIN, ROLLBACK, STEP, ActionPolicy, Hook
from alerts.evidence import VerdictPolicy
from alerts.retraining import RetrainingPolicy


def _automatic() -> dict[str, ActionPolicy]:
    return {action: ActionPolicy() for action in (ROLLBACK, PROMOTE, RETRAIN, STEP)}


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertsConfig:
    """Settings of the alerts service; `hooks` and `policies` are keyed by action, or by `action:model`."""

    host: str = "127.0.0.1"
    port: int = 9093
    query_url: str = "http://127.0.0.1:9090"
    """Where rules and the judge of releases read (Prometheus' HTTP API)."""
    push_url: str = "http://127.0.0.1:4318"
    """Where alert states, recorded series and canary evidence are written (Pushgateway's API)."""
    write_url: str = ""
    """Where rules write what they record, by remote write, if that is not the collector: a Prometheus' address."""
    external_labels: Mapping[str, str] = field(default_factory=dict)
    """What templates know as `$externalLabels`."""
    serving_url: str = ""
    """Serving's control API: gives rollback and promote a hook where `hooks` names none."""
    database_url: str = "sqlite:///.trimtab/alerts.db"
    rule_files: tuple[str | Path, ...] = ()
    shipped_rules: bool = True
    interval_seconds: float = 1.0
    """How often releases are judged, and rule groups that name no interval are evaluated."""
    notify_urls: tuple[str, ...] = ()
    """Apprise URLs; those that begin with http:// or https:// get Alertmanager's webhook JSON."""
    alertmanager_config: str | Path = ""
    """An `alertmanager.yml` that says who is told, in place of `notify_urls`; read again when it changes."""
    alertmanagers: tuple[str, ...] = ()
    """Base URLs of Alertmanagers that get the alerts of our own rules too."""
    policies: Mapping[str, ActionPolicy] = field(default_factory=_automatic)
    policy_version: str = ""
    """What the file of the policies calls itself; stands in the journal beside their digests."""
    hooks: Mapping[str, Hook] = field(default_factory=dict)
    verdict: VerdictPolicy = field(default_factory=VerdictPolicy)
    verdicts: Mapping[str, VerdictPolicy] = field(default_factory=dict)
    """Verdict policies of single models, in place of `verdict`."""
    retraining: RetrainingPolicy = field(default_factory=RetrainingPolicy)
    """How episodes of drift or decay begin, end and retrain."""
    retrainings: Mapping[str, RetrainingPolicy] = field(default_factory=dict)
    """Those of single models, in place of `retraining`."""
    release_policies: str | Path = ""
    """A YAML file of release policies by model, read again when it changes; empty leaves releases to the rules."""
    secret: str = ""
    """Signs hooks and webhooks; if set, requests for actions must be signed too (or carry it as a bearer token)."""
    external_url: str = ""
    """How others reach this service; stands in notifications and templates."""

    def __post_init__(self) -> None:
        if self.alertmanager_config and self.notify_urls:
            raise ValueError("give notify_urls or alertmanager_config, not both: the file names all receivers")
        if self.interval_seconds <= 0:
            raise ValueError(f"interval_seconds must be above 0, got {self.interval_seconds}")
