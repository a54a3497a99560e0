"""Clients of the V2 protocol, for threads and asyncio: binary tensors, one deadline, retries where they are safe."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, cast

import httpx

from serving.clients.bodies import InferResult
from serving.clients.quick import Answer, QuickClient
from serving.clients.retries import Retries
from serving.clients.steps import Client, Got, Send, Wait, json_of, judged, ready_url

__all__ = ["Answer", "AsyncInferenceClient", "InferResult", "InferenceClient", "QuickClient", "Retries"]

Page = dict[str, Any]
# Options that are handed to httpx as they are.
_HTTPX = ("verify", "transport")


class InferenceClient(Client):
    """Requests to one server, for threads. Close it, or use it in a `with`.

    `timeout` is the seconds that a request may take with all its retries; it is sent along, so that the server does not
    work on what nobody waits for. `token` is the caller's, where the server asks for one. Arrays travel as binary
    tensors unless `binary` is false. `metrics` counts requests and retries (`inference_client_*`). `verify` and
    `transport` are httpx's.

    `async with InferenceClient(url)` gives a `QuickClient`, which this name stood for before.
    """

    def __init__(self, url: str, **options: Any) -> None:
        http = {name: options.pop(name) for name in _HTTPX if name in options}
        super().__init__(url, **options)
        self._http = httpx.Client(**self.http_options(), **http)

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
        Raises ValueError for inputs that cannot be sent, and the errors of `serving.clients.errors`.
        """
        id, body, headers = self.request(inputs, id, outputs, attributes, parameters, traceparent)
        url = self.infer_url(model, version)
        steps = self.tries(id, headers, timeout, idempotent)
        step = next(steps)
        try:
            while True:
                if isinstance(step, Wait):
                    time.sleep(step.seconds)
                    step = steps.send(None)
                else:
                    step = steps.send(self._send(url, body, step))
        except StopIteration as stop:
            result: InferResult = stop.value
            return result

    def _send(self, url: str, body: bytes, step: Send) -> Got | Exception:
        limit = time.monotonic() + step.timeout
        try:
            with self._http.stream("POST", url, content=body, headers=step.headers, timeout=step.timeout) as response:
                parts = []
                for part in response.iter_bytes():
                    parts.append(part)
                    if time.monotonic() > limit:
                        return httpx.ReadTimeout("the answer came too slowly")
            return Got(response.status_code, response.headers, b"".join(parts))
        except httpx.HTTPError as error:
            return error

    def live(self) -> bool:
        """Whether the server runs. Never raises."""
        return self._is_ok(f"{self._url}/v2/health/live")

    def ready(self, model: str | None = None, version: int | str | None = None) -> bool:
        """Whether the server, or a model, takes requests. Never raises."""
        return self._is_ok(ready_url(self._url, None if model is None else self.model_url(model, version)))

    def metadata(self, model: str | None = None, version: int | str | None = None) -> Page:
        """What the server says of itself, or of a model."""
        return cast(Page, self.get(f"{self._url}/v2" if model is None else self.model_url(model, version)))

    def statistics(self, model: str | None = None, version: int | str | None = None) -> Page:
        """Triton's statistics of one model, or of all."""
        url = f"{self._url}/v2/models" if model is None else self.model_url(model, version)
        return cast(Page, self.get(f"{url}/stats"))

    def load(self) -> Page:
        """How busy the server is."""
        return cast(Page, self.get(f"{self._url}/load"))

    def get(self, url: str) -> Any:
        """The JSON of a page of the server. Raises the errors of `serving.clients.errors`."""
        try:
            response = self._http.get(url)
        except httpx.HTTPError as error:
            raise judged(error, "", 1)[0] from error
        return json_of(Got(response.status_code, response.headers, response.content))

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


class AsyncInferenceClient(Client):
    """`InferenceClient` for asyncio: the same arguments, the same answers. Close it with `aclose`, or `async with`."""

    def __init__(self, url: str, **options: Any) -> None:
        http = {name: options.pop(name) for name in _HTTPX if name in options}
        super().__init__(url, **options)
        self._http = httpx.AsyncClient(**self.http_options(), **http)

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
        id, body, headers = self.request(inputs, id, outputs, attributes, parameters, traceparent)
        url = self.infer_url(model, version)
        steps = self.tries(id, headers, timeout, idempotent)
        step = next(steps)
        try:
            while True:
                if isinstance(step, Wait):
                    await asyncio.sleep(step.seconds)
                    step = steps.send(None)
                else:
                    step = steps.send(await self._send(url, body, step))
        except StopIteration as stop:
            result: InferResult = stop.value
            return result

    async def _send(self, url: str, body: bytes, step: Send) -> Got | Exception:
        try:
            async with asyncio.timeout(step.timeout):
                response = await self._http.post(url, content=body, headers=step.headers, timeout=step.timeout)
            return Got(response.status_code, response.headers, response.content)
        except TimeoutError:
            return httpx.ReadTimeout("no answer in time")
        except httpx.HTTPError as error:
            return error

    async def live(self) -> bool:
        """Whether the server runs. Never raises."""
        return await self._is_ok(f"{self._url}/v2/health/live")

    async def ready(self, model: str | None = None, version: int | str | None = None) -> bool:
        """Whether the server, or a model, takes requests. Never raises."""
        return await self._is_ok(ready_url(self._url, None if model is None else self.model_url(model, version)))

    async def metadata(self, model: str | None = None, version: int | str | None = None) -> Page:
        """What the server says of itself, or of a model."""
        return cast(Page, await self.get(f"{self._url}/v2" if model is None else self.model_url(model, version)))

    async def statistics(self, model: str | None = None, version: int | str | None = None) -> Page:
        """Triton's statistics of one model, or of all."""
        url = f"{self._url}/v2/models" if model is None else self.model_url(model, version)
        return cast(Page, await self.get(f"{url}/stats"))

    async def load(self) -> Page:
        """How busy the server is."""
        return cast(Page, await self.get(f"{self._url}/load"))

    async def get(self, url: str) -> Any:
        """The JSON of a page of the server. Raises the errors of `serving.clients.errors`."""
        try:
            response = await self._http.get(url)
        except httpx.HTTPError as error:
            raise judged(error, "", 1)[0] from error
        return json_of(Got(response.status_code, response.headers, response.content))

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
