"""How busy the server is, for load balancers and autoscalers: a JSON report and a header, ready before any scrape."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from observability import names
from observability.metrics import Metrics
from serving.versions.deployment import Deployment

_KEPT = 16


class LoadReport:
    """`sample` once a second; `report` at any time. Times are seconds of the lanes' clock."""

    def __init__(
        self,
        deployments: Mapping[str, Deployment],
        busy_seconds: Callable[[], float],
        active: Callable[[], int],
        state: Callable[[], str],
        connections: Callable[[], int],
        clock: Callable[[], float],
        metrics: Metrics,
    ) -> None:
        self._deployments = deployments
        self._busy_seconds = busy_seconds
        self._active = active
        self._state = state
        self._connections = connections
        self._clock = clock
        metrics[names.INFERENCE_UTILIZATION].set_function(self.utilization)
        # (moment, seconds that models had worked by then)
        self._samples: deque[tuple[float, float]] = deque([(clock(), busy_seconds())], maxlen=_KEPT)

    def sample(self) -> None:
        """Keeps how long the models have worked until now."""
        self._samples.append((self._clock(), self._busy_seconds()))

    def utilization(self) -> float:
        """Share of the last seconds (up to 15) that models worked; several models at once can exceed 1."""
        moment, worked = self._samples[0]
        now = self._clock()
        return 0.0 if now - moment < 1e-3 else max(0.0, (self._busy_seconds() - worked) / (now - moment))

    def report(self) -> dict[str, Any]:
        """Queues, waits and limits, in all and by version; `oldest_seconds`: how long the oldest has waited."""
        now = self._clock()
        models = [
            self._lane(name, number, version.lane, now)
            for name, deployment in sorted(self._deployments.items())
            for number, version in sorted(deployment.versions.items())
        ]
        return {
            "state": self._state(),
            "utilization": round(self.utilization(), 4),
            "in_flight_requests": self._active(),
            "connections": self._connections(),
            "queue_rows": sum(model["queue_rows"] for model in models),
            "queue_bytes": sum(model["queue_bytes"] for model in models),
            "oldest_seconds": max((model["oldest_seconds"] for model in models), default=0.0),
            "estimated_wait_seconds": max((model["estimated_wait_seconds"] for model in models), default=0.0),
            "models": models,
        }

    def header(self) -> bytes:
        """An ORCA `endpoint-load-metrics` header line in its text form."""
        report = self.report()
        return (
            "endpoint-load-metrics: TEXT "
            f"application_utilization={report['utilization']:g}, "
            f"named_metrics.queue_rows={report['queue_rows']}, "
            f"named_metrics.in_flight_requests={report['in_flight_requests']}, "
            f"named_metrics.estimated_wait_seconds={report['estimated_wait_seconds']:g}\r\n"
        ).encode()

    def _lane(self, model: str, number: int, lane: Any, now: float) -> dict[str, Any]:
        queue = lane.queue
        oldest = queue.oldest()
        return {
            "model": model,
            "version": str(number),
            "queue_rows": queue.rows,
            "queue_limit_rows": queue.limit_rows,
            "queue_bytes": queue.bytes,
            "oldest_seconds": round(max(0.0, now - oldest), 6) if oldest is not None else 0.0,
            "estimated_wait_seconds": round(lane.drain_seconds(), 6) if queue.rows else 0.0,
            "max_batch_rows": queue.max_rows,
            "busy": lane.busy,
        }
