"""What serving shows of a model, and what it finds when it tries a version: the controller's eyes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from observability import signing


class EyesShut(RuntimeError):
    """Serving could not be asked: nothing follows from it."""


class ServingEyes:
    """Reads serving's control API at `url`. Raises EyesShut."""

    def __init__(
        self,
        url: str,
        *,
        secret: str = "",
        timeout_seconds: float = 3.0,
        examine_seconds: float = 300.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url = url.rstrip("/")
        self._secret = secret
        self._clock = clock
        self._examine_seconds = examine_seconds
        self._client = httpx.Client(timeout=timeout_seconds)

    def page(self, model: str) -> Mapping[str, Any]:
        """`GET /api/v1/models/{model}`, once the server has taken up its stored policy."""
        ready = self._asked("GET", "/v2/health/ready")
        if not ready.is_success:
            raise EyesShut(f"serving is not ready: {ready.text[:200]}")
        answer = self._asked("GET", self._path(model))
        return self._object(answer)

    def examine(self, model: str, version: int, inputs: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """`POST …/examine`; blocks while the version loads and answers."""
        body: dict[str, Any] = {"version": version, **({"inputs": inputs} if inputs else {})}
        path, content = f"{self._path(model)}/examine", msgspec.json.encode(body)
        return self._object(self._asked("POST", path, content, timeout=self._examine_seconds))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _path(self, model: str) -> str:
        return f"/api/v1/models/{quote(model, safe='')}"

    def _asked(self, method: str, path: str, content: bytes | None = None, **options: Any) -> httpx.Response:
        headers = {} if content is None else {"Content-Type": "application/json"}
        if content is not None and self._secret:
            headers[signing.HEADER] = signing.sign(self._secret, content, self._clock())
        try:
            return self._client.request(method, f"{self._url}{path}", content=content, headers=headers, **options)
        except httpx.HTTPError as error:
            raise EyesShut(f"{self._url}{path}: no answer: {error!r}") from error

    def _object(self, answer: httpx.Response) -> Mapping[str, Any]:
        if not answer.is_success:
            raise EyesShut(f"{answer.request.url} answered {answer.status_code}: {answer.text[:300]}")
        try:
            body = msgspec.json.decode(answer.content)
        except msgspec.DecodeError as error:
            raise EyesShut(f"{answer.request.url} answered no JSON: {error}") from error
        if not isinstance(body, dict):
            raise EyesShut(f"{answer.request.url} answered no JSON object")
        return body
