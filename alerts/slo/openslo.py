"""`slo.yaml`: objectives in OpenSLO v1's terms, with short words of our own for the indicators of models.

Several documents and files are one set: an SLO may name an SLI, an AlertPolicy or an AlertCondition of any of them.
Reading is strict. What cannot be honoured is an error or, where nothing is lost by leaving it out, a warning.
(https://github.com/OpenSLO/OpenSLO#specification)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from alerts.rules import Problem, RuleError
from alerts.slo.indicator import Events, Indicator, Raw, Threshold
from alerts.slo.indicators import INDICATORS, read_indicator
from alerts.slo.nodes import Reader, read_text
from alerts.slo.objective import ABSENCES, METHODS, BurnAlert, Objective, warnings
from alerts.slo.timewindow import read_period

VERSIONS = ("openslo/v1", "trimtab/v1")
KINDS = ("SLO", "SLI", "Service", "DataSource", "AlertPolicy", "AlertCondition", "AlertNotificationTarget")
# What OpenSLO has no field for: metadata.annotations, with this prefix.
ANNOTATIONS = ("by", "minimum-events", "minimum-bad-events", "absent-alert", "runbook-url")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?\Z")
_TOP = ("apiVersion", "kind", "metadata", "spec")
_METADATA = ("name", "displayName", "labels", "annotations")
_SLO = (
    "description", "service", "indicator", "indicatorRef", "timeWindow", "budgetingMethod", "objectives",
    "alertPolicies",
)  # fmt: skip
_OBJECTIVE = (
    "displayName", "op", "value", "target", "targetPercent", "timeSliceTarget", "timeSliceWindow", "indicator",
    "indicatorRef", "compositeWeight",
)  # fmt: skip
_POLICY = (
    "description", "alertWhenNoData", "alertWhenResolved", "alertWhenBreaching", "conditions", "notificationTargets",
)  # fmt: skip
_CONDITION = ("kind", "op", "threshold", "lookbackWindow", "alertAfter")


@dataclass(slots=True)
class _Document:
    reader: Reader
    node: yaml.Node
    kind: str
    name: str
    title: str
    labels: dict[str, str]
    annotations: dict[str, tuple[str, yaml.Node]]
    spec: yaml.Node | None


@dataclass(slots=True)
class _Policy:
    """What alert policies ask for; `burn` None leaves the workbook's alerts."""

    burn: list[BurnAlert] | None = None
    no_data: bool | None = None


@dataclass(slots=True)
class _Set:
    documents: dict[tuple[str, str], _Document] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def find(self, kind: str, name: str) -> _Document | None:
        return self.documents.get((kind, name))

    def known(self, kind: str) -> str:
        names = [name for of, name in self.documents if of == kind]
        return f"known are {', '.join(names)}" if names else f"there is no kind: {kind} in these files"


def load(paths: Iterable[str | Path]) -> list[Objective]:
    """The objectives of the files. Raises RuleError with every problem, each with file and line."""
    objectives, problems = read(paths)
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        raise RuleError(errors)
    return objectives


def read(paths: Iterable[str | Path]) -> tuple[list[Objective], list[Problem]]:
    """The objectives that could be read, and what is wrong or unwise, in the order of the files."""
    known = _Set()
    readers = []
    for path in map(Path, paths):
        reader = Reader(path)
        readers.append(reader)
        for node in reader.documents(read_text(path, reader)):
            _collect(known, reader, node)
    objectives: list[Objective] = []
    names: dict[str, _Document] = {}
    for document in known.documents.values():
        if document.kind == "SLO":
            for chosen in _slo(known, document):
                if chosen.name in names:
                    document.reader.report(document.node, f"two objectives are named {chosen.name!r}")
                names[chosen.name] = document
                objectives.append(chosen)
        elif document.kind == "SLI":
            _sli(known, document)
        elif document.kind in ("AlertPolicy", "AlertCondition"):
            _checked(known, document)
    found = [problem for reader in readers for problem in dict.fromkeys(sorted(reader.problems, key=lambda p: p.line))]
    if not found and not objectives and readers:
        found = [Problem(readers[0].path, 0, "error", "there is no kind: SLO in the file, so there is no objective")]
    return objectives, found


