"""The Prometheus HTTP API over an engine and a store: what Grafana, promtool and our own client speak."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from collectors.query.answers import answered
from collectors.query.context import Limits, Tally
from collectors.query.encode import outcome_json, sample_text, time_text
from collectors.query.engine import Engine, Outcome
from collectors.query.errors import ParseError, QueryError
from collectors.query.federate import CONTENT_TYPE, federated
from collectors.query.parameters import Parameters
from collectors.query.parse import format_query, parse
from collectors.query.parsed import parsed_json
from collectors.query.responses import (
    STATUS,
    Answer,
    Body,
    accepts_gzip,
    cross_origin,
    packed,
    refused,
    responded,
    success,
    success_raw,
)
from collectors.query.selectors import selectors_of
from collectors.query.series_calls import SeriesCalls
from collectors.query.status_calls import Configuration, Provider, StatusCalls
from collectors.store import SampleReader

MAX_POINTS = 11_000
# A query that takes longer than this is watched: nobody may be waiting for it any more.
_WATCHED_AFTER_SECONDS = 0.05
Found = TypeVar("Found")
Call = Callable[[Parameters, Request], Awaitable[Answer | Body | None]]


class QueryApi:
    """The API's calls. `rules`, `alerts` and `targets` give the JSON of their `data`; without one it is empty.

    At most `max_concurrency` queries run at once; others wait, and that counts towards their time. `flags` and
    `configuration` are what the status pages say of the settings.
    """

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
        max_concurrency: int = 20,
        flags: Mapping[str, str] | None = None,
        configuration: Callable[[], Configuration] = Configuration,
    ) -> None:
        self._engine = engine
        self._reader = reader
        self._clock = clock
        self._configuration = configuration
        # Queries get their own threads, so that a slow one cannot hold up what else runs on the event loop.
        self._threads = ThreadPoolExecutor(max_concurrency, thread_name_prefix="query")
        known = {
            "query.lookback-delta": f"{engine.lookback_ms // 1000}s",
            "query.max-concurrency": str(max_concurrency),
            "query.max-samples": str(engine.max_samples),
            "query.timeout": f"{engine.timeout_seconds:g}s",
        }
        self._series = SeriesCalls(reader, self._in_thread)
        self._status = StatusCalls(
            reader,
            self._in_thread,
            rules=rules,
            alerts=alerts,
            targets=targets,
            version=version,
            flags={**known, **(flags or {})},
            configuration=configuration,
            clock=clock,
        )

    def routes(self) -> list[Route]:
        """The routes: /api/v1/…, /federate, and a page at / for clients that look whether anybody is there."""
        both, get = ["GET", "POST"], ["GET"]
        calls: list[tuple[str, Call, list[str]]] = [
            ("/query", self.query, both),
            ("/query_range", self.query_range, both),
            ("/query_batch", self.query_batch, ["POST"]),
            ("/query_exemplars", self.query_exemplars, both),
            ("/format_query", self.format_query, both),
            ("/parse_query", self.parse_query, both),
            *((path, call, both) for path, call in self._series.both()),
            *((path, call, get) for path, call in [*self._series.gets(), *self._status.gets()]),
        ]
        return [
            *(self._route(path, call, methods) for path, call, methods in calls),
            Route("/federate", self.federate, methods=get),
            Route("/", _greeted, methods=get),
        ]

    def close(self) -> None:
        """Lets the running queries end."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    # --- queries ------------------------------------------------------------------------------------------------------
    async def query(self, parameters: Parameters, request: Request) -> Body:
        """One instant."""
        at_ms = parameters.time_ms("time", self._now_ms(), named=True)
        lookback_ms = parameters.lookback_ms()
        limit, expr = parameters.limit(), parameters.expression("query")

        def outcome(limits: Limits) -> Outcome:
            return self._engine.instant_outcome(expr, at_ms, limits, lookback_ms)

        return await self._queried(answered(expr, outcome, limit), parameters, request)

    async def query_range(self, parameters: Parameters, request: Request) -> Body:
        """Every step of a range, at most MAX_POINTS of them."""
        start_ms, end_ms = parameters.time_ms("start"), parameters.time_ms("end")
        if end_ms < start_ms:
            raise QueryError('invalid parameter "end": end timestamp must not be before start time', "bad_data")
        step_ms = parameters.duration_ms("step")
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
        lookback_ms = parameters.lookback_ms()
        limit, expr = parameters.limit(), parameters.expression("query")

        def outcome(limits: Limits) -> Outcome:
            return self._engine.range_outcome(expr, start_ms, end_ms, step_ms, limits, lookback_ms)

        return await self._queried(answered(expr, outcome, limit), parameters, request)

    async def query_batch(self, parameters: Parameters, request: Request) -> Body:
        """Several expressions (`query`, each) at one instant: what they share is computed once.

        Not Prometheus': its data is a list of what each would have been answered.
        """
        at_ms = parameters.time_ms("time", self._now_ms(), named=True)
        exprs = parameters.all("query")

        def work(limits: Limits) -> bytes:
            outcomes = self._engine.instant_outcomes(exprs, at_ms, limits)
            return success_raw(b"[" + b",".join(map(_one_of_many, outcomes)) + b"]")

        return await self._queried(work, parameters, request)

    async def query_exemplars(self, parameters: Parameters, request: Request) -> Answer | None:
        """Exemplars of the series that an expression reads."""
        now = self._now_ms()
        start_ms = parameters.time_ms("start", now - 3_600_000, named=True)
        end_ms = parameters.time_ms("end", now, named=True)
        if end_ms < start_ms:
            raise QueryError("end timestamp must not be before start timestamp", "bad_data")
        selectors = list(selectors_of(parse(parameters.expression("query"))))
        if not selectors:
            return None
        found: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
        for matchers in selectors:
            for item in self._reader.exemplars(matchers, start_ms, end_ms):
                key = tuple(sorted(item.series.items()))
                group = found.setdefault(key, {"seriesLabels": dict(key), "exemplars": {}})
                exemplar = {
                    "labels": item.labels,
                    "value": sample_text(item.value),
                    "timestamp": msgspec.Raw(time_text(item.t_ms)),
                }
                group["exemplars"][item.t_ms, item.value, tuple(sorted(item.labels.items()))] = exemplar
        return Answer(
            [{**group, "exemplars": [group["exemplars"][key] for key in sorted(group["exemplars"])]}
             for _, group in sorted(found.items())]
        )  # fmt: skip

    async def format_query(self, parameters: Parameters, request: Request) -> Answer:
        """The expression, laid out."""
        return Answer(format_query(parameters.expression("query")))

    async def parse_query(self, parameters: Parameters, request: Request) -> Answer:
        """The expression as a tree."""
        return Answer(parsed_json(parameters.expression("query")))

    async def federate(self, request: Request) -> Response:
        """The newest samples of the selected series, as text."""
        selectors, at_ms = request.query_params.getlist("match[]"), self._now_ms()
        external = self._configuration().external_labels

        def work() -> str:
            return federated(self._engine, self._reader.metadata(), selectors, at_ms, external)

        try:
            text = await self._in_thread(work)
        except QueryError as error:
            return Response(f"{error}\n", STATUS[error.kind], media_type="text/plain")
        return Response(text, media_type=CONTENT_TYPE)

    # --- inside -------------------------------------------------------------------------------------------------------
    def _route(self, path: str, call: Call, methods: list[str]) -> Route:
        async def endpoint(request: Request) -> Response:
            headers = cross_origin(request)
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=dict(headers))
            try:
                answer = await call(await Parameters.of(request), request)
            except QueryError as error:
                return refused(_named(error), headers)
            if answer is None:
                return Response(status_code=204, headers=dict(headers))
            if isinstance(answer, Body):
                return responded(answer, headers=headers)
            return responded(packed(success(answer), accepts_gzip(request)), headers=headers)

        return Route(f"/api/v1{path}", endpoint, methods=[*methods, "OPTIONS"])

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    async def _in_thread(self, work: Callable[[], Found]) -> Found:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _queried(self, work: Callable[[Limits], bytes], parameters: Parameters, request: Request) -> Body:
        """The answer of a query, made and compressed in a thread; stopped when its time is up or its client gone."""
        cancelled = threading.Event()
        tally = Tally() if parameters.text("stats", "") else None
        limits = self._engine.limits(parameters.timeout_seconds(), cancelled, tally)
        gzip = accepts_gzip(request)

        began = threading.Event()

        def answered() -> Body:
            began.set()
            if time.monotonic() > limits.deadline:
                raise QueryError("query timed out in query queue", "timeout")
            return packed(work(limits), gzip)

        running = asyncio.get_running_loop().run_in_executor(self._threads, answered)
        left = False
        done, _ = await asyncio.wait({running}, timeout=min(_WATCHED_AFTER_SECONDS, _left(limits.deadline)))
        if not done:
            gone = asyncio.ensure_future(_disconnected(request))
            try:
                waited: set[asyncio.Future[Any]] = {running, gone}
                await asyncio.wait(waited, timeout=_left(limits.deadline), return_when=asyncio.FIRST_COMPLETED)
            finally:
                left = gone.done()
                gone.cancel()
        if running.done():
            return running.result()
        cancelled.set()
        running.add_done_callback(_heard)
        if left:
            raise QueryError("query was canceled in expression evaluation", "canceled")
        raise QueryError(
            f"query timed out in {'expression evaluation' if began.is_set() else 'query queue'}", "timeout"
        )


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _heard(running: asyncio.Future[Any]) -> None:
    """Takes the outcome of a query that nobody waits for, so that it is not reported as lost."""
    if not running.cancelled():
        running.exception()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _greeted(request: Request) -> Response:
    return PlainTextResponse("Trimtab answers PromQL here, over Prometheus' HTTP API: /api/v1/query\n")


def _named(error: QueryError) -> QueryError:
    """A text that is not PromQL is a bad parameter."""
    return QueryError(f'invalid parameter "query": {error}', error.kind) if isinstance(error, ParseError) else error


def _one_of_many(outcome: Outcome | QueryError) -> bytes:
    if isinstance(outcome, Outcome):
        return success_raw(outcome_json(outcome))
    return msgspec.json.encode({"status": "error", "errorType": outcome.kind, "error": str(outcome)})


def query_app(engine: Engine, reader: SampleReader, **settings: Any) -> Starlette:
    """An ASGI application with the API alone; `settings` are those of QueryApi."""
    return Starlette(routes=list(QueryApi(engine, reader, **settings).routes()))
