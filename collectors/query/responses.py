"""How the API answers: Prometheus' envelope, its status codes, compressed where the client takes that."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from collectors.query.errors import QueryError

STATUS = {
    "bad_data": 400,
    "execution": 422,
    "canceled": 503,
    "timeout": 503,
    "unavailable": 503,
    "internal": 500,
    "not_found": 404,
}
_COMPRESSED_FROM = 1024
_LEVEL = 1
_GZIP_WINDOW = 31
_CORS = {
    "Access-Control-Allow-Headers": "Accept, Authorization, Content-Type, Origin",
    "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "Date",
}


@dataclass(frozen=True, slots=True)
class Body:
    """The bytes of an answer and whether they are compressed."""

    content: bytes
    gzipped: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The `data` of an answer, with warnings beside it."""

    data: Any
    warnings: Sequence[str] = ()


def accepts_gzip(request: Request) -> bool:
    """Whether the client reads compressed answers."""
    return "gzip" in request.headers.get("accept-encoding", "")


def packed(content: bytes, gzip: bool) -> Body:
    """The body, compressed if that is worth it; takes long for a large one, so call it where nobody waits."""
    if not gzip or len(content) < _COMPRESSED_FROM:
        return Body(content)
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
    return Body(packer.compress(content) + packer.flush(), True)


def success(answer: Answer) -> bytes:
    """The envelope of an answer."""
    body: dict[str, Any] = {"status": "success", "data": answer.data}
    if answer.warnings:
        body["warnings"] = list(answer.warnings)
    return msgspec.json.encode(body)


def success_raw(data: bytes) -> bytes:
    """The envelope of data that is JSON already."""
    return b'{"status":"success","data":%b}' % data


def responded(body: Body, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The HTTP response."""
    extra = dict(headers or {})
    if body.gzipped:
        extra |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    return Response(body.content, status, extra, "application/json")


def refused(error: QueryError, headers: Mapping[str, str] | None = None) -> Response:
    """The response to a call that failed."""
    body = {"status": "error", "errorType": error.kind, "error": str(error)}
    return responded(Body(msgspec.json.encode(body)), STATUS[error.kind], headers)


def cross_origin(request: Request) -> Mapping[str, str]:
    """What lets a page of another origin read the answer."""
    return {**_CORS, "Vary": "Origin"} if "origin" in request.headers else {}
