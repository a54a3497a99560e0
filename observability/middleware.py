"""ASGI middleware around a server of your own: requests counted, timed and traced by route, and `/metrics`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from opentelemetry.trace import NonRecordingSpan, SpanKind, use_span

from observability import names
from observability.inference import InferenceMonitor, MeasuredRequest, current_request, outcome_of
from observability.metrics import exposition
from observability.tracing import TRACEPARENT, TRACESTATE, parse_traceparent

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]
_OUTCOME_OF_STATUS = {429: "rejected", 503: "unavailable", 504: "expired", 408: "expired", 499: "cancelled"}


class InferenceMiddleware:
    """ASGI middleware: counts, times and traces the requests of the routes that have a monitor, and serves `/metrics`.

    `routes` are exact paths. A `traceparent` of the client is continued; logs and spans made inside a request carry its
    trace id. ValueError without a route, or when the monitors do not share one registry.
    """

    def __init__(
        self,
        app: Application,
        routes: Mapping[str, InferenceMonitor],
        *,
        metrics_path: str | None = "/metrics",
    ) -> None:
        if not routes:
            raise ValueError("there is no route to measure: give {path: InferenceMonitor}")
        self._metrics, *others = [monitor.metrics for monitor in routes.values()]
        if any(metrics.registry is not self._metrics.registry for metrics in others):
            raise ValueError("the monitors have several registries, a page has one: give them the same Metrics")
        self._app, self._routes, self._metrics_path = app, dict(routes), metrics_path

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        path = scope.get("path")
        if scope["type"] == "http" and path == self._metrics_path:
            await self._answer_metrics(scope, send)
        elif scope["type"] == "http" and path in self._routes:
            await self._measure(self._routes[path], scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer_metrics(self, scope: Message, send: Send) -> None:
        accept = dict(scope["headers"]).get(b"accept", b"").decode("latin-1")
        body, content_type = exposition(self._metrics, accept)
        headers = [(b"content-type", content_type.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _measure(self, monitor: InferenceMonitor, scope: Message, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        parent = parse_traceparent(headers.get(TRACEPARENT.encode()), headers.get(TRACESTATE.encode()))
        context = monitor.tracing.context(parent)
        watch = _Watch(receive, send)
        request = MeasuredRequest()
        token = current_request.set(request)
        error: BaseException | None = None
        try:
            with use_span(NonRecordingSpan(context), record_exception=False, set_status_on_exception=False):
                await self._app(scope, watch.receive, watch.send)
        except BaseException as raised:
            error = raised
            raise
        finally:
            current_request.reset(token)
            outcome = outcome_of(error) if error is not None else _outcome_of_status(watch.status, request.outcome)
            monitor.observe_request(outcome, watch.seconds, context)
            attributes = {"model": monitor.model, "version": monitor.version, "outcome": outcome}
            failed = outcome if outcome in names.FAULTS else None
            end = watch.start_ns + int(watch.seconds * 1e9)
            monitor.tracing.record(
                names.SPAN_REQUEST,
                watch.start_ns,
                end,
                parent,
                attributes,
                kind=SpanKind.SERVER,
                context=context,
                error=failed,
            )


class _Watch:
    """Passes a request's messages on, and notes when its body was in and when its answer began."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.start_ns = time.time_ns()
        self._start = time.perf_counter()
        self._answered: float | None = None
        self.status = 500

    @property
    def seconds(self) -> float:
        return (self._answered or time.perf_counter()) - self._start

    async def receive(self) -> Message:
        message = await self._receive()
        if self._answered is None and message["type"] == "http.request" and not message.get("more_body", False):
            self.start_ns = time.time_ns()
            self._start = time.perf_counter()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._answered = time.perf_counter()
        await self._send(message)


def _outcome_of_status(status: int, outcome: str) -> str:
    if status < 400:
        return outcome
    return _OUTCOME_OF_STATUS.get(status, "invalid" if status < 500 else "model_error")
