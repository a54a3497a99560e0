"""What the collector computes, as samples of the catalogue: pure functions from panes and scores to values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from collectors.drift import ColumnDrift, DriftThresholds, drifted_share, judge, missing_ratio
from collectors.drift.calibration import Calibration
from collectors.drift.joint_verdict import JointDrift
from collectors.performance import QUANTILES, error_ratio, latency_quantile
from collectors.quality import QualityMonitor, became_constant, column_quality
from collectors.scores import Performance
from collectors.windows import Key, Pane, same_layout
from observability import names
from observability.names import Metric
from observability.profile import Profile


@dataclass(frozen=True, slots=True)
class Value:
    """One sample of a catalogue entry."""

    metric: Metric
    labels: dict[str, str]
    value: float


def pane_values(
    last: Pane, judged: Pane, reference: Profile | None, verdicts: Mapping[str, ColumnDrift]
) -> list[Value]:
    """All that is known of a version when a window closes: drift and quality are those of `judged`."""
    version = {"model": last.model, "version": last.version}
    values = _performance_values(last, version) + _quality_values(judged, reference, version)
    if not verdicts:
        return values
    values.append(Value(names.DRIFT_WINDOW_ROWS, version, judged.seen))
    values.append(Value(names.DRIFT_COLUMNS, version, drifted_share(verdicts)))
    for name, verdict in verdicts.items():
        column = {**version, "column": name}
        values.append(Value(names.DRIFT_DETECTED, column, float(verdict.drifted)))
        values += [Value(names.DRIFT_SCORE, {**column, "method": m}, s) for m, s in methods(verdict).items()]
        values.append(Value(names.DRIFT_P_VALUE, column, verdict.p_value))
        values.append(Value(names.DRIFT_THRESHOLD, column, verdict.threshold))
    return [value for value in values if math.isfinite(value.value)]


def joint_values(key: Key, found: JointDrift | None) -> list[Value]:
    """How far the numeric columns together are from the reference; nothing without a joint part or enough rows."""
    if found is None:
        return []
    version = {"model": key[0], "version": key[1]}
    values = [
        Value(names.DRIFT_JOINT, {**version, "statistic": "mmd"}, found.mmd),
        Value(names.DRIFT_JOINT, {**version, "statistic": "pca_reconstruction"}, found.reconstruction),
        Value(names.DRIFT_JOINT_THRESHOLD, version, found.threshold),
    ]
    return [value for value in values if math.isfinite(value.value)]


def alarm_values(key: Key, columns: Iterable[str], since: Mapping[str, float], evidence: float) -> list[Value]:
    """Which columns' alarms stand, since when (unix seconds), and the evidence of all columns together."""
    version = {"model": key[0], "version": key[1]}
    values = []
    for name in columns:
        column = {**version, "column": name}
        values.append(Value(names.DRIFT_ALARM, column, float(name in since)))
        values.append(Value(names.DRIFT_ALARM_SINCE, column, since.get(name, 0.0)))
    return [*values, Value(names.DRIFT_EVIDENCE, version, evidence)]


def alarm_slice_values(key: Key, slices: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Value]:
    """The slices that explain the alarms that stand, by column: the size of the effect and its q-value."""
    values = []
    for column, found in slices.items():
        for one in found:
            labels = {
                "model": key[0], "version": key[1], "column": column, "slice": one["slice"], "value": one["value"],
            }  # fmt: skip
            values.append(Value(names.DRIFT_ALARM_SLICE_EFFECT, labels, float(one.get("effect", one["score"]))))
            # An explanation that an earlier release stored has none.
            if "q_value" in one:
                values.append(Value(names.DRIFT_ALARM_SLICE_Q, labels, float(one["q_value"])))
    return values


def differs(verdict: ColumnDrift) -> bool:
    """Whether a column differs by the calibrated rule, however far: more than chance, and enough to matter."""
    return verdict.score >= verdict.threshold or verdict.missing_changed


def verdicts_of(
    pane: Pane, reference: Profile | None, thresholds: DriftThresholds, calibration: Calibration | None = None
) -> dict[str, ColumnDrift]:
    """The verdict on each column of a pane; empty without a reference, or when the pane was made under another one."""
    profile = pane.folded().profile
    if reference is None or profile is None:
        return {}
    # Columns are judged one by one; slices and hours of the week have no joint part.
    reference, profile = replace(reference, joint=None), replace(profile, joint=None)
    if not same_layout(reference, profile):
        return {}
    return judge(reference, profile, thresholds, calibration)


def methods(verdict: ColumnDrift) -> dict[str, float]:
    """The distances of a verdict by the name of their method; those that the column's kind lacks are left out."""
    distances = {
        "psi": verdict.psi,
        "jensen_shannon": verdict.jensen_shannon,
        "wasserstein": verdict.wasserstein,
        "ks": verdict.ks,
        "calibrated": verdict.score,
    }
    return {method: value for method, value in distances.items() if value is not None}


