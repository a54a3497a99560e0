"""The intake's HTTP: OTLP, events, labels, profiles, references, pushes. A 2xx comes after the commit, never before."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from collectors import otlp
from collectors.events import Batch, EventLog, read_batch, read_json_labels
from collectors.exposition import BadExposition
from collectors.journal import JournalClosed
from collectors.measure import Measures
from collectors.measurer import Measurer
from collectors.otlp import IntakeError
from collectors.otlp_metrics import Translated, translate
from collectors.profiles import NotProfiled
from collectors.push import BadGroup, PushGroups, group_labels
from collectors.quality import SchemaEdit, SchemaError
from collectors.quality.aside import KeptAside
from collectors.quarantine import Quarantine, Source
from collectors.references import References
from collectors.releases import ReleaseLabels
from collectors.remote_write import BadMessage, NotAccepted, Receiver, TooLarge, version_of
from collectors.signals import Signals
from collectors.spans import SpanStore, log_rows, span_rows
from collectors.store import Append, Exemplar, LimitExceeded, Store
from observability import names
from observability.columns import ProfileError
from observability.events import MEDIA_TYPE, BadBatch

MAX_BODY_BYTES = 64 * 1024 * 1024
# A profile takes some kB a column: this is a thousand columns, and far less to build than a body of events.
MAX_PROFILE_BYTES = 16 * 1024 * 1024
MAX_BATCH_ID = 200
# Labelled predictions of a release in one answer.
MAX_LABEL_ROWS = 2_000
# Committed batches that may wait to be measured, and the memory that they may take; beyond, senders are asked to come
# again.
MAX_WAITING, MAX_WAITING_BYTES = 2_000, 256 * 1024 * 1024
# Bodies above this are parsed off the event loop.
INLINE_BYTES = 512 * 1024

_UNREADABLE = (BadBatch, BadExposition, BadGroup, BadMessage, ProfileError, SchemaError, UnicodeDecodeError)

Parsed = TypeVar("Parsed")
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Intake:
    """What the handlers need; `app()` is the ASGI application."""

    store: Store
    log: EventLog
    measures: Measures
    measurer: Measurer
    references: References
    aside: KeptAside
    quarantine: Quarantine
    release_labels: ReleaseLabels
    spans: SpanStore
    pushes: PushGroups
    receiver: Receiver
    signals: Signals
    clock: Callable[[], float]
    max_body_bytes: int = MAX_BODY_BYTES

    def app(self) -> Starlette:
        push = Route("/metrics/{group:path}", self._answered("push", self.push), methods=["PUT", "POST", "DELETE"])
        return Starlette(
            routes=[
                Route("/v1/events", self._answered("events", self.events), methods=["POST"]),
                Route("/v1/labels", self._answered("labels", self.labels), methods=["POST"]),
                Route("/v1/profiles/{model}/{version}", self._answered("profiles", self.profile), methods=["POST"]),
                Route("/v1/traces", self._otlp("traces"), methods=["POST"]),
                Route("/v1/metrics", self._otlp("metrics"), methods=["POST"]),
                Route("/v1/logs", self._otlp("logs"), methods=["POST"]),
                Route(
                    "/v1/references/{model}/{version}",
                    self._answered("references", self.reference),
                    methods=["GET", "PUT"],
                ),
                Route("/v1/schemas/{model}", self._answered("schemas", self.schema), methods=["GET", "PUT"]),
                Route(
                    "/v1/quarantine/{model}",
                    self._answered("quarantine", self.source),
                    methods=["GET", "PUT", "DELETE"],
                ),
                Route("/v1/releases/{model}/labels", self.labels_of_release),
                push,
                self._write_route(),
                Route("/health/live", self.live),
                Route("/health/ready", self.ready),
            ]
        )

    def prometheus_routes(self) -> list[Route]:
        """The ways in that a Prometheus has on the port that it is queried on."""
        return [self._write_route(), Route("/api/v1/otlp/v1/metrics", self._otlp("metrics"), methods=["POST"])]

    def _write_route(self) -> Route:
        return Route("/api/v1/write", self._answered("remote_write", self.write), methods=["POST"])

    async def live(self, _: Request) -> Response:
        return PlainTextResponse("ok")

    async def ready(self, _: Request) -> Response:
        behind = self._behind()
        return PlainTextResponse(behind or "ok", status_code=503 if behind else 200)

    async def events(self, request: Request) -> Response:
        body = await self._body(request)
        return await self._accept(request, await _parsed(body, lambda: read_batch("events", body)))

    async def labels(self, request: Request) -> Response:
        body = await self._body(request)
        if request.headers.get("content-type", MEDIA_TYPE).startswith("application/json"):
            batch = await _parsed(body, lambda: read_json_labels(body, self.clock()))
        else:
            batch = await _parsed(body, lambda: read_batch("labels", body))
        return await self._accept(request, batch)

    async def profile(self, request: Request) -> Response:
        model, version = request.path_params["model"], request.path_params["version"]
        expected = self.measures.expected(model, version)
        if expected is None:
            raise IntakeError(404, "unknown", f"model {model!r} version {version!r} has no reference: PUT one first")
        body = await self._body(request, min(MAX_PROFILE_BYTES, self.max_body_bytes))
        try:
            posted = await asyncio.to_thread(expected.read, body, request.headers)
        except NotProfiled as error:
            raise IntakeError(409, "not_profiled", str(error)) from error
        return await self._accept(request, Batch("profiles", posted.to_bytes(), posted))

    async def reference(self, request: Request) -> Response:
        model, version = request.path_params["model"], request.path_params["version"]
        if request.method == "GET":
            known = await asyncio.to_thread(self.references.get, model, version)
            if known is None:
                raise IntakeError(404, "unknown", f"model {model!r} version {version!r} has no reference: PUT one")
            return Response(known, media_type="application/json")
        body = await self._body(request)
        # A reference by the hour of the week takes a second to read.
        done = await asyncio.to_thread(
            self.references.put,
            model,
            version,
            body,
            lambda found: self.measures.set_reference(model, version, found),
        )
        await asyncio.wrap_future(done)
        return JSONResponse({"model": model, "version": version})

    async def schema(self, request: Request) -> Response:
        model = request.path_params["model"]
        if request.method == "PUT":
            edit = SchemaEdit.from_json(await self._body(request))
            self.measures.edit_schema(model, edit)
            await asyncio.wrap_future(self.aside.edit(model, edit, self.clock()))
        versions = self.measures.versions(model)
        schema, _ = self.measures.quality_of(model, versions[-1] if versions else "")
        return JSONResponse(schema.to_json())

    async def source(self, request: Request) -> Response:
        """The sources of a model in quarantine; PUT puts one there, DELETE lets it out."""
        model = request.path_params["model"]
        if request.method != "GET":
            source = Source.from_json(model, await self._body(request), self.clock())
            change = self.quarantine.put if request.method == "PUT" else self.quarantine.lift
            await asyncio.wrap_future(change(source))
        return JSONResponse({"model": model, "sources": [one.to_json() for one in self.quarantine.sources(model)]})

    async def labels_of_release(self, request: Request) -> Response:
        """The labelled predictions of a release or a shadow, behind the number that the reader has read up to."""
        model, query = request.path_params["model"], dict(request.query_params)
        try:
            body = await asyncio.to_thread(self.release_labels.view, model, query, MAX_LABEL_ROWS)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)
        return Response(msgspec.json.encode(body), media_type="application/json")

    async def push(self, request: Request) -> Response:
        # The raw path: a slash inside a value is sent percent-encoded, and must not split it.
        path = request.scope["raw_path"].decode("ascii").split("?")[0].removeprefix("/metrics/")
        labels = group_labels(path)
        if request.method == "DELETE":
            await asyncio.to_thread(self.pushes.delete, labels)
            return Response(status_code=202)
        body = await self._body(request)
        kind = request.headers.get("content-type", "")
        # A rule's series are those that the rule names: a job of their own would keep them from being joined by labels.
        honor = request.query_params.get("honor_labels", "").lower() in ("1", "true")
        replace = request.method == "PUT"
        await asyncio.to_thread(self.pushes.put, labels, body, kind, replace=replace, honor_labels=honor)
        return Response(status_code=200)

    async def write(self, request: Request) -> Response:
        version = version_of(request.headers.get("content-type", ""), request.headers.get("content-encoding", ""))
        body = await self._raw_body(request, self.max_body_bytes)
        loop = asyncio.get_running_loop()
        outcome = await loop.run_in_executor(self.receiver.threads, self.receiver.write, body, version)
        if outcome.refused:
            self.signals.metrics[names.EVENT_ERRORS].labels("remote_write", "refused").inc()
            return PlainTextResponse(outcome.refused, 400, outcome.headers)
        return Response(status_code=204, headers=outcome.headers)

    async def _accept(self, request: Request, batch: Batch) -> Response:
        batch_id = request.headers.get("x-batch-id") or uuid.uuid4().hex
        if len(batch_id) > MAX_BATCH_ID:
            raise IntakeError(400, "batch_id", f"X-Batch-Id has {len(batch_id)} characters, at most {MAX_BATCH_ID} fit")
        if behind := self._behind():
            raise IntakeError(429, "busy", f"{behind}: send again later", 1)
        accepted = await asyncio.wrap_future(self.log.accept(batch, batch_id))
        return JSONResponse({"accepted_rows": accepted.accepted_rows, "duplicate": accepted.duplicate})

    def _behind(self) -> str:
        """What too much waits to be measured; empty while there is room for more."""
        waiting = self.measurer.backlog()
        if waiting.batches <= MAX_WAITING and waiting.size_bytes <= MAX_WAITING_BYTES:
            return ""
        return f"{waiting.batches} batches of {waiting.size_bytes / 2**20:.0f} MiB wait to be measured"

    async def _body(self, request: Request, most: int | None = None) -> bytes:
        """The request's body, decoded. IntakeError 413 as soon as it has more than `most` bytes."""
        most = self.max_body_bytes if most is None else most
        body = await self._raw_body(request, most)
        encoding = request.headers.get("content-encoding", "")
        if not encoding:
            return body
        return await asyncio.to_thread(otlp.decoded, body, encoding, most)

    async def _raw_body(self, request: Request, most: int) -> bytes:
        """The request's body as it was sent. IntakeError 413 as soon as it has more than `most` bytes."""
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > most:
            raise IntakeError(413, "too_large", f"the body has {declared} bytes, at most {most} fit")
        parts, size = [], 0
        async for part in request.stream():
            parts.append(part)
            size += len(part)
            if size > most:
                raise IntakeError(413, "too_large", f"the body has more than {most} bytes")
        return b"".join(parts)

    def _answered(self, signal: str, handler: Handler) -> Handler:
        """The handler with its errors as JSON `{"error"}`."""

        async def answered(request: Request) -> Response:
            try:
                return await handler(request)
            except Exception as error:
                refusal = self._refusal(signal, error)
                headers = {"Retry-After": str(refusal.retry_after)} if refusal.retry_after else None
                return JSONResponse({"error": str(refusal)}, status_code=refusal.status, headers=headers)

        return answered

    def _otlp(self, signal: otlp.Signal) -> Handler:
        """The OTLP handler of a signal: its answers and errors are in the request's own media type."""

        async def answered(request: Request) -> Response:
            kind = otlp.PROTOBUF
            try:
                kind = otlp.media_type(request.headers.get("content-type", ""))
                body = await self._body(request)
                message = await _parsed(body, lambda: otlp.read_request(signal, kind, body))
                rejected = await self._keep(signal, message)
                return Response(otlp.response_body(signal, kind, rejected), media_type=kind)
            except Exception as error:
                refusal = self._refusal(signal, error)
                headers = {"Retry-After": str(refusal.retry_after)} if refusal.retry_after else None
                return Response(otlp.status_body(refusal, kind), refusal.status, headers, media_type=kind)

        return answered

    async def _keep(self, signal: otlp.Signal, message: object) -> otlp.Rejected:
        if signal == "traces":
            rows, rejected = span_rows(message)
            await asyncio.wrap_future(self.spans.add_spans(rows))
            self.signals.metrics[names.SPANS].inc(len(rows))
        elif signal == "logs":
            rows, rejected = log_rows(message)
            await asyncio.wrap_future(self.spans.add_logs(rows))
        else:
            translated = translate(message)
            rejected = await asyncio.to_thread(self._store_metrics, translated)
        return rejected

    def _store_metrics(self, translated: Translated) -> otlp.Rejected:
        """Stores them in one transaction; says what was left out, by the rules or by the store."""
        moments = sorted(translated.samples.items(), key=lambda item: item[0][1])
        taken = self.store.write([Append(target, t_ms, samples) for (target, t_ms), samples in moments])
        self.store.set_metadata(translated.metadata)
        self.store.add_exemplars([Exemplar(*item) for item in translated.exemplars])
        rejected = translated.rejected
        if not taken.refused:
            return rejected
        reasons = "; ".join(reason for reason in (rejected.message, taken.refusal) if reason)
        return otlp.Rejected(rejected.count + taken.refused, reasons)

    def _refusal(self, signal: str, error: Exception) -> IntakeError:
        """What an error means to the sender; anything unknown is raised on, and becomes a 500."""
        if isinstance(error, ClientDisconnect):
            refusal = IntakeError(400, "disconnected", "the client went away before its body was complete")
        elif isinstance(error, IntakeError):
            refusal = error
        elif isinstance(error, _UNREADABLE):
            refusal = IntakeError(400, "unreadable", str(error))
        elif isinstance(error, LimitExceeded):
            refusal = IntakeError(400, "limit", str(error))
        elif isinstance(error, NotAccepted):
            refusal = IntakeError(415, "media_type", str(error))
        elif isinstance(error, TooLarge):
            refusal = IntakeError(413, "too_large", str(error))
        elif isinstance(error, sa.exc.DBAPIError | OSError | JournalClosed):
            refusal = IntakeError(503, "not_durable", f"the batch could not be made durable: {error}", 5)
        else:
            raise error
        self.signals.metrics[names.EVENT_ERRORS].labels(signal, refusal.reason).inc()
        return refusal


async def _parsed(body: bytes, parse: Callable[[], Parsed]) -> Parsed:
    return parse() if len(body) <= INLINE_BYTES else await asyncio.to_thread(parse)
