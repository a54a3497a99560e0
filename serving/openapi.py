"""The OpenAPI description of the server's HTTP interface, published at `/openapi.json`."""

from __future__ import annotations

from starlette.routing import Route


def openapi_routes() -> list[Route]:
    return []
