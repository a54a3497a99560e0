"""Which HTTP call of the V2 protocol each gRPC call stands for, inference apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote


def _quoted(name: str) -> str:
    return quote(name, safe="")


@dataclass(frozen=True, slots=True)
class Route:
    """The HTTP call that a gRPC call stands for, and how its JSON becomes the answer's fields."""

    method: bytes
    target: Callable[[Any], str]
    body: Callable[[Any], Any] = lambda request: None
    fields: Callable[[Any], Mapping[str, Any]] = lambda body: body


def model_path(tail: str = "") -> Callable[[Any], str]:
    """The path of the model, and version, that a request names."""

    def target(request: Any) -> str:
        named = f"/versions/{_quoted(request.version)}" if request.version else ""
        return f"/v2/models/{_quoted(request.name)}{named}{tail}"

    return target


def _statistics(request: Any) -> str:
    return model_path("/stats")(request) if request.name else "/v2/models/stats"


def _repository(verb: str) -> Callable[[Any], str]:
    return lambda request: f"/v2/repository/models/{_quoted(request.model_name)}/{verb}"


def _trace(request: Any) -> str:
    return f"/v2/models/{_quoted(request.model_name)}/trace/setting" if request.model_name else "/v2/trace/setting"


def _region(kind: str, verb: str) -> Callable[[Any], str]:
    def target(request: Any) -> str:
        return f"/v2/{kind}sharedmemory" + (f"/region/{_quoted(request.name)}" if request.name else "") + f"/{verb}"

    return target


def _plain(parameter: Any) -> Any:
    choice = parameter.WhichOneof("parameter_choice")
    value = getattr(parameter, choice) if choice else None
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _nothing(_body: Any) -> Mapping[str, Any]:
    return {}


def _log_settings(body: Any) -> Mapping[str, Any]:
    def field(value: Any) -> str:
        return "bool_param" if isinstance(value, bool) else "uint32_param" if isinstance(value, int) else "string_param"

    return {"settings": {name: {field(value): value} for name, value in body.items()}}


def _trace_settings(body: Any) -> Mapping[str, Any]:
    return {
        "settings": {
            name: {"value": value if isinstance(value, list) else [str(value)]} for name, value in body.items()
        }
    }


ROUTES: dict[str, Route] = {
    "ServerMetadata": Route(b"GET", lambda _: "/v2"),
    "ModelMetadata": Route(b"GET", model_path()),
    "ModelConfig": Route(b"GET", model_path("/config"), fields=lambda body: {"config": body}),
    "ModelStatistics": Route(b"GET", _statistics),
    "RepositoryIndex": Route(
        b"POST", lambda _: "/v2/repository/index", lambda request: {"ready": request.ready},
        lambda body: {"models": body},
    ),
    **{
        f"RepositoryModel{verb.title()}": Route(
            b"POST", _repository(verb),
            lambda request: {"parameters": {name: _plain(value) for name, value in request.parameters.items()}},
            _nothing,
        )
        for verb in ("load", "unload")
    },
    **{
        f"{kind.title()}SharedMemory{verb.title()}": Route(
            b"GET" if verb == "status" else b"POST", _region(kind, verb), fields=_nothing
        )
        for kind in ("system", "cuda")
        for verb in ("status", "register", "unregister")
    },
    "TraceSetting": Route(
        b"POST", _trace, lambda request: {name: list(value.value) for name, value in request.settings.items()},
        _trace_settings,
    ),
    "LogSettings": Route(
        b"POST", lambda _: "/v2/logging",
        lambda request: {name: _plain(value) for name, value in request.settings.items()}, _log_settings,
    ),
}  # fmt: skip
