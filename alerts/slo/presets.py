"""Indicators of our own metrics by a word: availability, latency, freshness, quality, drift, training steps."""

from __future__ import annotations

from typing import Any

from alerts.slo.indicator import Events, Operator, Threshold
from alerts.slo.objective import Objective
from alerts.slo.windowed import counted
from observability import names

_FAULTS = "|".join(names.FAULTS)
# Requests that never were the service's to answer do not count as served or failed.
_COUNTED = 'outcome!~"invalid|cancelled"'
BY_MODEL = ("model",)


def availability(target: float = 0.999, *, by: tuple[str, ...] = BY_MODEL, **options: Any) -> Objective:
    """Requests that do not fail by a fault of ours."""
    indicator, rest = requests(by=by), {"title": "Availability", "name": "availability"}
    return Objective(target=target, indicator=indicator, **{**rest, **options})


def latency(
    target: float = 0.99, threshold_seconds: float = 0.25, *, by: tuple[str, ...] = BY_MODEL, **options: Any
) -> Objective:
    """Requests answered within a threshold; it must be one of `names.LATENCY_SECONDS`."""
    rest = {"title": f"Latency below {threshold_seconds:g} s", "name": "latency"}
    return Objective(target=target, indicator=in_time(threshold_seconds, by=by), **{**rest, **options})


def requests(*, model: str = "", version: str = "", by: tuple[str, ...] = BY_MODEL) -> Events:
    """Bad: outcomes that are the version's fault; of all requests that were to be answered."""
    metric = names.INFERENCE_REQUESTS.name
    return Events(
        total=counted(metric + _where(model, version, _COUNTED)),
        bad=counted(metric + _where(model, version, f'outcome=~"{_FAULTS}"')),
        by=by,
    )


def in_time(threshold_seconds: float, *, model: str = "", version: str = "", by: tuple[str, ...] = BY_MODEL) -> Events:
    """Good: requests answered within the threshold. ValueError if the histogram has no such bucket."""
    if threshold_seconds not in names.LATENCY_SECONDS:
        known = ", ".join(f"{bound:g}" for bound in names.LATENCY_SECONDS)
        raise ValueError(f"{threshold_seconds:g} s is not a bucket of the histogram: choose from {known}")
    metric = names.INFERENCE_DURATION.name
    # A whole number is "1.0" on our pages and in Prometheus 3, "1" elsewhere.
    whole = threshold_seconds == int(threshold_seconds)
    bucket = f'le=~"{threshold_seconds:g}([.]0)?"' if whole else f'le="{threshold_seconds!r}"'
    return Events(
        total=counted(f"{metric}_count" + _where(model, version)),
        good=counted(f"{metric}_bucket" + _where(model, version, bucket)),
        by=by,
    )


def finite_steps(*, model: str = "") -> Events:
    """Bad: training steps that were skipped for a NaN or infinity."""
    taken, skipped = (
        f"sum by (model) ({metric.name}{_where(model)})" for metric in (names.TRAINING_STEPS, names.TRAINING_NONFINITE)
    )
    return Events(total=counted(f"{taken} + {skipped}"), bad=counted(skipped), by=BY_MODEL)


def fresh(*, model: str = "", maximum_age_seconds: float | None = None) -> Threshold:
    """Good while the latest row is no older than the limit; without one, than the model's own in the schema."""
    age = f"max by (model) ({names.QUALITY_AGE.name}{_where(model)})"
    if maximum_age_seconds is not None:
        return Threshold(age, "lte", maximum_age_seconds)
    limit = f"max by (model) ({names.QUALITY_AGE_LIMIT.name}{_where(model)})"
    return Threshold(f"{age} - on (model) {limit}", "lte", 0.0)


def scored(
    metric: str, op: Operator, value: float, *, model: str = "", version: str = "", minimum_rows: float = 100
) -> Threshold:
    """Good while the score of the predictions whose labels have come is on the right side of the value."""
    known = (*names.CLASSIFICATION_SCORES, *names.REGRESSION_SCORES)
    if metric not in known:
        raise ValueError(f"there is no score {metric!r}: choose from {', '.join(dict.fromkeys(known))}")
    where = _where(model, version, f'metric="{metric}"')
    rows = f"max by (model, version) ({names.PERFORMANCE_LABELLED.name}{_where(model, version)}) >= {minimum_rows:g}"
    return Threshold(
        f"max by (model, version) ({names.PERFORMANCE_SCORE.name}{where}) and on (model, version) ({rows})", op, value
    )


def undrifted(
    maximum_share: float = 0.35, *, model: str = "", version: str = "", minimum_rows: float = 200
) -> Threshold:
    """Good while no more than this share of the feature columns has drifted, of versions that answer requests."""
    where = _where(model, version)
    rows = f"max by (model, version) ({names.DRIFT_WINDOW_ROWS.name}{where}) >= {minimum_rows:g}"
    return Threshold(
        f"max by (model, version) ({names.DRIFT_COLUMNS.name}{where}) and on (model, version) ({rows})",
        "lte",
        maximum_share,
    )


def _where(model: str, version: str = "", *more: str) -> str:
    pairs = [f'{name}="{_escaped(value)}"' for name, value in (("model", model), ("version", version)) if value]
    matchers = [*pairs, *more]
    return f"{{{','.join(matchers)}}}" if matchers else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
