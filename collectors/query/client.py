"""A client of the Prometheus HTTP API, ours or a real one, with the engine's own result values."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import httpx
import numpy as np

from collectors.query.errors import QueryError
from collectors.query.values import Matrix, MatrixSeries, Result, Scalar, String, Vector, VectorElement
from collectors.store import MetricMetadata

_KINDS = ("bad_data", "execution", "timeout", "canceled", "internal", "unavailable", "not_found")


class PrometheusClient:
    """Asks a server for queries, series and labels. Times and steps are unix seconds. Thread-safe.

    Every call raises QueryError with the server's reason, `unavailable` when the server cannot be reached.
    """

    def __init__(self, base_url: str, *, timeout_seconds: float = 30.0, headers: dict[str, str] | None = None) -> None:
        self._base_url = base_url.rstrip("/")
        self._http = httpx.Client(timeout=timeout_seconds, headers=headers)
        # Until a server is found not to know the call.
        self._batches = True

    @property
    def base_url(self) -> str:
        """The server's address."""
        return self._base_url

    def __enter__(self) -> PrometheusClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def instant(self, expr: str, at: float | None = None) -> Result:
        """The value at a time; without one, now by the server's clock."""
        return _result(self._call("query", query=expr, **({} if at is None else {"time": _number(at)})))

    def batch(self, exprs: Sequence[str], at: float | None = None) -> list[Result | QueryError] | None:
        """The values of several expressions at a time, each or why there is none, in one call.

        Our own server computes once what they share. None when the server does not know the call.
        """
        if not self._batches:
            return None
        form: dict[str, str | list[str]] = {"query": list(exprs), **({} if at is None else {"time": _number(at)})}
        try:
            answers = self._data(self._http.build_request("POST", f"{self._base_url}/api/v1/query_batch", data=form))
        except QueryError as error:
            if error.kind in ("unavailable", "timeout", "canceled"):
                raise
            self._batches = False
            return None
        return [_answered(answer) for answer in answers]

    def range(self, expr: str, start: float, end: float, step: float) -> Matrix:
        """The values from start to end, every `step` seconds."""
        answer = self._call("query_range", query=expr, start=_number(start), end=_number(end), step=_number(step))
        result = _result(answer)
        if not isinstance(result, Matrix):
            raise QueryError(f"the server gave a {type(result).__name__} for a range query", "internal")
        return result

    def labels(self, match: Sequence[str] = ()) -> list[str]:
        """Label names, of the matching series."""
        return [str(name) for name in self._get("labels", match)]

    def label_values(self, name: str, match: Sequence[str] = ()) -> list[str]:
        """Values of a label in the matching series."""
        return [str(value) for value in self._get(f"label/{name}/values", match)]

    def series(
        self, match: Sequence[str], start: float | None = None, end: float | None = None
    ) -> list[dict[str, str]]:
        """Label sets of the matching series."""
        times = {name: _number(value) for name, value in (("start", start), ("end", end)) if value is not None}
        return [dict(labels) for labels in self._get("series", match, **times)]

    def metadata(self) -> dict[str, MetricMetadata]:
        """Type, help and unit by metric family."""
        answer = self._get("metadata", ())
        return {
            name: MetricMetadata(item[0]["type"], item[0]["help"], item[0]["unit"]) for name, item in answer.items()
        }

    def targets(self) -> dict[str, Any]:
        """The targets that the server scrapes, as it says it."""
        return dict(self._get("targets", ()))

    def rules(self) -> dict[str, Any]:
        """The rule groups with their state, as the server says it."""
        return dict(self._get("rules", ()))

    def alerts(self) -> list[dict[str, Any]]:
        """The pending and firing alerts, as the server says it."""
        return list(self._get("alerts", ())["alerts"])

    def exemplars(self, expr: str, start: float, end: float) -> list[dict[str, Any]]:
        """Exemplars of the series that an expression reads, as the server says it."""
        return list(self._call("query_exemplars", query=expr, start=_number(start), end=_number(end)))

    def _call(self, path: str, **form: str) -> Any:
        # POST: an expression may be longer than a URL.
        return self._data(self._http.build_request("POST", f"{self._base_url}/api/v1/{path}", data=form))

    def _get(self, path: str, match: Sequence[str], **parameters: str) -> Any:
        pairs: list[tuple[str, str | int | float | bool | None]] = [("match[]", text) for text in match]
        pairs += parameters.items()
        return self._data(
            self._http.build_request("GET", f"{self._base_url}/api/v1/{path}", params=httpx.QueryParams(pairs))
        )

    def _data(self, request: httpx.Request) -> Any:
        try:
            response = self._http.send(request)
        except httpx.TimeoutException as error:
            raise QueryError(f"{self._base_url} did not answer in time: {error}", "timeout") from error
        except httpx.TransportError as error:
            raise QueryError(f"cannot reach {self._base_url}: {error}; is it running?", "unavailable") from error
        try:
            body = response.json()
        except ValueError as error:
            message = f"{request.url} answered {response.status_code} without JSON: {response.text[:200]!r}"
            raise QueryError(message, "unavailable" if response.status_code >= 500 else "internal") from error
        if body.get("status") != "success":
            raise _error(body)
        return body["data"]


def _error(body: Any) -> QueryError:
    kind = body.get("errorType")
    return QueryError(str(body.get("error", body)), kind if kind in _KINDS else "internal")


def _answered(body: Any) -> Result | QueryError:
    return _result(body["data"]) if body["status"] == "success" else _error(body)


def _number(value: float) -> str:
    return f"{value:.3f}"


def _result(data: Any) -> Result:
    kind, result = data["resultType"], data["result"]
    if kind == "scalar":
        return Scalar(_ms(result[0]), float(result[1]))
    if kind == "string":
        return String(_ms(result[0]), result[1])
    if kind == "vector":
        return Vector(
            tuple(VectorElement(item["metric"], _ms(item["value"][0]), float(item["value"][1])) for item in result)
        )
    return Matrix(tuple(_matrix_series(item) for item in result))


def _matrix_series(item: Any) -> MatrixSeries:
    t = np.array([_ms(point[0]) for point in item["values"]], dtype=np.int64)
    return MatrixSeries(item["metric"], t, np.array([float(point[1]) for point in item["values"]]))


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