def _collect(known: _Set, reader: Reader, node: yaml.Node) -> None:
    fields = reader.fields(node, "a document", _TOP)
    if not isinstance(node, yaml.MappingNode):
        return
    version = reader.text(fields.get("apiVersion"), "apiVersion")
    if version not in VERSIONS:
        wrong = f"got {version!r}" if version else "it is missing"
        reader.report(fields.get("apiVersion", node), f"apiVersion must be {' or '.join(VERSIONS)}: {wrong}")
    kind = reader.choice(fields.get("kind"), "kind", KINDS)
    if "kind" not in fields:
        reader.report(node, f"a document needs a kind: one of {', '.join(KINDS)}")
    metadata = reader.fields(fields.get("metadata"), "metadata", _METADATA)
    name = reader.text(metadata.get("name"), "metadata.name")
    if not name:
        reader.report(fields.get("metadata", node), "a document needs metadata.name")
    elif not _NAME.match(name) or len(name) > 63:
        message = f"{name!r} is not a name: lower-case letters, digits and '-', at most 63, no '-' at either end"
        reader.report(metadata["name"], message)
    labels: dict[str, str] = {}
    for label, (value, _) in reader.pairs(metadata.get("labels"), "metadata.labels").items():
        labels[re.sub(r"[^a-zA-Z0-9_]", "_", label)] = value
    if not kind or not name:
        return
    if (kind, name) in known.documents:
        reader.report(metadata["name"], f"kind {kind} named {name!r} is there twice")
        return
    document = _Document(
        reader=reader,
        node=node,
        kind=kind,
        name=name,
        title=reader.text(metadata.get("displayName"), "metadata.displayName"),
        labels=labels,
        annotations=reader.pairs(metadata.get("annotations"), "metadata.annotations"),
        spec=fields.get("spec"),
    )
    if document.spec is None and kind != "Service":
        reader.report(node, f"kind {kind} needs a spec")
    if kind == "DataSource":
        source = reader.fields(document.spec, "a DataSource's spec", ("description", "type", "connectionDetails"))
        if "type" in source and reader.text(source["type"], "type").lower() != "prometheus":
            reader.report(source["type"], "only data sources of type Prometheus can be read")
    known.documents[kind, name] = document


def _sli(known: _Set, document: _Document) -> dict[str, yaml.Node]:
    fields = document.reader.fields(document.spec, "an SLI's spec", ("description", *INDICATORS))
    chosen = [name for name in INDICATORS if name in fields]
    if len(chosen) != 1:
        where = document.spec or document.node
        document.reader.report(where, f"an SLI needs exactly one of {', '.join(INDICATORS)}")
    return fields


