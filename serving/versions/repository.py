"""Triton's model repository extension: which versions there are and where they stand; loading and unloading them.

Protocol: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from observability import signing
from serving.control import Control
from serving.errors import InvalidRequest, NotFound
from serving.pages.extensions import object_of
from serving.peers import Peers
from serving.registry import Registry
from serving.versions.residency import Residency
from serving.versions.status import NOT_LOADED, everywhere

_POLICY_KINDS = {"latest", "all", "specific"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which versions to load: those named, the newest `latest`, all; none of it means what the traffic policy names."""

    versions: tuple[int, ...] | None = None
    latest: int | None = None
    all: bool = False

    def of(self, known: Sequence[int]) -> list[int] | None:
        """The numbers, of those that are registered (oldest first). None: what the policy names."""
        if self.versions is not None:
            return list(self.versions)
        if self.latest is not None:
            return list(known[-self.latest :])
        return list(known) if self.all else None


class Repository:
    """The routes. With a `secret`, loading and unloading must be signed as other control calls are."""

    def __init__(
        self,
        control: Control,
        registry: Registry,
        residency: Residency,
        peers: Peers,
        *,
        models: tuple[str, ...] = (),
        secret: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._control = control
        self._registry = registry
        self._residency = residency
        self._peers = peers
        self._models = models
        self._secret = secret
        self._clock = clock

    def routes(self) -> list[Route]:
        """For the control app."""
        return [
            Route("/v2/repository/index", self._index, methods=["POST", "GET"]),
            Route("/v2/repository/models/{model}/load", self._load, methods=["POST"]),
            Route("/v2/repository/models/{model}/unload", self._unload, methods=["POST"]),
        ]

    async def _index(self, request: Request) -> Response:
        body = object_of(await request.body())
        ready = body.get("ready", False)
        if not isinstance(ready, bool):
            raise InvalidRequest(f"ready is {ready!r}; give true (ready versions only) or false")
        found, views = await asyncio.gather(asyncio.to_thread(self._registered), self._peers.views())
        rows = []
        for model, number in found:
            status = everywhere(
                {self._peers.number: self._residency.status(model, number)}
                | {replica: view.statuses.get((model, number), NOT_LOADED) for replica, view in views.items()}
            )
            if not ready or status.state == "READY":
                rows.append(
                    {"name": model, "version": str(number), "state": status.state, "reason": status.reason}
                )  # fmt: skip
        return JSONResponse(rows)

    def _registered(self) -> list[tuple[str, int]]:
        names = [name for name in self._registry.models() if not self._models or name in self._models]
        return [(name, version.version) for name in names for version in self._registry.versions(name)]

    async def _load(self, request: Request) -> Response:
        model, parameters = await self._asked(request)
        wanted = wanted_versions(parameters)
        known = [version.version for version in await asyncio.to_thread(self._registry.versions, model)]
        versions = wanted.of(known)
        missing = sorted(set(versions or ()) - set(known))
        if not known or missing:
            raise NotFound(
                f"model {model!r} has no version {missing} in the registry; it has {known}"
                if known else f"model {model!r} is not in the registry: register a version first"
            )  # fmt: skip
        await self._control.load(model, versions, _actor(request))
        return JSONResponse({})

    async def _unload(self, request: Request) -> Response:
        model, parameters = await self._asked(request)
        unknown = parameters.keys() - {"version", "unload_dependents"}
        if unknown:
            raise InvalidRequest(f"unknown parameters {sorted(unknown)}; known are version and unload_dependents")
        number = parameters.get("version")
        await self._control.unload(model, None if number is None else _whole("version", number))
        return JSONResponse({})

    async def _asked(self, request: Request) -> tuple[str, Mapping[str, Any]]:
        """The model and the parameters of a signed call. Raises InvalidRequest, NotFound."""
        content = await request.body()
        if self._secret:
            try:
                signing.verify(self._secret, request.headers.get(signing.HEADER), content, self._clock())
            except signing.SignatureError as error:
                raise Unsigned(str(error)) from error
        model = request.path_params["model"]
        if self._models and model not in self._models:
            raise NotFound(f"model {model!r} is not among those that this server serves: {list(self._models)}")
        parameters = object_of(content).get("parameters")
        parameters = {} if parameters is None else parameters
        if not isinstance(parameters, dict):
            raise InvalidRequest(f"parameters is {parameters!r}; give an object")
        return model, parameters


class Unsigned(InvalidRequest):
    """A control call without a valid signature (401)."""

    status = 401


def wanted_versions(parameters: Mapping[str, Any]) -> Wanted:
    """From a load call's parameters: `version`, or Triton's `config` with a version policy. Raises InvalidRequest."""
    files = [name for name in parameters if name.startswith("file:")]
    if files:
        raise InvalidRequest(
            f"{files[0]!r}: a load call brings no files; register a version first (trimtab models register)"
        )
    unknown = parameters.keys() - {"config", "version"}
    if unknown:
        raise InvalidRequest(f"unknown parameters {sorted(unknown)}; known are version and config")
    if parameters.get("version") is not None:
        return Wanted(versions=(_whole("version", parameters["version"]),))
    if parameters.get("config") is None:
        return Wanted()
    return _version_policy(parameters["config"])


def _version_policy(text: Any) -> Wanted:
    try:
        config = json.loads(text) if isinstance(text, str) else text
    except ValueError as error:
        raise InvalidRequest(f"config is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InvalidRequest(f"config is {config!r}; give a JSON object as text")
    others = config.keys() - {"version_policy", "versionPolicy", "name"}
    if others:
        raise InvalidRequest(
            f"config sets {sorted(others)}; only version_policy can be set here, the rest is in the artifact's "
            "manifest and in the server's settings"
        )
    policy = config.get("version_policy", config.get("versionPolicy"))
    if policy is None:
        return Wanted()
    if not isinstance(policy, dict) or len(policy) != 1 or not policy.keys() <= _POLICY_KINDS:
        raise InvalidRequest(f"version_policy is {policy!r}; give one of latest, all, specific")
    kind, body = next(iter(policy.items()))
    body = body if isinstance(body, dict) else {}
    if kind == "all":
        return Wanted(all=True)
    if kind == "latest":
        return Wanted(latest=_whole("num_versions", body.get("num_versions", body.get("numVersions", 1))))
    versions = body.get("versions")
    if not isinstance(versions, list) or not versions:
        raise InvalidRequest(f"version_policy.specific.versions is {versions!r}; give a list of versions")
    return Wanted(versions=tuple(_whole("versions", number) for number in versions))


def _whole(name: str, value: Any) -> int:
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit() and 0 < len(text) < 10) or int(text) < 1:
        raise InvalidRequest(f"{name} is {value!r}; give a whole number from 1")
    return int(text)


def _actor(request: Request) -> str:
    return request.headers.get("x-trimtab-actor", "repository")
