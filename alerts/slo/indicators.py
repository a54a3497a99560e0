"""What stands under `indicator`: OpenSLO's ratioMetric and thresholdMetric, and our own short words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import yaml

from alerts.slo import presets
from alerts.slo.indicator import Events, Indicator, Operator, Raw, Threshold
from alerts.slo.nodes import Reader
from alerts.slo.windowed import Counted, counted
from collectors.query import QueryError, parse

INDICATORS = ("ratioMetric", "thresholdMetric", "availability", "latency", "freshness", "quality", "drift", "training")
_RATIO = ("counter", "good", "bad", "total", "rawType", "raw")


def read_indicator(
    reader: Reader,
    kind: str,
    node: yaml.Node,
    op: str,
    value: float | None,
    by: tuple[str, ...] | None,
    sources: Sequence[str],
) -> Indicator | None:
    """The indicator, None where it cannot be read; `by` are the labels to keep, `sources` the known DataSources."""
    if kind == "ratioMetric":
        return _ratio(reader, node, by or (), sources)
    if kind == "thresholdMetric":
        fields = reader.fields(node, "thresholdMetric", ("metricSource",))
        query = _query(reader, fields.get("metricSource"), node, sources)
        if query is None or not _parses(reader, fields["metricSource"], query) or not op or value is None:
            return None
        return Threshold(_grouped(query, op, by), op, value)  # type: ignore[arg-type]
    try:
        return _WORDS[kind](reader, node, by)
    except ValueError as error:
        reader.report(node, f"{kind}: {error}")
        return None


def _ratio(reader: Reader, node: yaml.Node, by: tuple[str, ...], sources: Sequence[str]) -> Indicator | None:
    fields = reader.fields(node, "ratioMetric", _RATIO)
    queries: dict[str, str | None] = {}
    for name in ("good", "bad", "total", "raw"):
        if name in fields:
            inner = reader.fields(fields[name], name, ("metricSource",))
            queries[name] = _query(reader, inner.get("metricSource"), fields[name], sources)
    if "raw" in queries:
        if len(queries) > 1:
            reader.report(fields["raw"], "raw cannot stand beside good, bad or total: give one or the other")
            return None
        kind = reader.choice(fields.get("rawType"), "rawType", ("success", "failure"))
        if not kind:
            reader.report(node, "raw needs rawType: success (good / total) or failure (bad / total)")
            return None
        query = queries["raw"]
        if query is None or not _parses(reader, fields["raw"], query):
            return None
        return Raw(query, failures=kind == "failure")
    if "rawType" in fields:
        reader.report(fields["rawType"], "rawType is for raw; remove it")
    if "total" not in queries or ("good" in queries) == ("bad" in queries):
        reader.report(node, "a ratioMetric needs total and either good or bad (or raw with rawType)")
        return None
    counter = reader.flag(fields.get("counter"), "counter", True)
    read: dict[str, Counted] = {}
    for name, query in queries.items():
        if query is None:
            return None
        try:
            read[name] = counted(query, counter=counter)
        except ValueError as error:
            reader.report(fields[name], f"{name}: {error}")
    if len(read) < 2:
        return None
    return Events(total=read["total"], bad=read.get("bad"), good=read.get("good"), by=by)


def _query(reader: Reader, source: yaml.Node | None, where: yaml.Node, sources: Sequence[str]) -> str | None:
    fields = reader.fields(source, "metricSource", ("metricSourceRef", "type", "spec"))
    kind = reader.text(fields.get("type"), "type", "Prometheus")
    if kind.lower() != "prometheus":
        reader.report(fields["type"], f"only metric sources of type Prometheus can be read, got {kind!r}")
        return None
    if "metricSourceRef" in fields and "type" not in fields:
        ref = reader.text(fields["metricSourceRef"], "metricSourceRef")
        if ref not in sources:
            message = f"there is no DataSource named {ref!r} in these files: it is taken for a Prometheus"
            reader.report(fields["metricSourceRef"], message, "warning")
    spec = reader.fields(fields.get("spec"), "metricSource.spec", ("query", "promql", "queryType"))
    texts = [name for name in ("query", "promql") if name in spec]
    if len(texts) != 1:
        reader.report(fields.get("spec", where), "metricSource.spec needs a query, in PromQL")
        return None
    query = reader.text(spec[texts[0]], "query").strip()
    if not query:
        reader.report(spec[texts[0]], "the query is empty")
    return query or None


def _parses(reader: Reader, node: yaml.Node, query: str) -> bool:
    try:
        parse(query)
    except QueryError as error:
        reader.report(node, f"not PromQL: {query!r}: {error}")
        return False
    return True


def _grouped(query: str, op: str, by: tuple[str, ...] | None) -> str:
    """The worst value of each group."""
    if not by:
        return query
    worst = "max" if op in ("lte", "lt") else "min"
    return f"{worst} by ({', '.join(by)}) ({query})"


# --- our own words ---------------------------------------------------------------------------------------------------
def _who(reader: Reader, fields: dict[str, yaml.Node]) -> dict[str, str]:
    return {name: reader.text(fields[name], name) for name in ("model", "version") if name in fields}


def _availability(reader: Reader, node: yaml.Node, by: tuple[str, ...] | None) -> Indicator:
    fields = reader.fields(node, "availability", ("model", "version"))
    who = _who(reader, fields)
    return presets.requests(**who, by=by or _labels(who))


def _latency(reader: Reader, node: yaml.Node, by: tuple[str, ...] | None) -> Indicator | None:
    fields = reader.fields(node, "latency", ("model", "version", "threshold"))
    seconds = _span(reader, fields.get("threshold"), "threshold")
    if seconds is None:
        if "threshold" not in fields:
            reader.report(node, "latency needs a threshold, like 250ms")
        return None
    who = _who(reader, fields)
    return presets.in_time(seconds, **who, by=by or _labels(who))


def _freshness(reader: Reader, node: yaml.Node, by: tuple[str, ...] | None) -> Indicator | None:
    fields = reader.fields(node, "freshness", ("model", "maximumAge"))
    age = _span(reader, fields.get("maximumAge"), "maximumAge")
    if "maximumAge" in fields and age is None:
        return None
    return presets.fresh(model=reader.text(fields.get("model"), "model"), maximum_age_seconds=age)


def _quality(reader: Reader, node: yaml.Node, by: tuple[str, ...] | None) -> Indicator | None:
    fields = reader.fields(node, "quality", ("model", "version", "score", "minimum", "maximum", "minimumRows"))
    bounds = [name for name in ("minimum", "maximum") if name in fields]
    if "score" not in fields or len(bounds) != 1:
        reader.report(node, "quality needs a score (like roc_auc) and either its minimum or its maximum")
        return None
    value = reader.number(fields[bounds[0]], bounds[0])
    rows = reader.number(fields.get("minimumRows"), "minimumRows")
    if value is None:
        return None
    op: Operator = "gte" if bounds[0] == "minimum" else "lte"
    score = reader.text(fields["score"], "score")
    who = _who(reader, fields)
    return presets.scored(
        score,
        op,
        value,
        model=who.get("model", ""),
        version=who.get("version", ""),
        minimum_rows=100 if rows is None else rows,
    )


def _drift(reader: Reader, node: yaml.Node, by: tuple[str, ...] | None) -> Indicator | None:
    fields = reader.fields(node, "drift", ("model", "version", "maximumShare", "minimumRows"))
    options: dict[str, float] = {}
    for name, option in (("maximumShare", "maximum_share"), ("minimumRows", "minimum_rows")):
        number = reader.number(fields.get(name), name)
        if number is not None:
            options[option] = number
    if not 0.0 <= options.get("maximum_share", 0.0) <= 1.0:
        reader.report(fields["maximumShare"], "maximumShare is a share of the feature columns: from 0 to 1")
        return None
    who = _who(reader, fields)
    return presets.undrifted(model=who.get("model", ""), version=who.get("version", ""), **options)


def _training(reader: Reader, node: yaml.Node, by: tuple[str, ...] | None) -> Indicator:
    fields = reader.fields(node, "training", ("model",))
    return presets.finite_steps(model=reader.text(fields.get("model"), "model"))


def _labels(who: dict[str, str]) -> tuple[str, ...]:
    return ("model", "version") if "version" in who else presets.BY_MODEL


def _span(reader: Reader, node: yaml.Node | None, what: str) -> float | None:
    """A duration, or a number of seconds."""
    if node is None:
        return None
    text = reader.text(node, what)
    if text.replace(".", "", 1).isdigit():
        return reader.number(node, what)
    return reader.seconds(node, what)


_WORDS: dict[str, Callable[[Reader, yaml.Node, tuple[str, ...] | None], Indicator | None]] = {
    "availability": _availability,
    "latency": _latency,
    "freshness": _freshness,
    "quality": _quality,
    "drift": _drift,
    "training": _training,
}