def slice_values(judged: Pane, verdicts: Mapping[tuple[str, str], Mapping[str, ColumnDrift]]) -> list[Value]:
    """Rows, drift and quality of each slice of a judged window."""
    values: list[Value] = []
    for column, parts in judged.slices.items():
        for value, part in parts.items():
            labels = {"model": judged.model, "version": judged.version, "slice": column, "value": value}
            values.append(Value(names.DRIFT_SLICE_ROWS, labels, part.rows))
            values.append(Value(names.SLICE_ERRORS, labels, error_ratio(part)))
            if (missing := missing_share(part)) is not None:
                values.append(Value(names.QUALITY_SLICE_MISSING, labels, missing))
            if found := verdicts.get((column, value)):
                values.append(Value(names.DRIFT_SLICE_COLUMNS, labels, drifted_share(found)))
    return values


def missing_share(pane: Pane) -> float | None:
    """Share of a pane's values, of all columns together, that are missing; None without a profile or rows."""
    profile = pane.folded().profile
    rows = sum(column.rows for column in profile.columns.values()) if profile else 0
    if profile is None or not rows:
        return None
    return sum(missing_ratio(column) * column.rows for column in profile.columns.values()) / rows


def score_values(key: Key, rows: int, scored: Mapping[str, float]) -> list[Value]:
    """A version's scores, and the labelled predictions they are made of."""
    version = {"model": key[0], "version": key[1]}
    values = [Value(names.PERFORMANCE_LABELLED, version, rows)]
    return values + [Value(names.PERFORMANCE_SCORE, {**version, "metric": m}, s) for m, s in scored.items()]


def performance_values(key: Key, performance: Performance) -> list[Value]:
    """The intervals of realised scores, and the expected ones with the band that they have left or not."""
    version = {"model": key[0], "version": key[1]}
    values: list[Value] = []
    for name, score in performance.realised.items():
        labels = {**version, "metric": name}
        values += [Value(names.PERFORMANCE_LOW, labels, score.low), Value(names.PERFORMANCE_HIGH, labels, score.high)]
    for name, estimate in performance.expected.items():
        labels = {**version, "metric": name}
        values.append(Value(names.ESTIMATED_SCORE, labels, estimate.value))
        values.append(Value(names.ESTIMATED_LOW, labels, estimate.band_low))
        values.append(Value(names.ESTIMATED_HIGH, labels, estimate.band_high))
        values.append(Value(names.ESTIMATED_ALERT, labels, float(estimate.alert)))
    for name, error in performance.honesty.items():
        values.append(Value(names.ESTIMATED_ERROR, {**version, "metric": name}, error))
    return [value for value in values if math.isfinite(value.value)]


def duplicate_values(key: Key, ratio: float) -> list[Value]:
    """The share of a version's latest rows that repeat another."""
    return [Value(names.QUALITY_DUPLICATED, {"model": key[0], "version": key[1]}, ratio)]


def traffic_values(quality: QualityMonitor, model: str, now: float) -> list[Value]:
    """How much comes of a model and how old the latest of it is; what is not known yet is left out.

    Of a model whose latest row is stale its age is told, and not how many rows there were before.
    """
    labels, age, limit = {"model": model}, quality.age(model, now), quality.age_limit(model)
    values = [
        Value(names.QUALITY_VOLUME, labels, quality.volume_ratio(model, now) if age <= limit else math.nan),
        Value(names.QUALITY_AGE, labels, age),
        Value(names.QUALITY_AGE_LIMIT, labels, limit),
    ]
    return [value for value in values if math.isfinite(value.value)]


def _performance_values(pane: Pane, version: dict[str, str]) -> list[Value]:
    rate = pane.seen / (pane.end - pane.start)
    values = [
        Value(names.OBSERVED_THROUGHPUT, version, rate),
        Value(names.QUALITY_ROWS, version, rate),
        Value(names.OBSERVED_ERRORS, version, error_ratio(pane)),
    ]
    for q in QUANTILES:
        latency = latency_quantile(pane.latencies, q)
        if not math.isnan(latency):
            values.append(Value(names.OBSERVED_LATENCY, {**version, "q": str(q)}, latency))
    return values


def _quality_values(pane: Pane, reference: Profile | None, version: dict[str, str]) -> list[Value]:
    profile = pane.folded().profile
    values: list[Value] = []
    for name, column in profile.columns.items() if profile else ():
        labels = {**version, "column": name}
        quality = column_quality(column)
        values.append(Value(names.QUALITY_MISSING, labels, quality.missing_ratio))
        if quality.out_of_range_ratio is not None:
            values.append(Value(names.QUALITY_OUT_OF_RANGE, labels, quality.out_of_range_ratio))
        if quality.unseen_ratio is not None:
            values.append(Value(names.QUALITY_UNSEEN, labels, quality.unseen_ratio))
        if quality.non_finite_ratio is not None:
            values.append(Value(names.QUALITY_NON_FINITE, labels, quality.non_finite_ratio))
        if reference is not None and name in reference.columns:
            known = reference.columns[name]
            usual = column_quality(known)
            for check, share in (("missing", usual.missing_ratio), ("non_finite", usual.non_finite_ratio)):
                if share:
                    values.append(Value(names.QUALITY_EXPECTED, {**labels, "check": check}, share))
            constant = became_constant(known, column)
            values.append(Value(names.QUALITY_CONSTANT, labels, float(constant)))
    return values
