"""Spans and log records in SQL, for as long as they are kept; traces in Jaeger's JSON."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import msgspec
import sqlalchemy as sa

from collectors.database import LOGS, SPANS, insert_new
from collectors.journal import Journal
from collectors.otlp import Rejected, attributes_of, plain_value

NANOSECONDS = 1_000_000_000
_KINDS = ("unspecified", "internal", "server", "client", "producer", "consumer")


class SpanStore:
    """Spans and logs, written through the journal: durable when the future resolves."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._engine = journal.engine

    def add_spans(self, rows: list[dict[str, Any]]) -> Future[None]:
        """Keeps spans; one that is known already (a retry) has no second effect."""
        return self._journal.submit(lambda connection: insert_new(connection, SPANS, rows))

    def add_logs(self, rows: list[dict[str, Any]]) -> Future[None]:
        """Keeps log records."""
        return self._journal.submit(lambda connection: connection.execute(LOGS.insert(), rows) if rows else None)

    def prune(self, before: float) -> None:
        """Drops spans and logs that began before the unix time `before`."""
        limit = int(before * NANOSECONDS)

        def write(connection: sa.Connection) -> None:
            connection.execute(SPANS.delete().where(SPANS.c.start_ns < limit))
            connection.execute(LOGS.delete().where(LOGS.c.time_ns < limit))

        self._journal.submit(write).result()

    def trace(self, trace_id: str) -> dict[str, Any] | None:
        """One trace in Jaeger's JSON; None when it is not known."""
        found = self._traces([trace_id])
        return found[0] if found else None

    def traces(self, service: str | None, limit: int) -> list[dict[str, Any]]:
        """The latest traces, newest first; with `service` those that it took part in."""
        query = sa.select(SPANS.c.trace_id).group_by(SPANS.c.trace_id)
        if service:
            query = query.where(SPANS.c.service == service)
        query = query.order_by(sa.func.max(SPANS.c.start_ns).desc()).limit(limit)
        with self._engine.connect() as connection:
            ids = [row.trace_id for row in connection.execute(query)]
        return self._traces(ids)

    def services(self) -> list[str]:
        """Names of the services that sent spans."""
        with self._engine.connect() as connection:
            return sorted(connection.execute(sa.select(SPANS.c.service).distinct()).scalars())

    def logs(self, limit: int, trace_id: str | None) -> list[dict[str, Any]]:
        """The latest log records, newest first."""
        query = sa.select(LOGS).order_by(LOGS.c.time_ns.desc(), LOGS.c.id.desc()).limit(limit)
        if trace_id:
            query = query.where(LOGS.c.trace_id == trace_id)
        with self._engine.connect() as connection:
            return [_log_json(row) for row in connection.execute(query)]

    def _traces(self, ids: list[str]) -> list[dict[str, Any]]:
        query = sa.select(SPANS).where(SPANS.c.trace_id.in_(ids)).order_by(SPANS.c.start_ns)
        spans: dict[str, list[Any]] = {id_: [] for id_ in ids}
        with self._engine.connect() as connection:
            for row in connection.execute(query):
                spans[row.trace_id].append(row)
        return [_trace_json(id_, rows) for id_, rows in spans.items() if rows]


