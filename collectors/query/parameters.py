"""The parameters of an API call: from the query string and, with POST, the form; times and durations read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from email import message_from_bytes
from urllib.parse import parse_qsl

from starlette.requests import Request

from collectors.query.errors import ParseError, QueryError
from collectors.query.parse import parse_selector
from collectors.store import Matcher
from observability.durations import duration_ms

# As far as a 64-bit time in nanoseconds goes; clients send such bounds to mean "all".
_FARTHEST_SECONDS = 9.2e15
# The first and the last moment of Prometheus, as its own client writes them.
_ENDS_OF_TIME = {
    "-292273086-05-16T16:47:06Z": round(-_FARTHEST_SECONDS * 1000),
    "292277025-08-18T07:12:54.999999999Z": round(_FARTHEST_SECONDS * 1000),
}
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d([.,]\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)
# As many nanoseconds as a signed 64-bit number holds.
_LONGEST_SECONDS = (2**63 - 1) / 1e9


class Parameters:
    """Named values, each possibly given several times."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            self._values.setdefault(name, []).append(value)

    @staticmethod
    async def of(request: Request) -> Parameters:
        """The request's query string and url-encoded body."""
        pairs = list(request.query_params.multi_items())
        if request.method == "POST":
            kind, body = request.headers.get("content-type", ""), await request.body()
            pairs = (_parts(kind, body) if kind.startswith("multipart/form-data") else _form(body)) + pairs
        return Parameters(pairs)

    def all(self, *names: str) -> list[str]:
        """All values of the names."""
        return [value for name in names for value in self._values.get(name, [])]

    def text(self, name: str, default: str | None = None) -> str:
        """The first value. Raises QueryError (`bad_data`) when there is none and no default."""
        values = self._values.get(name)
        if values:
            return values[0]
        if default is None:
            raise QueryError(f'invalid parameter "{name}": it is missing', "bad_data")
        return default

    def expression(self, name: str) -> str:
        """PromQL. Raises QueryError (`bad_data`) when there is none."""
        text = self.text(name, "")
        if not text.strip():
            raise QueryError(f'invalid parameter "{name}": 1:1: parse error: no expression found in input', "bad_data")
        return text

    def selector(self, name: str) -> tuple[Matcher, ...]:
        """The matchers of a series selector; none when it is not given."""
        text = self.text(name, "")
        try:
            return parse_selector(text) if text else ()
        except ParseError as error:
            raise QueryError(f'invalid parameter "{name}": {error}', "bad_data") from error

    def time_ms(self, name: str, default: int | None = None, *, named: bool = False) -> int:
        """A moment (RFC 3339 or unix seconds) in unix ms. `named`: the error says the name twice, as Prometheus'."""
        values = self._values.get(name)
        if not values or not values[0]:
            if default is None:
                raise QueryError(f'invalid parameter "{name}": cannot parse "" to a valid timestamp', "bad_data")
            return default
        return parse_time_ms(values[0], f"\"{name}\": Invalid time value for '{name}'" if named else f'"{name}"')

    def optional_time_ms(self, name: str) -> int | None:
        """The moment, or None when it is not given."""
        return self.time_ms(name, named=True) if self._values.get(name, [""])[0] else None

    def duration_ms(self, name: str, default: int | None = None) -> int:
        """A duration (`15s` or seconds) in ms."""
        values = self._values.get(name)
        if not values or not values[0]:
            if default is None:
                raise QueryError(f'invalid parameter "{name}": cannot parse "" to a valid duration', "bad_data")
            return default
        return _duration_ms(values[0], name)

    def timeout_seconds(self) -> float | None:
        """How long a query may take; None when the client does not say."""
        return self.duration_ms("timeout", -1) / 1000 if self.text("timeout", "") else None

    def lookback_ms(self) -> int | None:
        """How old a sample may be; None when the client does not say."""
        text = self.text("lookback_delta", "")
        if not text:
            return None
        try:
            return _duration_ms(text, "lookback_delta")
        except QueryError as error:
            reason = str(error).partition(": ")[2]
            raise QueryError(f"error parsing lookback delta duration: {reason}", "bad_data") from error

    def limit(self) -> int | None:
        """A number of items at most, or None when it is not given or 0."""
        text = self.text("limit", "")
        if not text:
            return None
        if not re.fullmatch(r"[+-]?[0-9]+", text):
            message = f'invalid parameter "limit": strconv.Atoi: parsing {quoted(text)}: invalid syntax'
            raise QueryError(message, "bad_data")
        if int(text) < 0:
            raise QueryError('invalid parameter "limit": limit must be non-negative', "bad_data")
        return int(text) or None

    def number(self, name: str, what: str = "a number") -> int | None:
        """A whole number, or None when it is not given."""
        text = self.text(name, "")
        if not text:
            return None
        if not re.fullmatch(r"[+-]?[0-9]+", text):
            raise QueryError(f"{name} must be {what}", "bad_data")
        return int(text)


def _form(body: bytes) -> list[tuple[str, str]]:
    return parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)


def _parts(content_type: str, body: bytes) -> list[tuple[str, str]]:
    """The fields of a body of several parts, as `curl -F` sends one."""
    message = message_from_bytes(b"Content-Type: %b\r\n\r\n%b" % (content_type.encode(), body))
    fields = [part for part in message.walk() if not part.is_multipart()]
    named = [(part.get_param("name", header="content-disposition"), part.get_payload(decode=True)) for part in fields]
    return [(str(name), value.decode("utf-8", "replace")) for name, value in named if name and isinstance(value, bytes)]


def quoted(text: str) -> str:
    """The text in double quotes."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def parse_time_ms(text: str, name: str = '"time"') -> int:
    """Unix seconds or RFC 3339 in unix ms. Raises QueryError (`bad_data`)."""
    number = _seconds(text)
    if math.isfinite(number):
        return round(max(-_FARTHEST_SECONDS, min(_FARTHEST_SECONDS, number)) * 1000)
    if text in _ENDS_OF_TIME:
        return _ENDS_OF_TIME[text]
    try:
        if not _RFC3339.fullmatch(text):
            raise ValueError(text)
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        message = f"invalid parameter {name}: cannot parse {quoted(text)} to a valid timestamp"
        raise QueryError(message, "bad_data") from error
    return round(moment.timestamp() * 1000)


def _seconds(text: str) -> float:
    """The number that the text is, as Go reads one: without spaces. NaN when it is none."""
    try:
        return math.nan if text != text.strip() else float(text)
    except ValueError:
        return math.nan


def _duration_ms(text: str, name: str) -> int:
    number = _seconds(text)
    if abs(number) > _LONGEST_SECONDS:
        message = f'invalid parameter "{name}": cannot parse {quoted(text)} to a valid duration. It overflows int64'
        raise QueryError(message, "bad_data")
    if math.isfinite(number):
        return round(number * 1000)
    try:
        return duration_ms(text)
    except ValueError as error:
        message = f'invalid parameter "{name}": cannot parse {quoted(text)} to a valid duration'
        raise QueryError(message, "bad_data") from error


def bounds(parameters: Parameters) -> Mapping[str, int | None]:
    """`start_ms` and `end_ms` of a metadata call; None where not given."""
    return {"start_ms": parameters.optional_time_ms("start"), "end_ms": parameters.optional_time_ms("end")}
