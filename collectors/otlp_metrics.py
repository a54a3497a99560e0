"""OTLP metrics as Prometheus samples, by the published rules for names, labels and types.

The rules: OpenTelemetry specification, "Prometheus and OpenMetrics compatibility", where Prometheus follows it
(storage/remote/otlptranslator). What they forbid (delta temporality) is left out; the partial success says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, DataPointFlags

from collectors.exponential import explicit_buckets
from collectors.formats import bound_text
from collectors.otlp import Rejected, attributes_of
from collectors.store.values import STALE_NAN, MetricMetadata

UNITS = {
    "d": "days", "h": "hours", "min": "minutes", "s": "seconds", "ms": "milliseconds", "us": "microseconds",
    "ns": "nanoseconds", "By": "bytes", "KiBy": "kibibytes", "MiBy": "mebibytes", "GiBy": "gibibytes",
    "TiBy": "tibibytes", "KBy": "kilobytes", "MBy": "megabytes", "GBy": "gigabytes", "TBy": "terabytes",
    "m": "meters", "V": "volts", "A": "amperes", "J": "joules", "W": "watts", "g": "grams",
    "Cel": "celsius", "Hz": "hertz", "%": "percent", "1": "",
}  # fmt: skip
# OpenMetrics 1.0: attributes that do not fit are left off an exemplar, before its ids are.
MAX_EXEMPLAR_CHARACTERS = 128
PER_UNITS = {"s": "second", "m": "minute", "h": "hour", "d": "day", "w": "week", "mo": "month", "y": "year"}


@dataclass(frozen=True, slots=True)
class Source:
    """One resource: the target in the store, and the labels of its series."""

    target: str
    labels: Mapping[str, str]
    info: Mapping[str, str]
    described: bool
    """Whether `info` says more than who it is."""


@dataclass(slots=True)
class Translated:
    """Samples by (target, time in ms), metadata, exemplars as (series, labels, value, ms), and what was left out."""

    samples: dict[tuple[str, int], list[tuple[dict[str, str], float]]] = field(default_factory=dict)
    metadata: dict[str, MetricMetadata] = field(default_factory=dict)
    exemplars: list[tuple[dict[str, str], dict[str, str], float, int]] = field(default_factory=list)
    rejected_points: int = 0
    reasons: dict[str, None] = field(default_factory=dict)

    @property
    def rejected(self) -> Rejected:
        return Rejected(self.rejected_points, "; ".join(self.reasons))


def translate(request: Any) -> Translated:
    """The samples of an `ExportMetricsServiceRequest`."""
    out = Translated()
    for resource in request.resource_metrics:
        source = source_of(attributes_of(resource.resource.attributes))
        latest = 0
        for scope in resource.scope_metrics:
            labels = {**source.labels, **_scope_labels(scope)}
            for metric in scope.metrics:
                latest = max(latest, _add_metric(out, source.target, labels, metric))
        if latest and source.described:
            info = {"__name__": "target_info", **source.info}
            out.samples.setdefault((source.target, latest), []).append((info, 1.0))
    return out


def source_of(attributes: Mapping[str, Any]) -> Source:
    """`service.namespace/service.name` is the job, `service.instance.id` the instance, the rest `target_info`."""
    name, namespace = attributes.get("service.name", "unknown_service"), attributes.get("service.namespace")
    labels = {"job": f"{namespace}/{name}" if namespace else str(name)}
    if instance := attributes.get("service.instance.id"):
        labels["instance"] = str(instance)
    identifying = ("service.name", "service.namespace", "service.instance.id")
    others = {key: value for key, value in attributes.items() if key not in identifying}
    return Source(f"otlp:{sorted(labels.items())}", labels, {**label_set(others), **labels}, bool(others))


def metric_name(name: str, unit: str, *, monotonic: bool = False, gauge: bool = False) -> str:
    """The Prometheus name of a metric: legal characters, the unit's suffix, `_total` or `_ratio`."""
    tokens = [token for token in re.split(r"[^a-zA-Z0-9:]+", name) if token]
    for suffix in _unit_words(unit):
        if suffix and not _ends_in(tokens, suffix):
            tokens += suffix.split("_")
    if monotonic:
        tokens = [token for token in tokens if token != "total"] + ["total"]
    if gauge and unit == "1":
        tokens = [token for token in tokens if token != "ratio"] + ["ratio"]
    joined = "_".join(tokens)
    return f"_{joined}" if joined[:1].isdigit() else joined


