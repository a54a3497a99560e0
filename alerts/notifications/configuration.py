"""`alertmanager.yml`: the routing tree, inhibition, time intervals and receivers, read strictly.

Raises ConfigurationError with file and line. Source of the format: Alertmanager, config/config.go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml

from alerts.labels import LABEL_NAME, Matcher
from alerts.notifications.inhibition import InhibitRule
from alerts.notifications.intervals import (
    Range,
    TimeInterval,
    read_days_of_month,
    read_months,
    read_times,
    read_weekdays,
    read_years,
)
from alerts.notifications.masking import shown_configuration
from alerts.notifications.matchers import in_order, parse_matchers
from alerts.notifications.receivers import GLOBAL_FIELDS, Receiver, read_defaults, read_receiver
from alerts.notifications.route import ALL_LABELS, Route, keyed
from alerts.notifications.section import Defaults
from alerts.notifications.yaml_reader import ConfigurationError, Value, read_yaml
from alerts.yaml_nodes import Problem

RESOLVE_TIMEOUT_SECONDS = 300.0

_FIELDS = ("global", "route", "inhibit_rules", "receivers", "templates", "mute_time_intervals", "time_intervals")
_ROUTE_FIELDS = (
    "receiver", "group_by", "match", "match_re", "matchers", "mute_time_intervals", "active_time_intervals", "continue",
    "routes", "group_wait", "group_interval", "repeat_interval",
)  # fmt: skip
_INHIBIT_FIELDS = ("source_match", "source_match_re", "source_matchers", "target_match", "target_match_re",
                   "target_matchers", "equal", "name")  # fmt: skip
_INTERVAL_FIELDS = ("times", "weekdays", "days_of_month", "months", "years", "location")


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """All that decides who is told what and when. `original` is what the API shows: secrets are masked."""

    route: Route
    receivers: Mapping[str, Receiver]
    inhibit_rules: tuple[InhibitRule, ...] = ()
    intervals: Mapping[str, tuple[TimeInterval, ...]] = field(default_factory=dict)
    resolve_timeout_seconds: float = RESOLVE_TIMEOUT_SECONDS
    original: str = ""

    def __post_init__(self) -> None:
        unknown = {route.receiver for route in self.route.walk()} - set(self.receivers)
        if unknown:
            raise ValueError(f"routes name receivers that do not exist: {', '.join(sorted(unknown))}")


def load_configuration(path: str | Path) -> Configuration:
    """Read a file; relative paths in it are taken from its folder. Raises ConfigurationError."""
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ConfigurationError([Problem(str(path), 0, "error", f"the file cannot be read: {reason}")]) from error
    return read_configuration(text, str(path))


def read_configuration(text: str, path: str = "alertmanager.yml") -> Configuration:
    """A configuration's text. Raises ConfigurationError."""
    whole = read_yaml(text, path)
    fields = whole.fields(_FIELDS)
    folder = Path(path).resolve().parent
    top = fields["global"].fields(("resolve_timeout", *GLOBAL_FIELDS)) if "global" in fields else {}
    templates: list[str] = fields["templates"].attempt(Value.texts, []) if "templates" in fields else []
    try:
        defaults = read_defaults(top, templates, folder, fields.get("global", whole))
    except ConfigurationError as error:
        whole.file.problems += error.problems
        defaults = read_defaults({}, [], folder, whole)
    resolve = (
        top["resolve_timeout"].attempt(Value.seconds, 0.0) if "resolve_timeout" in top else RESOLVE_TIMEOUT_SECONDS
    )
    intervals = _intervals(fields)
    root = _root(fields["route"], intervals) if "route" in fields else None
    if "route" not in fields:
        whole.file.report(whole.node, "no routes provided: the configuration needs a route with a receiver")
    used = {route.receiver for route in root.walk()} if root is not None else set()
    receivers = _receivers(fields.get("receivers"), defaults, used)
    rules = fields["inhibit_rules"].each(_inhibit_rule) if "inhibit_rules" in fields else []
    if "route" in fields:
        _check_receivers(fields["route"], receivers)
    errors = [problem for problem in whole.file.problems if problem.severity == "error"]
    if errors or root is None:
        raise ConfigurationError(sorted(dict.fromkeys(errors), key=lambda problem: (problem.line, problem.column)))
    return Configuration(
        route=root,
        receivers=receivers,
        inhibit_rules=tuple(rules),
        intervals=intervals,
        resolve_timeout_seconds=resolve,
        original=shown_configuration(yaml.safe_load(text)),
    )


