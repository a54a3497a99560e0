"""Remote write 2.0: `io.prometheus.write.v2.Request` (prompb/io/prometheus/write/v2/types.proto), at 2.0-rc.4."""

from __future__ import annotations

from collectors.formats.wire import BYTES, FIXED64, VARINT, BadMessage, double, fields, packed, signed, text
from collectors.remote_write.written import Columns, LabelCache, Written
from collectors.store.values import Exemplar, MetricMetadata

_SYMBOLS, _SERIES = 4, 5
_TYPES = ("unknown", "counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset")
_PARTS = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
Offsets = tuple[int, int, int]


def read_v2(body: bytes, cache: LabelCache) -> Written:
    """Reads a request. BadMessage when it is none."""
    written, out = Written(), Columns()
    symbols: list[str] = []
    series: list[tuple[int, int]] = []
    for number, kind, first, last in fields(body, 0, len(body)):
        if number == _SYMBOLS and kind == BYTES:
            symbols.append(text(body, first, last))
        elif number == _SERIES and kind == BYTES:
            series.append((first, last))
    if series and (not symbols or symbols[0]):
        raise BadMessage("the symbols do not begin with an empty one")
    for first, last in series:
        _series(body, first, last, symbols, cache, written, out)
    out.into(written)
    return written


def _series(
    body: bytes, start: int, end: int, symbols: list[str], cache: LabelCache, written: Written, out: Columns
) -> None:
    references: list[int] = []
    samples: list[tuple[int, float]] = []
    exemplars: list[tuple[int, int]] = []
    histograms, described = 0, (0, 0)
    for number, kind, first, last in fields(body, start, end):
        if number == 1:
            references += packed(body, kind, first, last)
        elif kind != BYTES:
            continue
        elif number == 2:
            samples.append(_sample(body, first, last))
        elif number == 3:
            histograms += 1
        elif number == 4:
            exemplars.append((first, last))
        elif number == 5:
            described = (first, last)
    written.histograms += histograms
    pairs = _pairs(references, symbols)
    labels = cache.labels(tuple(pairs), lambda: pairs)
    if isinstance(labels, str):
        written.invalid[labels] = None
        written.invalid_samples += len(samples)
        return
    if not samples and not histograms:
        written.invalid[f"TimeSeries must contain at least one sample or histogram for series {dict(labels)}"] = None
    for t_ms, value in samples:
        out.add(labels, t_ms, value)
    for first, last in exemplars:
        own, value, t_ms = _exemplar(body, first, last, symbols)
        written.exemplars.append(Exemplar(labels, own, value, t_ms))
    if described[1] > described[0]:
        found = _metadata(body, *described, symbols)
        written.metadata[_family(labels["__name__"], found.type)] = found


def _pairs(references: list[int], symbols: list[str]) -> list[tuple[str, str]]:
    if len(references) % 2 or (references and max(references) >= len(symbols)):
        raise BadMessage(f"label references {references} do not fit the {len(symbols)} symbols")
    texts = [symbols[reference] for reference in references]
    return list(zip(texts[::2], texts[1::2], strict=True))


def _sample(body: bytes, start: int, end: int) -> tuple[int, float]:
    t_ms, value = 0, 0.0
    for number, kind, first, _ in fields(body, start, end):
        if number == 1 and kind == FIXED64:
            value = double(body, first)
        elif number == 2 and kind == VARINT:
            t_ms = signed(first)
    return t_ms, value


def _exemplar(body: bytes, start: int, end: int, symbols: list[str]) -> tuple[dict[str, str], float, int]:
    references: list[int] = []
    value, t_ms = 0.0, 0
    for number, kind, first, last in fields(body, start, end):
        if number == 1:
            references += packed(body, kind, first, last)
        elif number == 2 and kind == FIXED64:
            value = double(body, first)
        elif number == 3 and kind == VARINT:
            t_ms = signed(first)
    return dict(_pairs(references, symbols)), value, t_ms


def _metadata(body: bytes, start: int, end: int, symbols: list[str]) -> MetricMetadata:
    found = {1: 0, 3: 0, 4: 0}
    for number, kind, first, _ in fields(body, start, end):
        if number in found and kind == VARINT:
            found[number] = first
    if max(found[3], found[4]) >= len(symbols):
        raise BadMessage(f"metadata references {found[3]} and {found[4]} do not fit the {len(symbols)} symbols")
    kind_name = _TYPES[found[1]] if found[1] < len(_TYPES) else "unknown"
    return MetricMetadata(kind_name, symbols[found[3]], symbols[found[4]])


def _family(metric: str, kind: str) -> str:
    """The family of a series: the parts of histograms and summaries have a name of their own."""
    for part in _PARTS.get(kind, ()):
        if metric.endswith(part):
            return metric.removesuffix(part)
    return metric
