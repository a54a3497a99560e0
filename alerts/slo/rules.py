"""An objective as Prometheus rule groups: recorded ratios and budget, burn-rate alerts, and one for missing data.

The recorded names are sloth's, so that what reads those reads ours: `slo:sli_error:ratio_rate5m` and so on. Ratios are
recorded only where there was something to count: 0/0 would poison what is computed from it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

from alerts.rules import format_duration
from alerts.slo.indicator import Events
from alerts.slo.objective import RUNBOOKS, BurnAlert, Objective
from alerts.slo.period import Calendar
from alerts.slo.slices import slice_error
from alerts.slo.windows import Window
from observability import names

BURN_ALERT = "ErrorBudgetBurn"
ABSENT_ALERT = "SLOMetricAbsent"
Rule = dict[str, Any]
# Over weeks nothing changes in seconds, and these read the most samples.
_PERIOD_INTERVAL = "2m30s"
_TILE_SECONDS = 300.0
_LONG_TILE_SECONDS = 3600.0


def rule_groups(objective: Objective, *, interval: str = "", now: float | None = None) -> list[dict[str, Any]]:
    """The objective's groups, ready to be written as YAML: what is looked at often, and the period.

    `now` (unix seconds) is from when on calendar periods are known. Raises ValueError where the interval and the time
    slices do not go together.
    """
    writer = _Writer(objective, time.time() if now is None else now)
    often: list[Rule] = [
        *writer.slices(),
        *writer.tiles(),
        *writer.ratios(),
        *writer.metadata(),
        *writer.alerts(),
        *writer.absence(),
    ]
    every = interval or (f"{format_duration(min(60.0, objective.slice_seconds))}" if objective.sliced else "")
    group = {"name": f"slo-{objective.name}", **({"interval": every} if every else {}), "rules": often}
    period = {"name": f"slo-{objective.name}-period", "interval": _PERIOD_INTERVAL, "rules": writer.period()}
    return [group, period]


def to_yaml(*groups: dict[str, Any]) -> str:
    """Rule groups as the text of a rule file."""
    text: str = yaml.dump(
        {"groups": list(groups)}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf")
    )
    return text


@dataclass(frozen=True, slots=True)
class _Writer:
    objective: Objective
    now: float

    # --- parts of expressions -----------------------------------------------------------------------------------------
    @property
    def labels(self) -> dict[str, str]:
        chosen = self.objective
        return {"slo": chosen.name, **({"service": chosen.service} if chosen.service else {})}

    @property
    def ignoring(self) -> str:
        return f" ignoring ({', '.join(self.labels)})"

    @property
    def where(self) -> str:
        return "{" + ",".join(f'{name}="{value}"' for name, value in self.labels.items()) + "}"

    def ratio(self, seconds: float) -> str:
        return f"{names.SLO_ERROR_RATIO}{format_duration(seconds)}{self.where}"

    def events(self, seconds: float) -> str:
        return f"{names.SLO_EVENTS}{format_duration(seconds)}{self.where}"

    def record(self, name: str, expr: str, **labels: str) -> Rule:
        return {"record": name, "expr": expr, "labels": {**self.labels, **labels}}

    def seen_slices(self, count: int) -> str:
        """One sample a slice: an end less by a millisecond has `count` of them, whether ranges are closed or not."""
        width = self.objective.slice_seconds
        span = format_duration(count * width - 0.001)
        return f"{names.SLO_SLICE_ERROR}{self.where}[{span}:{format_duration(width)}]"

    # --- recorded -----------------------------------------------------------------------------------------------------
    def slices(self) -> list[Rule]:
        """What was seen at this look, or in the time slice that ends now, as a share that was bad."""
        chosen, indicator = self.objective, self.objective.indicator
        if not chosen.sliced:
            return []
        if isinstance(indicator, Events):
            width = chosen.slice_seconds
            measured, seen = self.events(width), indicator.total_over(width)
            first = self.record(f"{names.SLO_EVENTS}{format_duration(width)}", seen)
        else:
            measured = f"{names.SLO_VALUE}{self.where}"
            first = self.record(names.SLO_VALUE, indicator.query)
        return [first, self.record(names.SLO_SLICE_ERROR, slice_error(chosen, measured, self.ignoring))]

    def ratios(self) -> list[Rule]:
        """The error ratio and the number of events of every window."""
        rules = []
        for span in self.objective.spans:
            rules += self._counted(span) if not self.objective.sliced else self._sliced(span)
        return rules

    def _counted(self, span: float) -> list[Rule]:
        indicator = self.objective.indicator
        assert isinstance(indicator, Events)
        window, total = format_duration(span), self.events(span)
        bad = indicator.bad_over(span, total, self.ignoring)
        return [
            self.record(f"{names.SLO_EVENTS}{window}", indicator.total_over(span)),
            self.record(f"{names.SLO_ERROR_RATIO}{window}", f"{bad} /{self.ignoring} ({total} > 0)"),
        ]

    def _sliced(self, span: float) -> list[Rule]:
        chosen, window = self.objective, format_duration(span)
        seen = self.seen_slices(chosen.slices(span))
        rules = [self.record(f"{names.SLO_ERROR_RATIO}{window}", self._share(seen, chosen.slices(span)))]
        if chosen.enough:
            rules.append(self.record(f"{names.SLO_EVENTS}{window}", f"count_over_time({seen})"))
        return rules

    def _share(self, seen: str, count: float | str) -> str:
        """Time slices have a budget of time: of all there are in the window, seen or not. Looks are averaged."""
        return f"sum_over_time({seen}) / {count}" if self.objective.method == "Timeslices" else f"avg_over_time({seen})"

    def period(self) -> list[Rule]:
        """The error ratio of the whole period, how fast it was burnt, and what is left of the budget."""
        chosen = self.objective
        name, where = chosen.period.name, self.where
        if isinstance(chosen.period, Calendar):
            rules = self._calendar(chosen.period)
        else:
            span = chosen.period.seconds
            rules = self._sliced(span) if chosen.sliced else self._counted(span)
        burnt = f"{names.SLO_ERROR_RATIO}{name}{where} / {chosen.budget:g}"
        rules += [
            self.record(names.SLO_PERIOD_BURN_RATE, burnt),
            self.record(names.SLO_BUDGET_LEFT, f"1 - {names.SLO_PERIOD_BURN_RATE}{where}"),
        ]
        return rules

    def _calendar(self, period: Calendar) -> list[Rule]:
        chosen, where, name = self.objective, self.where, period.name
        start, end = period.promql(self.now)
        rules = [self.record(names.SLO_PERIOD_START, start), self.record(names.SLO_PERIOD_END, end)]
        # The start is the same for every step of the subquery: that of now, not that of then.
        since = f"and on () (vector(time()) > on () {names.SLO_PERIOD_START}{where} @ end())"
        if chosen.sliced:
            width = chosen.slice_seconds
            seen = (
                f"({names.SLO_SLICE_ERROR}{where} {since})"
                f"[{format_duration(period.longest_seconds)}:{format_duration(width)}]"
            )
            number = (
                f"on () group_left () (({names.SLO_PERIOD_END}{where} - {names.SLO_PERIOD_START}{where}) / {width:g})"
            )
            return [*rules, self.record(f"{names.SLO_ERROR_RATIO}{name}", self._share(seen, number))]
        tile = self._tile(period)
        steps = f"[{format_duration(period.longest_seconds)}:{format_duration(tile)}]"
        total, bad = (
            f"sum_over_time(({name}{format_duration(tile)}{where} {since}){steps})"
            for name in (names.SLO_TILE_EVENTS, names.SLO_TILE_BAD)
        )
        events = f"{names.SLO_EVENTS}{name}"
        return [
            *rules,
            self.record(events, total),
            self.record(f"{names.SLO_ERROR_RATIO}{name}", f"{bad} / ({events}{where} > 0)"),
        ]

    def tiles(self) -> list[Rule]:
        """What a calendar period is laid out with: the events of each few minutes, exactly."""
        chosen, indicator = self.objective, self.objective.indicator
        if chosen.sliced or not isinstance(chosen.period, Calendar) or not isinstance(indicator, Events):
            return []
        tile = self._tile(chosen.period)
        window = format_duration(tile)
        total = f"{names.SLO_TILE_EVENTS}{window}{self.where}"
        return [
            self.record(f"{names.SLO_TILE_EVENTS}{window}", indicator.total_over(tile, exactly=True)),
            self.record(f"{names.SLO_TILE_BAD}{window}", indicator.bad_over(tile, total, self.ignoring, exactly=True)),
        ]

    def _tile(self, period: Calendar) -> float:
        return _TILE_SECONDS if period.longest_seconds <= 35 * 86400 else _LONG_TILE_SECONDS

    def metadata(self) -> list[Rule]:
        chosen = self.objective
        shortest = min(chosen.spans)
        info = {
            "objective": f"{chosen.target * 100:.10g}",
            "method": chosen.method,
            "period": chosen.period.name,
            "title": chosen.title or chosen.name,
            **dict(chosen.labels),
        }
        return [
            self.record(names.SLO_OBJECTIVE, f"vector({chosen.target:.12g})"),
            self.record(names.SLO_BUDGET, f"vector({chosen.budget:.12g})"),
            self.record(names.SLO_PERIOD_DAYS, f"vector({chosen.period.seconds / 86400:g})"),
            self.record(names.SLO_BURN_RATE, f"{self.ratio(shortest)} / {chosen.budget:g}"),
            self.record(names.SLO_INFO, "vector(1)", **info),
        ]

    # --- alerts -------------------------------------------------------------------------------------------------------
    def alerts(self) -> list[Rule]:
        """One alert a severity, of all its pairs of windows; or the objective's own."""
        chosen = self.objective
        if chosen.alerts is not None:
            return [self._own(alert) for alert in chosen.alerts]
        severities = dict.fromkeys(window.severity for window in chosen.windows)
        return [self._burn([w for w in chosen.windows if w.severity == s], s) for s in severities]

    def _burn(self, windows: list[Window], severity: str) -> Rule:
        def burns(window: Window) -> str:
            both = (self._faster(span, window.factor) for span in (window.long_seconds, window.short_seconds))
            return "(\n  " + "\n  and ".join([*both, *self._enough(window.long_seconds)]) + "\n)"

        pairs = " or ".join(
            f"{w.factor:g} times over {format_duration(w.long_seconds)} and {format_duration(w.short_seconds)}"
            for w in windows
        )
        return self._alert("\nor\n".join(map(burns, windows)), severity, pairs)

    def _own(self, alert: BurnAlert) -> Rule:
        span = alert.lookback_seconds
        expr = "\nand ".join([self._faster(span, alert.factor, alert.or_equal), *self._enough(span)])
        words = f"{alert.factor:g} times over {format_duration(span)}, {alert.name}"
        rule = self._alert(expr, alert.severity, words)
        if alert.for_seconds:
            rule = {"alert": rule["alert"], "expr": expr, "for": format_duration(alert.for_seconds), **rule}
        return {**rule, "labels": {**rule["labels"], "condition": alert.name}}

    def _faster(self, span: float, factor: float, or_equal: bool = False) -> str:
        return f"{self.ratio(span)} / {self.objective.budget:g} {'>=' if or_equal else '>'} {factor:g}"

    def _enough(self, span: float) -> list[str]:
        """The guard of low traffic: neither a handful of events nor a single failure is a rate."""
        chosen, guards = self.objective, []
        if chosen.enough:
            guards.append(f"{self.events(span)} >= {chosen.enough:g}")
        if not chosen.sliced and chosen.minimum_bad_events > 1:
            # Counts over a window are extrapolated, so two are hardly ever 2.
            guards.append(f"{self.ratio(span)} * {self.events(span)} > {chosen.minimum_bad_events - 0.5:g}")
        return guards

    def _alert(self, expr: str, severity: str, pairs: str) -> Rule:
        chosen = self.objective
        title = chosen.title or chosen.name
        by = chosen.indicator.labels
        about = "".join(
            f"{{{{ with $labels.{label} }}}}{',' if number else ' of'} {label} {{{{ . }}}}{{{{ end }}}}"
            for number, label in enumerate(by)
        )
        matchers = "".join(f",{label}=%q" for label in by)
        values = "".join(f" $labels.{label}" for label in by)
        fixed = "".join(f",{name}=%q" for name in self.labels)[1:]
        known = "".join(f' "{value}"' for value in self.labels.values())
        left = f'printf "{names.SLO_BUDGET_LEFT}{{{fixed}{matchers}}}"{known}{values} | query'
        return {
            "alert": BURN_ALERT,
            "expr": expr,
            "labels": {**self.labels, "severity": severity, **dict(chosen.labels)},
            "annotations": {
                "summary": (
                    f"{title}{about}: the error budget burns {{{{ $value | humanize }}}} times as fast as it may"
                ),
                "description": (
                    f"The objective is {chosen.target * 100:.10g} % over {chosen.period.name}; alerts from {pairs}."
                    f"{{{{ with {left} }}}} Left of the budget: {{{{ . | first | value | humanizePercentage }}}}."
                    "{{ end }}"
                ),
                "runbook_url": chosen.runbook_url or f"{RUNBOOKS}/{BURN_ALERT}.md",
            },
        }

    def absence(self) -> list[Rule]:
        """An alert that there is nothing to count: no data is not good."""
        chosen = self.objective
        if chosen.absent == "never":
            return []
        shortest = min(chosen.spans)
        known = f"{names.SLO_VALUE}{self.where}"
        if isinstance(chosen.indicator, Events):
            known = self.events(chosen.slice_seconds if chosen.sliced else shortest)
        expr = f"absent({known})"
        if chosen.absent == "vanished":
            kept = ", ".join(self.labels)
            expr = f"max by ({kept}) (last_over_time({known}[1d])) unless on ({kept}) {known}"
        title = chosen.title or chosen.name
        return [
            {
                "alert": ABSENT_ALERT,
                "expr": expr,
                "for": "10m",
                "labels": {**self.labels, "severity": "ticket", **dict(chosen.labels)},
                "annotations": {
                    "summary": f"{title}: there has been nothing to measure the objective by for 10 minutes",
                    "description": "No series answers the objective's queries, so nobody can say whether it is kept.",
                    "runbook_url": f"{RUNBOOKS}/{ABSENT_ALERT}.md",
                },
            }
        ]


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as a block."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def all_groups(
    objectives: Iterable[Objective], *, interval: str = "", now: float | None = None
) -> list[dict[str, Any]]:
    """The groups of all objectives; ValueError where two have a name in common."""
    groups = [group for chosen in objectives for group in rule_groups(chosen, interval=interval, now=now)]
    seen: set[str] = set()
    for group in groups:
        if group["name"] in seen:
            raise ValueError(f"two objectives give a group named {group['name']!r}: name them differently")
        seen.add(group["name"])
    return groups
