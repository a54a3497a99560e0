"""How a batch that has a URL of its own reaches the collector, and what the answer means for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from observability.sinks import Batch, DeliveryError, Rejected, Unavailable

if TYPE_CHECKING:
    import httpx


class Delivery:
    """One kept-alive client, for one thread. `timeout` is seconds."""

    def __init__(self, timeout: float = 10.0) -> None:
        self._timeout = timeout
        self._client: httpx.Client | None = None

    def deliver(
        self, method: str, url: str, batch: Batch, later: Collection[int], headers: Mapping[str, str] | None = None
    ) -> None:
        """Sends the batch's JSON. Unavailable for the statuses `later`, Rejected for good, DeliveryError otherwise."""
        # Imported in the background: the server does not wait for it at its start.
        import httpx

        if self._client is None:
            self._client = httpx.Client(timeout=self._timeout, trust_env=False)
        sent = {"Content-Type": "application/json", **(headers or {})}
        try:
            answer = self._client.request(method, url, content=bytes(batch.body), headers=sent)
        except httpx.HTTPError as error:
            raise Unavailable(f"{url} cannot be reached: {error!r}") from error
        said = f"{url} answered {answer.status_code}: {answer.text[:200]}"
        if answer.status_code in later:
            raise Unavailable(said)
        if 400 <= answer.status_code < 500:
            raise Rejected(said)
        if answer.status_code >= 300:
            raise DeliveryError(said)

    def close(self) -> None:
        """Closes the connection."""
        if self._client is not None:
            self._client.close()
