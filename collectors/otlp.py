"""OTLP/HTTP bodies: protobuf and JSON, gzip within a limit, the answers that the protocol wants.

Follows the OpenTelemetry protocol specification 1.x, "OTLP/HTTP". What the requests mean is in `otlp_metrics` and
`spans`.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from google.protobuf import json_format  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

Signal = Literal["traces", "metrics", "logs"]
PROTOBUF, JSON = "application/x-protobuf", "application/json"

_REQUESTS: dict[str, type[Message]] = {
    "traces": ExportTraceServiceRequest,
    "metrics": ExportMetricsServiceRequest,
    "logs": ExportLogsServiceRequest,
}
_RESPONSES: dict[str, type[Message]] = {
    "traces": ExportTraceServiceResponse,
    "metrics": ExportMetricsServiceResponse,
    "logs": ExportLogsServiceResponse,
}
_REJECTED = {"traces": "rejected_spans", "metrics": "rejected_data_points", "logs": "rejected_log_records"}
_HEX_FIELDS = frozenset({"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"})
# google.rpc.Code by HTTP status, for the body of an error.
_CODES = {400: 3, 413: 8, 415: 3, 429: 8, 500: 13, 503: 14}


class IntakeError(Exception):
    """A request that is refused: the HTTP status, the reason, and after how many seconds to come again."""

    def __init__(self, status: int, reason: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Rejected:
    """What a partial success leaves out, and why. The client does not send it again."""

    count: int = 0
    message: str = ""


def media_type(header: str) -> str:
    """The media type that a request is in and its answer will be in. IntakeError 415 for another."""
    kind = header.split(";")[0].strip().lower()
    if kind not in (PROTOBUF, JSON):
        raise IntakeError(415, "media_type", f"content type {kind!r} is not accepted: send {PROTOBUF} or {JSON}")
    return kind


def decoded(body: bytes, encoding: str, limit: int) -> bytes:
    """The body with its content encoding undone. IntakeError 413 past `limit` bytes, 400 or 415 when it cannot be."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        plain = body
    elif encoding == "gzip":
        plain = _gunzipped(body, limit)
    else:
        raise IntakeError(415, "encoding", f"content encoding {encoding!r} is not accepted: send gzip or none")
    if len(plain) > limit:
        raise IntakeError(413, "too_large", f"the body has more than {limit} bytes: send smaller batches")
    return plain


def _gunzipped(body: bytes, limit: int) -> bytes:
    """At most `limit + 1` bytes of a gzip body, of any number of members: a bomb is never unpacked."""
    plain = b""
    try:
        while body:
            stream = zlib.decompressobj(wbits=31)
            plain += stream.decompress(body, limit + 1 - len(plain))
            if len(plain) > limit:
                return plain
            if not stream.eof:
                raise IntakeError(400, "gzip", "the gzip body ends too early")
            body = stream.unused_data
    except zlib.error as error:
        raise IntakeError(400, "gzip", f"the body is not gzip: {error}") from error
    return plain


def read_request(signal: Signal, kind: str, body: bytes) -> Any:
    """The `Export…ServiceRequest` of a body. IntakeError 400 when it is none."""
    request = _REQUESTS[signal]()
    try:
        if kind == PROTOBUF:
            request.ParseFromString(body)
        else:
            json_format.ParseDict(_hex_as_base64(msgspec.json.decode(body)), request, ignore_unknown_fields=True)
    except (DecodeError, json_format.ParseError, msgspec.DecodeError, ValueError, RecursionError) as error:
        raise IntakeError(400, "unreadable", f"the body is not an OTLP {signal} request in {kind}: {error}") from error
    return request


def response_body(signal: Signal, kind: str, rejected: Rejected) -> bytes:
    """The `Export…ServiceResponse`; `partial_success` is unset when all was taken."""
    response: Any = _RESPONSES[signal]()
    if rejected.count or rejected.message:
        setattr(response.partial_success, _REJECTED[signal], rejected.count)
        response.partial_success.error_message = rejected.message
    return _encoded(response, kind)


def status_body(error: IntakeError, kind: str) -> bytes:
    """The `google.rpc.Status` of an error."""
    return _encoded(Status(code=_CODES.get(error.status, 2), message=str(error)), kind)


def _encoded(message: Message, kind: str) -> bytes:
    if kind == PROTOBUF:
        return bytes(message.SerializeToString())
    return str(json_format.MessageToJson(message, indent=None)).encode()


def _hex_as_base64(value: Any) -> Any:
    """OTLP's JSON has ids in hex where protobuf's JSON has base64, which would decode hex into wrong bytes silently."""
    if isinstance(value, dict):
        return {
            key: _base64(item) if key in _HEX_FIELDS and isinstance(item, str) else _hex_as_base64(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_hex_as_base64(item) for item in value]
    return value


def _base64(text: str) -> str:
    try:
        return base64.b64encode(bytes.fromhex(text)).decode()
    except (ValueError, binascii.Error) as error:
        raise ValueError(f"the id {text!r} is not hexadecimal") from error


def plain_value(value: Any) -> Any:
    """An `AnyValue` as what JSON can hold; bytes become base64."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [plain_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {item.key: plain_value(item.value) for item in value.kvlist_value.values}
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode()
    return getattr(value, kind)


def attributes_of(pairs: Any) -> dict[str, Any]:
    """A list of `KeyValue` as a dict."""
    return {pair.key: plain_value(pair.value) for pair in pairs}
