"""What the judge asks of the store: the seams `Querier` and `SampleWriter`, and the values that cross them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

import httpx

from alerts.labels import Labels, labels_of
from collectors import query
from collectors.query import PrometheusClient


class QueryError(RuntimeError):
    """The store did not answer an expression: it refuses it, or it is away."""


class StoreAway(QueryError):
    """The store cannot be reached; asking it something else is of no use either."""


class WriteError(RuntimeError):
    """The store did not accept samples."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One element of an instant vector. `labels` holds the name, if any, as `__name__`."""

    labels: Labels
    value: float


class Querier(Protocol):
    """Answers PromQL at an instant; raises QueryError."""

    def instant(self, expr: str, at: float) -> Sequence[Sample]:
        """The result as a vector (a scalar is one sample without labels)."""


class SampleWriter(Protocol):
    """Takes samples back into the store; raises WriteError."""

    def append(self, group: str, samples: Sequence[Sample], at: float) -> None:
        """Write samples of a group, leaving its other series alone; they are visible to the next query."""

    def replace(self, group: str, samples: Sequence[Sample], at: float) -> None:
        """Write all samples of a group; its series that are not among them end here."""


class ClientQuerier:
    """A Querier over the Prometheus HTTP API."""

    def __init__(self, client: PrometheusClient) -> None:
        self._client = client

    def instant(self, expr: str, at: float) -> Sequence[Sample]:
        try:
            return samples_of(self._client.instant(expr, at))
        except query.QueryError as error:
            away = error.kind in ("unavailable", "timeout")
            raise StoreAway(str(error)) if away else QueryError(str(error)) from error


def samples_of(result: query.Result) -> list[Sample]:
    """A query's result as samples; QueryError for a string or a matrix, which no rule can use."""
    if isinstance(result, query.Scalar):
        return [Sample((), result.value)]
    if isinstance(result, query.Vector):
        return [Sample(labels_of(element.labels), element.value) for element in result]
    raise QueryError(f"the expression gives a {type(result).__name__.lower()}; a rule needs a vector or a scalar")


class PushWriter:
    """A SampleWriter that pushes Prometheus text to the collector, one push group a rule group.

    Series arrive with exactly the labels that they have here, as a Prometheus would record them.
    """

    def __init__(self, base_url: str, *, job: str = "trimtab-alerts", timeout_seconds: float = 5.0) -> None:
        self._client = httpx.Client(base_url=base_url, timeout=timeout_seconds)
        self._job = job

    def append(self, group: str, samples: Sequence[Sample], at: float) -> None:
        self._send("POST", group, samples, at)

    def replace(self, group: str, samples: Sequence[Sample], at: float) -> None:
        self._send("PUT", group, samples, at)

    def close(self) -> None:
        """Let the connections go."""
        self._client.close()

    def _send(self, method: str, group: str, samples: Sequence[Sample], at: float) -> None:
        path = f"/metrics/job/{quote(self._job, safe='')}/group/{quote(group, safe='')}?honor_labels=true"
        try:
            response = self._client.request(
                method, path, content=exposition(samples, at), headers={"Content-Type": "text/plain; version=0.0.4"}
            )
        except httpx.HTTPError as error:
            raise WriteError(
                f"cannot push to {self._client.base_url}{path}: {error!r}; is the collector up?"
            ) from error
        if not response.is_success:
            raise WriteError(f"push to {path} was refused: {response.status_code} {response.text[:200]}")


def exposition(samples: Sequence[Sample], at: float) -> str:
    """The samples as Prometheus text with a timestamp (unix seconds, written in milliseconds), grouped by name."""
    stamp = round(at * 1000)
    lines = sorted(f"{_series(sample.labels)} {_number(sample.value)} {stamp}" for sample in samples)
    return "".join(line + "\n" for line in lines)


def _series(labels: Labels) -> str:
    name = next((value for key, value in labels if key == "__name__"), "")
    inner = ",".join(f'{key}="{_escaped(value)}"' for key, value in labels if key != "__name__")
    return f"{name}{{{inner}}}" if inner else name


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)
