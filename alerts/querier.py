"""What the judge asks of the store: the seams `Querier` and `SampleWriter`, and the values that cross them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol
from urllib.parse import quote

import httpx

from alerts.labels import Labels, labels_of
from alerts.remote_write import WRITE_PATH, RemoteWriter
from alerts.samples import QueryError, Sample, StoreAway, WriteError
from collectors import query
from collectors.query import PrometheusClient
from collectors.store import Store

__all__ = [
    "ClientQuerier",
    "EngineQuerier",
    "PushWriter",
    "Querier",
    "QueryError",
    "Sample",
    "SampleWriter",
    "StoreAway",
    "StoreWriter",
    "WriteError",
    "exposition",
    "samples_of",
]


class Querier(Protocol):
    """Answers PromQL at an instant; raises QueryError."""

    def instant(self, expr: str, at: float) -> Sequence[Sample]:
        """The result as a vector (a scalar is one sample without labels)."""

    def instants(self, exprs: Sequence[str], at: float) -> Sequence[Sequence[Sample] | QueryError]:
        """The results of several expressions, each a vector or why there is none; raises StoreAway."""


class SampleWriter(Protocol):
    """Takes samples back into the store; raises WriteError."""

    def write(self, samples: Sequence[Sample], at: float) -> None:
        """Write samples, stale markers among them; they are visible to the next query."""

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
            away = error.kind == "unavailable" or _gave_no_answer(error)
            raise (StoreAway if away else QueryError)(str(error)) from error

    def instants(self, exprs: Sequence[str], at: float) -> Sequence[Sequence[Sample] | QueryError]:
        try:
            found = self._client.batch(exprs, at) if len(exprs) > 1 else None
        except query.QueryError as error:
            if error.kind == "unavailable":
                raise StoreAway(str(error)) from error
            found = None  # together they took too long: alone, the others may not
        if found is not None:
            return [_samples_or_error(result) for result in found]
        answers: list[Sequence[Sample] | QueryError] = []
        slow = 0
        for expr in exprs:
            try:
                answers.append(self.instant(expr, at))
            except StoreAway as error:
                # One query that takes too long says nothing of the store, two in one evaluation do.
                slow += _gave_no_answer(error.__cause__)
                if slow != 1 or not _gave_no_answer(error.__cause__):
                    raise
                answers.append(QueryError(str(error)))
            except QueryError as error:
                answers.append(error)
        return answers


class EngineQuerier:
    """A Querier over an engine in this process."""

    def __init__(self, engine: query.Engine) -> None:
        self._engine = engine

    def instant(self, expr: str, at: float) -> Sequence[Sample]:
        try:
            return samples_of(self._engine.instant(expr, round(at * 1000)))
        except query.QueryError as error:
            raise QueryError(str(error)) from error

    def instants(self, exprs: Sequence[str], at: float) -> Sequence[Sequence[Sample] | QueryError]:
        return [_samples_or_error(result) for result in self._engine.instants(exprs, round(at * 1000))]


class StoreWriter:
    """A SampleWriter into a store in this process; `replace` ends what its group had before."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def write(self, samples: Sequence[Sample], at: float) -> None:
        self._append("rules", samples, at, stale=False)

    def append(self, group: str, samples: Sequence[Sample], at: float) -> None:
        self._append(f"push:{group}", samples, at, stale=False)

    def replace(self, group: str, samples: Sequence[Sample], at: float) -> None:
        self._append(f"push:{group}", samples, at, stale=True)

    def _append(self, target: str, samples: Sequence[Sample], at: float, *, stale: bool) -> None:
        pairs = [(dict(sample.labels), sample.value) for sample in samples]
        self._store.append(target, round(at * 1000), pairs, stale=stale)


def _gave_no_answer(error: BaseException | None) -> bool:
    return error is not None and isinstance(error.__cause__, httpx.TimeoutException)


def _samples_or_error(result: query.Result | query.QueryError) -> Sequence[Sample] | QueryError:
    try:
        return QueryError(str(result)) if isinstance(result, query.QueryError) else samples_of(result)
    except QueryError as error:
        return error


def samples_of(result: query.Result) -> list[Sample]:
    """A query's result as samples; QueryError for a string or a matrix, which no rule can use."""
    if isinstance(result, query.Scalar):
        return [Sample((), result.value)]
    if isinstance(result, query.Vector):
        return [Sample(labels_of(element.labels), element.value) for element in result]
    raise QueryError(f"rule result is not a vector or scalar, but a {type(result).__name__.lower()}")


class PushWriter:
    """A SampleWriter into the collector: groups as Pushgateway's text, other samples by remote write.

    Series arrive with exactly the labels that they have here, as a Prometheus would record them. `write_url` is the
    full address of another receiver of remote writes.
    """

    def __init__(
        self, base_url: str, *, write_url: str = "", job: str = "trimtab-alerts", timeout_seconds: float = 5.0
    ) -> None:
        self._client = httpx.Client(base_url=base_url, timeout=timeout_seconds)
        self._remote = RemoteWriter(write_url or f"{base_url.rstrip('/')}{WRITE_PATH}", timeout_seconds=timeout_seconds)
        self._job = job

    def write(self, samples: Sequence[Sample], at: float) -> None:
        self._remote.write(samples, at)

    def append(self, group: str, samples: Sequence[Sample], at: float) -> None:
        self._send("POST", group, samples, at)

    def replace(self, group: str, samples: Sequence[Sample], at: float) -> None:
        self._send("PUT", group, samples, at)

    def close(self) -> None:
        """Let the connections go."""
        self._client.close()
        self._remote.close()

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
