"""Service level objectives: OpenSLO in, Prometheus rules with burn-rate alerts out, and reports of their budgets."""

from pathlib import Path

from alerts.slo.indicator import Events, Raw, Threshold
from alerts.slo.objective import BurnAlert, Objective, warnings
from alerts.slo.openslo import load, read
from alerts.slo.period import Calendar, Rolling
from alerts.slo.presets import availability, latency
from alerts.slo.report import Cause, Standing, grouped, report, stand
from alerts.slo.rules import all_groups, rule_groups, to_yaml
from alerts.slo.windowed import Counted, counted
from alerts.slo.windows import WORKBOOK_WINDOWS, Window, burn_windows

SHIPPED_OBJECTIVES = Path(__file__).with_name("shipped.yaml")

__all__ = [
    "SHIPPED_OBJECTIVES",
    "WORKBOOK_WINDOWS",
    "BurnAlert",
    "Calendar",
    "Cause",
    "Counted",
    "Events",
    "Objective",
    "Raw",
    "Rolling",
    "Standing",
    "Threshold",
    "Window",
    "all_groups",
    "availability",
    "burn_windows",
    "counted",
    "grouped",
    "latency",
    "load",
    "read",
    "report",
    "rule_groups",
    "stand",
    "to_yaml",
    "warnings",
]
