"""Remote write 1.0: `prometheus.WriteRequest` (prompb/remote.proto, types.proto).

Nearly every series of a request is the bytes of its labels and one sample at the end. So the labels' bytes are looked
up as they are, and times and values of all such series are taken from the body as one matrix. What looks different is
read field by field.
"""

from __future__ import annotations

import numpy as np

from collectors.formats.wire import BYTES, FIXED64, VARINT, BadMessage, double, fields, signed, text, varint
from collectors.remote_write.written import Columns, LabelCache, SeriesLabels, Written
from collectors.store.values import Exemplar, MetricMetadata

_METADATA = 3
_TYPES = (
    "unknown", "counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset",
)  # fmt: skip
# The last bytes of a series with one sample: its value, and a time between 1971 and 2109 in six bytes. A value of zero
# is not sent.
_TAIL, _HEAD = 18, b"\x12\x10\x09"
_ZERO_TAIL, _ZERO_HEAD = 9, b"\x12\x07\x10"
_SHIFTS = np.arange(6, dtype=np.int64) * 7


def read_v1(body: bytes, cache: LabelCache) -> Written:
    """Reads a request. BadMessage when it is none."""
    return _read(body, cache, quick=True) or _read(body, cache, quick=False) or Written()


def _read(body: bytes, cache: LabelCache, *, quick: bool) -> Written | None:
    """The request; None when something that looked like a usual sample is none, which happens only with `quick`."""
    written, others = Written(), Columns()
    known, looks_like = cache.known, body.startswith
    labels: list[SeriesLabels] = []
    ends: list[int] = []
    zeros: list[int] = []
    position, size = 0, len(body)
    while position < size:
        if body[position] != 0x0A:
            position = _other_field(body, position, written)
            continue
        length = body[position + 1] if position + 1 < size else 0x80
        start = position + 2
        if length >= 0x80:
            length, start = varint(body, position + 1, size)
        end = start + length
        if end > size:
            raise BadMessage(f"a series at byte {position} is cut off")
        position = end
        if quick and length > _TAIL:
            cut = end - _TAIL
            is_zero = not looks_like(_HEAD, cut)
            if is_zero:
                cut = end - _ZERO_TAIL
            if not is_zero or looks_like(_ZERO_HEAD, cut):
                key = body[start:cut]
                found = known.get(key) or _labels_only(key, cache)
                if found is not None:
                    if is_zero:
                        zeros.append(len(ends))
                    labels.append(found)
                    ends.append(end)
                    continue
        _series(body, start, end, cache, written, others)
    if ends and not _tails(body, ends, zeros, written):
        return None
    written.labels = labels
    others.into(written)
    return written


def _tails(body: bytes, ends: list[int], zeros: list[int], written: Written) -> bool:
    """Takes times and values of the samples that end at these offsets; False when one is not what it looked like."""
    octets = np.frombuffer(body, np.uint8)
    last = np.array(ends, np.int64)[:, None]
    moments = octets[last - np.arange(6, 0, -1)]
    ok = bool((moments[:, :5] >= 0x80).all() and (moments[:, 5] < 0x80).all() and (octets[last - 7] == 0x10).all())
    written.times = ((moments.astype(np.int64) & 0x7F) << _SHIFTS).sum(axis=1)
    written.values = np.ascontiguousarray(octets[last - np.arange(15, 7, -1)]).view("<f8")[:, 0].astype(np.float64)
    written.values[zeros] = 0.0
    return ok


def _labels_only(key: bytes, cache: LabelCache) -> SeriesLabels | None:
    """The label set of bytes that are labels and nothing else; None when they are not, or not a valid set."""
    position = 0
    while position < len(key):
        if key[position] != 0x0A:
            return None
        length, start = varint(key, position + 1, len(key))
        position = start + length
    if position != len(key):
        return None
    found = cache.labels(key, lambda: _pairs(key))
    return None if isinstance(found, str) else found


def _pairs(key: bytes) -> list[tuple[str, str]]:
    return [_pair(key, start, end) for _, _, start, end in fields(key, 0, len(key))]


def _pair(body: bytes, start: int, end: int) -> tuple[str, str]:
    name = value = ""
    for number, kind, first, last in fields(body, start, end):
        if number == 1 and kind == BYTES:
            name = text(body, first, last)
        elif number == 2 and kind == BYTES:
            value = text(body, first, last)
    return name, value


def _series(body: bytes, start: int, end: int, cache: LabelCache, written: Written, out: Columns) -> None:
    """A series of any shape."""
    spans: list[bytes] = []
    samples: list[tuple[int, float]] = []
    exemplars: list[tuple[dict[str, str], float, int]] = []
    for number, kind, first, last in fields(body, start, end):
        if kind != BYTES:
            continue
        if number == 1:
            spans.append(_tagged(body, first, last))
        elif number == 2:
            samples.append(_sample(body, first, last))
        elif number == 3:
            exemplars.append(_exemplar(body, first, last))
        elif number == 4:
            written.histograms += 1
    key = b"".join(spans)
    labels = cache.labels(key, lambda: _pairs(key))
    if isinstance(labels, str):
        written.invalid[labels] = None
        written.invalid_samples += len(samples)
        return
    for t_ms, value in samples:
        out.add(labels, t_ms, value)
    written.exemplars += [Exemplar(labels, own, value, t_ms) for own, value, t_ms in exemplars]


def _tagged(body: bytes, first: int, last: int) -> bytes:
    """A label as the field that it is, so that the key is that of the quick way."""
    length, head = last - first, bytearray(b"\x0a")
    while length >= 0x80:
        head.append((length & 0x7F) | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + body[first:last]


def _sample(body: bytes, start: int, end: int) -> tuple[int, float]:
    t_ms, value = 0, 0.0
    for number, kind, first, _ in fields(body, start, end):
        if number == 1 and kind == FIXED64:
            value = double(body, first)
        elif number == 2 and kind == VARINT:
            t_ms = signed(first)
    return t_ms, value


def _exemplar(body: bytes, start: int, end: int) -> tuple[dict[str, str], float, int]:
    labels: dict[str, str] = {}
    value, t_ms = 0.0, 0
    for number, kind, first, last in fields(body, start, end):
        if number == 1 and kind == BYTES:
            name, text_value = _pair(body, first, last)
            labels[name] = text_value
        elif number == 2 and kind == FIXED64:
            value = double(body, first)
        elif number == 3 and kind == VARINT:
            t_ms = signed(first)
    return labels, value, t_ms


def _other_field(body: bytes, position: int, written: Written) -> int:
    """Reads metadata, skips what is unknown; returns where it ends."""
    number, kind, first, last = next(fields(body, position, len(body)))
    if number == _METADATA and kind == BYTES:
        _metadata(body, first, last, written)
    return last


def _metadata(body: bytes, start: int, end: int, written: Written) -> None:
    kind_number, name, help_text, unit = 0, "", "", ""
    for number, kind, first, last in fields(body, start, end):
        if number == 1 and kind == VARINT:
            kind_number = first
        elif number == 2 and kind == BYTES:
            name = text(body, first, last)
        elif number == 4 and kind == BYTES:
            help_text = text(body, first, last)
        elif number == 5 and kind == BYTES:
            unit = text(body, first, last)
    kind_name = _TYPES[kind_number] if kind_number < len(_TYPES) else "unknown"
    written.metadata[name] = MetricMetadata(kind_name, help_text, unit)
