"""The collector's own reading side: drift, traces, logs, reports, page and health, beside the Prometheus API."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from collectors.drift_views import drift_view
from collectors.measure import Measures
from collectors.performance_views import performance_view
from collectors.quality.aside import KeptAside
from collectors.query.errors import QueryError
from collectors.report import NoReport, Reports
from collectors.signals import Signals
from collectors.slice_views import SliceViews
from collectors.spans import SpanStore
from observability.metrics import exposition

MAX_TRACES = 1_000
MAX_LOGS = 10_000
MAX_KEPT = 2_000
PROXY_SECONDS = 10.0
# How long an unknown model is waited for while accepted batches are still being measured: it may come with one.
_MEASURED_SECONDS = 2.0
_LOOK_SECONDS = 0.02
# Models that the answer to a wrong name tells.
_NAMED_MODELS = 20


@dataclass(frozen=True, slots=True)
class Views:
    """What the handlers read; `routes()` are added to the query application."""

    measures: Measures
    aside: KeptAside
    spans: SpanStore
    signals: Signals
    reports: Reports
    slice_views: SliceViews
    seen_models: Callable[[], Collection[str]]
    """Models that stored samples are of: one that serves may have had no event yet."""
    waiting: Callable[[], int]
    """Batches that are accepted and not measured yet."""
    healthy: Callable[[], bool]

    def routes(self) -> list[Route]:
        return [
            Route("/api/drift/{model}", self.drift),
            Route("/api/performance/{model}", self.performance),
            Route("/api/quality/{model}", self.quality),
            Route("/api/slices/{model}", self.slices),
            Route("/api/traces", self.traces),
            Route("/api/traces/{trace_id}", self.trace),
            Route("/api/services", self.services),
            Route("/api/logs", self.logs),
            Route("/api/reports/drift", self.report),
            Route("/metrics", self.page),
            Route("/-/healthy", self.health),
            Route("/-/ready", self.health),
        ]

    async def drift(self, request: Request) -> Response:
        limit = _count(request, "windows", 60, self.measures.settings.history_windows)
        model, version = await self._model(request), request.query_params.get("version")
        slices = request.query_params.get("slices", "").lower() in ("1", "true")
        return _json(await asyncio.to_thread(drift_view, self.measures, model, version, limit, slices=slices))

    async def performance(self, request: Request) -> Response:
        limit = _count(request, "windows", 60, self.measures.settings.history_windows)
        model, version = await self._model(request), request.query_params.get("version")
        return _json(await asyncio.to_thread(performance_view, self.measures, model, version, limit))

    async def quality(self, request: Request) -> Response:
        limit = _count(request, "limit", 100, MAX_KEPT)
        model, version = await self._model(request), request.query_params.get("version")
        column = request.query_params.get("column")
        return _json(await asyncio.to_thread(quality_view, self.measures, self.aside, model, version, limit, column))

    async def slices(self, request: Request) -> Response:
        model = await self._model(request)
        return _json(await self.slice_views.view(model, request.query_params.get("version")))

    async def _model(self, request: Request) -> str:
        """The model that is asked for. HTTPException, status 404, with the known ones, if nothing is known of it."""
        model = str(request.path_params["model"])
        for _ in range(round(_MEASURED_SECONDS / _LOOK_SECONDS)):
            waiting = self.waiting()
            known = await asyncio.to_thread(lambda: self.measures.models().union(self.seen_models()))
            if model in known:
                return model
            if not waiting:
                break
            await asyncio.sleep(_LOOK_SECONDS)
        names = sorted(known)
        more = f" and {len(names) - _NAMED_MODELS} more" if len(names) > _NAMED_MODELS else ""
        told = f"known are {', '.join(names[:_NAMED_MODELS])}{more}" if names else "none is known yet"
        raise _refused(404, f"no model {model!r} has sent anything or has a reference; {told}")

    async def traces(self, request: Request) -> Response:
        limit = _count(request, "limit", 20, MAX_TRACES)
        found = await asyncio.to_thread(self.spans.traces, request.query_params.get("service"), limit)
        return _json({"data": found, "total": len(found), "limit": limit, "offset": 0, "errors": None})

    async def trace(self, request: Request) -> Response:
        trace_id = request.path_params["trace_id"]
        found = await asyncio.to_thread(self.spans.trace, trace_id)
        if found is None:
            errors = [{"code": 404, "msg": f"trace {trace_id} is not known"}]
            return _json({"data": None, "total": 0, "limit": 0, "offset": 0, "errors": errors}, 404)
        return _json({"data": [found], "total": 1, "limit": 0, "offset": 0, "errors": None})

    async def services(self, _: Request) -> Response:
        found = await asyncio.to_thread(self.spans.services)
        return _json({"data": found, "total": len(found), "limit": 0, "offset": 0, "errors": None})

    async def logs(self, request: Request) -> Response:
        limit = _count(request, "limit", 100, MAX_LOGS)
        return _json({"data": await asyncio.to_thread(self.spans.logs, limit, request.query_params.get("trace_id"))})

    async def report(self, request: Request) -> Response:
        model = request.query_params.get("model", "")
        if not model:
            return _json({"error": "name the model: ?model=NAME, and &version=V for one that is not the latest"}, 400)
        try:
            return HTMLResponse(await self.reports.drift(model, request.query_params.get("version")))
        except NoReport as error:
            return _json({"error": str(error)}, error.status)

    async def page(self, request: Request) -> Response:
        body, content_type = exposition(self.signals.registry, request.headers.get("accept"))
        return Response(body, headers={"Content-Type": content_type})

    async def health(self, _: Request) -> Response:
        healthy = self.healthy()
        return PlainTextResponse("ok" if healthy else "not ready", status_code=200 if healthy else 503)


def quality_view(
    measures: Measures, aside: KeptAside, model: str, version: str | None, limit: int, column: str | None
) -> dict[str, Any]:
    """The JSON of `/api/quality`: the schema in force for a version (the latest), and the rows that broke it."""
    versions = measures.versions(model)
    chosen = version or (versions[-1] if versions else None)
    schema, broken = measures.quality_of(model, chosen or "")
    kept = [
        {
            "version": row.version,
            "id": row.id,
            "time": row.time,
            "column": row.column,
            "rule": row.rule,
            "value": row.value,
        }
        for row in aside.latest(model, limit, column)
    ]
    return {"model": model, "version": chosen, "schema": schema.to_json(), "broken": broken, "rows": kept}


def passed_on(alerts_url: str, path: str) -> Callable[[], Awaitable[Any]]:
    """A provider of the `data` that the alerts service answers on `path`."""

    async def provide() -> Any:
        try:
            async with httpx.AsyncClient(timeout=PROXY_SECONDS, trust_env=False) as client:
                answer = await client.get(f"{alerts_url.rstrip('/')}{path}")
                answer.raise_for_status()
                return answer.json()["data"]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise QueryError(f"the alerts service at {alerts_url} did not answer: {error!r}", "unavailable") from error

    return provide


def _count(request: Request, name: str, default: int, most: int) -> int:
    """A whole number that the request asks for, at most `most`. HTTPException, status 400, for what is none."""
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit()):
        raise _refused(400, f"{name}={text} is no whole number from 0 on")
    return min(int(text), most) if len(text) <= 18 else most


def _refused(status: int, reason: str) -> HTTPException:
    return HTTPException(status, msgspec.json.encode({"error": reason}).decode(), {"content-type": "application/json"})


def _json(body: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
