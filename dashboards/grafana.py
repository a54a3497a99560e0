"""The dashboards as Grafana's JSON, for those who have one: the same queries, from the same catalogue of names."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dashboards import queries
from observability import names

SCHEMA_VERSION = 39  # of Grafana 11; newer ones migrate it on import
_RATE = 60.0  # replaced by Grafana's own $__rate_interval
_MODEL = "$model"


@dataclass(frozen=True, slots=True)
class Panel:
    """A chart: title, what it means, queries with their legends, and the unit in Grafana's word for it."""

    title: str
    meaning: str
    targets: tuple[tuple[str, str], ...]
    unit: str = "short"
    width: int = 8
    stacked: bool = False
    log: bool = False
    threshold: float | None = None


def export(datasource_uid: str) -> dict[str, dict[str, Any]]:
    """Dashboards `serving`, `drift` and `training`, to import or provision; they ask the data source of that uid."""
    return {
        name: _dashboard(datasource_uid, name, panels)
        for name, panels in (("serving", _serving()), ("drift", _drift()), ("training", _training()))
    }


def _serving() -> list[Panel]:
    latencies = [
        Panel(
            f"Latency p{q * 100:g}",
            f"{q:.0%} of the requests are faster.",
            ((_moving(queries.quantile(q, names.INFERENCE_DURATION, _MODEL, ("version",), _RATE)), "v{{version}}"),),
            "s",
        )
        for q in (0.5, 0.95, 0.99)
    ]
    by_outcome = _moving(queries.rate(names.INFERENCE_REQUESTS, _MODEL, ("outcome",), _RATE))
    by_version = _moving(queries.rate(names.INFERENCE_REQUESTS, _MODEL, ("version",), _RATE))
    p95 = [
        (_moving(queries.quantile(0.95, metric, _MODEL, (), _RATE)), words)
        for metric, words in ((names.INFERENCE_QUEUE, "queue wait"), (names.INFERENCE_COMPUTE, "compute"))
    ]
    return [
        Panel("Requests by version", "A second.", ((by_version, "v{{version}}"),), "reqps", 12, stacked=True),
        Panel("Requests by outcome", "A second.", ((by_outcome, "{{outcome}}"),), "reqps", 12, stacked=True),
        *latencies,
        Panel("Queue wait and compute", "p95 over all versions.", tuple(p95), "s"),
        Panel("Queue depth", "Rows waiting.", ((queries.gauge(names.QUEUE_ROWS, _MODEL), "v{{version}}"),)),
        Panel(
            "Rows in a batch",
            "Mean by version.",
            ((_moving(queries.mean(names.INFERENCE_BATCH_ROWS, _MODEL, ("version",), _RATE)), "v{{version}}"),),
        ),
        Panel(
            "Traffic weights",
            "Share of requests routed to a version.",
            ((queries.gauge(names.TRAFFIC_WEIGHT, _MODEL), "v{{version}} {{role}}"),),
            "percentunit",
            12,
        ),
        Panel(
            "Canary evidence",
            "E-values; 100 decides at 1 % false alarms.",
            ((queries.gauge(names.CANARY_EVIDENCE, _MODEL), "{{release}} {{check}} {{hypothesis}}"),),
            width=12,
            log=True,
            threshold=100.0,
        ),
    ]


def _drift() -> list[Panel]:
    def scores(metric: str) -> tuple[tuple[str, str], ...]:
        return ((queries.gauge(names.PERFORMANCE_SCORE, _MODEL, metric=metric), "v{{version}}"),)

    def quality(metric: names.Metric) -> tuple[tuple[str, str], ...]:
        return ((queries.gauge(metric, _MODEL), "{{column}} v{{version}}"),)

    psi = queries.gauge(names.DRIFT_SCORE, _MODEL, method="psi")
    return [
        Panel("Drift by column", "Population stability index.", ((psi, "{{column}} v{{version}}"),), width=16),
        Panel(
            "Share of drifted features",
            "In the last closed window.",
            ((queries.gauge(names.DRIFT_COLUMNS, _MODEL), "v{{version}}"),),
            "percentunit",
        ),
        Panel("Missing values", "Share by column.", quality(names.QUALITY_MISSING), "percentunit"),
        Panel("Out of range", "Share by column.", quality(names.QUALITY_OUT_OF_RANGE), "percentunit"),
        Panel("Unseen categories", "Share by column.", quality(names.QUALITY_UNSEEN), "percentunit"),
        Panel("Log loss", "Of predictions whose labels came.", scores("log_loss")),
        Panel("ROC AUC", "Ranking quality, 0.5 is chance.", scores("roc_auc")),
        Panel(
            "Base rate and mean prediction",
            "They part when the model is off.",
            (
                (scores("positive_ratio")[0][0], "labels v{{version}}"),
                (scores("prediction_mean")[0][0], "predictions v{{version}}"),
            ),
            "percentunit",
        ),
    ]


