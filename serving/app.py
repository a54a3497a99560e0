"""The control plane over HTTP (Starlette): V2 metadata and health, the traffic API, `/metrics`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from observability import signing
from observability.metrics import Metrics, exposition
from serving.control import Control
from serving.deployment import Deployment
from serving.errors import InvalidRequest, NotFound, ServingError
from serving.health import Health
from serving.policies import PolicyStore

_log = logging.getLogger(__name__)
_PLATFORMS = {"torch.export": "pytorch_export", "safetensors": "pytorch_safetensors"}
Deed = Callable[[str, Mapping[str, Any], str], Awaitable[dict[str, Any]]]


class ControlApp:
    """Builds the Starlette app; `secret` makes every POST of the traffic API need a signature."""

    def __init__(
        self,
        control: Control,
        deployments: Mapping[str, Deployment],
        health: Health,
        store: PolicyStore,
        metrics: Metrics,
        *,
        secret: str = "",
        models: tuple[str, ...] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._control = control
        self._deployments = deployments
        self._health = health
        self._store = store
        self._metrics = metrics
        self._secret = secret
        self._models = models
        self._clock = clock
        self._key_locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def build(self) -> Starlette:
        """The app."""
        deeds: dict[str, Deed] = {
            "canary": self._canary, "shadow": self._shadow, "promote": self._promote, "rollback": self._rollback,
        }  # fmt: skip
        routes = [
            Route("/metrics", self._page),
            Route("/health/live", self._live),
            Route("/health/ready", self._ready),
            Route("/v2/health/live", self._live),
            Route("/v2/health/ready", self._ready),
            Route("/v2", self._server),
            Route("/v2/", self._server),
            Route("/v2/repository/index", self._index, methods=["POST", "GET"]),
            Route("/v2/models/{model}", self._model),
            Route("/v2/models/{model}/ready", self._model_ready),
            Route("/v2/models/{model}/versions/{version}", self._model),
            Route("/v2/models/{model}/versions/{version}/ready", self._model_ready),
            Route("/api/v1/models", self._list),
            Route("/api/v1/models/{model}", self._describe),
            *(Route(f"/api/v1/models/{{model}}/{name}", self._do(name, deed), methods=["POST"])
              for name, deed in deeds.items()),
        ]  # fmt: skip
        return Starlette(routes=routes, exception_handlers={ServingError: _failed, 404: _no_path, 405: _no_path})

    # --- V2 --------------------------------------------------------------------------------------------------------
    async def _live(self, _request: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, _request: Request) -> Response:
        reason = self._health.unready()
        if reason is None:
            return JSONResponse({"ready": True})
        return JSONResponse({"ready": False, "error": reason}, 503, {"Retry-After": "1"})

    async def _server(self, _request: Request) -> Response:
        return JSONResponse({"name": "trimtab", "version": _own_version(), "extensions": ["binary_tensor_data"]})

    async def _index(self, _request: Request) -> Response:
        rows = [
            {"name": name, "version": str(number), "state": "READY", "reason": ""}
            for name, deployment in sorted(self._deployments.items())
            for number in sorted(deployment.versions)
        ]
        return JSONResponse(rows)

    async def _model(self, request: Request) -> Response:
        deployment, number = self._found(request)
        model = deployment.versions[number].loaded.model
        return JSONResponse(
            {
                "name": deployment.model,
                "versions": [str(known) for known in sorted(deployment.versions)],
                "platform": _PLATFORMS[model.manifest["format"]],
                "inputs": [
                    {"name": i.name, "datatype": i.datatype, "shape": i.wire_shape} for i in model.signature.inputs
                ],
                "outputs": [
                    {"name": output.name, "datatype": output.datatype, "shape": [-1, *example.shape[1:]]}
                    for output, example in zip(model.signature.outputs, model.example_outputs, strict=True)
                ],
            }
        )

    async def _model_ready(self, request: Request) -> Response:
        deployment, number = self._found(request)
        return JSONResponse({"name": deployment.model, "version": str(number), "ready": True})

    def _found(self, request: Request) -> tuple[Deployment, int]:
        deployment = self._deployments.get(request.path_params["model"])
        if deployment is None:
            raise NotFound(f"model {request.path_params['model']!r} is not served here")
        choice, _ = deployment.route(request.path_params.get("version"), None)
        return deployment, choice.version

    async def _page(self, request: Request) -> Response:
        for deployment in self._deployments.values():
            deployment.observe()
        body, content_type = exposition(self._metrics, request.headers.get("accept"))
        return Response(body, headers={"content-type": content_type})

    # --- traffic ---------------------------------------------------------------------------------------------------
    async def _list(self, _request: Request) -> Response:
        names = await self._control.models(self._models)
        return JSONResponse({"models": [await self._control.describe(name) for name in names]})

    async def _describe(self, request: Request) -> Response:
        return JSONResponse(await self._control.describe(request.path_params["model"]))

    async def _canary(self, model: str, body: Mapping[str, Any], actor: str) -> dict[str, Any]:
        sticky = body.get("sticky")
        number, weight = _number(body, "version", int), _number(body, "weight", float)
        return await self._control.canary(model, number, weight, sticky, _text(body, "reason") or "", actor)

    async def _shadow(self, model: str, body: Mapping[str, Any], actor: str) -> dict[str, Any]:
        number, fraction = _number(body, "version", int), _number(body, "fraction", float)
        return await self._control.shadow(model, number, fraction, _text(body, "reason") or "", actor)

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
                    return JSONResponse({"error": str(error)}, 401)
            body = _object(content)
            actor = _text(body, "actor") or request.headers.get("x-trimtab-actor", "api")
            key = request.headers.get("idempotency-key")
            if key is None:
                return JSONResponse(await deed(request.path_params["model"], body, actor))
            digest = hashlib.sha256(request.url.path.encode() + b"\n" + content).hexdigest()
            async with self._key_locks[key]:
                return await self._once(key, digest, lambda: deed(request.path_params["model"], body, actor))

        handle.__name__ = name
        return handle

    async def _once(self, key: str, digest: str, act: Callable[[], Awaitable[dict[str, Any]]]) -> Response:
        """Acts, and keeps the answer; a second call with the key gets the first answer. Failures are not kept."""
        known = await asyncio.to_thread(self._store.answer, key)
        if known is not None:
            request, status, body = known
            if request != digest:
                return JSONResponse({"error": f"Idempotency-Key {key!r} was used for another request"}, 422)
            return JSONResponse(body, status, {"Idempotent-Replayed": "true"})
        answer = await act()
        await asyncio.to_thread(self._store.remember, key, digest, 200, answer, self._clock())
        return JSONResponse(answer)


async def _failed(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ServingError)
    headers = (
        {} if error.retry_after_seconds is None else {"Retry-After": str(max(1, round(error.retry_after_seconds)))}
    )
    return JSONResponse({"error": str(error)}, error.status, headers)


async def _no_path(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    return JSONResponse({"error": f"{request.method} {request.url.path} is not served here"}, status)


def _object(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content or b"{}")
    except ValueError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise InvalidRequest("the body is not a JSON object")
    return body


def _number(body: Mapping[str, Any], name: str, kind: type) -> Any:
    value = body.get(name)
    if isinstance(value, str) and kind is int and value.isdigit():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        raise InvalidRequest(f"{name} is {value!r}; give {'a whole number' if kind is int else 'a number'}")
    return kind(value)


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{name} is {value!r}; give a text")
    return value or None


def _own_version() -> str:
    try:
        return version("trimtab")
    except PackageNotFoundError:
        return "unknown"
