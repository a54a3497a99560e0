"""The Prometheus HTTP API over an engine and a store: what Grafana, promtool and our own client speak."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from collectors.query.encode import outcome_json, sample_text, seconds
from collectors.query.engine import Engine
from collectors.query.errors import QueryError
from collectors.query.federate import CONTENT_TYPE, federated
from collectors.query.parameters import Parameters, bounds
from collectors.query.parse import format_query, parse, parse_selector
from collectors.query.selectors import selectors_of
from collectors.store import Labels, SampleReader

MAX_POINTS = 11_000
_STATUS = {
    "bad_data": 400,
    "execution": 422,
    "canceled": 503,
    "timeout": 503,
    "unavailable": 503,
    "internal": 500,
    "not_found": 404,
}
Provider = Callable[[], Awaitable[Any]]
Answer = TypeVar("Answer")


class QueryApi:
    """The API's calls. `rules`, `alerts` and `targets` give the JSON of their `data`; without one it is empty."""

    def __init__(
        self,
        engine: Engine,
        reader: SampleReader,
        *,
        rules: Provider | None = None,
        alerts: Provider | None = None,
        targets: Provider | None = None,
        version: str = "3.0.0",
        clock: Callable[[], float] = time.time,
        num_threads: int = 4,
    ) -> None:
        self._engine = engine
        self._reader = reader
        self._rules = rules
        self._alerts = alerts
        self._targets = targets
        self._version = version
        self._clock = clock
        # Queries get their own threads, so that a slow one cannot hold up what else runs on the event loop.
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="query")

    def routes(self) -> list[Route]:
        """The routes: /api/v1/…, and /federate."""
        both = ["GET", "POST"]
        return [
            self._route("/query", self.query, both),
            self._route("/query_range", self.query_range, both),
            self._route("/query_exemplars", self.query_exemplars, both),
            self._route("/format_query", self.format_query, both),
            self._route("/series", self.series, both),
            self._route("/labels", self.labels, both),
            self._route("/label/{name}/values", self.label_values, ["GET"]),
            self._route("/metadata", self.metadata, ["GET"]),
            self._route("/targets", self.targets, ["GET"]),
            self._route("/rules", self.rules, ["GET"]),
            self._route("/alerts", self.alerts, ["GET"]),
            self._route("/status/buildinfo", self.buildinfo, ["GET"]),
            Route("/federate", self.federate, methods=["GET"]),
        ]

    def close(self) -> None:
        """Lets the running queries end."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    # --- queries ------------------------------------------------------------------------------------------------------
    async def query(self, parameters: Parameters, request: Request) -> Any:
        """One instant."""
        at_ms = parameters.time_ms("time", self._now_ms())
        timeout = self._timeout_seconds(parameters)
        expr = parameters.text("query")
        return await self._in_thread(
            lambda: msgspec.Raw(outcome_json(self._engine.instant_outcome(expr, at_ms, self._engine.limits(timeout)))),
            timeout,
        )

    async def query_range(self, parameters: Parameters, request: Request) -> Any:
        """Every step of a range, at most MAX_POINTS of them."""
        start_ms, end_ms = parameters.time_ms("start"), parameters.time_ms("end")
        step_ms = parameters.duration_ms("step")
        if end_ms < start_ms:
            raise QueryError('invalid parameter "end": end timestamp must not be before start time', "bad_data")
        if step_ms <= 0:
            raise QueryError(
                'invalid parameter "step": zero or negative query resolution step widths are not accepted. '
                "Try a positive integer",
                "bad_data",
            )
        if (end_ms - start_ms) // step_ms > MAX_POINTS:
            raise QueryError(
                f"exceeded maximum resolution of {MAX_POINTS:,} points per timeseries. "
                "Try decreasing the query resolution (?step=XX)",
                "bad_data",
            )
        timeout = self._timeout_seconds(parameters)
        expr = parameters.text("query")
        return await self._in_thread(
            lambda: msgspec.Raw(
                outcome_json(self._engine.range_outcome(expr, start_ms, end_ms, step_ms, self._engine.limits(timeout)))
            ),
            timeout,
        )

    async def query_exemplars(self, parameters: Parameters, request: Request) -> Any:
        """Exemplars of the series that an expression reads."""
        now = self._now_ms()
        start_ms, end_ms = parameters.time_ms("start", now - 3_600_000), parameters.time_ms("end", now)
        found: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
        for matchers in selectors_of(parse(parameters.text("query"))):
            for item in self._reader.exemplars(matchers, start_ms, end_ms):
                key = tuple(sorted(item.series.items()))
                group = found.setdefault(key, {"seriesLabels": item.series, "exemplars": []})
                group["exemplars"].append(
                    {"labels": item.labels, "value": sample_text(item.value), "timestamp": seconds(item.t_ms)}
                )
        return list(found.values())

    async def format_query(self, parameters: Parameters, request: Request) -> Any:
        """The expression, laid out."""
        return format_query(parameters.text("query"))

    # --- series and labels --------------------------------------------------------------------------------------------
    async def series(self, parameters: Parameters, request: Request) -> Any:
        """Label sets of the selected series."""
        selectors = parameters.all("match[]", "match")
        if not selectors:
            raise QueryError("no match[] parameter provided", "bad_data")
        range_ms = bounds(parameters)
        found: dict[tuple[tuple[str, str], ...], Labels] = {}
        for text in selectors:
            matchers = parse_selector(text)
            for labels in await self._in_thread(functools.partial(self._reader.series, matchers, **range_ms)):
                found[tuple(sorted(labels.items()))] = labels
        return _limited([found[key] for key in sorted(found)], parameters)

    async def labels(self, parameters: Parameters, request: Request) -> Any:
        """Label names, of the selected series."""
        range_ms = bounds(parameters)
        names: set[str] = set()
        for text in parameters.all("match[]", "match") or [""]:
            matchers = parse_selector(text) if text else ()
            names.update(await self._in_thread(functools.partial(self._reader.label_names, matchers, **range_ms)))
        return _limited(sorted(names), parameters)

    async def label_values(self, parameters: Parameters, request: Request) -> Any:
        """Values of a label in the selected series."""
        name = request.path_params["name"]
        range_ms = bounds(parameters)
        values: set[str] = set()
        for text in parameters.all("match[]", "match") or [""]:
            matchers = parse_selector(text) if text else ()
            look_up = functools.partial(self._reader.label_values, name, matchers, **range_ms)
            values.update(await self._in_thread(look_up))
        return _limited(sorted(values), parameters)

    async def metadata(self, parameters: Parameters, request: Request) -> Any:
        """Type, help and unit of metric families."""
        wanted = parameters.text("metric", "")
        known = self._reader.metadata().items()
        found = [
            (name, [{"type": item.type, "help": item.help, "unit": item.unit}])
            for name, item in known
            if not wanted or name == wanted
        ]
        return dict(_limited(found, parameters))

    # --- what others provide ------------------------------------------------------------------------------------------
    async def targets(self, parameters: Parameters, request: Request) -> Any:
        """What the targets provider says."""
        return await self._targets() if self._targets else {"activeTargets": [], "droppedTargets": []}

    async def rules(self, parameters: Parameters, request: Request) -> Any:
        """What the rules provider says."""
        return await self._rules() if self._rules else {"groups": []}

    async def alerts(self, parameters: Parameters, request: Request) -> Any:
        """What the alerts provider says."""
        return await self._alerts() if self._alerts else {"alerts": []}

    async def buildinfo(self, parameters: Parameters, request: Request) -> Any:
        """The version that clients probe for."""
        names = ("revision", "branch", "buildUser", "buildDate", "goVersion")
        return {"version": self._version, **dict.fromkeys(names, "")}

    async def federate(self, request: Request) -> Response:
        """The newest samples of the selected series, as text."""
        selectors, at_ms = request.query_params.getlist("match[]"), self._now_ms()
        try:
            text = await self._in_thread(lambda: federated(self._engine, self._reader.metadata(), selectors, at_ms))
        except QueryError as error:
            return Response(f"{error}\n", _STATUS[error.kind], media_type="text/plain")
        return Response(text, media_type=CONTENT_TYPE)

    # --- inside -------------------------------------------------------------------------------------------------------
    def _route(self, path: str, call: Callable[[Parameters, Request], Awaitable[Any]], methods: list[str]) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                data = await call(await Parameters.of(request), request)
            except QueryError as error:
                return _json({"status": "error", "errorType": error.kind, "error": str(error)}, _STATUS[error.kind])
            return _json({"status": "success", "data": data})

        return Route(f"/api/v1{path}", endpoint, methods=methods)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    @staticmethod
    def _timeout_seconds(parameters: Parameters) -> float:
        return parameters.duration_ms("timeout", 120_000) / 1000

    async def _in_thread(self, work: Callable[[], Answer], timeout_seconds: float = 120.0) -> Answer:
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.wait_for(running, timeout_seconds)
        except TimeoutError as error:
            raise QueryError("query timed out", "timeout") from error


def query_app(engine: Engine, reader: SampleReader, **settings: Any) -> Starlette:
    """An ASGI application with the API alone; `settings` are those of QueryApi."""
    api = QueryApi(engine, reader, **settings)
    return Starlette(
        routes=list(api.routes()), middleware=[Middleware(GZipMiddleware, minimum_size=1024, compresslevel=1)]
    )


def _limited(items: list[Any], parameters: Parameters) -> list[Any]:
    limit = parameters.count("limit")
    return items if limit is None else items[:limit]


def _json(body: Mapping[str, Any], status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
