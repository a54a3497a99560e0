"""A release's evidence over its own life, as lines of a chart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dashboards import format as fmt
from dashboards import queries, shell
from dashboards.charts import Line
from dashboards.series import Series, Span
from dashboards.theme import version_color
from observability import names

ENOUGH_EVIDENCE = 100.0  # an e-value of 100 is evidence at alpha = 1 %
DECIDED = (ENOUGH_EVIDENCE, "100: decided")


def evidence_lines(view: shell.View, release: Mapping[str, Any]) -> list[Line]:
    """The e-values over the release's own life, however short it was and however long ago."""
    query = queries.gauge(names.CANARY_EVIDENCE, view.model, release=str(release["release"]))
    found, _ = view.sources.ranges({"evidence": query}, life(view, release["started_at"], release["ended_at"]))
    series = [item for item in found["evidence"] if len(item.times)]
    color = version_color(str(release["candidate"]))
    return [
        Line(
            f"{fmt.version(str(release['candidate']))} {_question(item.labels)}",
            Series(item.labels, item.times, item.values.clip(1e-4, 1e12)),
            color,
            "solid" if item.labels.get("hypothesis") == "harm" else "dot",
        )
        for item in sorted(series, key=lambda item: (item.labels.get("hypothesis", ""), item.labels.get("check", "")))
    ]


def life(view: shell.View, began_at: float, ended_at: float | None) -> Span:
    """The stretch of time from a begin to an end, or to now, in about 120 steps."""
    start, end = float(began_at), min(float(ended_at or view.now), view.now)
    return Span(start, end, max(1.0, (end - start) // 120))


def _question(labels: Mapping[str, str]) -> str:
    """What an e-value speaks for: the check is named where it is not errors."""
    check, hypothesis = labels.get("check", "errors"), labels.get("hypothesis", "")
    return hypothesis if check == "errors" else f"{check.replace('_', ' ')} {hypothesis}"
