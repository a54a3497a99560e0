"""Sends our alerts on to real Alertmanagers: to all of them, each until it has taken them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence

import httpx
import msgspec

from alerts.labels import Labels
from alerts.notifications.alert_store import KnownAlert
from alerts.notifications.times import rfc3339
from observability import names
from observability.metrics import Metrics

log = logging.getLogger(__name__)

BATCH_ALERTS = 64
CAPACITY_ALERTS = 10_000
_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 30.0


class Forwarder:
    """One queue and one thread for each Alertmanager. An alert that waits is replaced by its newer state."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        metrics: Metrics | None = None,
        timeout_seconds: float = 10.0,
        wait: Callable[[threading.Event, float], object] = threading.Event.wait,
    ) -> None:
        self._queues = [_Queue(url, metrics or Metrics(), timeout_seconds, wait) for url in urls]

    def put(self, alerts: Iterable[KnownAlert]) -> None:
        """Send alerts, soon."""
        given = list(alerts)
        for queue in self._queues if given else ():
            queue.put(given)

    def close(self, timeout_seconds: float = 2.0) -> None:
        """Give what waits a moment to go, then stop: a restart sends again what still fires."""
        deadline = time.monotonic() + timeout_seconds
        for queue in self._queues:
            queue.close(max(0.0, deadline - time.monotonic()))


class _Queue:
    def __init__(
        self, url: str, metrics: Metrics, timeout_seconds: float, wait: Callable[[threading.Event, float], object]
    ) -> None:
        self._url = url.rstrip("/")
        self._metrics = metrics
        self._wait = wait
        self._client = httpx.Client(timeout=timeout_seconds, follow_redirects=True)
        self._waiting: dict[Labels, KnownAlert] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="forward", daemon=True)
        self._thread.start()

    def put(self, alerts: Iterable[KnownAlert]) -> None:
        with self._lock:
            for alert in alerts:
                self._waiting.pop(alert.labels, None)
                self._waiting[alert.labels] = alert
            while len(self._waiting) > CAPACITY_ALERTS:
                del self._waiting[next(iter(self._waiting))]
                self._metrics[names.ALERTS_FORWARD_DROPPED].labels(self._url).inc()
        self._wake.set()

    def close(self, timeout_seconds: float) -> None:
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_seconds)
        self._client.close()

    def _run(self) -> None:
        failures = 0
        while True:
            with self._lock:
                batch = list(self._waiting.values())[:BATCH_ALERTS]
                self._wake.clear()
            if not batch:
                if self._closing.is_set():
                    return
                self._wake.wait()
                continue
            if self._send(batch):
                failures = 0
                continue
            failures += 1
            if self._closing.is_set():
                return
            self._wait(self._closing, min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2 ** (failures - 1)))

    def _send(self, batch: Sequence[KnownAlert]) -> bool:
        """Whether the batch is done with: taken, or refused for good."""
        url = f"{self._url}/api/v2/alerts"
        body = msgspec.json.encode([_body(alert) for alert in batch])
        taken, again, said = False, True, ""
        try:
            answer = self._client.post(url, content=body, headers={"Content-Type": "application/json"})
        except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as error:
            said = repr(error)
        else:
            taken, again = answer.is_success, answer.status_code >= 500 or answer.status_code == 429
            said = f"{answer.status_code} {answer.text[:200]}"
        if not taken:
            self._metrics[names.ALERTS_FORWARD_ERRORS].labels(self._url).inc(len(batch))
            log.warning("%s did not take %d alerts: %s", url, len(batch), said)
            if again:
                return False
        else:
            self._metrics[names.ALERTS_FORWARDED].labels(self._url).inc(len(batch))
        with self._lock:
            for alert in batch:
                if self._waiting.get(alert.labels) is alert:
                    del self._waiting[alert.labels]
        return True


def _body(alert: KnownAlert) -> dict[str, object]:
    return {
        "labels": dict(alert.labels),
        "annotations": dict(alert.annotations),
        "startsAt": rfc3339(alert.starts_at),
        "endsAt": rfc3339(alert.ends_at),
        "generatorURL": alert.generator_url,
    }
