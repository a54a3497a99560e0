"""What a request asks of the queue: its deadline, its unit for sticky routing, its attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from serving.batching.pending import DEFAULT_PRIORITY, LOWEST_PRIORITY
from serving.errors import InvalidRequest
from serving.v2 import InferRequest

_REQUEST_TIMEOUT = b"request-timeout"  # seconds
_DEADLINE_MS = b"x-deadline-ms"  # milliseconds from now


def deadline(request: InferRequest, headers: Mapping[bytes, bytes], arrived: float) -> float | None:
    """The tightest of the parameter `timeout` (µs), `Request-Timeout` (s) and `X-Deadline-Ms`, on `arrived`'s clock."""
    return _deadline(request.parameters.get("timeout"), headers, arrived)


def header_deadline(headers: Mapping[bytes, bytes], arrived: float) -> float | None:
    """The deadline that the headers alone name; the request's own may be earlier."""
    return _deadline(None, headers, arrived)


def _deadline(timeout: Any, headers: Mapping[bytes, bytes], arrived: float) -> float | None:
    if timeout is None and _REQUEST_TIMEOUT not in headers and _DEADLINE_MS not in headers:
        return None
    given = (
        (timeout, 1e-6, "parameter timeout"),
        (headers.get(_REQUEST_TIMEOUT), 1.0, "header Request-Timeout"),
        (headers.get(_DEADLINE_MS), 1e-3, "header X-Deadline-Ms"),
    )
    seconds = [_positive(value, name) * unit for value, unit, name in given if value is not None]
    # Triton's clients send a timeout of 0 for none. In a header 0 is what is left of a deadline that is over.
    if timeout is not None and not seconds[0]:
        del seconds[0]
    return arrived + min(seconds) if seconds else None


def priority(request: InferRequest) -> int:
    """The parameter `priority` as Triton has it: 1 goes first, 0 (or none) is the default, 2; over 8 counts as 8."""
    given = request.parameters.get("priority")
    if not given:
        return DEFAULT_PRIORITY
    if type(given) is not int or given < 0:
        raise InvalidRequest(f"parameter priority is {given!r}; give a whole number, 1 for the first class, 0 for none")
    return min(given, LOWEST_PRIORITY)


def _positive(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0.0 <= number < 1e15:
        raise InvalidRequest(f"{name} is {value!r}; give a number, 0 or more")
    return number


def attributes(request: InferRequest) -> str | None:
    """The client's `attributes` as JSON text: an object, or a string that holds one (all that V2 clients can send)."""
    if request.parameters.get("sequence_id"):
        raise InvalidRequest("sequences are not offered (sequence_id): a request depends on no other")
    given = request.parameters.get("attributes")
    if given is None:
        return None
    if isinstance(given, str):
        try:
            if isinstance(msgspec.json.decode(given), dict):
                return given
        except msgspec.DecodeError:
            pass
    elif isinstance(given, dict):
        return msgspec.json.encode(given).decode()
    raise InvalidRequest("parameter attributes is not a JSON object")


def unit(
    request: InferRequest, sticky: str | None, attributes: str | None, headers: Mapping[bytes, bytes]
) -> str | None:
    """What decides the arm under sticky routing: parameter `sticky`, or what the policy's key names.

    A key `header:NAME` names a request header; others a parameter or a member of the parameter `attributes`.
    """
    if sticky is None:
        return None
    if sticky.startswith("header:"):
        header = headers.get(sticky.removeprefix("header:").lower().encode())
        return None if header is None else header.decode("latin-1")
    value = request.parameters.get("sticky", request.parameters.get(sticky))
    if value is None and attributes is not None:
        value = msgspec.json.decode(attributes).get(sticky)
    return None if value is None else str(value)
