"""`slo.yaml`: objectives in OpenSLO v1's terms, with short words of our own for the indicators of models.

Several documents and files are one set: an SLO may name an SLI, an AlertPolicy or an AlertCondition of any of them.
Reading is strict. What cannot be honoured is an error or, where nothing is lost by leaving it out, a warning.
(https://github.com/OpenSLO/OpenSLO#specification)
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from alerts.rules import Problem, RuleError
from alerts.slo.documents import Document, Documents
from alerts.slo.nodes import Reader
from alerts.slo.objective import ABSENCES, METHODS, Objective, warnings
from alerts.slo.policies import check_policy, read_policies
from alerts.slo.sources import indicator_of, indicator_source, read_sli
from alerts.slo.timewindow import read_period
from alerts.yaml_nodes import is_null

# What OpenSLO has no field for: metadata.annotations, with this prefix.
ANNOTATIONS = ("by", "minimum-events", "minimum-bad-events", "absent-alert", "runbook-url")
_SLO = (
    "description", "service", "indicator", "indicatorRef", "timeWindow", "budgetingMethod", "objectives",
    "alertPolicies",
)  # fmt: skip
_OBJECTIVE = (
    "displayName", "op", "value", "target", "targetPercent", "timeSliceTarget", "timeSliceWindow", "indicator",
    "indicatorRef", "compositeWeight",
)  # fmt: skip


def load(paths: Iterable[str | Path]) -> list[Objective]:
    """The objectives of the files. Raises RuleError with every problem, each with file and line."""
    objectives, problems = read(paths)
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        raise RuleError(errors)
    return objectives


def read(paths: Iterable[str | Path]) -> tuple[list[Objective], list[Problem]]:
    """The objectives that could be read, and what is wrong or unwise, in the order of the files."""
    known = Documents()
    readers = []
    for path in map(Path, paths):
        reader = Reader(path)
        readers.append(reader)
        for node in reader.documents():
            if not is_null(node):
                known.add(reader, node)
    objectives: list[Objective] = []
    names: set[str] = set()
    for document in known.of_kind("SLO"):
        for chosen in _slo(known, document):
            if chosen.name in names:
                document.reader.report(document.node, f"two objectives are named {chosen.name!r}")
            names.add(chosen.name)
            objectives.append(chosen)
    for document in known.of_kind("SLI"):
        read_sli(document)
    for document in known.of_kind("AlertPolicy", "AlertCondition"):
        check_policy(known, document)
    found = [
        problem
        for reader in readers
        for problem in dict.fromkeys(sorted(reader.problems, key=lambda p: (p.line, p.column)))
    ]
    if not found and not objectives and readers:
        found = [Problem(readers[0].path, 0, "error", "there is no kind: SLO in the file, so there is no objective")]
    return objectives, found


def _slo(known: Documents, document: Document) -> list[Objective]:
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
    policy = read_policies(known, document, reader.items(spec.get("alertPolicies"), "spec.alertPolicies"))
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
        source = indicator_source(known, document, given.get("indicator"), given.get("indicatorRef"), node)
        target = _target(reader, node, fields)
        sliced = _slice(reader, node, fields, method)
        if source is None or target is None or sliced is None:
            continue
        indicator = indicator_of(reader, known, source, fields, node, options["by"])
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


def _options(document: Document) -> dict[str, Any]:
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


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
