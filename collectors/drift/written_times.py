"""Times that one table keeps as text and the other as what they are: CSV files and pandas disagree on them."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from observability.kinds import is_string

_TIME = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?([zZ]|[+-][0-9]{2}(:?[0-9]{2})?)?)?$"
)
_ZONE = r":[0-9.]+([zZ]|[+-][0-9:]+)$"
# Of a day, or a length of time as pandas writes it: "1 days 02:03:04.5".
_CLOCK = (
    r"^(?:(?P<days>-?[0-9]+) days? ?)?\+?(?P<hours>[0-9]{1,2}):(?P<minutes>[0-9]{2})"
    r"(?::(?P<seconds>[0-9]{2}(?:\.[0-9]+)?))?$"
)
# Without a zone: they are in UTC.
_UTC = pa.timestamp("us")


def as_times(values: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Texts in ISO 8601 as timestamps in UTC, null for what is none; without a zone they are taken as UTC."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        values = values.cast(kind.value_type)
    if not is_string(values.type):
        return values
    texts = pc.utf8_trim_whitespace(values.cast(pa.string()))
    texts = pc.if_else(pc.match_substring_regex(texts, _TIME), texts, pa.scalar(None, pa.string()))
    zoned = pc.match_substring_regex(texts, _ZONE)
    nothing = pa.scalar(None, pa.string())
    with_zone, without = pc.if_else(zoned, texts, nothing), pc.if_else(zoned, nothing, texts)
    try:
        zones = (with_zone, pa.timestamp("ns", "UTC")), (without, pa.timestamp("ns"))
        return pc.coalesce(*(some.cast(kind).cast(_UTC, safe=False) for some, kind in zones))
    except pa.ArrowInvalid:
        # A 31st of February, or the year 9999: looked at one by one.
        each = [_moment(text) for text in texts.to_pylist()]
        found = pa.array(each, _UTC)
        return pa.chunked_array([found]) if isinstance(values, pa.ChunkedArray) else found


def are_times(values: pa.ChunkedArray | pa.Array) -> bool:
    """Whether some of the texts are times."""
    times = as_times(values)
    return int(times.null_count) < len(times)


def clock_seconds(texts: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Times of day and lengths of time as seconds, null for what is neither."""
    found = pc.extract_regex(texts, _CLOCK)
    days, hours, minutes, seconds = (
        pc.if_else(pc.equal(field, ""), "0", field).cast(pa.float64())
        for field in (pc.struct_field(found, name) for name in ("days", "hours", "minutes", "seconds"))
    )
    hours = pc.add(pc.multiply(days, 24.0), hours)
    return pc.add(pc.multiply(pc.add(pc.multiply(hours, 60.0), minutes), 60.0), seconds)


def _moment(text: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
