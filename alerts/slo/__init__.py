"""Service level objectives as rules: recorded error ratios and multi-window burn-rate alerts.

Burn rate = error ratio / error budget. Windows and factors are those of Google's SRE workbook for 30 days: 2 % of the
budget in an hour pages, 10 % in three days is a ticket. The result is an ordinary rule group, for us or Prometheus.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

from alerts.rules import format_duration
from observability import names

_FAULTS = "|".join(names.FAULTS)
# Requests that never were the service's to answer do not count as served or failed.
_COUNTED = 'outcome!~"invalid|cancelled"'


@dataclass(frozen=True, slots=True)
class Window:
    """A pair of windows (seconds): both must burn faster than `factor`. The short one ends the alert soon."""

    long_seconds: float
    short_seconds: float
    factor: float
    severity: str


WORKBOOK_WINDOWS = (
    Window(3600, 300, 14.4, "page"),
    Window(6 * 3600, 1800, 6.0, "page"),
    Window(86400, 7200, 3.0, "ticket"),
    Window(3 * 86400, 6 * 3600, 1.0, "ticket"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A share `target` of events is to be good. `bad` and `total` are counter selectors; `by` are the labels kept."""

    name: str
    target: float
    bad: str
    total: str
    by: tuple[str, ...] = ("model",)
    minimum_events: float = 50.0
    """Fewer events than this in the long window page nobody: one failure among five says nothing."""
    title: str = ""

    def __post_init__(self) -> None:
        if not 0.0 < self.target < 1.0:
            raise ValueError(f"an objective's target is a share within (0, 1), got {self.target}")

    @property
    def budget(self) -> float:
        """The share of events that may be bad."""
        return round(1.0 - self.target, 12)


def availability(target: float = 0.999, **options: Any) -> Objective:
    """Requests that do not fail by a fault of ours, by model."""
    metric = names.INFERENCE_REQUESTS.name
    return Objective(
        name="availability",
        target=target,
        bad=f'{metric}{{outcome=~"{_FAULTS}"}}',
        total=f"{metric}{{{_COUNTED}}}",
        title="Availability",
        **options,
    )


def latency(target: float = 0.99, threshold_seconds: float = 0.25, **options: Any) -> Objective:
    """Requests answered within a threshold, by model; it must be one of `names.LATENCY_SECONDS`."""
    if threshold_seconds not in names.LATENCY_SECONDS:
        raise ValueError(f"{threshold_seconds} s is not a bucket of the histogram: choose from {names.LATENCY_SECONDS}")
    metric = names.INFERENCE_DURATION.name
    return Objective(
        name="latency",
        target=target,
        # Bad = all less those in time; the recorded ratio subtracts it.
        bad=f'{metric}_bucket{{le="{threshold_seconds}"}}',
        total=f"{metric}_count",
        title=f"Latency below {threshold_seconds:g} s",
        **options,
    )


def rule_group(
    objective: Objective, windows: Iterable[Window] = WORKBOOK_WINDOWS, interval: str = ""
) -> dict[str, Any]:
    """The objective as a rule group, ready to be written as YAML."""
    windows = tuple(windows)
    spans = sorted({span for window in windows for span in (window.long_seconds, window.short_seconds)})
    rules = [_ratio_rule(objective, span) for span in spans]
    rules += [_target_rule(objective)]
    for severity in dict.fromkeys(window.severity for window in windows):
        rules.append(_burn_rule(objective, [w for w in windows if w.severity == severity], severity))
    group: dict[str, Any] = {"name": f"slo-{objective.name}"}
    return {**group, **({"interval": interval} if interval else {}), "rules": rules}


def to_yaml(*groups: dict[str, Any]) -> str:
    """Rule groups as the text of a rule file."""
    text: str = yaml.safe_dump({"groups": list(groups)}, sort_keys=False, allow_unicode=True, width=110)
    return text


def ratio_name(objective: Objective, span_seconds: float) -> str:
    """The recorded error ratio over a window."""
    return f"slo:error:ratio_rate{format_duration(span_seconds)}"


def _ratio_rule(objective: Objective, span: float) -> dict[str, Any]:
    window, by = format_duration(span), ", ".join(objective.by)
    bad = f"sum by ({by}) (rate({objective.bad}[{window}]))"
    total = f"sum by ({by}) (rate({objective.total}[{window}]))"
    # Only where something was asked: 0/0 would poison every average over it.
    ratio = f"1 - {bad} / ({total} > 0)" if objective.name == "latency" else f"({bad} or {total} * 0) / ({total} > 0)"
    return {"record": ratio_name(objective, span), "expr": ratio, "labels": {"slo": objective.name}}


def _target_rule(objective: Objective) -> dict[str, Any]:
    return {
        "record": "slo:objective:ratio",
        "expr": f"vector({objective.target:g})",
        "labels": {"slo": objective.name},
    }


def _burn_rule(objective: Objective, windows: list[Window], severity: str) -> dict[str, Any]:
    by = ", ".join(objective.by)

    def ratio(span: float) -> str:
        return f'max by ({by}) ({ratio_name(objective, span)}{{slo="{objective.name}"}})'

    def burns(window: Window) -> str:
        limit = f"({window.factor:g} * {objective.budget:g})"
        events = f"sum by ({by}) (increase({objective.total}[{format_duration(window.long_seconds)}]))"
        enough = f"{events} >= {objective.minimum_events:g}"
        return (
            f"(\n  {ratio(window.long_seconds)} > {limit}\n  and {ratio(window.short_seconds)} > {limit}"
            f"\n  and {enough}\n)"
        )

    title = objective.title or objective.name
    return {
        "alert": f"ErrorBudgetBurn{objective.name.title()}",
        "expr": "\nor\n".join(map(burns, windows)),
        "labels": {"severity": severity, "slo": objective.name},
        "annotations": {
            "summary": (
                f"{title} of {{{{ $labels.model }}}}: {{{{ $value | humanizePercentage }}}} of requests miss the "
                f"objective of {objective.target * 100:g}%"
            ),
            "description": (
                f"The budget is {objective.budget:.4g} of the requests, over 30 days; "
                f'{{{{ $value | printf "%.4f" }}}} of them miss; see {ratio_name(objective, windows[0].long_seconds)}.'
            ),
        },
    }