def span_rows(request: Any) -> tuple[list[dict[str, Any]], Rejected]:
    """Table rows of an `ExportTraceServiceRequest`; spans without proper ids are left out."""
    rows, wrong = [], 0
    for resource in request.resource_spans:
        attributes = attributes_of(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                if len(span.trace_id) != 16 or len(span.span_id) != 8 or not any(span.trace_id):
                    wrong += 1
                    continue
                rows.append(_span_row(span, attributes, scope.scope.name))
    message = f"{wrong} spans have no 16-byte trace id and 8-byte span id" if wrong else ""
    return rows, Rejected(wrong, message)


def log_rows(request: Any) -> tuple[list[dict[str, Any]], Rejected]:
    """Table rows of an `ExportLogsServiceRequest`."""
    rows = []
    for resource in request.resource_logs:
        attributes = attributes_of(resource.resource.attributes)
        for scope in resource.scope_logs:
            rows += [_log_row(record, attributes) for record in scope.log_records]
    return rows, Rejected()


def _span_row(span: Any, resource: dict[str, Any], scope: str) -> dict[str, Any]:
    body = {
        "attributes": attributes_of(span.attributes),
        "events": [
            {"time_ns": event.time_unix_nano, "name": event.name, "attributes": attributes_of(event.attributes)}
            for event in span.events
        ],
        "links": [{"trace_id": link.trace_id.hex(), "span_id": link.span_id.hex()} for link in span.links],
        "status": {"code": span.status.code, "message": span.status.message},
        "resource": resource,
        "scope": scope,
    }
    return {
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent_id": span.parent_span_id.hex(),
        "service": str(resource.get("service.name", "unknown_service"))[:200],
        "name": span.name,
        "kind": span.kind,
        "start_ns": _signed(span.start_time_unix_nano),
        "end_ns": _signed(span.end_time_unix_nano),
        "body": msgspec.json.encode(body),
    }


def _log_row(record: Any, resource: dict[str, Any]) -> dict[str, Any]:
    body = {
        "message": plain_value(record.body),
        "severity_text": record.severity_text,
        "attributes": attributes_of(record.attributes),
        "resource": resource,
    }
    return {
        "time_ns": _signed(record.time_unix_nano or record.observed_time_unix_nano),
        "trace_id": record.trace_id.hex(),
        "span_id": record.span_id.hex(),
        "service": str(resource.get("service.name", "unknown_service"))[:200],
        "severity": record.severity_number,
        "body": msgspec.json.encode(body),
    }


def _signed(nanoseconds: int) -> int:
    """A fixed64 time in the range of SQL's integers."""
    return min(nanoseconds, 2**63 - 1)


def _log_json(row: Any) -> dict[str, Any]:
    body = msgspec.json.decode(row.body)
    return {
        "time": row.time_ns / NANOSECONDS,
        "trace_id": row.trace_id,
        "span_id": row.span_id,
        "service": row.service,
        "severity": body["severity_text"] or str(row.severity),
        "message": body["message"],
        "attributes": body["attributes"],
    }


def _trace_json(trace_id: str, rows: list[Any]) -> dict[str, Any]:
    processes: dict[str, str] = {}
    described: dict[str, Any] = {}
    spans = []
    for row in rows:
        body = msgspec.json.decode(row.body)
        process = processes.setdefault(row.service, f"p{len(processes) + 1}")
        described.setdefault(process, {"serviceName": row.service, "tags": _tags(body["resource"])})
        spans.append(_span_json(row, body, process))
    return {"traceID": trace_id, "spans": spans, "processes": described, "warnings": None}


def _span_json(row: Any, body: dict[str, Any], process: str) -> dict[str, Any]:
    references = [{"refType": "CHILD_OF", "traceID": row.trace_id, "spanID": row.parent_id}] if row.parent_id else []
    references += [
        {"refType": "FOLLOWS_FROM", "traceID": link["trace_id"], "spanID": link["span_id"]} for link in body["links"]
    ]
    extra: dict[str, Any] = {"span.kind": _KINDS[row.kind] if row.kind < len(_KINDS) else str(row.kind)}
    if body["scope"]:
        extra["otel.scope.name"] = body["scope"]
    if body["status"]["code"] == 2:
        extra |= {"error": True, "otel.status_description": body["status"]["message"]}
    return {
        "traceID": row.trace_id,
        "spanID": row.span_id,
        "operationName": row.name,
        "references": references,
        "startTime": row.start_ns // 1000,
        "duration": max(0, row.end_ns - row.start_ns) // 1000,
        "tags": _tags({**body["attributes"], **extra}),
        "logs": [
            {
                "timestamp": event["time_ns"] // 1000,
                "fields": _tags({"event": event["name"], **event["attributes"]}),
            }
            for event in body["events"]
        ],
        "processID": process,
        "warnings": None,
    }


def _tags(attributes: dict[str, Any]) -> list[dict[str, Any]]:
    return [_tag(key, value) for key, value in attributes.items()]


def _tag(key: str, value: Any) -> dict[str, Any]:
    for kind, python in (("bool", bool), ("int64", int), ("float64", float), ("string", str)):
        if isinstance(value, python):
            return {"key": key, "type": kind, "value": value}
    return {"key": key, "type": "string", "value": msgspec.json.encode(value).decode()}
