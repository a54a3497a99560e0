"""A stack to look at: collector, alerts and serving as three small servers on free ports, telling one story.

They speak the services' contract over real HTTP, so what passes here meets the same bodies there. Nothing is judged or
stored: changes are kept in `requests` and shown again where a reader would look for them.
"""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from dashboards.launch import DashboardConfig
from dashboards.testing import records, release_records
from dashboards.testing.promql import Evaluator
from dashboards.testing.story import LENGTH, MODEL, Story, drift_answer
from observability import signing

Handler = Callable[[Request], Response]
PATIENCE_SECONDS = 240.0


class FakeStack:
    """Three servers in one thread; a context manager. `rich=False` is a stack that has seen nothing yet.

    The story is told to its end when it is made. `halted` is a second of it at which the services stand still instead,
    however long one looks.

    With a secret every POST under `/api/v1/` of alerts and serving must be signed, as theirs must be.
    """

    def __init__(self, *, rich: bool = True, halted: float | None = None, secret: bytes | None = None) -> None:
        self.story = Story(time.time() - (LENGTH if halted is None else halted))
        self._now = time.time if halted is None else lambda: self.story.begin + halted
        self.requests: list[tuple[str, str, Any]] = []
        self.silences: list[dict[str, Any]] = []
        self.actions: list[dict[str, Any]] = []
        self._rich, self._secret = rich, secret
        if rich:
            self.silences, self.actions = records.silences(self.story), records.actions(self.story)
        self._sockets = {name: _free_socket() for name in ("query", "alerts", "serving")}
        apps = {"query": self._query(), "alerts": self._alerts(), "serving": self._serving()}
        self._servers = [
            uvicorn.Server(
                uvicorn.Config(
                    app, log_level="error", log_config=None, lifespan="off", access_log=False, loop="asyncio"
                )
            )
            for app in apps.values()
        ]
        self._threads = [
            threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
            for server, sock in zip(self._servers, self._sockets.values(), strict=True)
        ]
        self._answers = Evaluator(self.story.world() if rich else {})

    def __enter__(self) -> FakeStack:
        for thread in self._threads:
            thread.start()
        while not all(server.started for server in self._servers):
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.should_exit = True
        for thread in self._threads:
            thread.join(timeout=10)
        for sock in self._sockets.values():
            sock.close()

    def url(self, service: str) -> str:
        """Where a service listens: query, alerts or serving."""
        host, port = self._sockets[service].getsockname()
        return f"http://{host}:{port}"

    def config(self, **settings: Any) -> DashboardConfig:
        """A dashboard that looks at this stack, and that a busy machine does not make believe that it is away."""
        urls = {f"{service}_url": self.url(service) for service in self._sockets}
        return DashboardConfig(**{**urls, "patience_seconds": PATIENCE_SECONDS, **settings})

    # --- collector --------------------------------------------------------------------------------------------------
    def _query(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/-/healthy", _healthy),
                Route("/api/v1/query", self._instant),
                Route("/api/v1/query_range", self._range),
                Route("/api/v1/label/model/values", lambda r: _prometheus([MODEL] if self._rich else [])),
                Route("/api/drift/{model}", self._drift),
                Route("/api/quality/{model}", self._quality),
                Route("/api/slices/{model}", self._slices),
                Route("/api/traces", self._traces),
                Route("/api/traces/{id}", self._trace),
                Route("/api/reports/drift", self._report),
            ]
        )

    def _instant(self, request: Request) -> Response:
        at = float(request.query_params["time"])
        found = self._answers.instant(request.query_params["query"], at)
        result = [{"metric": dict(labels), "value": [at, _text(value)]} for labels, value in found.items()]
        return _prometheus({"resultType": "vector", "result": result})

    def _range(self, request: Request) -> Response:
        parameters = request.query_params
        start, end, step = (float(parameters[name]) for name in ("start", "end", "step"))
        series: dict[Any, list[Any]] = {}
        times = [start + i * step for i in range(int((end - start) / step) + 1)]
        for time_, vector in zip(times, self._answers.range(parameters["query"], times), strict=True):
            for labels, value in vector.items():
                series.setdefault(labels, []).append([time_, _text(value)])
        result = [{"metric": dict(labels), "values": values} for labels, values in series.items()]
        return _prometheus({"resultType": "matrix", "result": result})

    def _drift(self, request: Request) -> Response:
        if not self._rich:
            return _error(f"model {request.path_params['model']!r} has no reference yet", 404)
        windows = int(request.query_params.get("windows", 60))
        return JSONResponse(drift_answer(self.story, self._now(), windows, request.query_params.get("version")))

    def _quality(self, request: Request) -> Response:
        if not self._rich:
            return JSONResponse(
                {"model": request.path_params["model"], "version": None, "schema": {}, "broken": [], "rows": []}
            )
        return JSONResponse(records.quality(self.story))

    def _slices(self, request: Request) -> Response:
        if not self._rich:
            return JSONResponse({"error": "no model is known yet"}, 404)
        return JSONResponse(records.slices(self.story, request.query_params["version"]))

    def _traces(self, request: Request) -> Response:
        return JSONResponse({"data": records.traces(self.story) if self._rich else []})

    def _trace(self, request: Request) -> Response:
        found = [trace for trace in records.traces(self.story) if trace["traceID"] == request.path_params["id"]]
        return JSONResponse({"data": found}, 200 if found else 404)

    def _report(self, request: Request) -> Response:
        if not self._rich:
            return _error("no events of this version in the lake yet", 404)
        version = request.query_params["version"]
        return HTMLResponse(f"<!doctype html><title>Drift</title><h1>Data drift of version {version}</h1>")

    # --- alerts -----------------------------------------------------------------------------------------------------
    def _alerts(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/-/healthy", _healthy),
                Route(
                    "/api/v1/rules",
                    lambda r: _prometheus({"groups": records.rule_groups(self.story) if self._rich else []}),
                ),
                Route("/api/v2/alerts", lambda r: JSONResponse(records.alerts(self.story) if self._rich else [])),
                Route("/api/v2/silences", lambda r: JSONResponse(self.silences)),
                Route("/api/v2/silences", self._new_silence, methods=["POST"]),
                Route("/api/v2/silence/{id}", self._expire, methods=["DELETE"]),
                Route("/api/v1/evidence", self._evidence),
                Route("/api/v1/releases", self._releases),
                Route("/api/v1/releases/{model}", self._release),
                Route("/api/v1/releases/{model}/{deed}", self._decide_release, methods=["POST"]),
                Route("/api/v1/episodes", self._episodes),
                Route("/api/v1/actions", lambda r: JSONResponse(self.actions)),
                Route("/api/v1/actions", self._act, methods=["POST"]),
                Route("/api/v1/actions/{id}/{decision}", self._decide, methods=["POST"]),
            ]
        )

    def _evidence(self, request: Request) -> Response:
        return JSONResponse({"releases": records.evidence(self.story, self._now()) if self._rich else [], "error": ""})

    def _releases(self, request: Request) -> Response:
        found = release_records.releases(self.story, self._now()) if self._rich else []
        return JSONResponse({"releases": found, "policies": {}, "version": "1", "error": ""})

    def _release(self, request: Request) -> Response:
        found = release_records.release(self.story, self._now()) if self._rich else None
        return _error("it has no release", 404) if found is None else JSONResponse(found)

    async def _decide_release(self, request: Request) -> Response:
        await self._body(request)
        return JSONResponse(release_records.release(self.story, self._now()))

    def _episodes(self, request: Request) -> Response:
        found = release_records.episodes(self.story, self._now()) if self._rich else []
        return JSONResponse({"episodes": found})

    async def _body(self, request: Request) -> Any:
        raw = await request.body()
        if self._secret and request.method == "POST" and request.url.path.startswith("/api/v1/"):
            try:
                signing.verify(self._secret, request.headers.get(signing.HEADER), raw, time.time())
            except signing.SignatureError as error:
                raise HTTPException(401, str(error)) from error
        body = json.loads(raw or b"null")
        self.requests.append((request.method, request.url.path, body))
        return body

    async def _new_silence(self, request: Request) -> Response:
        body = await self._body(request)
        silence = {**body, "id": f"s-{len(self.silences) + 1}", "status": {"state": "active"}}
        self.silences = [*self.silences, silence]
        return JSONResponse({"silenceID": silence["id"]})

    async def _expire(self, request: Request) -> Response:
        await self._body(request)
        self.silences = [s for s in self.silences if s["id"] != request.path_params["id"]]
        return Response()

    async def _act(self, request: Request) -> Response:
        body = await self._body(request)
        action = records.action(
            len(self.actions) + 1, time.time(), body["action"], "done", body["reason"], actor=body["actor"]
        )
        self.actions = [*self.actions, action]
        return JSONResponse(action)

    async def _decide(self, request: Request) -> Response:
        await self._body(request)
        state = {"approve": "running", "reject": "rejected"}[request.path_params["decision"]]
        identity = int(request.path_params["id"])
        self.actions = [{**a, "state": state} if a["id"] == identity else a for a in self.actions]
        return JSONResponse(next(a for a in self.actions if a["id"] == identity))

    # --- serving ----------------------------------------------------------------------------------------------------
    def _serving(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v2/health/live", _healthy),
                Route("/api/v1/models", lambda r: JSONResponse({"models": [{"model": MODEL}] if self._rich else []})),
                Route("/api/v1/models/{model}", self._model),
                Route("/api/v1/models/{model}/{deed}", self._change, methods=["POST"]),
            ]
        )

    def _model(self, request: Request) -> Response:
        if not self._rich:
            return _error("no such model", 404)
        return JSONResponse(records.policy(self.story, self._now()))

    async def _change(self, request: Request) -> Response:
        await self._body(request)
        return JSONResponse(records.policy(self.story, self._now()))


def _healthy(request: Request) -> Response:
    return PlainTextResponse("OK")


def _prometheus(data: Any) -> Response:
    return JSONResponse({"status": "success", "data": data})


def _error(message: str, status: int) -> Response:
    return JSONResponse({"error": message}, status)


def _text(value: float) -> str:
    return "NaN" if math.isnan(value) else repr(float(value))


def _free_socket() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(128)
    return sock
