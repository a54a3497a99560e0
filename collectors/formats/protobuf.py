"""Prometheus' protobuf exposition: length-delimited `io.prometheus.client.MetricFamily` messages.

Classic parts only: buckets of native histograms have no form in the store and are left out.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterator
from math import inf
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from collectors.formats.lines import Layout, LineExemplar, Lines, bound_text
from collectors.formats.wire import BadMessage, varint
from collectors.store.values import MetricMetadata

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _Field.TYPE_STRING, "double": _Field.TYPE_DOUBLE, "uint64": _Field.TYPE_UINT64,
    "int64": _Field.TYPE_INT64, "int32": _Field.TYPE_INT32,
}  # fmt: skip
# message: {field: (number, type)}; `*` in front of a type says that the field is repeated. Enums are read as int32.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "LabelPair": {"name": (1, "string"), "value": (2, "string")},
    "Gauge": {"value": (1, "double")},
    "Timestamp": {"seconds": (1, "int64"), "nanos": (2, "int32")},
    "Exemplar": {"label": (1, "*LabelPair"), "value": (2, "double"), "timestamp": (3, "Timestamp")},
    "Counter": {"value": (1, "double"), "exemplar": (2, "Exemplar")},
    "Quantile": {"quantile": (1, "double"), "value": (2, "double")},
    "Summary": {"sample_count": (1, "uint64"), "sample_sum": (2, "double"), "quantile": (3, "*Quantile")},
    "Untyped": {"value": (1, "double")},
    "Bucket": {
        "cumulative_count": (1, "uint64"), "cumulative_count_float": (4, "double"), "upper_bound": (2, "double"),
        "exemplar": (3, "Exemplar"),
    },
    "Histogram": {
        "sample_count": (1, "uint64"), "sample_count_float": (4, "double"), "sample_sum": (2, "double"),
        "bucket": (3, "*Bucket"),
    },
    "Metric": {
        "label": (1, "*LabelPair"), "gauge": (2, "Gauge"), "counter": (3, "Counter"), "summary": (4, "Summary"),
        "untyped": (5, "Untyped"), "histogram": (7, "Histogram"), "timestamp_ms": (6, "int64"),
    },
    "MetricFamily": {
        "name": (1, "string"), "help": (2, "string"), "type": (3, "int32"), "metric": (4, "*Metric"),
        "unit": (5, "string"),
    },
}  # fmt: skip
_TYPES = ("counter", "gauge", "summary", "unknown", "histogram", "gaugehistogram")
Row = tuple[str, dict[str, str], float, Any]


def read_protobuf(body: bytes, known: Container[Hashable] = (), layout: Layout | None = None) -> Lines:
    """A page of delimited messages. What is wrong is in `error`, with the families before it read."""
    out = Lines()
    position = 0
    while position < len(body):
        try:
            size, start = varint(body, position, len(body))
            if start + size > len(body):
                raise DecodeError(f"a message of {size} bytes is cut off")
            family = METRIC_FAMILY.FromString(body[start : start + size])
        except (BadMessage, DecodeError) as error:
            out.error = f"not a delimited MetricFamily at byte {position}: {error}"
            break
        position = start + size
        _add_family(out, family, known)
    return out


def _message_classes() -> dict[str, Any]:
    """The messages, from the published definition (prometheus/client_model, `metrics.proto`)."""
    file = descriptor_pb2.FileDescriptorProto(name="trimtab/exposition.proto", package="trimtab.exposition")
    file.syntax = "proto3"
    for message_name, members in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for name, (number, kind) in members.items():
            label = _Field.LABEL_REPEATED if kind.startswith("*") else _Field.LABEL_OPTIONAL
            member = message.field.add(name=name, number=number, label=label)
            scalar = _SCALARS.get(kind.removeprefix("*"))
            if scalar is None:
                member.type = _Field.TYPE_MESSAGE
                member.type_name = f".trimtab.exposition.{kind.removeprefix('*')}"
            else:
                member.type = scalar
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    messages = message_factory.GetMessageClassesForFiles([file.name], pool)
    return {name.rsplit(".", 1)[1]: kind for name, kind in messages.items()}


METRIC_FAMILY: Any = _message_classes()["MetricFamily"]


def _add_family(out: Lines, family: Any, known: Container[Hashable]) -> None:
    kind = _TYPES[family.type] if 0 <= family.type < len(_TYPES) else "unknown"
    out.metadata[family.name] = MetricMetadata(kind, family.help, family.unit)
    for metric in family.metric:
        labels = {pair.name: pair.value for pair in metric.label}
        for name, extra, value, exemplar in _rows(family.name, kind, metric):
            key = (name, *labels.items(), *extra.items())
            if key not in known and key not in out.new:
                out.new[key] = {"__name__": name, **labels, **extra}
            index = len(out.keys)
            if metric.timestamp_ms:
                out.times[index] = metric.timestamp_ms
            if exemplar is not None:
                named = {pair.name: pair.value for pair in exemplar.label}
                at = exemplar.timestamp
                t_ms = at.seconds * 1000 + at.nanos // 1_000_000 if exemplar.HasField("timestamp") else None
                out.exemplars.append(LineExemplar(index, named, exemplar.value, t_ms))
            out.keys.append(key)
            out.values.append(value)


def _rows(name: str, kind: str, metric: Any) -> Iterator[Row]:
    """(name, labels, value, exemplar) of the samples of one metric."""
    if kind == "counter":
        yield name, {}, metric.counter.value, _exemplar(metric.counter)
    elif kind == "gauge":
        yield name, {}, metric.gauge.value, None
    elif kind == "summary":
        for quantile in metric.summary.quantile:
            yield name, {"quantile": bound_text(quantile.quantile)}, quantile.value, None
        yield f"{name}_sum", {}, metric.summary.sample_sum, None
        yield f"{name}_count", {}, float(metric.summary.sample_count), None
    elif kind in ("histogram", "gaugehistogram"):
        yield from _histogram_rows(name, metric.histogram)
    else:
        yield name, {}, metric.untyped.value, None


def _histogram_rows(name: str, histogram: Any) -> Iterator[Row]:
    count = histogram.sample_count_float or float(histogram.sample_count)
    last = -inf
    for bucket in histogram.bucket:
        last = bucket.upper_bound
        value = bucket.cumulative_count_float or float(bucket.cumulative_count)
        yield f"{name}_bucket", {"le": bound_text(last)}, value, _exemplar(bucket)
    if last != inf:
        yield f"{name}_bucket", {"le": "+Inf"}, count, None
    yield f"{name}_sum", {}, histogram.sample_sum, None
    yield f"{name}_count", {}, count, None


def _exemplar(message: Any) -> Any:
    return message.exemplar if message.HasField("exemplar") else None
