"""Sends the references of loaded versions to the collector, in the background, until it takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from observability.exporter import Exporter
from observability.metrics import Metrics
from observability.sinks import Batch, DeliveryError, Rejected, Unavailable
from serving.registry import ModelVersion

if TYPE_CHECKING:
    import httpx


class ReferenceSink:
    """PUTs a profile to `{url}/v1/references/{id}`; the batch's id is `model/version`."""

    def __init__(self, url: str, timeout: float = 10.0) -> None:
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._client: httpx.Client | None = None

    def send(self, batch: Batch) -> None:
        """Raises Rejected for good, Unavailable or DeliveryError to be tried again."""
        # Imported in the background: the server does not wait for it at its start.
        import httpx

        url = f"{self._url}/v1/references/{batch.id}"
        if self._client is None:
            self._client = httpx.Client(timeout=self._timeout, trust_env=False)
        try:
            answer = self._client.put(url, content=bytes(batch.body), headers={"Content-Type": "application/json"})
        except httpx.HTTPError as error:
            raise Unavailable(f"{url} cannot be reached: {error!r}") from error
        if answer.status_code in (408, 429, 502, 503, 504):
            raise Unavailable(f"{url} answered {answer.status_code}")
        if 400 <= answer.status_code < 500:
            raise Rejected(f"{url} answered {answer.status_code}: {answer.text[:200]}")
        if answer.status_code >= 300:
            raise DeliveryError(f"{url} answered {answer.status_code}: {answer.text[:200]}")

    def close(self) -> None:
        """Closes the connection."""
        if self._client is not None:
            self._client.close()


class References:
    """`publish` queues a version's profile; without a collector it does nothing."""

    def __init__(self, collector_url: str | None, metrics: Metrics) -> None:
        sink = None if collector_url is None else ReferenceSink(collector_url)
        self._exporter = None if sink is None else Exporter(sink, signal="references", metrics=metrics)

    def publish(self, version: ModelVersion, profile: bytes) -> None:
        """Queues the reference of a version as it was registered: `Profile.to_json()`, and what came beside it."""
        if self._exporter is not None:
            self._exporter.put(Batch(profile, 1, f"{version.model}/{version.version}"))

    def close(self) -> None:
        """Ends the background thread."""
        if self._exporter is not None:
            self._exporter.close(timeout=1.0)
