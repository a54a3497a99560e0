"""The HTTP hook: a POST of JSON with an `Idempotency-Key`, signed if there is a secret, retried while that helps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from alerts.actions.hook import Call, HookAway, HookError
from observability import signing

_RETRYABLE = (408, 425, 429)


class HttpHook:
    """Posts a call to `url`, in which `{model}` and `{action}` are filled in.

    Connection errors, 5xx, 408, 425 and 429 are tried again (`tries` in all; the wait doubles from `backoff_seconds`,
    or is what `Retry-After` says). Every other answer from 300 on is final.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: str = "",
        timeout_seconds: float = 30.0,
        tries: int = 6,
        backoff_seconds: float = 0.5,
        headers: Mapping[str, str] | None = None,
        body: Callable[[Call], Mapping[str, Any]] = Call.to_json,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url = url
        self._secret = secret
        self._tries = tries
        self._backoff_seconds = backoff_seconds
        self._headers = dict(headers or {})
        self._body = body
        self._clock = clock
        self._client = httpx.Client(timeout=timeout_seconds)
        self._closing = threading.Event()

    def run(self, call: Call) -> Mapping[str, Any]:
        url = self._url.replace("{model}", quote(call.model, safe="")).replace("{action}", quote(call.action, safe=""))
        body = msgspec.json.encode(self._body(call))
        for attempt in range(1, self._tries + 1):
            answer, wait = self._post(url, body, call)
            if wait is None:
                return {"url": url, "tries": attempt, **answer}
            if attempt == self._tries or self._closing.wait(max(wait, self._backoff_seconds * 2 ** (attempt - 1))):
                break
        raise HookAway(f"POST {url} failed {attempt} times, at last: {answer['error']}", {"url": url, **answer})

    def close(self) -> None:
        self._closing.set()

    def _post(self, url: str, body: bytes, call: Call) -> tuple[dict[str, Any], float | None]:
        """The answer, and None when it is good or the seconds to wait when it is worth another try."""
        headers = {**self._headers, "Content-Type": "application/json", "Idempotency-Key": call.key}
        if call.token:
            headers["X-Trimtab-Fence"] = str(call.token)
        if self._secret:
            headers[signing.HEADER] = signing.sign(self._secret, body, self._clock())
        try:
            response = self._client.post(url, content=body, headers=headers)
        except httpx.HTTPError as error:
            return {"error": repr(error)}, 0.0
        answer = {"status": response.status_code, "answer": _answer(response)}
        if response.is_success:
            return answer, None
        answer["error"] = f"{response.status_code} {response.text[:300]}"
        if response.status_code in _RETRYABLE or response.status_code >= 500:
            return answer, _retry_after(response)
        raise HookError(f"POST {url} was refused: {answer['error']}", {"url": url, **answer})


def _retry_after(response: httpx.Response) -> float:
    try:
        return min(float(response.headers.get("Retry-After", 0)), 60.0)
    except ValueError:
        return 0.0  # a date: our own back-off will do


def _answer(response: httpx.Response) -> Any:
    try:
        return msgspec.json.decode(response.content[:100_000])
    except msgspec.DecodeError:
        return response.text[:2000]