def _indicator_node(
    known: _Set, document: _Document, inline: yaml.Node | None, ref: yaml.Node | None, where: yaml.Node
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
            reader.report(ref, f"there is no SLI named {name!r}: {known.known('SLI')}")
            return None
        fields, owner = _sli(known, found), found.reader
    else:
        outer = reader.fields(inline, "an indicator", ("metadata", "spec", *INDICATORS))
        reader.fields(outer.get("metadata"), "an indicator's metadata", _METADATA)
        fields, owner = outer, reader
        if "spec" in outer:
            fields = reader.fields(outer["spec"], "an indicator's spec", ("description", *INDICATORS))
    chosen = [name for name in INDICATORS if name in fields]
    if len(chosen) != 1:
        if ref is None:
            reader.report(inline or where, f"an indicator needs exactly one of {', '.join(INDICATORS)}")
        return None
    return owner, chosen[0], fields[chosen[0]]


def _slo(known: _Set, document: _Document) -> list[Objective]:
    reader = document.reader
    spec = reader.fields(document.spec, "an SLO's spec", _SLO)
    service = reader.text(spec.get("service"), "spec.service")
    if not service and document.spec is not None:
        reader.report(document.spec, "spec.service is missing: name the service that the objective is of")
    if len(reader.text(spec.get("description"), "spec.description")) > 1050:
        reader.report(spec["description"], "spec.description is longer than OpenSLO's 1050 characters")
    method = reader.choice(spec.get("budgetingMethod"), "spec.budgetingMethod", METHODS, "Occurrences")
    period = read_period(reader, spec.get("timeWindow"))
    options = _options(document)
    policy = _policies(known, document, reader.items(spec.get("alertPolicies"), "spec.alertPolicies"))
    nodes = reader.items(spec.get("objectives"), "spec.objectives")
    if not nodes:
        reader.report(spec.get("objectives", document.spec or document.node), "an SLO needs at least one objective")
    objectives = []
    for number, node in enumerate(nodes, 1):
        fields = reader.fields(node, "an objective", _OBJECTIVE)
        composite = "indicator" in fields or "indicatorRef" in fields
        if "compositeWeight" in fields:
            message = "compositeWeight: objectives are judged one by one here, and do not burn a budget together"
            reader.report(fields["compositeWeight"], message, "warning")
        given = fields if composite else spec
        source = _indicator_node(known, document, given.get("indicator"), given.get("indicatorRef"), node)
        target = _target(reader, node, fields)
        sliced = _slice(reader, node, fields, method)
        if source is None or target is None or sliced is None:
            continue
        indicator = _indicator(reader, known, source, fields, node, options["by"])
        if indicator is None:
            continue
        title = reader.text(fields.get("displayName"), "displayName")
        outer = document.title or document.name
        try:
            chosen = Objective(
                name=document.name if len(nodes) == 1 else f"{document.name}-{_slug(title) or number}",
                target=target,
                indicator=indicator,
                service=service,
                title=f"{outer}: {title}" if title and len(nodes) > 1 else outer,
                period=period,
                method=method,  # type: ignore[arg-type]
                slice_seconds=sliced[0],
                slice_target=sliced[1],
                labels=tuple(sorted(document.labels.items())),
                alerts=None if policy.burn is None else tuple(policy.burn),
                **options["objective"],
            )
        except ValueError as error:
            reader.report(node, str(error))
            continue
        if policy.no_data is not None:
            chosen = replace(chosen, absent="always" if policy.no_data else "never")
        for message in warnings(chosen):
            reader.report(node, message, "warning")
        objectives.append(chosen)
    return objectives


def _options(document: _Document) -> dict[str, Any]:
    """What the annotations `trimtab/...` say."""
    reader = document.reader
    chosen: dict[str, Any] = {}
    by: tuple[str, ...] | None = None
    for key, (value, node) in document.annotations.items():
        prefix, slash, name = key.partition("/")
        if not slash or prefix != "trimtab":
            continue
        if name not in ANNOTATIONS:
            reader.report(node, f"unknown annotation {key!r}; known are trimtab/{', trimtab/'.join(ANNOTATIONS)}")
        elif name == "by":
            by = tuple(label.strip() for label in value.split(",") if label.strip())
        elif name == "absent-alert":
            chosen["absent"] = reader.choice(node, key, ABSENCES, "always")
        elif name == "runbook-url":
            chosen["runbook_url"] = value
        elif (number := reader.number(node, key)) is not None:
            chosen[name.replace("-", "_")] = number
    return {"by": by, "objective": chosen}


def _indicator(
    reader: Reader,
    known: _Set,
    source: tuple[Reader, str, yaml.Node],
    fields: dict[str, yaml.Node],
    node: yaml.Node,
    by: tuple[str, ...] | None,
) -> Indicator | None:
    owner, kind, body = source
    op = reader.choice(fields.get("op"), "op", ("lte", "lt", "gte", "gt"))
    value = reader.number(fields.get("value"), "value")
    sources = [name for of, name in known.documents if of == "DataSource"]
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


def _target(reader: Reader, node: yaml.Node, fields: dict[str, yaml.Node]) -> float | None:
    share, percent = fields.get("target"), fields.get("targetPercent")
    if (share is None) == (percent is None):
        reader.report(node, "an objective needs either target (a share, 0.999) or targetPercent (99.9)")
        return None
    value = reader.number(share or percent, "target" if share else "targetPercent")
    if value is None:
        return None
    if percent is not None:
        value = round(value / 100, 12)
    if not 0.0 < value < 1.0:
        hint = f"; is {value:g} a percentage? write targetPercent: {value:g}" if share and 1 <= value < 100 else ""
        top = "1" if share else "100"
        reader.report(share or percent or node, f"the target must be above 0 and below {top}{hint}")
        return None
    return value


def _slice(reader: Reader, node: yaml.Node, fields: dict[str, yaml.Node], method: str) -> tuple[float, float] | None:
    """Length of a time slice (seconds) and the share of good that it needs."""
    width_node, target_node = fields.get("timeSliceWindow"), fields.get("timeSliceTarget")
    width, target = 60.0, 1.0
    if width_node is not None:
        text = reader.text(width_node, "timeSliceWindow")
        # A bare number is minutes.
        minutes = reader.number(width_node, "timeSliceWindow") if text.replace(".", "").isdigit() else None
        found = minutes * 60 if minutes is not None else reader.seconds(width_node, "timeSliceWindow")
        if found is None:
            return None
        width = found
    elif method != "Occurrences":
        reader.report(node, f"budgetingMethod {method} needs timeSliceWindow, the length of a time slice, like 1m")
        return None
    if method == "Timeslices":
        found = reader.number(target_node, "timeSliceTarget")
        if found is None or not 0.0 < found <= 1.0:
            message = "budgetingMethod Timeslices needs timeSliceTarget, the share of good that a slice needs: up to 1"
            reader.report(target_node or node, message)
            return None
        target = found
    elif target_node is not None:
        reader.report(target_node, f"timeSliceTarget has no meaning with budgetingMethod {method}; remove it")
    return width, target


def _policies(known: _Set, document: _Document, nodes: Sequence[yaml.Node]) -> _Policy:
    policy = _Policy()
    for node in nodes:
        found = _referred(known, document, node, "alertPolicyRef", "AlertPolicy")
        if found is None:
            continue
        reader, spec = found
        fields = reader.fields(spec, "an AlertPolicy's spec", _POLICY)
        if reader.flag(fields.get("alertWhenNoData"), "alertWhenNoData", False):
            policy.no_data = True
        if "alertWhenNoData" in fields and policy.no_data is None:
            policy.no_data = False
        if reader.flag(fields.get("alertWhenResolved"), "alertWhenResolved", False):
            message = "alertWhenResolved: whether a resolved alert is told is the route's send_resolved"
            reader.report(fields["alertWhenResolved"], message, "warning")
        if "notificationTargets" in fields:
            message = "notificationTargets are left to the routes: match the alert's labels slo, service and severity"
            reader.report(fields["notificationTargets"], message, "warning")
        conditions = reader.items(fields.get("conditions"), "conditions")
        if len(conditions) != 1:
            reader.report(fields.get("conditions", spec), "an AlertPolicy has exactly one condition")
        breaching = reader.flag(fields.get("alertWhenBreaching"), "alertWhenBreaching", True)
        policy.burn = policy.burn or []
        for condition in conditions:
            owner = replace(document, reader=reader)
            inner = _referred(known, owner, condition, "conditionRef", "AlertCondition")
            if inner is not None and breaching and (alert := _condition(*inner, name=_name_of(reader, condition))):
                policy.burn.append(alert)
    return policy


def _name_of(reader: Reader, node: yaml.Node) -> str:
    fields = {key.value: value for key, value in node.value} if isinstance(node, yaml.MappingNode) else {}
    if "conditionRef" in fields:
        return reader.text(fields["conditionRef"], "conditionRef")
    inner = reader.fields(fields.get("metadata"), "metadata", _METADATA)
    return reader.text(inner.get("name"), "metadata.name") or "condition"


def _referred(
    known: _Set, document: _Document, node: yaml.Node, ref: str, kind: str
) -> tuple[Reader, yaml.Node] | None:
    """The spec of an object that is named or stands inline, with the reader of its file."""
    reader = document.reader
    fields = reader.fields(node, f"an item of {kind}", (ref, *_TOP))
    if ref in fields:
        name = reader.text(fields[ref], ref)
        found = known.find(kind, name)
        if found is None or found.spec is None:
            reader.report(fields[ref], f"there is no {kind} named {name!r}: {known.known(kind)}")
            return None
        return found.reader, found.spec
    if "spec" not in fields:
        reader.report(node, f"give {ref}, or the {kind} inline with its spec")
        return None
    return reader, fields["spec"]


def _condition(reader: Reader, spec: yaml.Node, name: str) -> BurnAlert | None:
    fields = reader.fields(spec, "an AlertCondition's spec", ("description", "severity", "condition"))
    if "severity" not in fields or "condition" not in fields:
        reader.report(spec, "an AlertCondition needs severity and condition")
        return None
    inner = reader.fields(fields["condition"], "a condition", _CONDITION)
    reader.choice(inner.get("kind"), "kind", ("burnrate",), "burnrate")
    op = reader.choice(inner.get("op"), "op", ("lte", "lt", "gte", "gt"))
    if op in ("lte", "lt"):
        message = f"a burn rate alerts from above, as OpenSLO's own example means it too: {op} is read as g{op[1:]}"
        reader.report(inner["op"], message, "warning")
    factor = reader.number(inner.get("threshold"), "threshold")
    lookback = reader.seconds(inner.get("lookbackWindow"), "lookbackWindow")
    after = inner.get("alertAfter")
    zero = after is not None and re.fullmatch(r"0[a-z]*", reader.text(after, "alertAfter"))
    for_seconds = 0.0 if after is None or zero else reader.seconds(after, "alertAfter")
    for field_name, value in (("op", op), ("threshold", factor), ("lookbackWindow", lookback)):
        if field_name not in inner:
            reader.report(fields["condition"], f"a burnrate condition needs {field_name}")
        elif not value:
            return None
    if not op or not factor or not lookback or for_seconds is None:
        return None
    return BurnAlert(
        name=name,
        severity=reader.text(fields["severity"], "severity"),
        factor=factor,
        lookback_seconds=lookback,
        for_seconds=for_seconds,
        or_equal=op.endswith("e"),
    )


def _checked(known: _Set, document: _Document) -> None:
    """Reads a policy or condition for what is wrong with it, even if nobody names it."""
    if document.spec is None:
        return
    if document.kind == "AlertCondition":
        _condition(document.reader, document.spec, document.name)
        return
    name = yaml.ScalarNode("tag:yaml.org,2002:str", document.name, document.node.start_mark, document.node.end_mark)
    key = yaml.ScalarNode("tag:yaml.org,2002:str", "alertPolicyRef", document.node.start_mark, document.node.end_mark)
    node = yaml.MappingNode("tag:yaml.org,2002:map", [(key, name)], document.node.start_mark, document.node.end_mark)
    _policies(known, document, [node])


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
