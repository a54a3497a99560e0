"""The alerts service: judges releases and evaluates rules each second, tells receivers, and lets actions run."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alerts.actions import STEP, Action, ActionRunner, Hook, serving_hooks
from alerts.actions.action import QUARANTINE, RETRAIN
from alerts.actions.asking import asked_for
from alerts.actions.notices import Notices
from alerts.actions.sources import SourceHook
from alerts.config import AlertsConfig
from alerts.engine import RuleEngine
from alerts.evidence import CollectorLabels, Judgement, LabelFeed, NoLabels, ReleaseJudge, VerdictPolicy
from alerts.labels import labels_of
from alerts.notifications import Alertmanager, Configuration, ConfigurationError, simple_configuration, simple_receiver
from alerts.querier import ClientQuerier, PushWriter, Querier, QueryError, SampleWriter, WriteError
from alerts.releases import PolicyWatch, ReleaseController, ServingEyes, StepHook
from alerts.releases.gauges import FAMILIES as RELEASE_FAMILIES
from alerts.retraining import RetrainingLoop
from alerts.retraining.loop import RECEIVED_STANDS_SECONDS
from alerts.rule_counts import RULE_FAMILIES
from alerts.rule_files import RuleFiles
from alerts.rule_status import Evaluation
from alerts.rules import SHIPPED_RULES, RuleError
from alerts.schema import open_database
from alerts.state_store import StateStore
from alerts.states import Alert
from collectors.query import PrometheusClient
from observability import names
from observability.metrics import Metrics

log = logging.getLogger(__name__)

_FAMILIES = (
    *RULE_FAMILIES,
    *RELEASE_FAMILIES,
    names.ACTIONS,
    names.ACTION_DURATION,
    names.EPISODES_OPEN,
    names.EPISODES_ENDED,
    names.ALERTMANAGER_NOTIFICATIONS,
    names.ALERTMANAGER_NOTIFICATIONS_FAILED,
    names.ALERTMANAGER_NOTIFICATION_REQUESTS,
    names.ALERTMANAGER_NOTIFICATION_REQUESTS_FAILED,
    names.ALERTMANAGER_NOTIFICATION_LATENCY,
    names.ALERTMANAGER_ALERTS,
    names.ALERTMANAGER_ALERTS_RECEIVED,
    names.ALERTMANAGER_ALERTS_INVALID,
    names.ALERTMANAGER_SILENCES,
    names.ALERTMANAGER_GROUPS,
    names.ALERTMANAGER_CONFIG_GOOD,
    names.ALERTMANAGER_CONFIG_LOADED,
    names.ALERTS_FORWARDED,
    names.ALERTS_FORWARD_ERRORS,
    names.ALERTS_FORWARD_DROPPED,
)
_QUERY_SECONDS = 5.0


class AlertsService:
    """All parts of the judge, wired. `tick` does one second's work; `start` does it each second in a thread."""

    def __init__(
        self,
        config: AlertsConfig,
        *,
        querier: Querier | None = None,
        writer: SampleWriter | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self.clock = clock
        self.metrics = Metrics(families=_FAMILIES).register_all()
        self.database = open_database(config.database_url)
        self._client = PrometheusClient(config.query_url, timeout_seconds=_QUERY_SECONDS)
        querier = querier or ClientQuerier(self._client)
        self._push = PushWriter(config.push_url, write_url=config.write_url)
        writer = writer or self._push
        self._files = RuleFiles(
            [*(SHIPPED_RULES if config.shipped_rules else ()), *config.rule_files],
            interval_seconds=config.interval_seconds,
        )
        self.notifications = Alertmanager(
            self.database,
            None if config.alertmanager_config else _everything_to_one(config),
            path=Path(config.alertmanager_config) if config.alertmanager_config else None,
            alertmanagers=config.alertmanagers,
            external_url=config.external_url,
            clock=clock,
            metrics=self.metrics,
        )
        self.silences = self.notifications.silences
        release_policies = PolicyWatch(config.release_policies)
        self._labels: LabelFeed = CollectorLabels(config.push_url) if config.push_url else NoLabels()
        self.judge = ReleaseJudge(self.database, querier, writer, self._verdict_policy, self._labels)
        self.rules = RuleEngine(
            self._files.load(),
            querier,
            writer,
            StateStore(self.database),
            metrics=self.metrics,
            external_url=config.external_url,
            external_labels=labels_of(config.external_labels),
            server_url=config.external_url,
        )
        self.actions = ActionRunner(
            self.database,
            policies=config.policies,
            hooks=_hooks(config),
            release_in_progress=self.judge.release_in_progress,
            evidence_of=self._evidence_of,
            clock=clock,
            metrics=self.metrics,
            policy_version=config.policy_version,
            secret=config.secret,
        )
        self.retraining = RetrainingLoop(
            self.database,
            self.actions,
            querier,
            policy_of=lambda model: config.retrainings.get(model, config.retraining),
            release_in_progress=self.judge.release_in_progress,
            metrics=self.metrics,
            secret=config.secret,
        )
        self.releases = ReleaseController(
            self.database,
            policies=release_policies,
            eyes=ServingEyes(config.serving_url, secret=config.secret, clock=clock),
            actor=self.actions,
            judgement_of=self._judgement,
            querier=querier,
            labels=self._labels,
            clock=clock,
            metrics=self.metrics,
            writer=writer,
            secret=config.secret,
        )
        self._notices = Notices(self.database, self.notifications.post)
        self._rules_lock = threading.Lock()
        self._reload_asked = threading.Event()
        self.rules_error = ""
        self._loaded(clock())
        self.evidence_error = ""
        self.started_at = clock()
        self.ticks = 0
        self._looked_at = 0.0
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Take up what a crash left running, then judge each second until `close`."""
        resumed = self.actions.start()
        if resumed:
            log.info("took up %d actions that were running", len(resumed))
        self.notifications.start()
        self.releases.start()
        self._thread = threading.Thread(target=self._run, name="judge", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop: the tick under way ends, what runs is stopped and taken up at the next start."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        self.releases.close()
        self.notifications.close()
        self.actions.close()
        self._push.close()
        self._labels.close()
        self._client.close()
        self.database.dispose()

    def tick(self, now: float) -> list[Evaluation]:
        """Judge and evaluate what is due at `now` (unix seconds), then act and tell."""
        ts = math.floor(now / self.config.interval_seconds + 1e-9) * self.config.interval_seconds
        if ts > self._looked_at:
            self._looked_at = ts
            self._look(ts)
        self._look_at_files()
        with self._rules_lock:
            evaluations = [self.rules.evaluate(group, at) for group, at in self.rules.due(now)]
        self.notifications.tick(self.rules.alerts(), now)
        asking = [alert for evaluation in evaluations for alert in evaluation.asking]
        received = self.notifications.received(now)
        for alert in self.audible([*self.rules.asking(), *received], now):
            self.retraining.ask(alert, now)
        for alert in self.audible([*asking, *received], now):
            if asked_for(alert) != RETRAIN and not self.releases.leads(alert):
                self.actions.consider(alert)
        self.retraining.look(now)
        self._notices.tell(now)
        self.ticks += 1
        return evaluations

    def received_by_webhook(
        self, alerts: Sequence[Alert], over: Sequence[Mapping[str, str]], now: float
    ) -> list[Action]:
        """Alerts of an Alertmanager's message, and the labels of those that are over: what was decided on now."""
        for labels in over:
            self.retraining.resolved(labels, now)
        others = [
            alert
            for alert in self.audible(alerts, now)
            if not self.retraining.ask(alert, now, stands_seconds=RECEIVED_STANDS_SECONDS)
        ]
        decided = [self.actions.consider(alert) for alert in others if not self.releases.leads(alert)]
        return [action for action in decided if action is not None] + self.retraining.look(now)

    def reload(self) -> None:
        """Take rule files and Alertmanager's file as they are now.

        Raises RuleError or ConfigurationError; what was wrong leaves its old form in force.
        """
        try:
            groups = self._files.load()
        except RuleError as error:
            self.rules_error = str(error)
            self.metrics[names.RULES_RELOAD_GOOD].set(0)
            raise
        finally:
            self.notifications.reload()
        with self._rules_lock:
            self.rules.replace(groups, self.clock())
        self._loaded(self.clock())
        log.info("%d rule groups are in force", len(groups))

    def ask_to_reload(self) -> None:
        """Reload before the next evaluation; safe in a signal handler."""
        self._reload_asked.set()

    def _look_at_files(self) -> None:
        changed = self._files.changed()
        if not self._reload_asked.is_set() and not changed:
            return
        self._reload_asked.clear()
        try:
            self.reload()
        except (RuleError, ConfigurationError) as error:
            log.error("the old rules stay in force: %s", error)

    def _loaded(self, now: float) -> None:
        self.rules_error = ""
        self.metrics[names.RULES_RELOAD_GOOD].set(1)
        self.metrics[names.RULES_RELOADED].set(now)

    def alerts(self, now: float) -> list[Alert]:
        """Every alert, the engine's and those received."""
        return [*self.rules.alerts(), *self.notifications.received(now)]

    def audible(self, alerts: Sequence[Alert], now: float) -> list[Alert]:
        """The alerts that nothing silences or inhibits."""
        return self.notifications.audible(alerts, now)

    def _look(self, ts: float) -> None:
        try:
            self.judge.look(ts)
            self.evidence_error = ""
        except (QueryError, WriteError) as error:
            if not self.evidence_error:
                log.warning("releases cannot be judged now: %s", error)
            self.evidence_error = str(error)

    def _evidence_of(self, model: str, release: str) -> Mapping[str, Any]:
        judgement = self._judgement(model, release)
        return {} if judgement is None else judgement.to_json()

    def _judgement(self, model: str, release: str) -> Judgement | None:
        for judgement in self.judge.judgements():
            if (judgement.release.model, judgement.release.release) == (model, release):
                return judgement
        return None

    def _verdict_policy(self, model: str) -> VerdictPolicy:
        return self.releases.verdict_of(model) or self.config.verdicts.get(model, self.config.verdict)

    def _run(self) -> None:
        interval = self.config.interval_seconds
        while True:
            try:
                self.tick(self.clock())
            except Exception:  # a lost second is better than a judge that has gone
                log.exception("a second of judging failed")
            if self._closing.wait(interval - self.clock() % interval):
                return


def _hooks(config: AlertsConfig) -> dict[str, Hook]:
    embedded: dict[str, Hook] = {QUARANTINE: SourceHook(config.push_url)} if config.push_url else {}
    if config.serving_url:
        embedded |= serving_hooks(config.serving_url, secret=config.secret)
        embedded[STEP] = StepHook(config.serving_url, secret=config.secret)
    return {**embedded, **config.hooks}


def _everything_to_one(config: AlertsConfig) -> Configuration:
    """Without a file: one receiver, which hears of everything at once."""
    grouping = ["alertname", "model"]
    webhooks = [url for url in config.notify_urls if url.startswith(("http://", "https://"))]
    return simple_configuration(
        simple_receiver("default", config.notify_urls, config.secret),
        group_by=grouping,
        group_wait_seconds=0.0,
        group_interval_seconds=10.0,
        repeat_interval_seconds=4 * 3600.0,
        shown={
            "route": {
                "receiver": "default", "group_by": grouping, "group_wait": "0s", "group_interval": "10s",
                "repeat_interval": "4h",
            },
            "receivers": [{"name": "default", "webhook_configs": [{"url": url} for url in webhooks]}],
        },
    )  # fmt: skip
