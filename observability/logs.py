"""Structured logs: one JSON object a line, with the ids of the current trace; optionally to OTLP/HTTP as well."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

from opentelemetry.trace import get_current_span

from observability.exporter import BufferedExporter
from observability.metrics import Metrics
from observability.sinks import Batch, HttpSink
from observability.tracing import otlp_url

# What every record has: all else on it came by `extra=`.
_STANDARD = {*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName"}
# OTLP's severity numbers (logs data model, "Severity Fields"), by Python's level.
_SEVERITIES = ((logging.CRITICAL, 21), (logging.ERROR, 17), (logging.WARNING, 13), (logging.INFO, 9), (0, 5))


@dataclass(frozen=True, slots=True)
class LogLine:
    """One log record, ready to be written: time in unix nanoseconds, ids as hex or empty."""

    time_ns: int
    level: str
    severity: int
    logger: str
    message: str
    trace_id: str
    span_id: str
    fields: Mapping[str, Any]

    @staticmethod
    def of(record: logging.LogRecord) -> LogLine:
        context = get_current_span().get_span_context()
        fields = {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        if record.exc_info:
            fields["exception"] = logging.Formatter().formatException(record.exc_info)
        # A hot path has no current span, but may know its trace: extra={"trace_id": …}.
        trace_id = str(fields.pop("trace_id", "") or (f"{context.trace_id:032x}" if context.is_valid else ""))
        span_id = str(fields.pop("span_id", "") or (f"{context.span_id:016x}" if context.is_valid else ""))
        severity = next(number for level, number in _SEVERITIES if record.levelno >= level)
        time_ns = int(record.created * 1e9)
        return LogLine(time_ns, record.levelname, severity, record.name, _message(record), trace_id, span_id, fields)


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: ts, level, logger, service, message, trace_id, span_id, extra fields."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line = LogLine.of(record)
        written: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": line.level.lower(),
            "logger": line.logger,
            "service": self._service,
            "message": line.message,
        }
        if line.trace_id:
            written |= {"trace_id": line.trace_id, "span_id": line.span_id}
        return json.dumps(written | {k: v for k, v in line.fields.items() if k not in written}, default=str)


class _ExportHandler(logging.Handler):
    """Hands records to an exporter, less the exporter's own: a refused log must not make a log."""

    def __init__(self, exporter: BufferedExporter[LogLine]) -> None:
        super().__init__()
        self._exporter = exporter

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith("observability."):
            self._exporter.put(LogLine.of(record))


def setup_logging(
    service: str,
    level: int | str = logging.INFO,
    *,
    stream: TextIO | None = None,
    exporter: BufferedExporter[LogLine] | None = None,
) -> None:
    """Makes the root logger write JSON lines to `stream` (stderr by default), and to `exporter` where one is given.

    Called again it replaces what it set before. Handlers that others installed stay.
    """
    root = logging.getLogger()
    for handler in [*root.handlers]:
        if isinstance(handler, _ExportHandler) or isinstance(handler.formatter, JsonFormatter):
            root.removeHandler(handler)
    written = logging.StreamHandler(stream or sys.stderr)
    written.setFormatter(JsonFormatter(service))
    root.addHandler(written)
    if exporter is not None:
        root.addHandler(_ExportHandler(exporter))
    root.setLevel(level.upper() if isinstance(level, str) else level)


def log_exporter(service: str, endpoint: str, *, metrics: Metrics | None = None) -> BufferedExporter[LogLine]:
    """An exporter of log lines to an OTLP/HTTP endpoint, in OTLP's JSON form."""
    return BufferedExporter(
        HttpSink(otlp_url(endpoint, "logs"), content_type="application/json"),
        signal="logs",
        encode=lambda lines: _otlp(service, lines),
        measure=lambda line: (200 + len(line.message), 1),
        together=lambda first, other: True,
        max_rows=512,
        linger_seconds=0.5,
        metrics=metrics,
    )


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # a wrong format string is the caller's bug, and no reason to lose the line
        return str(record.msg)


def _otlp(service: str, lines: Sequence[LogLine]) -> Batch:
    records = [_otlp_record(line) for line in lines]
    scope = {"scope": {"name": "trimtab"}, "logRecords": records}
    resource = {"attributes": [_otlp_attribute("service.name", service)]}
    body = {"resourceLogs": [{"resource": resource, "scopeLogs": [scope]}]}
    return Batch(json.dumps(body).encode(), len(lines))


def _otlp_record(line: LogLine) -> dict[str, Any]:
    return {
        "timeUnixNano": str(line.time_ns),
        "severityNumber": line.severity,
        "severityText": line.level,
        "body": {"stringValue": line.message},
        "traceId": line.trace_id,
        "spanId": line.span_id,
        "attributes": [
            _otlp_attribute("logger", line.logger),
            *(_otlp_attribute(name, value) for name, value in line.fields.items()),
        ],
    }


def _otlp_attribute(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"key": name, "value": {"boolValue": value}}
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return {"key": name, "value": {"intValue": str(value)}}
    return {"key": name, "value": {"stringValue": str(value)}}
