"""The control plane over HTTP (Starlette): V2 metadata and health, the traffic API, `/metrics`."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from observability import signing
from observability.metrics import Metrics, exposition
from serving.control import Control
from serving.errors import InvalidRequest, ServingError
from serving.pages.extensions import object_of
from serving.routing import changes
from serving.routing.policies import PolicyStore
from serving.versions.deployment import Deployment

_log = logging.getLogger(__name__)
_MAX_KEY = 200
Deed = Callable[[str, Mapping[str, Any], str], Awaitable[dict[str, Any]]]


class Json(Response):
    """A body as JSON; what a registered version says may hold numbers that are none, which become null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The bytes of the body."""
        return msgspec.json.encode(content)


class ControlApp:
    """Builds the Starlette app; `secret` makes every POST of the traffic API need a signature."""

    def __init__(
        self,
        control: Control,
        deployments: Mapping[str, Deployment],
        store: PolicyStore,
        metrics: Metrics,
        *,
        secret: str = "",
        models: tuple[str, ...] = (),
        routes: Sequence[BaseRoute] = (),
        observe: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`routes` are those of other parts of the protocol; `observe` is called before each page of metrics."""
        self._control = control
        self._deployments = deployments
        self._store = store
        self._routes = routes
        self._observe = observe
        self._metrics = metrics
        self._secret = secret
        self._models = models
        self._clock = clock
        # A lock goes with the last call that holds it.
        self._key_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def build(self) -> Starlette:
        """The app."""
        deeds: dict[str, Deed] = {
            "canary": self._canary, "shadow": self._shadow, "promote": self._promote, "rollback": self._rollback,
            "experiment": self._change(changes.experiment), "route": self._change(changes.rules),
            "switch": self._change(changes.switch), "hold_back": self._change(changes.hold_back),
            "examine": self._examine,
        }  # fmt: skip
        routes = [
            Route("/metrics", self._page),
            Route("/api/v1/models", self._list),
            Route("/api/v1/models/{model}", self._describe),
            *(Route(f"/api/v1/models/{{model}}/{name}", self._do(name, deed), methods=["POST"])
              for name, deed in deeds.items()),
            *self._routes,
        ]  # fmt: skip
        handlers = {ServingError: _failed, HTTPException: _no_path, Exception: _broken}
        return Starlette(routes=routes, exception_handlers=handlers)

    async def _page(self, request: Request) -> Response:
        for deployment in self._deployments.values():
            deployment.observe()
        self._observe()
        body, content_type = exposition(self._metrics, request.headers.get("accept"))
        return Response(body, headers={"content-type": content_type})

    # --- traffic ---------------------------------------------------------------------------------------------------
    async def _list(self, _request: Request) -> Response:
        names = await self._control.models(self._models)
        return Json({"models": [await self._control.describe(name) for name in names]})

    async def _describe(self, request: Request) -> Response:
        return Json(await self._control.describe(request.path_params["model"]))

    async def _canary(self, model: str, body: Mapping[str, Any], actor: str) -> dict[str, Any]:
        sticky = body.get("sticky")
        number, weight = _number(body, "version", int), _number(body, "weight", float)
        return await self._control.canary(model, number, weight, sticky, _text(body, "reason") or "", actor)

    async def _shadow(self, model: str, body: Mapping[str, Any], actor: str) -> dict[str, Any]:
        number, fraction = _number(body, "version", int), _number(body, "fraction", float)
        return await self._control.shadow(model, number, fraction, _text(body, "reason") or "", actor)

    async def _examine(self, model: str, body: Mapping[str, Any], _actor: str) -> dict[str, Any]:
        inputs, repeats = body.get("inputs"), _number({"repeats": 5} | dict(body), "repeats", int)
        if inputs is not None and not isinstance(inputs, dict):
            raise InvalidRequest(f"inputs is {inputs!r}; give an object of lists by the inputs' names, or leave it out")
        if not 2 <= repeats <= 1000:
            raise InvalidRequest(f"repeats is {repeats}; give 2 to 1000")
        return await self._control.examine(model, _number(body, "version", int), inputs, repeats)

    def _change(self, read: Callable[[Mapping[str, Any]], changes.Change]) -> Deed:
        async def change(model: str, body: Mapping[str, Any], actor: str) -> dict[str, Any]:
            return await self._control.change(model, read(body), _text(body, "reason") or "", actor)

        return change

    async def _promote(self, model: str, body: Mapping[str, Any], actor: str) -> dict[str, Any]:
        number = None if body.get("version") is None else _number(body, "version", int)
        reason = _text(body, "reason") or ""
        return await self._control.promote(model, number, _text(body, "release"), reason, actor)

    async def _rollback(self, model: str, body: Mapping[str, Any], actor: str) -> dict[str, Any]:
        return await self._control.rollback(model, _text(body, "release"), _text(body, "reason") or "", actor)

    def _do(self, name: str, deed: Deed) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            content = await request.body()
            if self._secret:
                try:
                    header = request.headers.get(signing.HEADER)
                    signing.verify(self._secret, header, content, self._clock())
                except signing.SignatureError as error:
                    return Json({"error": str(error)}, 401)
            body = object_of(content)
            actor = _text(body, "actor") or request.headers.get("x-trimtab-actor", "api")
            key = request.headers.get("idempotency-key")
            if key is None:
                return Json(await deed(request.path_params["model"], body, actor))
            if not 0 < len(key) <= _MAX_KEY:
                raise InvalidRequest(f"Idempotency-Key has {len(key)} characters; give 1 to {_MAX_KEY}")
            digest = hashlib.sha256(request.url.path.encode() + b"\n" + content).hexdigest()
            lock = self._key_locks.setdefault(key, asyncio.Lock())
            async with lock:
                return await self._once(key, digest, lambda: deed(request.path_params["model"], body, actor))

        handle.__name__ = name
        return handle

    async def _once(self, key: str, digest: str, act: Callable[[], Awaitable[dict[str, Any]]]) -> Response:
        """Acts, and keeps the answer; a second call with the key gets the first answer. Failures are not kept."""
        known = await asyncio.to_thread(self._store.answer, key)
        if known is not None:
            request, status, body = known
            if request != digest:
                return Json({"error": f"Idempotency-Key {key!r} was used for another request"}, 422)
            return Json(body, status, {"Idempotent-Replayed": "true"})
        answer = await act()
        await asyncio.to_thread(self._store.remember, key, digest, 200, answer, self._clock())
        return Json(answer)


async def _failed(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ServingError)
    headers = (
        {} if error.retry_after_seconds is None else {"Retry-After": str(max(1, round(error.retry_after_seconds)))}
    )
    return Json({"error": str(error)}, error.status, headers)


async def _no_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    # 405 comes with Allow.
    headers = dict(error.headers or {})
    return Json({"error": f"{request.method} {request.url.path} is not served here"}, error.status_code, headers)


async def _broken(request: Request, error: Exception) -> Response:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return Json({"error": f"internal error: {type(error).__name__}: {error}"}, 500)


def _number(body: Mapping[str, Any], name: str, kind: type) -> Any:
    value: Any = body.get(name)
    if isinstance(value, str) and kind is int and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole or (kind is float and isinstance(value, float))) or not -(2**31) < value < 2**31:
        raise InvalidRequest(f"{name} is {value!r}; give {'a whole number' if kind is int else 'a number'}")
    return kind(value)


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{name} is {value!r}; give a text")
    return value or None