def label_set(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Attributes as labels: legal names, values as text; values of colliding names are joined with `;` in key order."""
    labels: dict[str, list[str]] = {}
    for key in sorted(attributes):
        name = re.sub(r"_+", "_", re.sub(r"[^a-zA-Z0-9_]", "_", key))
        name = f"key_{name.lstrip('_')}" if re.match(r"[0-9]|_(?!_)", name) else name
        labels.setdefault(name, []).append(_text(attributes[key]))
    return {name: ";".join(values) for name, values in labels.items()}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"))


def _unit_word(unit: str, words: Mapping[str, str]) -> str:
    bare = unit.strip()
    if "{" in bare or "}" in bare:  # an annotation: it counts things, and has no unit
        return ""
    word = words.get(bare, bare)
    return "_".join(token for token in re.split(r"[^a-zA-Z0-9]+", word) if token)


def _unit_words(unit: str) -> tuple[str, str]:
    """`meters` and `per_second` of `m/s`."""
    main, _, per = unit.partition("/")
    return _unit_word(main, UNITS), _per_word(per)


def _per_word(unit: str) -> str:
    word = _unit_word(unit, PER_UNITS)
    return f"per_{word}" if word else ""


def _ends_in(tokens: list[str], suffix: str) -> bool:
    """A unit that is in the name already, as the normalisation of Prometheus has it, is not said twice."""
    return suffix in tokens or "_".join(tokens).endswith(f"_{suffix}")


def _scope_labels(metrics: Any) -> dict[str, str]:
    scope = metrics.scope
    attributes = {f"otel_scope_{name}": value for name, value in label_set(attributes_of(scope.attributes)).items()}
    labels = {
        **attributes,
        "otel_scope_name": scope.name,
        "otel_scope_version": scope.version,
        "otel_scope_schema_url": metrics.schema_url,
    }
    return {name: value for name, value in labels.items() if value}


def _add_metric(out: Translated, target: str, labels: Mapping[str, str], metric: Any) -> int:
    """Adds a metric's points; returns the latest time, ms."""
    kind = metric.WhichOneof("data")
    points = getattr(metric, kind).data_points if kind else []
    reason = _refusal(metric, kind)
    if reason:
        out.rejected_points += len(points)
        out.reasons[f"{metric.name}: {reason}"] = None
        return 0
    monotonic = kind == "sum" and metric.sum.is_monotonic
    gauge = kind == "gauge" or (kind == "sum" and not monotonic)
    name = metric_name(metric.name, metric.unit, monotonic=monotonic, gauge=kind == "gauge")
    out.metadata[name] = MetricMetadata(
        "counter" if monotonic else "gauge" if gauge else "summary" if kind == "summary" else "histogram",
        metric.description,
        "_".join(word for word in _unit_words(metric.unit) if word),
    )
    latest = 0
    for point in points:
        t_ms = point.time_unix_nano // 1_000_000
        latest = max(latest, t_ms)
        own = {**label_set(attributes_of(point.attributes)), **labels}
        stale = bool(point.flags & DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK)
        rows = out.samples.setdefault((target, t_ms), [])
        for suffix, extra, value in _values(str(kind), point):
            rows.append(({"__name__": name + suffix, **own, **extra}, STALE_NAN if stale else value))
        if kind != "summary":
            out.exemplars += _exemplars(str(kind), name, own, point)
    return latest


def _refusal(metric: Any, kind: str | None) -> str | None:
    if kind is None:
        return "it has no data"
    if kind in ("sum", "histogram", "exponential_histogram"):
        temporality = getattr(metric, kind).aggregation_temporality
        if temporality != AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE:
            return "only cumulative temporality is stored: set the exporter's preference to cumulative"
    return None


def _values(kind: str, point: Any) -> Iterator[tuple[str, dict[str, str], float]]:
    """(name suffix, labels, value) of the samples of one point."""
    if kind in ("sum", "gauge"):
        yield "", {}, float(point.as_int if point.WhichOneof("value") == "as_int" else point.as_double)
        return
    if kind == "summary":
        for quantile in point.quantile_values:
            yield "", {"quantile": bound_text(quantile.quantile)}, float(quantile.value)
    else:
        yield from _bucket_values(kind, point)
    if kind == "summary" or point.HasField("sum"):
        yield "_sum", {}, float(point.sum)
    yield "_count", {}, float(point.count)


def _bucket_values(kind: str, point: Any) -> Iterator[tuple[str, dict[str, str], float]]:
    if kind == "histogram":
        bounds, counts = list(point.explicit_bounds), list(point.bucket_counts)
    else:
        bounds, counts = explicit_buckets(point)
    total = 0
    for bound, count in zip(bounds, counts, strict=False):
        total += count
        yield "_bucket", {"le": bound_text(bound)}, float(total)
    yield "_bucket", {"le": "+Inf"}, float(point.count)


def _exemplars(
    kind: str, name: str, labels: dict[str, str], point: Any
) -> Iterator[tuple[dict[str, str], dict[str, str], float, int]]:
    for exemplar in point.exemplars:
        value = float(exemplar.as_int if exemplar.WhichOneof("value") == "as_int" else exemplar.as_double)
        series = {"__name__": name, **labels}
        if kind != "sum" and kind != "gauge":
            known = point.explicit_bounds if kind == "histogram" else explicit_buckets(point)[0]
            bounds = [bound for bound in known if value <= bound]
            series = {"__name__": f"{name}_bucket", **labels, "le": bound_text(bounds[0]) if bounds else "+Inf"}
        ids = {"trace_id": exemplar.trace_id.hex(), "span_id": exemplar.span_id.hex()}
        own = {name: text for name, text in ids.items() if text}
        more = {**label_set(attributes_of(exemplar.filtered_attributes)), **own}
        fits = sum(len(name) + len(text) for name, text in more.items()) <= MAX_EXEMPLAR_CHARACTERS
        yield series, more if fits else own, value, exemplar.time_unix_nano // 1_000_000
