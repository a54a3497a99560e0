"""The way of an inference request through the server: parse, route, queue, answer; counted once, at the end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from opentelemetry.trace import SpanContext

from observability import names
from observability.tracing import Tracing, format_trace_id, parse_traceparent
from serving import admission, v2
from serving.batcher import Result
from serving.callers import Callers
from serving.calls import Call
from serving.errors import GaveWay, InvalidRequest, NotFound, Overloaded, ServingError, Unavailable
from serving.express import Express
from serving.http import Exchange, error_head
from serving.protocol.long_answers import LongBody
from serving.protocol.long_lists import LONG_BODY
from serving.protocol.outputs import Rows
from serving.protocol.packing import LONG_PACKED, packed, packing_head
from serving.protocol.raw import raw_request
from serving.protocol.responder import error_body
from serving.protocol.unpacking import Unpacking
from serving.reading import Reader, Reading
from serving.router import Choice, Router
from serving.routing.traffic import FORCED
from serving.shadow import Mirror
from serving.shadows.offers import MirroredBatches
from serving.telemetry.accounts import Account
from serving.telemetry.batches import Batches
from serving.telemetry.draws import Draws
from serving.telemetry.recorder import Recorder
from serving.telemetry.signals import Signals
from serving.versions.deployment import Deployment, Version
from serving.writing import Answer, Writer

_log = logging.getLogger(__name__)
_LOGGED_FAILURES_PER_SECOND = 5
# Answered requests are counted and recorded together: after so many seconds, calls or bytes, or when somebody looks.
_SETTLE_SECONDS = 0.2
_SETTLE_CALLS = 4096
_MANY_CALLS = 256
_SETTLE_BYTES = 4 * 1024 * 1024 - 64 * 1024
_MAX_ACCOUNTS = 1024
_MAX_HEADS = 1024
# Values a row of the requests that take the shortcut.
_MAX_HURRIED = 4096
# What a version said to a request, not what the server or the client did about it.
_MIRRORED = {"ok", *names.FAULTS}


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a header says to the front."""

    packed: bool
    header_length: int | None
    parameters: bool
    traced: bool

    @staticmethod
    def of(headers: Mapping[bytes, bytes]) -> _Asked:
        """Raises InvalidRequest."""
        return _Asked(
            b"content-encoding" in headers, _header_length(headers.get(v2.HEADER_LENGTH)),
            b"request-timeout" in headers or b"x-deadline-ms" in headers, b"traceparent" in headers,
        )  # fmt: skip