def _receivers(value: Value | None, defaults: Defaults, used: set[str]) -> dict[str, Receiver]:
    found: dict[str, Receiver] = {}

    def add(item: Value) -> None:
        receiver = read_receiver(item, defaults, build=used)
        if receiver.name in found:
            item.fail(f'notification config name "{receiver.name}" is not unique')
        found[receiver.name] = receiver

    if value is not None:
        value.each(add)
    return found


def _check_receivers(value: Value, receivers: Mapping[str, Receiver]) -> None:
    fields = dict(value.entries())
    named = fields.get("receiver")
    if named is not None and isinstance(named.node, yaml.ScalarNode) and named.text() and named.text() not in receivers:
        named.file.report(named.node, f'undefined receiver "{named.text()}" used in route')
    for child in fields["routes"].items() if "routes" in fields else ():
        _check_receivers(child, receivers)


# --- routes ----------------------------------------------------------------------------------------------------------
def _root(value: Value, intervals: Mapping[str, object]) -> Route | None:
    """The tree, None where something is wrong with its root."""
    return value.attempt(partial(_read_root, intervals=intervals), None)


def _read_root(value: Value, intervals: Mapping[str, object]) -> Route | None:
    fields = value.fields(_ROUTE_FIELDS)
    if "receiver" not in fields or not fields["receiver"].text():
        value.fail("root route must specify a default receiver")
    for name, words in (
        ("match", "any matchers"), ("match_re", "any matchers"), ("matchers", "any matchers"),
        ("mute_time_intervals", "any mute time intervals"), ("active_time_intervals", "any active time intervals"),
    ):  # fmt: skip
        if name in fields and (fields[name].entries() if name.startswith("match") and name != "matchers" else
                               fields[name].items()):  # fmt: skip
            fields[name].fail(f"root route must not have {words}")
    if "continue" in fields and fields["continue"].flag():
        fields["continue"].fail("cannot have continue in root route")
    return keyed(_route(value, Route(receiver=""), intervals))


def _route(value: Value, parent: Route, intervals: Mapping[str, object]) -> Route:
    fields = value.fields(_ROUTE_FIELDS)
    route = replace(
        parent,
        receiver=(fields["receiver"].text() if "receiver" in fields else "") or parent.receiver,
        matchers=_matchers(fields, ""),
        group_by=_group_by(fields["group_by"], parent) if "group_by" in fields else parent.group_by,
        group_wait_seconds=_timer(fields, "group_wait", parent.group_wait_seconds),
        group_interval_seconds=_timer(fields, "group_interval", parent.group_interval_seconds),
        repeat_interval_seconds=_timer(fields, "repeat_interval", parent.repeat_interval_seconds),
        mute_time_intervals=_interval_names(fields.get("mute_time_intervals"), intervals),
        active_time_intervals=_interval_names(fields.get("active_time_intervals"), intervals),
        goes_on="continue" in fields and fields["continue"].flag(),
        routes=(),
    )
    children = fields["routes"].each(partial(_route, parent=route, intervals=intervals)) if "routes" in fields else []
    return replace(route, routes=tuple(children))


def _timer(fields: Mapping[str, Value], name: str, inherited: float) -> float:
    if name not in fields:
        return inherited
    seconds = fields[name].seconds()
    if seconds == 0 and name != "group_wait":
        fields[name].fail(f"{name} cannot be zero")
    return seconds


def _group_by(value: Value, parent: Route) -> tuple[str, ...]:
    names = value.texts()
    if not names:
        return parent.group_by  # an empty list is one that is not there
    if "..." in names:
        if set(names) != {"..."}:
            value.fail("cannot have wildcard group_by (`...`) and other labels at the same time")
        return ALL_LABELS
    for name in names:
        if not LABEL_NAME.match(name):
            value.fail(f'invalid label name "{name}" in group_by list')
        if names.count(name) > 1:
            value.fail(f'duplicated label "{name}" in group_by')
    return tuple(names)


def _interval_names(value: Value | None, intervals: Mapping[str, object]) -> tuple[str, ...]:
    if value is None:
        return ()
    for item in value.items():
        if item.text() not in intervals:
            item.fail(f'undefined time interval "{item.text()}" used in route')
    return tuple(value.texts())


