"""Triton's extensions that are fixed here: trace and log settings are shown, shared memory is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.errors import InvalidRequest, NotFound
from serving.protocol.tensors import NO_SHARED_MEMORY


class Extensions:
    """Their routes. `served` says whether a model is served; `sample_ratio` is the share of requests traced."""

    def __init__(self, served: Callable[[str], bool], sample_ratio: float, log_level: str = "INFO") -> None:
        self._served = served
        self._trace: dict[str, Any] = {
            "trace_file": "",
            "trace_level": ["TIMESTAMPS"] if sample_ratio > 0 else ["OFF"],
            "trace_rate": str(round(1 / sample_ratio) if sample_ratio > 0 else 0),
            "trace_count": "-1",
            "log_frequency": "0",
            "trace_mode": "opentelemetry",
        }
        self._log: dict[str, Any] = {
            "log_file": "",
            "log_info": log_level in ("DEBUG", "INFO"),
            "log_warning": log_level in ("DEBUG", "INFO", "WARNING"),
            "log_error": True,
            "log_verbose_level": int(log_level == "DEBUG"),
            "log_format": "default",
        }

    def routes(self) -> list[Route]:
        """For the control app."""
        both = ["GET", "POST"]
        regions = [
            route
            for kind in ("system", "cuda")
            for path in (f"/v2/{kind}sharedmemory", f"/v2/{kind}sharedmemory/region/{{region}}")
            for route in (
                Route(f"{path}/status", self._regions),
                Route(f"{path}/register", self._no_region, methods=["POST"]),
                Route(f"{path}/unregister", self._unregister, methods=["POST"]),
            )
        ]
        return [
            Route("/v2/trace/setting", self._trace_setting, methods=both),
            Route("/v2/models/{model}/trace/setting", self._trace_setting, methods=both),
            Route("/v2/logging", self._log_setting, methods=both),
            *regions,
        ]

    async def _trace_setting(self, request: Request) -> Response:
        model = request.path_params.get("model")
        if model is not None and not self._served(model):
            raise NotFound(f"model {model!r} is not served here")
        await _unchanged(request, self._trace, "set trace_sample_ratio in the settings and restart")
        return JSONResponse(self._trace)

    async def _log_setting(self, request: Request) -> Response:
        await _unchanged(request, self._log, "set the log level in the settings and restart")
        return JSONResponse(self._log)

    async def _regions(self, request: Request) -> Response:
        region = request.path_params.get("region")
        if region is not None:
            raise NotFound(f"shared memory region {region!r} is not registered; {NO_SHARED_MEMORY}")
        return JSONResponse([])

    async def _no_region(self, _request: Request) -> Response:
        raise InvalidRequest(NO_SHARED_MEMORY)

    async def _unregister(self, _request: Request) -> Response:
        # There is nothing to forget, which is what was asked.
        return JSONResponse({})


async def _unchanged(request: Request, settings: Mapping[str, Any], remedy: str) -> None:
    """Raises InvalidRequest when the request's body sets one of the settings to another value, or an unknown one."""
    if request.method != "POST":
        return
    for name, value in (await json_object(request)).items():
        if name not in settings:
            raise InvalidRequest(f"setting {name!r} is unknown; there are {', '.join(settings)}")
        given = (
            value[0] if isinstance(value, list) and len(value) == 1 and not isinstance(settings[name], list) else value
        )
        # tritonclient takes a setting back by null over HTTP, and by no value at all over gRPC.
        if value not in (None, []) and given != settings[name]:
            raise InvalidRequest(f"setting {name!r} is {settings[name]!r} and fixed at start; {remedy}")


async def json_object(request: Request) -> dict[str, Any]:
    """The request's JSON body, {} where there is none. Raises InvalidRequest unless it is an object."""
    return object_of(await request.body())


def object_of(content: bytes) -> dict[str, Any]:
    """The JSON object that this is; {} of nothing. Raises InvalidRequest."""
    try:
        body = msgspec.json.decode(content or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise InvalidRequest("the body is not a JSON object")
    return body