def _training() -> list[Panel]:
    phases = _moving(queries.rate(names.TRAINING_PHASE_DURATION, _MODEL, ("phase",), _RATE, "_sum"))
    return [
        *(
            Panel(title, meaning, ((queries.gauge(metric, _MODEL), "{{run}}"),))
            for title, meaning, metric in (
                ("Training loss", "Of the last recorded step.", names.TRAINING_LOSS),
                ("Gradient norm", "Before clipping.", names.TRAINING_GRADIENT_NORM),
                ("Throughput", "Samples a second.", names.TRAINING_THROUGHPUT),
            )
        ),
        Panel(
            "Where the time goes",
            "Seconds a second by phase.",
            ((phases, "{{phase}}"),),
            "percentunit",
            12,
            stacked=True,
        ),
        Panel(
            "Evaluation",
            "Scores on held-out data.",
            ((queries.gauge(names.TRAINING_EVALUATION, _MODEL), "{{run}} {{metric}}"),),
            width=12,
        ),
    ]


def _moving(query: str) -> str:
    return query.replace(f"[{queries.span_text(_RATE)}]", "[$__rate_interval]")


def _dashboard(datasource_uid: str, name: str, panels: Sequence[Panel]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": datasource_uid}
    alerts = {
        "datasource": source, "enable": True, "name": "Alerts", "iconColor": "red", "titleFormat": "{{alertname}}",
        "expr": 'ALERTS{alertstate="firing"}', "step": "15s",
    }  # fmt: skip
    model = {
        "name": "model", "label": "Model", "type": "query", "datasource": source, "refresh": 2, "sort": 1,
        "query": {"query": "label_values(model)", "refId": "model"},
    }  # fmt: skip
    return {
        "uid": f"trimtab-{name}", "title": f"Trimtab / {name.capitalize()}", "tags": ["trimtab"],
        "schemaVersion": SCHEMA_VERSION, "timezone": "browser", "editable": True, "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"}, "annotations": {"list": [alerts]}, "templating": {"list": [model]},
        "panels": _placed(source, panels),
    }  # fmt: skip


def _placed(source: dict[str, str], panels: Sequence[Panel], height: int = 8) -> list[dict[str, Any]]:
    """Panels from left to right, row by row, on Grafana's grid of 24 columns."""
    placed, x, y = [], 0, 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > 24:
            x, y = 0, y + height
        grid = {"x": x, "y": y, "w": panel.width, "h": height}
        placed.append({"id": number, "gridPos": grid, **_panel(source, panel)})
        x += panel.width
    return placed


def _panel(source: dict[str, str], panel: Panel) -> dict[str, Any]:
    custom = {
        "lineWidth": 1, "fillOpacity": 30 if panel.stacked else 0, "showPoints": "never",
        "stacking": {"mode": "normal" if panel.stacked else "none"},
        "scaleDistribution": {"type": "log", "log": 10} if panel.log else {"type": "linear"},
        "thresholdsStyle": {"mode": "dashed" if panel.threshold is not None else "off"},
    }  # fmt: skip
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.threshold is not None:
        steps.append({"color": "red", "value": panel.threshold})
    defaults = {"unit": panel.unit, "custom": custom, "thresholds": {"mode": "absolute", "steps": steps}}
    return {
        "type": "timeseries", "title": panel.title, "description": panel.meaning, "datasource": source,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(65 + i), "datasource": source, "expr": expr, "legendFormat": legend}
            for i, (expr, legend) in enumerate(panel.targets)
        ],
    }  # fmt: skip


def main(folder: Path) -> None:
    """Write the dashboards into a folder, one file each; their data source is the one with uid `prometheus`."""
    for name, dashboard in export("prometheus").items():
        (folder / f"{name}.json").write_text(json.dumps(dashboard, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
