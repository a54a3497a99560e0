"""Traces in Jaeger's JSON as lines of a table and as the bars of a waterfall. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from observability import names


@dataclass(frozen=True, slots=True)
class TraceRow:
    """A trace as one line of a table: its first span."""

    trace_id: str
    name: str
    service: str
    start: float
    duration: float
    failed: bool
    version: str
    outcome: str
    num_spans: int


def trace_rows(traces: Iterable[Mapping[str, Any]]) -> list[TraceRow]:
    """Traces that failed, newest first, and then the others, slowest first."""
    found = [_trace_row(trace) for trace in traces if trace.get("spans")]
    return sorted(found, key=lambda row: (not row.failed, -row.start if row.failed else -row.duration))


def _trace_row(trace: Mapping[str, Any]) -> TraceRow:
    spans = trace["spans"]
    known = {span["spanID"] for span in spans}
    roots = [span for span in spans if _parent(span) not in known]
    root = min(roots or spans, key=lambda span: span["startTime"])
    tags: dict[str, Any] = {}
    for span in (*spans, root):
        tags |= _tags(span)
    return TraceRow(
        str(trace.get("traceID", root.get("traceID", ""))),
        root["operationName"],
        _service(trace, root),
        root["startTime"] / 1e6,
        max(s["startTime"] + s["duration"] for s in spans) / 1e6 - root["startTime"] / 1e6,
        any(_failed(span) for span in spans),
        _first(tags, "version"),
        _first(tags, "outcome"),
        len(spans),
    )


def waterfall_spans(trace: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The spans of a trace, parents before children, as `charts.waterfall` wants them."""
    spans = sorted(trace["spans"], key=lambda span: span["startTime"])
    known = {span["spanID"] for span in spans}
    begin = min(span["startTime"] for span in spans)
    children: dict[str | None, list[Mapping[str, Any]]] = {}
    for span in spans:
        parent = _parent(span)
        children.setdefault(parent if parent in known else None, []).append(span)
    out: list[dict[str, Any]] = []
    pending = [(span, 0) for span in reversed(children.get(None, []))]
    while pending:
        span, depth = pending.pop()
        detail = "<br>".join(f"{key}: {str(value)[:80]}" for key, value in list(_tags(span).items())[:10])
        out.append(
            {
                "name": span["operationName"],
                "service": _service(trace, span),
                "depth": depth,
                "failed": _failed(span),
                "offset": (span["startTime"] - begin) / 1e6,
                "duration": span["duration"] / 1e6,
                "detail": detail,
            }
        )
        pending += [(child, depth + 1) for child in reversed(children.get(span["spanID"], []))]
    return out


def _tags(span: Mapping[str, Any]) -> dict[str, Any]:
    return {tag["key"]: tag.get("value") for tag in span.get("tags") or ()}


def _parent(span: Mapping[str, Any]) -> str | None:
    references = span.get("references") or ()
    return next((ref["spanID"] for ref in references if ref.get("refType", "CHILD_OF") == "CHILD_OF"), None)


def _service(trace: Mapping[str, Any], span: Mapping[str, Any]) -> str:
    process = (trace.get("processes") or {}).get(span.get("processID"), {})
    return str(process.get("serviceName", ""))


def _failed(span: Mapping[str, Any]) -> bool:
    tags = _tags(span)
    if str(tags.get("error", "")).lower() == "true" or str(tags.get("otel.status_code", "")).upper() == "ERROR":
        return True
    return any(key.endswith("outcome") and value in names.FAULTS for key, value in tags.items())


def _first(tags: Mapping[str, Any], word: str) -> str:
    """The value of the first tag whose name is or ends with the word."""
    return next((str(value) for key, value in tags.items() if key == word or key.endswith(f".{word}")), "")