def _matchers(fields: Mapping[str, Value], prefix: str) -> tuple[Matcher, ...]:
    """The matchers of `match`, `match_re` and `matchers`, each with the prefix, in their order."""
    found: list[Matcher] = []
    for label, text in fields[f"{prefix}match"].entries() if f"{prefix}match" in fields else ():
        found.append(text.read(partial(Matcher, label, "=")))
    for label, text in fields[f"{prefix}match_re"].entries() if f"{prefix}match_re" in fields else ():
        if text.is_null:
            text.fail(f'invalid regexp value for "{label}"')
        # Alertmanager keeps these with their anchors, and so they stand in the keys of groups.
        found.append(text.read(partial(_anchored, label)))
    if f"{prefix}matchers" in fields:
        for item in fields[f"{prefix}matchers"].items():
            found += item.read(parse_matchers)
    return in_order(found)


def _anchored(label: str, pattern: str) -> Matcher:
    return Matcher(label, "=~", f"^(?:{pattern})$")


def _inhibit_rule(value: Value) -> InhibitRule:
    fields = value.fields(_INHIBIT_FIELDS)
    equal = fields["equal"].texts() if "equal" in fields else []
    for name in equal:
        if not LABEL_NAME.match(name):
            fields["equal"].fail(f'"{name}" is not a valid label name')
    return InhibitRule(source=_matchers(fields, "source_"), target=_matchers(fields, "target_"), equal=tuple(equal))


# --- time intervals --------------------------------------------------------------------------------------------------
def _intervals(fields: Mapping[str, Value]) -> dict[str, tuple[TimeInterval, ...]]:
    found: dict[str, tuple[TimeInterval, ...]] = {}
    for section, words in (("mute_time_intervals", "mute time interval"), ("time_intervals", "time interval")):
        if section in fields:
            fields[section].each(partial(_add_interval, found, words))
    return found


def _add_interval(found: dict[str, tuple[TimeInterval, ...]], words: str, item: Value) -> None:
    own = item.fields(("name", "time_intervals"))
    if "name" not in own or not own["name"].text():
        item.fail(f"missing name in {words}")
    name = own["name"].text()
    if name in found:
        item.fail(f'{words} "{name}" is not unique')
    found[name] = tuple(own["time_intervals"].each(read_interval)) if "time_intervals" in own else ()


def read_interval(value: Value) -> TimeInterval:
    """A time interval as Alertmanager writes it. Raises ConfigurationError."""
    fields = value.fields(_INTERVAL_FIELDS)

    def ranges(name: str, read: Callable[[str], Range]) -> tuple[Range, ...] | None:
        return tuple(item.read(read) for item in fields[name].items()) if name in fields else None

    return TimeInterval(
        times=tuple(map(_times, fields["times"].items())) if "times" in fields else None,
        weekdays=ranges("weekdays", read_weekdays),
        days_of_month=ranges("days_of_month", read_days_of_month),
        months=ranges("months", read_months),
        years=ranges("years", read_years),
        location=fields["location"].read(_location) if "location" in fields else None,
    )


def _times(value: Value) -> Range:
    fields = value.fields(("start_time", "end_time"))
    start, end = (fields[name].text() if name in fields else "" for name in ("start_time", "end_time"))
    try:
        return read_times(start, end)
    except ValueError as error:
        value.fail(str(error))


def _location(name: str) -> ZoneInfo:
    try:
        return ZoneInfo("UTC" if name in ("", "Local") else name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"unknown time zone {name}") from error


def simple_configuration(
    receiver: Receiver,
    *,
    group_by: Sequence[str],
    group_wait_seconds: float,
    group_interval_seconds: float,
    repeat_interval_seconds: float,
    shown: Mapping[str, object],
) -> Configuration:
    """One receiver that hears of everything: what is in force without a file."""
    route = keyed(
        Route(
            receiver=receiver.name,
            group_by=tuple(group_by),
            group_wait_seconds=group_wait_seconds,
            group_interval_seconds=group_interval_seconds,
            repeat_interval_seconds=repeat_interval_seconds,
        )
    )
    return Configuration(route=route, receivers={receiver.name: receiver}, original=shown_configuration(dict(shown)))
