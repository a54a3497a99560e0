"""Query results as the JSON of the Prometheus HTTP API: times in seconds, numbers as strings, as Go writes them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import orjson

from collectors.query.engine import Outcome
from collectors.query.frame import Floats, Frame, Ints, LabelSets
from collectors.query.numbers import format_float
from collectors.query.values import Matrix
from collectors.store import Labels

_CHUNK_VALUES = 100_000
_TEMPLATES = 64
# Go's encoder writes these so that the text may stand in HTML.
_HTML = ((b"<", b"\\u003c"), (b">", b"\\u003e"), (b"&", b"\\u0026"))


def seconds(t_ms: int) -> float | int:
    """Unix seconds, whole ones without a fraction."""
    return t_ms // 1000 if t_ms % 1000 == 0 else t_ms / 1000


def sample_text(value: float) -> str:
    """A sample value as Prometheus writes it: plain, or with an exponent when very small or very large."""
    text = repr(value)
    if text.endswith(".0"):
        return text[:-2]
    # Go turns to exponents later than Python does.
    needs_care = "e" in text or "n" in text
    if not needs_care or (0 < abs(value) < 1e-6 or 1e21 <= abs(value) < float("inf")):
        return text
    return format_float(value)


def time_text(t_ms: int) -> bytes:
    """Unix seconds with three decimals, or none for whole seconds."""
    whole, rest = divmod(abs(t_ms), 1000)
    sign = "-" if t_ms < 0 else ""
    return f"{sign}{whole}.{rest:03d}".encode() if rest else f"{sign}{whole}".encode()


def number_texts(values: Floats) -> list[bytes]:
    """The sample values as text, without quotes."""
    if not values.size:
        return []
    written = orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY).replace(b".0,", b",")
    pieces = written[1:-1].split(b",")
    pieces[-1] = pieces[-1].removesuffix(b".0")
    if b"e" in written or b"n" in written:  # exponents, and null for what is not finite
        for index, piece in enumerate(pieces):
            if b"e" in piece or b"n" in piece:
                pieces[index] = sample_text(float(values[index])).encode()
    return pieces


def metric_json(labels: Labels) -> bytes:
    """A label set as a JSON object with its names in order."""
    written = msgspec.json.encode(dict(sorted(labels.items())))
    for plain, escape in _HTML:
        if plain in written:
            written = written.replace(plain, escape)
    return written


def _metrics(labels: LabelSets) -> list[bytes]:
    return labels.kept("json", lambda: [metric_json(own) for own in labels])


def outcome_json(outcome: Outcome) -> bytes:
    """`{"resultType": …, "result": …}`."""
    value, times = outcome.value, outcome.times
    if isinstance(value, str):
        text = msgspec.json.encode(value)
        return b'{"resultType":"string","result":[%b,%b]}' % (time_text(int(times[0])), text)
    if isinstance(value, Matrix):
        return _matrix([_series(metric_json(s.labels), s.t, number_texts(s.v), {}) for s in value])
    if isinstance(value, Frame):
        return _rows(value, times) if outcome.is_range else _vector(value, int(times[0]))
    if outcome.is_range:
        return _matrix([_series(b"{}", times, number_texts(value), {})])
    number = number_texts(value)[0]
    return b'{"resultType":"scalar","result":[%b,"%b"]}' % (time_text(int(times[0])), number)


def _matrix(series: Sequence[bytes]) -> bytes:
    return b'{"resultType":"matrix","result":[' + b",".join(series) + b"]}"


def _series(metric: bytes, times: Ints, numbers: list[bytes], templates: dict[bytes, bytes]) -> bytes:
    key = times.tobytes()
    template = templates.get(key)
    if template is None:
        template = b",".join([b'[%b,"%%b"]' % time_text(t_ms) for t_ms in times.tolist()])
        if len(templates) < _TEMPLATES:
            templates[key] = template
    return b'{"metric":%b,"values":[%b]}' % (metric, template % tuple(numbers))


def _vector(frame: Frame, t_ms: int) -> bytes:
    texts = number_texts(frame.values[:, 0])
    present, metrics = frame.present[:, 0], _metrics(frame.labels)
    template = b'{"metric":%%b,"value":[%b,"%%b"]}' % time_text(t_ms)
    if present.all():
        items = [template % pair for pair in zip(metrics, texts, strict=True)]
    else:
        items = [template % (metrics[row], texts[row]) for row in np.flatnonzero(present).tolist()]
    return b'{"resultType":"vector","result":[' + b",".join(items) + b"]}"


def _rows(frame: Frame, times: Ints) -> bytes:
    """The rows sorted by labels, some at a time so that their texts are not all in memory at once."""
    order, metrics = frame.labels.order(), _metrics(frame.labels)
    whole = np.logical_and.reduce(frame.present, axis=1)
    templates: dict[bytes, bytes] = {}
    found: list[bytes] = []
    size = max(1, _CHUNK_VALUES // max(1, len(times)))
    for begin in range(0, len(order), size):
        chosen = order[begin : begin + size]
        there = frame.present[chosen]
        texts = number_texts(frame.values[chosen][there])
        ends = np.cumsum(there.sum(axis=1)).tolist()
        first = 0
        for row, present, end in zip(chosen.tolist(), there, ends, strict=True):
            own = times if whole[row] else times[present]
            found.append(_series(metrics[row], own, texts[first:end], templates))
            first = end
    return _matrix(found)
