"""Which rule groups, and which of their rules, a client asks for (`/api/v1/rules`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from collectors.query.errors import QueryError
from collectors.query.parameters import Parameters

_TYPES = {"": None, "alert": "alerting", "record": "recording"}


def filtered_rules(groups: Sequence[Mapping[str, Any]], parameters: Parameters) -> list[Mapping[str, Any]]:
    """The groups with the rules of one `type`, of `rule_name[]`, `rule_group[]`, `file[]`; QueryError for another type.

    With `exclude_alerts` the rules come without their alerts. A group none of whose rules was asked for is left out.
    """
    kind = parameters.text("type", "").lower()
    if kind not in _TYPES:
        raise QueryError(f'invalid parameter "type": not supported value "{kind}"', "bad_data")
    files, group_names = set(parameters.all("file[]")), set(parameters.all("rule_group[]"))
    names = set(parameters.all("rule_name[]"))
    without_alerts = parameters.text("exclude_alerts", "").lower() in ("1", "t", "true")
    found: list[Mapping[str, Any]] = []
    for group in groups:
        if (files and group.get("file") not in files) or (group_names and group.get("name") not in group_names):
            continue
        rules = [
            rule
            for rule in group.get("rules", [])
            if (not kind or rule.get("type") == _TYPES[kind]) and (not names or rule.get("name") in names)
        ]
        if without_alerts:
            rules = [{key: value for key, value in rule.items() if key != "alerts"} for rule in rules]
        if rules or not (kind or names):
            found.append({**group, "rules": rules})
    return found
