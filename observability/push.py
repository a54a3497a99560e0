"""Hands a short-lived job's metrics to a Pushgateway (or the collector, which speaks the same) before it ends."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import push_to_gateway

from observability.metrics import Metrics, WithoutCreated

_log = logging.getLogger(__name__)


def push(
    url: str,
    job: str,
    metrics: Metrics | CollectorRegistry,
    *,
    grouping: Mapping[str, str] | None = None,
    timeout: float = 5.0,
) -> bool:
    """PUTs all metrics as the group `job` (and the `grouping` labels), replacing what it pushed before.

    `url` is the gateway's, such as http://127.0.0.1:4318. Never raises: a job does not fail with its telemetry. False
    (and a warning) when the push failed.
    """
    registry = metrics.registry if isinstance(metrics, Metrics) else metrics
    try:
        push_to_gateway(url.rstrip("/"), job, WithoutCreated(registry), dict(grouping or {}), timeout)
    except Exception as error:
        _log.warning("the metrics of job %s could not be pushed to %s: %s", job, url, error)
        return False
    return True
