"""Which indicator an objective has: its own, or one that it names."""

from __future__ import annotations

import yaml

from alerts.slo.documents import METADATA, Document, Documents
from alerts.slo.indicator import Events, Indicator, Raw, Threshold
from alerts.slo.indicators import INDICATORS, read_indicator
from alerts.slo.nodes import Reader


def read_sli(document: Document) -> dict[str, yaml.Node]:
    """The fields of an SLI; what is wrong with them is reported."""
    fields = document.reader.fields(document.spec, "an SLI's spec", ("description", *INDICATORS))
    chosen = [name for name in INDICATORS if name in fields]
    if len(chosen) != 1:
        where = document.spec or document.node
        document.reader.report(where, f"an SLI needs exactly one of {', '.join(INDICATORS)}")
    return fields


def indicator_source(
    known: Documents, document: Document, inline: yaml.Node | None, ref: yaml.Node | None, where: yaml.Node
) -> tuple[Reader, str, yaml.Node] | None:
    """Whose words and which node say what is measured."""
    reader = document.reader
    if (inline is None) == (ref is None):
        reader.report(where, "give either an indicator or an indicatorRef")
        return None
    if ref is not None:
        name = reader.text(ref, "indicatorRef")
        found = known.find("SLI", name)
        if found is None:
            reader.report(ref, f"there is no SLI named {name!r}: {known.names_of('SLI')}")
            return None
        fields, owner = read_sli(found), found.reader
    else:
        outer = reader.fields(inline, "an indicator", ("metadata", "spec", *INDICATORS))
        reader.fields(outer.get("metadata"), "an indicator's metadata", METADATA)
        fields, owner = outer, reader
        if "spec" in outer:
            fields = reader.fields(outer["spec"], "an indicator's spec", ("description", *INDICATORS))
    chosen = [name for name in INDICATORS if name in fields]
    if len(chosen) != 1:
        if ref is None:
            reader.report(inline or where, f"an indicator needs exactly one of {', '.join(INDICATORS)}")
        return None
    return owner, chosen[0], fields[chosen[0]]


def indicator_of(
    reader: Reader,
    known: Documents,
    source: tuple[Reader, str, yaml.Node],
    fields: dict[str, yaml.Node],
    node: yaml.Node,
    by: tuple[str, ...] | None,
) -> Indicator | None:
    """The indicator with what the objective adds to it."""
    owner, kind, body = source
    op = reader.choice(fields.get("op"), "op", ("lte", "lt", "gte", "gt"))
    value = reader.number(fields.get("value"), "value")
    sources = [document.name for document in known.of_kind("DataSource")]
    found = read_indicator(owner, kind, body, op, value, by, sources)
    if kind == "thresholdMetric":
        if not op or value is None:
            reader.report(node, "an objective of a thresholdMetric needs op (lte, lt, gte or gt) and value")
            return None
    elif isinstance(found, (Events, Raw)) or (isinstance(found, Threshold) and kind != "thresholdMetric"):
        for name in ("op", "value"):
            if name in fields:
                message = f"{name!r} is for a thresholdMetric; the indicator {kind} does not use it"
                reader.report(fields[name], message, "warning")
    return found
