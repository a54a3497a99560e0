"""Clients of the V2 protocol, for threads and asyncio: binary tensors, one deadline, retries where they are safe."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from observability import names
from observability.metrics import Metrics
from serving.client_bodies import InferResult, request_body, result_of
from serving.client_errors import (
    ConnectionFailed,
    DeadlineExceeded,
    InferenceError,
    Overloaded,
    error_for,
)
from serving.quick_client import Answer, QuickClient
from serving.retries import Budget, Failure, Retries

__all__ = ["Answer", "AsyncInferenceClient", "InferResult", "InferenceClient", "QuickClient"]


@dataclass(frozen=True, slots=True)
class _Send:
    """What the driver does next: send this, with at most `timeout` seconds for it."""

    headers: dict[str, str]
    timeout: float


@dataclass(frozen=True, slots=True)
class _Wait:
    """What the driver does next: wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class _Got:
    """What a driver brings back: an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Client:
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
        self._binary = binary
        self._metrics = metrics
        # A compressed answer costs more than it saves: tensors hardly shrink.
        self._headers = {"accept-encoding": "identity", **(headers or {})}
        if token is not None:
            self._headers["authorization"] = f"Bearer {token}"
        self._max_connections = max_connections
        # Requests sent again, in all.
        self.retried = 0

    def _request(
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
        body, headers = request_body(inputs, id=id, outputs=outputs, parameters=sent, binary=self._binary)
        if traceparent is not None:
            headers["traceparent"] = traceparent
        return id, body, headers

    def _infer_url(self, model: str, version: int | str | None) -> str:
        return f"{self._model_url(model, version)}/infer"

    def _model_url(self, model: str, version: int | str | None) -> str:
        named = "" if version is None else f"/versions/{version}"
        return f"{self._url}/v2/models/{quote(model, safe='')}{named}"

    def _tries(
        self, id: str, headers: dict[str, str], timeout: float | None, idempotent: bool
    ) -> Generator[_Send | _Wait, _Got | Exception | None, InferResult]:
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
            got = yield _Send({**headers, "request-timeout": f"{remaining:.6f}"}, remaining)
            if isinstance(got, _Got) and got.status == 200:
                try:
                    result = result_of(got.body, got.headers, tries, time.monotonic() - start)
                except ValueError as error:
                    self._count("failed")
                    raise InferenceError(str(error), id, tries, got.status) from error
                self._count("ok")
                return result
            error, failure = _judged(got, id, tries)
            seconds = self._budget.wait(failure, tries, end - time.monotonic(), idempotent=idempotent)
            if seconds is None:
                self._count(error.outcome)
                raise error
            self.retried += 1
            if self._metrics is not None:
                self._metrics[names.CLIENT_RETRIES].labels(failure.reason).inc()
            yield _Wait(seconds)

    def _count(self, outcome: str) -> None:
        if self._metrics is not None:
            self._metrics[names.CLIENT_REQUESTS].labels(outcome).inc()


class InferenceClient(_Client):
    """Requests to one server, for threads. Close it, or use it in a `with`.

    `timeout` is the seconds that a request may take with all its retries; it is sent along, so that the server does not
    work on what nobody waits for. `token` is the caller's, where the server asks for one. Arrays travel as binary
    tensors unless `binary` is false. `metrics` counts requests and retries (`inference_client_*`).

    `async with InferenceClient(url)` gives a `QuickClient`, which this name stood for before.
    """

    def __init__(self, url: str, **options: Any) -> None:
        verify = options.pop("verify", True)
        super().__init__(url, **options)
        limits = httpx.Limits(max_connections=self._max_connections, max_keepalive_connections=self._max_connections)
        self._http = httpx.Client(headers=self._headers, limits=limits, timeout=self._timeout, verify=verify)

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        id: str | None = None,
        version: int | str | None = None,
        outputs: Sequence[str] | None = None,
        attributes: Mapping[str, Any] | None = None,
        parameters: Mapping[str, Any] | None = None,
        traceparent: str | None = None,
        timeout: float | None = None,
        idempotent: bool = True,
    ) -> InferResult:
        """Asks the model. `inputs` maps a name to an array [rows, …] or a list; `outputs` names those wanted.

        `idempotent`: whether it may be asked again after it may have reached the model, which is safe for inference.
        Raises ValueError for inputs that cannot be sent, and the errors of `serving.client_errors`.
        """
        id, body, headers = self._request(inputs, id, outputs, attributes, parameters, traceparent)
        url = self._infer_url(model, version)
        steps = self._tries(id, headers, timeout, idempotent)
        step = next(steps)
        try:
            while True:
                if isinstance(step, _Wait):
                    time.sleep(step.seconds)
                    step = steps.send(None)
                else:
                    step = steps.send(self._send(url, body, step))
        except StopIteration as stop:
            result: InferResult = stop.value
            return result

    def _send(self, url: str, body: bytes, step: _Send) -> _Got | Exception:
        limit = time.monotonic() + step.timeout
        try:
            with self._http.stream("POST", url, content=body, headers=step.headers, timeout=step.timeout) as response:
                parts = []
                for part in response.iter_bytes():
                    parts.append(part)
                    if time.monotonic() > limit:
                        return httpx.ReadTimeout("the answer came too slowly")
            return _Got(response.status_code, response.headers, b"".join(parts))
        except httpx.HTTPError as error:
            return error

    def live(self) -> bool:
        """Whether the server runs. Never raises."""
        return self._is_ok(f"{self._url}/v2/health/live")

    def ready(self, model: str | None = None, version: int | str | None = None) -> bool:
        """Whether the server, or a model, takes requests. Never raises."""
        return self._is_ok(_ready_url(self._url, None if model is None else self._model_url(model, version)))

    def metadata(self, model: str | None = None, version: int | str | None = None) -> dict[str, Any]:
        """What the server says of itself, or of a model."""
        return self.get(f"{self._url}/v2" if model is None else self._model_url(model, version))

    def statistics(self, model: str | None = None, version: int | str | None = None) -> dict[str, Any]:
        """Triton's statistics of one model, or of all."""
        url = f"{self._url}/v2/models" if model is None else self._model_url(model, version)
        return self.get(f"{url}/stats")

    def load(self) -> dict[str, Any]:
        """How busy the server is."""
        return self.get(f"{self._url}/load")

    def get(self, url: str) -> Any:
        """The JSON of a page of the server. Raises the errors of `serving.client_errors`."""
        try:
            response = self._http.get(url)
        except httpx.HTTPError as error:
            raise _judged(error, "", 1)[0] from error
        return _json(_Got(response.status_code, response.headers, response.content))

    def _is_ok(self, url: str) -> bool:
        try:
            return self._http.get(url).status_code == 200
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> InferenceClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> QuickClient:
        self.close()
        self._quick = QuickClient(self._url, max_connections=self._max_connections, timeout=self._timeout)
        return self._quick

    async def __aexit__(self, *_: object) -> None:
        await self._quick.aclose()


