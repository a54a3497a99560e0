"""Spans as OTLP has them in protobuf (opentelemetry/proto/trace/v1), written without protobuf's library.

Its encoder brings fifty modules and 1.5 MB into a process that only sends a few spans a second, and takes as long.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind
from opentelemetry.trace.status import StatusCode

from observability.protobuf import EIGHT, FOUR, VARINT, message, tag, varint

_REMOTE_KNOWN, _REMOTE = 0x100, 0x200
# What stands before the ids of a span's trace, itself and its parent.
_TRACE_ID, _SPAN_ID, _PARENT_ID = b"\x0a\x10", b"\x12\x08", b"\x22\x08"
_PLAIN = (str, int, bool)
_UINT64 = struct.Struct("<Q")
_INT64 = range(-(1 << 63), 1 << 63)


def encode_spans(spans: Iterable[ReadableSpan]) -> bytes:
    """An ExportTraceServiceRequest. Values that OTLP has no type for go as text."""
    grouped: dict[Resource, dict[InstrumentationScope | None, list[bytes]]] = {}
    resource: Resource | None = None
    scope: InstrumentationScope | None = None
    told: list[bytes] | None = None
    for span in spans:
        # Both are hashed by all they hold; those of one tracer are the same objects.
        if told is None or span.resource is not resource or span.instrumentation_scope is not scope:
            resource, scope = span.resource, span.instrumentation_scope
            told = grouped.setdefault(resource, {}).setdefault(scope, [])
        told.append(message(2, _span(span)))
    return b"".join(
        message(1, b"".join((
            message(1, _attributes(1, resource.attributes)),
            *(message(2, _scope(of) + b"".join(told) + _text(3, None if of is None else of.schema_url))
              for of, told in scopes.items()),
            _text(3, resource.schema_url),
        )))
        for resource, scopes in grouped.items()
    )  # fmt: skip


def _scope(scope: InstrumentationScope | None) -> bytes:
    if scope is None:
        return message(1, b"")
    return message(1, _text(1, scope.name) + _text(2, scope.version) + _attributes(3, scope.attributes))


def _span(span: ReadableSpan) -> bytes:
    context, parent = span.get_span_context(), span.parent
    assert context is not None
    state = context.trace_state
    parts = [
        _TRACE_ID, context.trace_id.to_bytes(16),
        _SPAN_ID, context.span_id.to_bytes(8),
        _text(3, ",".join(f"{key}={value}" for key, value in state.items())) if state else b"",
        b"" if parent is None else _PARENT_ID + parent.span_id.to_bytes(8),
        _named(span.name, span.kind),
        _time(7, span.start_time),
        _time(8, span.end_time),
        _attributes(9, span.attributes),
        _number(10, span.dropped_attributes),
    ]  # fmt: skip
    parts += [message(11, _event(event)) for event in span.events]
    parts.append(_number(12, span.dropped_events))
    parts += [message(13, _link(link)) for link in span.links]
    parts += (
        _number(14, span.dropped_links),
        _ended(span.status.status_code, span.status.description),
        _flags(16, parent),
    )
    return b"".join(parts)


@lru_cache(256)
def _named(name: str, kind: SpanKind) -> bytes:
    # OTLP has a kind more: 0 says that it is not known.
    return _text(5, name) + _number(6, kind.value + 1)


def _event(event: Event) -> bytes:
    return b"".join((
        _time(1, event.timestamp), _text(2, event.name), _attributes(3, event.attributes),
        _number(4, event.dropped_attributes),
    ))  # fmt: skip


def _link(link: Link) -> bytes:
    return b"".join((
        message(1, link.context.trace_id.to_bytes(16)), message(2, link.context.span_id.to_bytes(8)),
        _attributes(4, link.attributes), _number(5, link.dropped_attributes), _flags(6, link.context),
    ))  # fmt: skip


@lru_cache(256)
def _ended(code: StatusCode, description: str | None) -> bytes:
    return message(15, _text(2, description) + _number(3, code.value))


def _flags(field: int, of: SpanContext | None) -> bytes:
    """Whether a span is of another process, which is told of a span's parent and of links."""
    return _remote(field, of is not None and of.is_remote)


@cache
def _remote(field: int, remote: bool) -> bytes:
    return tag(field, FOUR) + struct.pack("<I", _REMOTE_KNOWN | (_REMOTE if remote else 0))


def _attributes(field: int, attributes: Mapping[str, Any] | None) -> bytes:
    return b"".join([
        _met(field, key, value) if type(value) in _PLAIN else message(field, _pair(key, value))
        for key, value in (attributes or {}).items() if value is not None
    ])  # fmt: skip


@lru_cache(512, typed=True)
def _met(field: int, key: str, value: str | int | bool) -> bytes:
    """An attribute; most are as in the spans before."""
    return message(field, _pair(key, value))


def _pair(key: str, value: Any) -> bytes:
    return _text(1, key) + message(2, _value(value))


def _value(value: Any) -> bytes:
    """An AnyValue. Its fields are written also where they are zero: which one there is says the type."""
    if type(value) is str:
        return message(1, _utf8(value))
    match value:
        case None:
            return b""
        case bool():
            return tag(2, VARINT) + varint(value)
        case int() if value in _INT64:
            return tag(3, VARINT) + varint(value & (1 << 64) - 1)
        case float():
            return tag(4, EIGHT) + struct.pack("<d", value)
        case bytes():
            return message(7, value)
        case Sequence() if not isinstance(value, str):
            return message(5, b"".join(message(1, _value(one)) for one in value))
        case Mapping():
            return message(6, b"".join(message(1, _pair(str(key), one)) for key, one in value.items()))
    return message(1, _utf8(str(value)))


def _number(field: int, value: int) -> bytes:
    return tag(field, VARINT) + varint(value) if value else b""


def _time(field: int, value: int | None) -> bytes:
    return tag(field, EIGHT) + _UINT64.pack(value) if value else b""


def _text(field: int, value: str | None) -> bytes:
    return message(field, _utf8(value)) if value else b""


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")
