"""The OpenAPI description of the server's HTTP interface, published at `/openapi.json`."""

from __future__ import annotations

import copy
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.pages.description import own_version

_PAGE = Path(__file__).with_name("openapi.yaml")
_RESPONSES = "x-responses"


@cache
def document() -> dict[str, Any]:
    """The description (OpenAPI 3.1), with this version's number. Do not change it."""
    # Imported when somebody asks: a server does not wait for it at its start.
    import yaml

    page: dict[str, Any] = yaml.safe_load(_PAGE.read_bytes())
    page["info"]["version"] = own_version()
    # Sets of responses that several operations share: OpenAPI knows no reference to one.
    shared = page["components"].pop(_RESPONSES)
    for path in page["paths"].values():
        for operation in path.values():
            if isinstance(operation, dict) and "$ref" in operation.get("responses", {}):
                operation["responses"] = copy.deepcopy(shared[operation["responses"]["$ref"].rpartition("/")[2]])
    return page


@lru_cache(8)
def _encoded(prefix: str) -> bytes:
    """`prefix` is the path that the server is mounted at, which clients put before the description's."""
    return msgspec.json.encode(document() | ({"servers": [{"url": prefix}]} if prefix else {}))


async def _serve(request: Request) -> Response:
    return Response(_encoded(request.scope.get("root_path", "")), media_type="application/json")


def openapi_routes() -> list[Route]:
    """For the control app."""
    return [Route("/openapi.json", _serve)]
