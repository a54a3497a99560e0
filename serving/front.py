"""The way of an inference request through the server: parse, route, queue, answer; counted once, at the end."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from observability import names
from observability.tracing import Tracing, format_trace_id, parse_traceparent
from serving import admission, v2
from serving.batcher import Result
from serving.callers import Callers
from serving.calls import Call
from serving.deployment import Deployment, Version
from serving.errors import InvalidRequest, NotFound, ServingError, Unavailable
from serving.http import Exchange, decoded_body, error_head
from serving.recorder import Recorder
from serving.responder import error_body
from serving.shadow import Mirror
from serving.signals import Signals
from serving.traffic import FORCED

_log = logging.getLogger(__name__)
_LOGGED_FAILURES_PER_SECOND = 5
# What a version said to a request, not what the server or the client did about it.
_MIRRORED = {"ok", *names.FAULTS}


class Front:
    """The server's inference handler. Everything here runs on the event loop and never waits."""

    def __init__(
        self,
        deployments: Mapping[str, Deployment],
        signals: Signals,
        recorder: Recorder,
        tracing: Tracing,
        mirror: Mirror,
        *,
        body_limit: int,
        max_request_rows: int,
        instance: str,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._deployments = deployments
        self._signals = signals
        self._recorder = recorder
        self._tracing = tracing
        self._mirror = mirror
        self._body_limit = body_limit
        self._max_request_rows = max_request_rows
        self._instance = instance
        self._numbers = itertools.count(1)
        self._clock = clock
        self._ended: list[Call] = []
        self._settling = False
        self._failures_logged = (0.0, 0)
        self.open = False
        # Who may ask; None: everybody.
        self.callers: Callers | None = None
        # Header lines of every answer to a request that a version was chosen for.
        self.extra_head = b""

    # --- in --------------------------------------------------------------------------------------------------------
    def infer(self, exchange: Exchange, model: str, version: str | None) -> None:
        """Takes a request; its answer follows on the exchange."""
        deployment = self._deployments.get(model)
        try:
            if deployment is None:
                raise NotFound(f"model {model!r} is not served here; served are {sorted(self._deployments)}")
            self._accept(exchange, deployment, version)
        except ServingError as error:
            self._reject(exchange, deployment, error)
        except Exception as error:
            _log.exception("a request to %s failed before it was queued", model)
            self._reject(exchange, deployment, ServingError(f"internal error: {error!r}"))

    def cancel(self, exchange: Exchange) -> None:
        """The client went away."""
        call = exchange.handle
        if isinstance(call, Call) and call.lane is not None:
            call.lane.cancel(call)

    def _accept(self, exchange: Exchange, deployment: Deployment, named: str | None) -> None:
        if not self.open:
            raise Unavailable("the server is starting or shutting down")
        headers = exchange.headers
        account = None if self.callers is None else self.callers.known(headers, deployment.model)
        body = exchange.body if b"content-encoding" not in headers else decoded_body(exchange, self._body_limit)
        request = v2.parse(body, _header_length(headers.get(v2.HEADER_LENGTH)))
        if request.rows > self._max_request_rows:
            raise InvalidRequest(
                f"the request has {request.rows} rows, the limit is {self._max_request_rows}; send several"
            )
        if account is not None:
            account.take(request.rows, exchange.received)
        attributes = admission.attributes(request) if request.parameters else None
        unit = admission.unit(request, deployment.router.policy.sticky, attributes, headers)
        choice, version = deployment.route(named, unit, headers)
        deadline = admission.deadline(request, headers, exchange.received)
        call = Call(
            request, deployment.model, choice, version.loaded.model.signature, exchange.received, deadline,
            self._finished, exchange,
        )  # fmt: skip
        call.id = request.id or f"{self._instance}-{next(self._numbers)}"
        call.attributes = attributes
        call.bytes = len(body)
        if request.parameters:
            call.priority = admission.priority(request)
        if account is not None:
            call.caller = account.name
        self._trace(call, headers)
        exchange.handle = call
        try:
            version.lane.submit(call)
        except ServingError as error:
            call.finish(error)

    def _trace(self, call: Call, headers: Mapping[bytes, bytes]) -> None:
        parent = parse_traceparent(headers.get(b"traceparent")) if b"traceparent" in headers else None
        context = self._tracing.context(parent)
        if context.trace_flags & 1:
            call.parent, call.span = parent, context

    # --- out -------------------------------------------------------------------------------------------------------
    def _finished(self, call: Call, result: Result) -> None:
        deployment = self._deployments[call.model]
        version = deployment.versions.get(call.choice.version)
        if isinstance(result, ServingError) or version is None:
            result = result if isinstance(result, ServingError) else Unavailable("the version was unloaded")
            self._answer_error(call.exchange, call, result, version)
        else:
            result = self._answer(call, result, version)
        call.settle(result, self._clock())
        if deployment.router.policy.shadows and call.choice.arm != FORCED and call.outcome in _MIRRORED:
            self._mirror.offer(call, deployment)
        self._end(call)

    def _answer(self, call: Call, outputs: Sequence[Any], version: Version) -> Result:
        try:
            body, header_length = version.responder.body(call.request, outputs)
        except Exception as error:
            # One answer that cannot be written must not take the rest of its batch with it.
            failure = ServingError(f"the answer could not be encoded: {error!r}")
            self._answer_error(call.exchange, call, failure, version)
            return failure
        head = version.heads[call.choice.arm]
        if header_length is not None:
            head = head.replace(b"application/json", b"application/octet-stream")
            head += b"inference-header-content-length: %d\r\n" % header_length
        call.exchange.respond(200, head + self.extra_head, body)
        return outputs

    def _answer_error(
        self, exchange: Exchange, call: Call | None, error: ServingError, version: Version | None
    ) -> None:
        head = error_head(error.retry_after_seconds)
        if error.status == 401:
            head += b"www-authenticate: Bearer\r\n"
        if version is not None and call is not None:
            arm = call.choice.arm.encode()
            head += b"x-trimtab-version: %d\r\nx-trimtab-arm: %b\r\n" % (call.choice.version, arm)
        exchange.respond(error.status, head, error_body(str(error), error.details))
        if call is not None and error.outcome in names.FAULTS:
            self._log_failure(call, error)

    def _reject(self, exchange: Exchange, deployment: Deployment | None, error: ServingError) -> None:
        """Ends a request that no version was chosen for, or whose values fit none."""
        self._answer_error(exchange, None, error, None)
        if deployment is not None:
            self._signals.version(deployment.model, deployment.router.policy.stable).requests(error.outcome, 1)

    # --- accounts --------------------------------------------------------------------------------------------------
    def _end(self, call: Call) -> None:
        self._ended.append(call)
        if not self._settling:
            self._settling = True
            asyncio.get_running_loop().call_soon(self.settle)

    def settle(self) -> None:
        """Counts and records the calls that ended since the last time, one group a version and arm."""
        self._settling = False
        ended, self._ended = self._ended, []
        groups: dict[tuple[str, int], list[Call]] = defaultdict(list)
        for call in ended:
            groups[call.model, id(call.choice)].append(call)
        for calls in groups.values():
            self._count(calls)
            self._recorder.put(calls)

    def _count(self, calls: list[Call]) -> None:
        model, choice = calls[0].model, calls[0].choice
        version = self._signals.version(model, choice.version)
        by_outcome: dict[str, int] = defaultdict(int)
        plain: list[float] = []
        for call in calls:
            by_outcome[call.outcome] += 1
            if call.span is None:
                plain.append(call.done - call.arrived)
            else:
                version.exemplar(call.done - call.arrived, format_trace_id(call.span) or "")
        for outcome, count in by_outcome.items():
            version.requests(outcome, count)
            self._signals.release(model, choice, outcome, count)
        version.latencies(plain, [call.started - call.arrived for call in calls if call.started is not None])

    def _log_failure(self, call: Call, error: ServingError) -> None:
        second, logged = self._failures_logged
        now = self._clock()
        if now - second >= 1.0:
            second, logged = now, 0
        self._failures_logged = (second, logged + 1)
        if logged < _LOGGED_FAILURES_PER_SECOND:
            _log.warning(
                "%s version %d: %s", call.model, call.choice.version, error,
                extra={"outcome": error.outcome, "arm": call.choice.arm, "request_id": call.id,
                       "trace_id": format_trace_id(call.span) or ""},
            )  # fmt: skip


def _header_length(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit():
        raise InvalidRequest(f"Inference-Header-Content-Length is {value!r}, not a number")
    return int(value)
