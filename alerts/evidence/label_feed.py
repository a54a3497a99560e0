"""Where labelled predictions come from: the collector joins them and numbers them, the judge reads on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

import httpx
import msgspec

from alerts.evidence.labels import Labelled


class FeedAway(RuntimeError):
    """The labels could not be read: nothing follows from it."""


@dataclass(frozen=True, slots=True)
class FeedRow:
    """A labelled prediction as the collector has it: `propensity` is of the arm that answered."""

    number: int
    version: str
    arm: str
    propensity: float | None
    prediction: float
    label: float
    other: float | None

    def labelled(self, candidate: str) -> Labelled:
        """The row for a judge of that version."""
        canary, rho = self.version == candidate, math.nan if self.propensity is None else self.propensity
        return Labelled(self.number, canary, rho if canary else 1.0 - rho, self.prediction, self.label, self.other)


@dataclass(frozen=True, slots=True)
class FeedPage:
    """The next rows of a feed, and the number of its last row."""

    rows: Sequence[FeedRow] = ()
    end: int = 0

    def labelled(self, candidate: str) -> tuple[Labelled, ...]:
        """The rows for a judge of that version."""
        return tuple(row.labelled(candidate) for row in self.rows)


class LabelFeed(Protocol):
    """Labelled predictions by model and feed, a release's name or `shadow:VERSION`."""

    def read(self, model: str, feed: str, after: int) -> FeedPage:
        """The rows behind the number `after`, as many as one answer has. Raises FeedAway."""

    def close(self) -> None:
        """Nothing is asked any more."""


class CollectorLabels:
    """Reads `GET {collector}/v1/releases/{model}/labels`. Raises FeedAway."""

    def __init__(self, collector_url: str, *, timeout_seconds: float = 2.0) -> None:
        self._url = collector_url.rstrip("/")
        self._client = httpx.Client(timeout=timeout_seconds, trust_env=False)

    def read(self, model: str, feed: str, after: int) -> FeedPage:
        url = f"{self._url}/v1/releases/{quote(model, safe='')}/labels"
        try:
            answer = self._client.get(url, params={"feed": feed, "after": str(after)})
            answer.raise_for_status()
            body: dict[str, Any] = msgspec.json.decode(answer.content)
            return FeedPage(tuple(FeedRow(*row) for row in body["rows"]), int(body["end"]))
        except (httpx.HTTPError, msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            raise FeedAway(f"{url} gave no labels: {error!r}") from error

    def close(self) -> None:
        self._client.close()


class NoLabels:
    """The feed of a judge without a collector."""

    def read(self, model: str, feed: str, after: int) -> FeedPage:
        return FeedPage()

    def close(self) -> None:
        pass
