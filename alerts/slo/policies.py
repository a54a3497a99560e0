"""Alert policies and conditions of OpenSLO: which burn rates alert, in place of the workbook's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import yaml

from alerts.slo.documents import METADATA, Document, Documents, referred
from alerts.slo.nodes import Reader
from alerts.slo.objective import BurnAlert

_POLICY = (
    "description", "alertWhenNoData", "alertWhenResolved", "alertWhenBreaching", "conditions", "notificationTargets",
)  # fmt: skip
_CONDITION = ("kind", "op", "threshold", "lookbackWindow", "alertAfter")


@dataclass(slots=True)
class Policy:
    """What alert policies ask for; `burn` None leaves the workbook's alerts."""

    burn: list[BurnAlert] | None = None
    no_data: bool | None = None


def read_policies(known: Documents, document: Document, nodes: Sequence[yaml.Node]) -> Policy:
    """What the policies of an objective ask for together."""
    policy = Policy()
    for node in nodes:
        found = referred(known, document, node, "alertPolicyRef", "AlertPolicy")
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
            inner = referred(known, owner, condition, "conditionRef", "AlertCondition")
            if inner is not None and breaching and (alert := _condition(*inner, name=_name_of(reader, condition))):
                policy.burn.append(alert)
    return policy


def check_policy(known: Documents, document: Document) -> None:
    """Reads a policy or condition for what is wrong with it, even if nobody names it."""
    if document.spec is None:
        return
    if document.kind == "AlertCondition":
        _condition(document.reader, document.spec, document.name)
        return
    name = yaml.ScalarNode("tag:yaml.org,2002:str", document.name, document.node.start_mark, document.node.end_mark)
    key = yaml.ScalarNode("tag:yaml.org,2002:str", "alertPolicyRef", document.node.start_mark, document.node.end_mark)
    node = yaml.MappingNode("tag:yaml.org,2002:map", [(key, name)], document.node.start_mark, document.node.end_mark)
    read_policies(known, document, [node])


def _name_of(reader: Reader, node: yaml.Node) -> str:
    fields = {key.value: value for key, value in node.value} if isinstance(node, yaml.MappingNode) else {}
    if "conditionRef" in fields:
        return reader.text(fields["conditionRef"], "conditionRef")
    inner = reader.fields(fields.get("metadata"), "metadata", METADATA)
    return reader.text(inner.get("name"), "metadata.name") or "condition"


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
