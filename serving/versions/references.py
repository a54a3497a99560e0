"""Sends the references of loaded versions to the collector, in the background, until it takes them."""

from __future__ import annotations

from observability.exporter import Exporter
from observability.metrics import Metrics
from observability.sinks import Batch
from serving.registry import ModelVersion
from serving.telemetry.delivery import Delivery

# The collector is away or busy.
_TRY_LATER = (408, 429, 502, 503, 504)


class ReferenceSink:
    """PUTs a profile to `{url}/v1/references/{id}`; the batch's id is `model/version`."""

    def __init__(self, url: str, timeout: float = 10.0) -> None:
        self._url = url.rstrip("/")
        self._delivery = Delivery(timeout)
        self.close = self._delivery.close

    def send(self, batch: Batch) -> None:
        """Raises Rejected for good, Unavailable or DeliveryError to be tried again."""
        self._delivery.deliver("PUT", f"{self._url}/v1/references/{batch.id}", batch, _TRY_LATER)


class References:
    """`publish` queues a version's profile; without a collector it does nothing."""

    def __init__(self, collector_url: str | None, metrics: Metrics) -> None:
        sink = None if collector_url is None else ReferenceSink(collector_url)
        self._exporter = None if sink is None else Exporter(sink, signal="references", metrics=metrics)

    def publish(self, version: ModelVersion, profile: bytes | None) -> None:
        """Queues the reference of a version as it was registered: `Profile.to_json()`, and what came beside it.

        None, where it was registered without one, is nothing to be sent.
        """
        if self._exporter is not None and profile is not None:
            self._exporter.put(Batch(profile, 1, f"{version.model}/{version.version}"))

    def close(self) -> None:
        """Ends the background thread."""
        if self._exporter is not None:
            self._exporter.close(timeout=1.0)
