"""The federation as an HTTP service: signed requests of enrolled clients, and what it counts as `/metrics`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from observability.metrics import exposition
from observability.signing import HEADER, SignatureError, verify
from training.federated.federation import Federation
from training.federated.protocol import CLIENT_HEADER, ProtocolError, signed_bytes

_TICK_SECONDS = 0.25
_Endpoint = Callable[[Request, str, bytes], Awaitable[Response]]


def application(
    federation: Federation, secrets: Mapping[str, str], clock: Callable[[], float] = time.time
) -> Starlette:
    """The service of a federation, for the clients with these secrets."""

    def signed(endpoint: _Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def checked(request: Request) -> Response:
            client = request.headers.get(CLIENT_HEADER, "")
            body = await _body(request, federation.size_limit)
            if body is None:
                return _refusal(413, f"the body is larger than {federation.size_limit} bytes")
            try:
                # An unknown client costs the same work as a wrong signature.
                verify(
                    secrets.get(client) or "-",
                    request.headers.get(HEADER),
                    signed_bytes(request.method, request.url.path, client, body),
                    clock(),
                )
            except SignatureError as error:
                return _refusal(401, f"client {client[:64]!r}: {error}")
            if not secrets.get(client):
                return _refusal(401, f"client {client[:64]!r} is not enrolled")
            try:
                return await endpoint(request, client, body)
            except ProtocolError as error:
                return _refusal(400, str(error))

        return checked

    async def task(request: Request, client: str, body: bytes) -> Response:
        said = await run_in_threadpool(federation.task, client)
        return Response(said.to_json(), media_type="application/json")

    async def model(request: Request, client: str, body: bytes) -> Response:
        packed = federation.parameters_of(request.path_params["round"])
        if packed is None:
            return _refusal(410, "that round is over; ask for the task again")
        return Response(packed, media_type="application/octet-stream")

    async def setup(request: Request, client: str, body: bytes) -> Response:
        if federation.setup is None:
            return _refusal(404, "this federation hands out no setup")
        return Response(federation.setup, media_type="application/octet-stream")

    async def layout(request: Request, client: str, body: bytes) -> Response:
        if federation.reference is None:
            return _refusal(404, "this federation compares no profiles")
        return Response(federation.reference.empty().to_json(), media_type="application/json")

    async def update(request: Request, client: str, body: bytes) -> Response:
        number, attempt = request.path_params["round"], request.path_params["attempt"]
        outcome = await run_in_threadpool(federation.submit, client, number, attempt, body)
        return JSONResponse({"outcome": outcome})

    async def status(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(federation.status))

    async def metrics(request: Request) -> Response:
        page, content_type = exposition(federation.metrics, request.headers.get("accept"))
        return Response(page, headers={"content-type": content_type})

    return Starlette(
        routes=[
            Route("/v1/task", signed(task)),
            Route("/v1/model/{round:int}", signed(model)),
            Route("/v1/setup", signed(setup)),
            Route("/v1/layout", signed(layout)),
            Route("/v1/updates/{round:int}/{attempt:int}", signed(update), methods=["PUT"]),
            Route("/v1/status", status),
            Route("/metrics", metrics),
        ]
    )


async def serve(federation: Federation, secrets: Mapping[str, str], host: str, port: int, linger: float = 5.0) -> None:
    """Serves until all rounds are done, and `linger` seconds more, so that clients hear of the end."""
    config = uvicorn.Config(
        application(federation, secrets), host=host, port=port, log_level="warning", access_log=False, lifespan="off"
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    try:
        while not federation.finished and not serving.done():
            await asyncio.sleep(_TICK_SECONDS)
            await run_in_threadpool(federation.tick)
        if not serving.done():
            await asyncio.wait([serving], timeout=linger)
    finally:
        server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await serving


async def _body(request: Request, limit: int) -> bytes | None:
    """The body, None where it is larger than the limit."""
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            return None
        pieces.append(piece)
    return b"".join(pieces)


def _refusal(status: int, reason: str) -> JSONResponse:
    said: dict[str, Any] = {"error": reason}
    return JSONResponse(said, status_code=status)
