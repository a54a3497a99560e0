"""What both clients do: a request's body, its tries, what each try amounts to; the driver only sends and waits."""

from __future__ import annotations

import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from observability import names
from observability.metrics import Metrics
from serving.clients.bodies import InferResult, request_body, result_of
from serving.clients.errors import ConnectionFailed, DeadlineExceeded, InferenceError, Overloaded, error_for
from serving.clients.retries import Budget, Failure, Retries


@dataclass(frozen=True, slots=True)
class Send:
    """What the driver does next: send this, with at most `timeout` seconds for it."""

    headers: dict[str, str]
    timeout: float


@dataclass(frozen=True, slots=True)
class Wait:
    """What the driver does next: wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Got:
    """What a driver brings back: an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Client:
    """What both clients share: requests, the rules for repeating them, counters."""

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 10.0,
        retries: Retries | None = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        max_connections: int = 64,
        metrics: Metrics | None = None,
        binary: bool = True,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"the URL {url!r} is not usable: give http://host:port or https://host:port")
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._retries = retries or Retries()
        self._budget = Budget(self._retries)
        self.binary = binary
        self._metrics = metrics
        # A compressed answer costs more than it saves: tensors hardly shrink.
        self._headers = {"accept-encoding": "identity", **(headers or {})}
        if token is not None:
            self._headers["authorization"] = f"Bearer {token}"
        self._max_connections = max_connections
        # Requests sent again, in all.
        self.retried = 0

    def request(
        self,
        inputs: Mapping[str, Any],
        id: str | None,
        outputs: Sequence[str] | None,
        attributes: Mapping[str, Any] | None,
        parameters: Mapping[str, Any] | None,
        traceparent: str | None,
    ) -> tuple[str, bytes, dict[str, str]]:
        # Every try has the same id: the events of a request that was answered twice are known by it.
        id = uuid.uuid4().hex if id is None else id
        sent = dict(parameters or {})
        if attributes is not None:
            sent["attributes"] = attributes
        body, headers = request_body(inputs, id=id, outputs=outputs, parameters=sent, binary=self.binary)
        if traceparent is not None:
            headers["traceparent"] = traceparent
        return id, body, headers

    def http_options(self) -> dict[str, Any]:
        most = self._max_connections
        limits = httpx.Limits(max_connections=most, max_keepalive_connections=most)
        return {"headers": self._headers, "limits": limits, "timeout": self._timeout}

    def infer_url(self, model: str, version: int | str | None) -> str:
        return f"{self.model_url(model, version)}/infer"

    def model_url(self, model: str, version: int | str | None) -> str:
        named = "" if version is None else f"/versions/{version}"
        return f"{self._url}/v2/models/{quote(model, safe='')}{named}"

    def tries(
        self, id: str, headers: dict[str, str], timeout: float | None, idempotent: bool
    ) -> Generator[Send | Wait, Got | Exception | None, InferResult]:
        """The life of a request: yields what to do, is sent what came of it, returns the result or raises."""
        start = time.monotonic()
        end = start + (self._timeout if timeout is None else timeout)
        self._budget.began()
        tries = 0
        while True:
            remaining = end - time.monotonic()
            if remaining <= 0:
                self._count("deadline")
                raise DeadlineExceeded(f"no answer within {end - start:g} s", id, tries)
            tries += 1
            got = yield Send({**headers, "request-timeout": f"{remaining:.6f}"}, remaining)
            if isinstance(got, Got) and got.status == 200:
                try:
                    result = result_of(got.body, got.headers, tries, time.monotonic() - start)
                except ValueError as unreadable:
                    self._count("failed")
                    raise InferenceError(str(unreadable), id, tries, got.status) from unreadable
                self._count("ok")
                return result
            error, failure = judged(got, id, tries)
            seconds = self._budget.wait(failure, tries, end - time.monotonic(), idempotent=idempotent)
            if seconds is None:
                self._count(error.outcome)
                raise error
            self.retried += 1
            if self._metrics is not None:
                self._metrics[names.CLIENT_RETRIES].labels(failure.reason).inc()
            yield Wait(seconds)

    def _count(self, outcome: str) -> None:
        if self._metrics is not None:
            self._metrics[names.CLIENT_REQUESTS].labels(outcome).inc()


def judged(got: Got | Exception | None, id: str, tries: int) -> tuple[InferenceError, Failure]:
    """The error that a try amounts to, and whether it may be repeated."""
    if isinstance(got, Got):
        error = error_for(got.status, _message(got), id, tries)
        if isinstance(error, Overloaded):
            reason = "rejected" if got.status == 429 else "unavailable"
            return error, Failure(reason, False, _seconds(got.headers.get("retry-after")))
        return error, Failure("answered", True)
    if isinstance(got, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)):
        return ConnectionFailed(f"no connection: {got!r}", id, tries), Failure("connect", False)
    if isinstance(got, httpx.TimeoutException):
        return DeadlineExceeded(f"no answer in time: {got!r}", id, tries), Failure("timeout", True)
    return ConnectionFailed(f"the connection broke: {got!r}", id, tries), Failure("reset", True)


def _message(got: Got) -> str:
    try:
        return str(msgspec.json.decode(got.body)["error"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"status {got.status}: {got.body[:200]!r}"


def json_of(got: Got) -> Any:
    if got.status != 200:
        raise error_for(got.status, _message(got), "", 1)
    return msgspec.json.decode(got.body)


def _seconds(value: str | None) -> float | None:
    return float(value) if value is not None and value.isdigit() else None


def ready_url(server: str, model: str | None) -> str:
    return f"{server}/v2/health/ready" if model is None else f"{model}/ready"
