"""All of what an Alertmanager does: takes alerts, groups and mutes them, tells receivers, and passes alerts on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from pathlib import Path

import sqlalchemy as sa

from alerts.notifications.alert_store import API, AlertStore, KnownAlert
from alerts.notifications.configuration import Configuration, load_configuration
from alerts.notifications.dispatcher import Dispatcher
from alerts.notifications.feed import RuleFeed
from alerts.notifications.forwarder import Forwarder
from alerts.notifications.muting import Muting
from alerts.notifications.yaml_reader import ConfigurationError
from alerts.silence import SilenceStore
from alerts.states import Alert
from observability import names
from observability.metrics import Metrics

log = logging.getLogger(__name__)

_LOOK_SECONDS = 5.0


class Alertmanager:
    """Wires the parts over one database. With a `path` the configuration is that file's, read again when it changes."""

    def __init__(
        self,
        engine: sa.Engine,
        configuration: Configuration | None = None,
        *,
        path: Path | None = None,
        alertmanagers: Sequence[str] = (),
        external_url: str = "",
        clock: Callable[[], float] = time.time,
        executor: Executor | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        if path is not None:
            configuration = load_configuration(path)
        if configuration is None:
            raise ValueError("an Alertmanager needs a configuration or the path of one")
        self.clock = clock
        self.metrics = metrics or Metrics()
        self.started_at = clock()
        self.alerts = AlertStore(engine)
        self.silences = SilenceStore(engine)
        self.dispatcher = Dispatcher(
            engine,
            configuration,
            self.alerts,
            self.silences,
            external_url=external_url,
            clock=clock,
            executor=executor,
            metrics=self.metrics,
        )
        self._feed = RuleFeed(external_url=external_url)
        self._forwarder = Forwarder(alertmanagers, metrics=self.metrics)
        self._path = path
        self._stamp = self._stamp_of_file()
        self._looked_at = 0.0
        self._loaded(True)

    @property
    def configuration(self) -> Configuration:
        """What is in force."""
        return self.dispatcher.configuration

    def start(self) -> None:
        """Tell receivers when something is due, until `close`."""
        self.dispatcher.start()

    def close(self) -> None:
        """Finish what is being sent."""
        self.dispatcher.close()
        self._forwarder.close()

    def tick(self, rule_alerts: Iterable[Alert], now: float) -> None:
        """Take our own rules' alerts, and do what is due at `now` (unix seconds)."""
        due = self._feed.due(rule_alerts, now)
        self.alerts.put(due, now)
        self._forwarder.put(due)
        if now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now
            self._look_at_file()
        self.dispatcher.tick(now)

    def post(self, alerts: Sequence[KnownAlert], now: float) -> None:
        """Take alerts that somebody else sends."""
        self.alerts.put(alerts, now)
        self.dispatcher.wake()

    def received(self, now: float) -> list[Alert]:
        """The alerts that somebody else sent and that fire."""
        return [alert.as_alert(now) for alert in self.alerts.firing(now) if alert.origin == API]

    def muting(self, now: float) -> Muting:
        """What mutes alerts at a time."""
        return self.dispatcher.muting(now)

    def audible(self, alerts: Sequence[Alert], now: float) -> list[Alert]:
        """The alerts that nothing silences or inhibits."""
        if not alerts:
            return []
        muting = self.muting(now)
        return [alert for alert in alerts if not muting.mutes(alert.labels)]

    def count(self, now: float) -> None:
        """Set the gauges of alerts and silences by state."""
        muting = self.muting(now)
        alerts = [muting.mutes(alert.labels) for alert in self.alerts.firing(now)]
        silences = [silence.state(now) for silence in self.silences.all()]
        for state, number in (("active", alerts.count(False)), ("suppressed", alerts.count(True))):
            self.metrics[names.ALERTMANAGER_ALERTS].labels(state).set(number)
        for state in ("active", "pending", "expired"):
            self.metrics[names.ALERTMANAGER_SILENCES].labels(state).set(silences.count(state))

    def reload(self) -> None:
        """Read the file again; raises ConfigurationError, and the old configuration stays in force."""
        if self._path is None:
            return
        self._stamp = self._stamp_of_file()
        try:
            configuration = load_configuration(self._path)
        except ConfigurationError:
            self._loaded(False)
            raise
        self.dispatcher.reconfigure(configuration, self.clock())
        self._loaded(True)
        log.info("%s is in force", self._path)

    def _look_at_file(self) -> None:
        """Reload the file if it has changed."""
        if self._path is None or self._stamp_of_file() == self._stamp:
            return
        try:
            self.reload()
        except ConfigurationError as error:
            log.error("the configuration of notifications stays as it was: %s", error)

    def _stamp_of_file(self) -> tuple[int, int]:
        try:
            found = self._path.stat() if self._path is not None else None
        except OSError:
            return (0, 0)
        return (found.st_mtime_ns, found.st_size) if found else (0, 0)

    def _loaded(self, right: bool) -> None:
        self.metrics[names.ALERTMANAGER_CONFIG_GOOD].set(float(right))
        if right:
            self.metrics[names.ALERTMANAGER_CONFIG_LOADED].set(self.clock())