class _Detour(NamedTuple):
    """That there is no shortcut under this router, to this version."""

    router: Router
    version: Version | None

    def good(self, deployment: Deployment) -> bool:
        """Whether nothing has changed since."""
        choice = deployment.router.stable
        number = 0 if choice is None else choice.version
        return deployment.router is self.router and deployment.versions.get(number) is self.version


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
        trace_limit: int = 20,
        clock: Callable[[], float] = time.perf_counter,
        draw: Callable[[], float] | None = None,
    ) -> None:
        self._deployments = deployments
        self._signals = signals
        self._recorder = recorder
        self._tracing = tracing
        self._mirror = mirror
        self._body_limit = body_limit
        self._max_request_rows = max_request_rows
        self._instance = instance
        self._number = 1
        self._clock = clock
        self._draws = Draws(tracing.sample_ratio, trace_limit, clock, draw)
        self._records = recorder.records_all
        self._express: dict[str, Express | _Detour] = {}
        self._heads: dict[tuple[bytes, int | None, str, bytes], bytes] = {}
        # By the identity of the choice.
        self._accounts: dict[int, Account] = {}
        self._ended = 0
        self._kept_bytes = 0
        self._settling: asyncio.TimerHandle | None = None
        signals.before_reading(self.settle)
        self._failures_logged = (0.0, 0)
        # Requests for versions that are loaded again.
        self._waiting = 0
        self._reader = Reader()
        self._writer = Writer(self._reader, self._written)
        self.open = False
        # Who may ask; None: everybody.
        self.callers: Callers | None = None
        # Header lines of every answer to a request that a version was chosen for.
        self.extra_head = b""

    # --- in --------------------------------------------------------------------------------------------------------
    def infer(self, exchange: Exchange, model: str, version: str | None) -> None:
        """Takes a request; its answer follows on the exchange."""
        deployment = self._deployments.get(model)
        if deployment is None:
            error = NotFound(f"model {model!r} is not served here; served are {sorted(self._deployments)}")
            self._reject(exchange, None, error)
        else:
            hurry = exchange.head is not None and version is None
            trace = self._draws.one(exchange.received)
            self._take(exchange, trace, deployment, version, hurry=hurry)

    def _take(
        self, exchange: Exchange, trace: bool, deployment: Deployment, named: str | None = None, *, hurry: bool = False
    ) -> None:
        """By the shortcut, if it may `hurry` and there is one, or the general way; what goes wrong is its answer."""
        try:
            if not (hurry and self._hurries(exchange, deployment, trace)):
                self._accept(exchange, deployment, named, trace)
        except GaveWay as away:
            self._keep_waiting(exchange, trace, deployment, named, away)
        except ServingError as error:
            self._reject(exchange, deployment, error)
        except Exception as error:
            _log.exception("a request to %s failed before it was queued", deployment.model)
            self._reject(exchange, deployment, ServingError(f"internal error: {error!r}"))

    def _keep_waiting(
        self, exchange: Exchange, trace: bool, deployment: Deployment, named: str | None, away: GaveWay
    ) -> None:
        """Lets the request wait, unread, until its version is loaded again; no more of them than rows may wait."""
        if self._waiting >= self._max_request_rows:
            self._reject(exchange, deployment, away)
            return
        self._waiting += 1
        away.coming.add_done_callback(partial(self._go_on, exchange, trace, deployment, named))

    def _go_on(
        self, exchange: Exchange, trace: bool, deployment: Deployment, named: str | None,
        coming: asyncio.Future[ServingError | None],
    ) -> None:  # fmt: skip
        """Takes a request whose version was loaded again, or was not."""
        self._waiting -= 1
        trouble = Unavailable("the server is shutting down") if coming.cancelled() else coming.result()
        if trouble is not None and exchange.answer is None:
            self._reject(exchange, deployment, trouble)
        else:
            self._take_again(exchange, trace, deployment, named)

    def _take_again(self, exchange: Exchange, trace: bool, deployment: Deployment, named: str | None) -> None:
        """Takes a request that waited, unless its client went away meanwhile."""
        if exchange.answer is not None:
            self._signals.version(deployment.model, deployment.router.policy.stable).requests("cancelled", 1)
        else:
            self._take(exchange, trace, deployment, named)

    def cancel(self, exchange: Exchange) -> None:
        """The client went away."""
        call = exchange.handle
        if isinstance(call, Call) and call.lane is not None:
            call.lane.cancel(call)
        elif isinstance(call, Reading):
            exchange.handle = None
            self._reader.give_up(call)

    def _hurries(self, exchange: Exchange, deployment: Deployment, trace: bool) -> bool:
        """Whether the request takes the shortcut."""
        if not self.open or self.callers is not None or exchange.head is None:
            return False
        asked = exchange.head.memo
        if asked is None:
            asked = exchange.head.memo = _Asked.of(exchange.headers)
        if asked.packed or asked.parameters or asked.traced:
            return False
        if asked.header_length is None and len(exchange.body) >= LONG_BODY:
            return False
        express = self._express.get(deployment.model)
        if express is None or not express.good(deployment):
            self._forget(deployment.model)
            express = self._express[deployment.model] = self._shortcut(deployment)
        if isinstance(express, _Detour):
            return False
        if express.requests >= express.most:
            express.refuse()
        if not (express.waiting or express.traced):
            asyncio.get_running_loop().call_soon(express.run)
        (express.traced if trace else express.waiting).append(exchange)
        return True

    def _shortcut(self, deployment: Deployment) -> Express | _Detour:
        """The shortcut to the version that gets all requests; or, that there is none under this policy."""
        router = deployment.router
        choice, policy = router.stable, router.policy
        version = None if choice is None else deployment.versions.get(choice.version)
        simple = not (router.steps or router.forced or policy.sticky or deployment.cache is not None)
        if choice is None or version is None or not simple or deployment.closing:
            return _Detour(router, deployment.versions.get(0 if choice is None else choice.version))
        signature = version.loaded.model.signature
        column = signature.inputs[0]
        fits = (
            len(signature.inputs) == 1
            and 0 < column.size <= _MAX_HURRIED
            and column.datatype in ("FP32", "FP64", "FP16")
            and (len(signature.outputs) == 1 or not policy.shadows)
        )
        if not fits or not version.lane.simple:
            return _Detour(router, version)
        account = self._accounts.get(id(choice)) or self._account(deployment.model, choice)
        memory = self._recorder.memory if self._records else None
        given = (account, signature, memory, self._instance, self._tracing.root)
        offer = partial(self._mirror.offer_batch, deployment=deployment)
        batches = MirroredBatches(*given, offer) if policy.shadows else Batches(*given)
        return Express(
            deployment, choice, version, account, general=partial(self._take, deployment=deployment), ended=self._noted,
            head=self._plain_head, clock=self._clock, batches=batches,
            open=lambda: self.open and self.callers is None, traced=self._draws.of, body_limit=self._body_limit,
        )  # fmt: skip

    def _plain_head(self, version: Version, choice: Choice, header_length: int | None) -> bytes:
        key = (version.heads[choice.arm], header_length, "", self.extra_head)
        return self._heads.get(key) or self._head(*key)

    def _forget(self, model: str) -> None:
        """Drops a shortcut; what it holds goes the general way."""
        express = self._express.pop(model, None)
        if isinstance(express, Express):
            express.close()

    def _accept(self, exchange: Exchange, deployment: Deployment, named: str | None, trace: bool) -> None:
        if not self.open:
            raise Unavailable("the server is starting or shutting down")
        headers = exchange.headers
        account = None if self.callers is None else self.callers.known(headers, deployment.model)
        head = exchange.head
        if head is None:
            asked = _Asked.of(headers)
        else:
            asked = head.memo or _Asked.of(headers)
            head.memo = asked
        # Without a unit to look for in the body, the version is known before the body is read, and what it takes.
        routed = deployment.route(named, None, headers) if deployment.router.policy.sticky is None else None
        plain = account is None and deployment.cache is None and not (trace or asked.traced or asked.packed)
        if routed is not None and plain and self._turns_away(exchange, deployment.model, *routed, asked.parameters):
            return
        body, request = exchange.body, None
        if asked.packed or len(body) >= LONG_BODY:
            reading = self._read(exchange, asked, deployment, named, trace)
            if reading is None:
                return
            body, request = reading.body, reading.request
        if asked.header_length == 0:
            version = (routed or deployment.route(named, None, headers))[1]
            request = raw_request(body, version.loaded.model.signature)
        elif request is None:
            request = v2.parse(body, asked.header_length, routed is not None and routed[1].responder.floats)
        if request.rows > self._max_request_rows:
            raise InvalidRequest(
                f"the request has {request.rows} rows, the limit is {self._max_request_rows}; send several"
            )
        if account is not None:
            account.take(request.rows, exchange.received)
        attributes, deadline = None, None
        if request.parameters or asked.parameters:
            attributes = admission.attributes(request)
            deadline = admission.deadline(request, headers, exchange.received)
        unit, sticky = None, routed is None
        if routed is None:
            unit = admission.unit(request, deployment.router.policy.sticky, attributes, headers)
            routed = deployment.route(named, unit, headers)
        choice, version = routed
        call = Call(
            request, deployment.model, choice, version.loaded.model.signature, exchange.received, deadline,
            self._finished, exchange,
        )  # fmt: skip
        call.id = request.id or f"{self._instance}-{self._next()}"
        call.attributes = attributes
        if sticky:
            call.unit = unit or ""
        call.bytes = len(body)
        if request.parameters:
            call.priority = admission.priority(request)
        if account is not None:
            call.caller = account.name
            if account.priority is not None:
                named_priority = request.parameters.get("priority")
                call.priority = max(call.priority, account.priority) if named_priority else account.priority
        if request.has_more_than(len(call.values)):
            request.refuse_strangers(
                {i.name for known in deployment.versions.values() for i in known.loaded.model.signature.inputs}
            )
        if asked.traced:
            self._trace(call, parse_traceparent(headers.get(b"traceparent"), headers.get(b"tracestate")), trace)
        elif trace:
            self._trace(call, None, trace)
        exchange.handle = call
        try:
            if deployment.cache is None:
                version.lane.submit(call)
            else:
                deployment.cache.submit(call, version)
        except ServingError as error:
            call.finish(error)

    def _read(
        self, exchange: Exchange, asked: _Asked, deployment: Deployment, named: str | None, trace: bool
    ) -> Reading | None:
        """The body as it was read; None of one that takes long: the request is taken again when it has been read."""
        # Else the two would keep each other alive until a garbage collection.
        reading, exchange.handle = exchange.handle, None
        if reading is None:
            headers = exchange.headers
            encoding = headers.get(b"content-encoding", b"identity").lower()
            unpacking = None if encoding == b"identity" else Unpacking(exchange.body, encoding, self._body_limit)
            deadline = admission.header_deadline(headers, exchange.received) if asked.parameters else None
            reading = Reading(
                exchange.body, unpacking, json=asked.header_length is None, deadline=deadline,
                done=partial(self._take_again, exchange, trace, deployment, named),
            )  # fmt: skip
            if not reading.at_once():
                exchange.handle = reading
                self._reader.put(reading)
                return None
        assert isinstance(reading, Reading)
        reading.check()
        return reading

    def _turns_away(
        self, exchange: Exchange, model: str, choice: Choice, version: Version, timed: bool
    ) -> bool:  # fmt: skip
        """Whether the request was refused unread: its version has no time or room for any request that is no other's
        better. Reading it costs more than all the rest of a refusal.
        """
        received = exchange.received
        deadline = admission.header_deadline(exchange.headers, received) if timed else None
        if not version.lane.pressed(deadline) or b'"priority"' in exchange.body:
            return False
        try:
            version.lane.refuse_early(received, deadline)
        except ServingError as error:
            self._answer_error(exchange, None, error, version, choice)
            account = self._accounts.get(id(choice)) or self._account(model, choice)
            account.others[error.outcome] += 1
            now = self._clock()
            account.extend((received, received, now, now, now, now))
            self._noted(1, 0)
            return True
        return False

    def _next(self) -> int:
        number, self._number = self._number, self._number + 1
        return number

    def _trace(self, call: Call, parent: SpanContext | None, drawn: bool) -> None:
        """As the caller decided; where its header is not one, as was drawn."""
        if parent is None and not drawn:
            return
        context = self._tracing.root() if parent is None else self._tracing.context(parent)
        if context.trace_flags & 1:
            call.parent, call.span = parent, context

    def close(self) -> None:
        """Ends the threads that read bodies and write answers."""
        self._reader.close()

    # --- out -------------------------------------------------------------------------------------------------------
    def _finished(self, call: Call, result: Result) -> None:
        deployment = self._deployments[call.model]
        version = deployment.versions.get(call.choice.version)
        if version is None and not isinstance(result, ServingError):
            result = Unavailable("the version was unloaded")
        body, header_length, lines = b"", None, b""
        if version is not None and not isinstance(result, ServingError):
            try:
                rows = result if type(result) is Rows else version.responder.rows(result, call.request.rows)
                size = version.responder.long(call.request, rows) if rows.batch.long else 0
                if size and call.exchange.hold(size):
                    self._writer.put(Answer(call, deployment, version, rows), size)
                    return
                accepted = call.exchange.headers.get(b"accept-encoding")
                if size:
                    # Raised it would hold the outputs until a garbage collection.
                    result = Overloaded("answers that clients do not read take the memory", 1.0, "total_bytes")
                else:
                    body, header_length = version.responder.body(call.request, rows)
                if body and accepted is not None:
                    if len(body) >= LONG_PACKED and packing_head(accepted, len(body)):
                        self._writer.put(Answer(call, deployment, version, rows, body, header_length), len(body))
                        return
                    lines, body = packed(call.exchange.headers, body)
            except Exception as error:
                # One answer that cannot be written must not take the rest of its batch with it.
                result = ServingError(f"the answer could not be encoded: {error!r}")
        self._answer(call, deployment, version, result, body, header_length, lines)

    def _written(self, answer: Answer) -> None:
        """A long answer is written, or was given up."""
        result: Result = answer.rows if answer.error is None else answer.error
        body = b"" if answer.body is None else answer.body
        self._answer(answer.call, answer.deployment, answer.version, result, body, answer.header_length, answer.lines)

    def _answer(
        self, call: Call, deployment: Deployment, version: Version | None, result: Result, body: bytes | LongBody,
        header_length: int | None, lines: bytes,
    ) -> None:  # fmt: skip
        """Writes the answer, and notes how the call ended."""
        choice = call.choice
        account = self._accounts.get(id(choice)) or self._account(call.model, choice)
        encoded = 0.0
        if version is not None and not isinstance(result, ServingError):
            key = (version.heads[choice.arm], header_length, call.cache, self.extra_head)
            head = self._heads.get(key) or self._head(*key)
            if lines:
                head += lines
            encoded = self._clock()
            call.exchange.respond(200, head, body)
            call.outcome, call.outputs = "ok", result
        if isinstance(result, ServingError):
            encoded = self._clock()
            self._answer_error(call.exchange, call, result, version)
            call.outcome = result.outcome
        # Else the two would keep each other alive until a garbage collection.
        call.exchange.handle = None
        call.done = now = self._clock()
        queued, started, worked = call.queued, call.started, call.ended
        plain = call.span is None and call.unit is None and call.outcome == "ok"
        if plain and queued is not None and started is not None and worked is not None:
            account.ok += 1
            account.extend((call.arrived, queued, started, worked, encoded, now))
        else:
            account.add(call, encoded)
        if call.flight is not None and deployment.cache is not None:
            deployment.cache.settled(call, result)
        if deployment.router.policy.shadows and choice.arm != FORCED and call.outcome in _MIRRORED:
            self._mirror.offer(call, deployment)
        if self._records or call.span is not None:
            account.calls.append(call)
            self._kept_bytes += call.bytes
        self._noted(1, 0)

    def _noted(self, calls: int, size: int) -> None:
        """So many more calls are answered, and not yet counted and recorded."""
        self._ended += calls
        self._kept_bytes += size
        if self._settling is None:
            self._settling = asyncio.get_running_loop().call_later(_SETTLE_SECONDS, self.settle)
        elif self._kept_bytes >= _SETTLE_BYTES:
            self.settle()
        elif self._ended >= _SETTLE_CALLS:
            self._count(_MANY_CALLS)

    def _head(self, head: bytes, header_length: int | None, cache: str, extra: bytes) -> bytes:
        """Header lines of an answer; made once for all of a kind."""
        key = (head, header_length, cache, extra)
        if cache:
            head += b"x-trimtab-cache: miss\r\n" if cache == "miss" else b"x-trimtab-cache: hit\r\n"
        if header_length is not None:
            head = head.replace(b"application/json", b"application/octet-stream")
            head += b"inference-header-content-length: %d\r\n" % header_length
        if len(self._heads) >= _MAX_HEADS:
            self._heads.clear()
        self._heads[key] = head + extra
        return head + extra

    def _answer_error(
        self, exchange: Exchange, call: Call | None, error: ServingError, version: Version | None,
        choice: Choice | None = None,
    ) -> None:  # fmt: skip
        head = error_head(error.retry_after_seconds)
        if error.status == 401:
            head += b"www-authenticate: Bearer\r\n"
        choice = choice if call is None else call.choice
        if version is not None and choice is not None:
            head += b"x-trimtab-version: %d\r\nx-trimtab-arm: %b\r\n" % (choice.version, choice.arm.encode())
        exchange.respond(error.status, head, error_body(str(error), error.details))
        if call is not None and error.outcome in names.FAULTS:
            self._log_failure(call, error)

    def _reject(self, exchange: Exchange, deployment: Deployment | None, error: ServingError) -> None:
        """Ends a request that no version was chosen for, or whose values fit none."""
        self._answer_error(exchange, None, error, None)
        if deployment is not None:
            self._signals.version(deployment.model, deployment.router.policy.stable).requests(error.outcome, 1)

    # --- accounts --------------------------------------------------------------------------------------------------
    def _account(self, model: str, choice: Choice) -> Account:
        account = Account(model, choice, self._signals)
        # The account holds the choice, so that no other gets its id.
        self._accounts[id(choice)] = account
        return account

    def settle(self) -> None:
        """Counts and records the calls that ended since the last time, one group a version and arm."""
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        self._signals.flush()
        self._count(1)
        self._kept_bytes = 0
        for account in self._accounts.values():
            if account.served:
                served, account.served = account.served, []
                first = self._number
                for run in served:
                    run.numbers.first = self._number
                    self._number += run.requests
                self._recorder.put_served(account.model, account.choice, served, first)
        self._mirror.settled()
        # A shortcut to a version that is gone would keep it in memory until the model's next request.
        for model, express in list(self._express.items()):
            deployment = self._deployments.get(model)
            if deployment is None or not express.good(deployment):
                self._forget(model)
        if len(self._accounts) > _MAX_ACCOUNTS:
            # A shortcut counts by its own, also what it holds now.
            kept = [one.account for one in self._express.values() if isinstance(one, Express)]
            self._accounts = {id(account.choice): account for account in kept}

    def _count(self, least: int) -> None:
        """Counts calls, and records them where they are `least` at least: a group costs as much as many calls.

        What the shortcut answered is recorded by runs, which fill up meanwhile.
        """
        self._ended = 0
        for account in self._accounts.values():
            account.flush()
            if len(account.calls) >= least:
                calls, account.calls = account.calls, []
                self._recorder.put(calls)

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
                       "trace_id": format_trace_id(call.span) or "",
                       "span_id": "" if call.span is None else f"{call.span.span_id:016x}"},
            )  # fmt: skip


def _header_length(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        raise InvalidRequest(f"Inference-Header-Content-Length is {value[:40]!r}: give a number of bytes")
    return int(value)