class AsyncInferenceClient(_Client):
    """`InferenceClient` for asyncio: the same arguments, the same answers. Close it with `aclose`, or `async with`."""

    def __init__(self, url: str, **options: Any) -> None:
        verify = options.pop("verify", True)
        super().__init__(url, **options)
        limits = httpx.Limits(max_connections=self._max_connections, max_keepalive_connections=self._max_connections)
        self._http = httpx.AsyncClient(headers=self._headers, limits=limits, timeout=self._timeout, verify=verify)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        id: str | None = None,
        version: int | str | None = None,
        outputs: Sequence[str] | None = None,
        attributes: Mapping[str, Any] | None = None,
        parameters: Mapping[str, Any] | None = None,
        traceparent: str | None = None,
        timeout: float | None = None,
        idempotent: bool = True,
    ) -> InferResult:
        """As `InferenceClient.infer`."""
        id, body, headers = self._request(inputs, id, outputs, attributes, parameters, traceparent)
        url = self._infer_url(model, version)
        steps = self._tries(id, headers, timeout, idempotent)
        step = next(steps)
        try:
            while True:
                if isinstance(step, _Wait):
                    await asyncio.sleep(step.seconds)
                    step = steps.send(None)
                else:
                    step = steps.send(await self._send(url, body, step))
        except StopIteration as stop:
            result: InferResult = stop.value
            return result

    async def _send(self, url: str, body: bytes, step: _Send) -> _Got | Exception:
        try:
            async with asyncio.timeout(step.timeout):
                response = await self._http.post(url, content=body, headers=step.headers, timeout=step.timeout)
            return _Got(response.status_code, response.headers, response.content)
        except TimeoutError:
            return httpx.ReadTimeout("no answer in time")
        except httpx.HTTPError as error:
            return error

    async def live(self) -> bool:
        """Whether the server runs. Never raises."""
        return await self._is_ok(f"{self._url}/v2/health/live")

    async def ready(self, model: str | None = None, version: int | str | None = None) -> bool:
        """Whether the server, or a model, takes requests. Never raises."""
        return await self._is_ok(_ready_url(self._url, None if model is None else self._model_url(model, version)))

    async def metadata(self, model: str | None = None, version: int | str | None = None) -> dict[str, Any]:
        """What the server says of itself, or of a model."""
        return await self.get(f"{self._url}/v2" if model is None else self._model_url(model, version))

    async def statistics(self, model: str | None = None, version: int | str | None = None) -> dict[str, Any]:
        """Triton's statistics of one model, or of all."""
        url = f"{self._url}/v2/models" if model is None else self._model_url(model, version)
        return await self.get(f"{url}/stats")

    async def load(self) -> dict[str, Any]:
        """How busy the server is."""
        return await self.get(f"{self._url}/load")

    async def get(self, url: str) -> Any:
        """The JSON of a page of the server. Raises the errors of `serving.client_errors`."""
        try:
            response = await self._http.get(url)
        except httpx.HTTPError as error:
            raise _judged(error, "", 1)[0] from error
        return _json(_Got(response.status_code, response.headers, response.content))

    async def _is_ok(self, url: str) -> bool:
        try:
            return (await self._http.get(url)).status_code == 200
        except httpx.HTTPError:
            return False

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncInferenceClient:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _judged(got: _Got | Exception | None, id: str, tries: int) -> tuple[InferenceError, Failure]:
    """The error that a try amounts to, and whether it may be repeated."""
    if isinstance(got, _Got):
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


def _message(got: _Got) -> str:
    try:
        return str(msgspec.json.decode(got.body)["error"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"status {got.status}: {got.body[:200]!r}"


def _json(got: _Got) -> Any:
    if got.status != 200:
        raise error_for(got.status, _message(got), "", 1)
    return msgspec.json.decode(got.body)


def _seconds(value: str | None) -> float | None:
    return float(value) if value is not None and value.isdigit() else None


def _ready_url(server: str, model: str | None) -> str:
    return f"{server}/v2/health/ready" if model is None else f"{model}/ready"
