"""A story in a quarter of an hour: v1 serves, v2 is released bad and rolled back, the season shifts, v3 replaces v1.

Everything is a function of the time and of `begin`; nothing is random, so pictures and tests repeat.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dashboards.testing.promql import Labels, Value
from observability import names

MODEL = "flight_delay"
LENGTH = 900.0
# seconds after the beginning
TRAINED_1, SERVED_1 = (20.0, 75.0), 80.0
CANARY_2, BACK_2 = 310.0, 347.0
SHIFT, DRIFT_PENDING, DRIFT_FIRING, DRIFT_OVER = 460.0, 545.0, 575.0, 800.0
TRAINED_3, CANARY_3, HALF_3, PROMOTED_3 = (580.0, 632.0), 650.0, 700.0, 752.0

_COLUMNS = {
    "feature.temp": "numeric",
    "feature.wind_speed": "numeric",
    "feature.visib": "numeric",
    "feature.precip": "numeric",
    "feature.pressure": "numeric",
    "feature.distance": "numeric",
    "feature.dep_hour": "numeric",
    "feature.carrier": "categorical",
    "feature.origin": "categorical",
    "feature.dest": "categorical",
    "feature.holiday": "boolean",
    "prediction.delay_probability": "numeric",
}
_MOVES = {
    "feature.temp": 1.0,
    "feature.pressure": 0.45,
    "feature.visib": 0.3,
    "feature.wind_speed": 0.22,
    "prediction.delay_probability": 0.35,
    "feature.dest": 0.12,
}
_CARRIERS = ("UA", "B6", "EV", "DL", "AA", "MQ", "US", "9E", "WN", "VX")


@dataclass(frozen=True, slots=True)
class Story:
    """The story that began at unix second `begin`."""

    begin: float

    def since(self, time: float) -> float:
        """Seconds since the beginning."""
        return time - self.begin

    # --- traffic ----------------------------------------------------------------------------------------------------
    def weight(self, version: str, time: float) -> tuple[float, str]:
        """Share of requests and role of a version."""
        t = self.since(time)
        canary = {
            "2": 0.1 if CANARY_2 <= t < BACK_2 else 0.0,
            "3": 0.1 if CANARY_3 <= t < HALF_3 else 0.5 if HALF_3 <= t < PROMOTED_3 else 0.0,
        }
        stable = "3" if t >= PROMOTED_3 else "1"
        if version == stable:
            return (1 - sum(canary.values()) if t >= SERVED_1 else 0.0), "stable"
        return canary.get(version, 0.0), "canary"

    def requests(self, version: str, outcome: str, time: float) -> float | None:
        """Requests a second."""
        t = self.since(time)
        weight, _ = self.weight(version, time)
        if weight == 0:
            return None
        rate = weight * (58 + 9 * math.sin(t / 90) + 3 * _noise(t))
        if version == "2":
            shares = {"non_finite": 0.17, "model_error": 0.02, "ok": 0.81}
        else:
            burst = 1.0 if 210 <= t < 235 else 0.0
            shares = {"rejected": 0.03 * burst, "expired": 0.0004, "invalid": 0.0012, "ok": 0.9984 - 0.03 * burst}
        return rate * shares[outcome] if outcome in shares else None

    def latency(self, version: str, time: float) -> float:
        """Median seconds of a request."""
        burst = 2.2 if 210 <= self.since(time) < 240 else 1.0
        base = {"1": 0.0042, "2": 0.0061, "3": 0.0038}[version]
        return base * burst * (1 + 0.07 * _noise(time / 7))

    # --- drift ------------------------------------------------------------------------------------------------------
    def psi(self, column: str, version: str, time: float) -> float:
        """Drift of a column: v1's grows with the season, v3 was trained on it."""
        t = self.since(time)
        moved = max(0.0, min(1.0, (t - SHIFT) / 160)) * (0.12 if version == "3" else 1.0)
        return round(0.62 * _MOVES.get(column, 0.02) * moved + 0.012 + 0.008 * _noise(t / 11 + len(column)) ** 2, 4)

    # --- the metrics ------------------------------------------------------------------------------------------------
    def world(self) -> dict[str, dict[Labels, Value]]:
        """Every metric that the dashboard reads, as functions of time."""
        out: dict[str, dict[Labels, Value]] = {}

        def put(metric: str, value: Value, /, **labels: str) -> None:
            out.setdefault(metric, {})[tuple(labels.items())] = value

        for version in ("1", "2", "3"):
            self._put_serving(put, version)
            self._put_quality(put, version)
        put(names.QUEUE_LIMIT_ROWS.name, self._served(lambda t: 512.0), model=MODEL)
        for release, candidate, (start, end) in (
            ("flight_delay-1", "2", (CANARY_2, BACK_2)),
            ("flight_delay-2", "3", (CANARY_3, PROMOTED_3)),
        ):
            self._put_evidence(put, release, candidate, start, end)
        for run, (start, end) in (("run-20130301-a1", TRAINED_1), ("run-20130715-c4", TRAINED_3)):
            self._put_training(put, run, start, end)
        self._put_learners(put)
        for alert, severity, state, start, end, labels in self._alerts():
            put(
                "ALERTS",
                _between(self.begin, start, end, lambda t: 1.0),
                alertname=alert,
                alertstate=state,
                severity=severity,
                **labels,
            )
        self._put_budgets(put)
        for job in ("trimtab-collector", "trimtab-alerts", "trimtab-serving"):
            put("up", self._served(lambda t: 1.0), job=job, instance="127.0.0.1")
        return out

    def _served(self, value: Value) -> Value:
        return _between(self.begin, SERVED_1, math.inf, value)

    def _put_budgets(self, put: Any) -> None:
        """What the rules of two objectives record: v2's release spent most of one budget."""
        for slo, title, target, left, burn in (
            ("availability", "Availability", 0.999, 0.12, 0.4),
            ("latency", "Latency below 1 s", 0.99, 0.94, 0.06),
        ):
            own = {"slo": slo, "service": "serving"}
            put(names.SLO_BUDGET, self._served(lambda t, b=1 - target: b), **own)  # type: ignore[misc]
            info = {"objective": f"{target * 100:g}", "period": "30d", "title": title, "method": "Occurrences"}
            put(names.SLO_INFO, self._served(lambda t: 1.0), **own, **info)
            put(names.SLO_BUDGET_LEFT, self._served(lambda t, x=left: x), **own, model=MODEL)  # type: ignore[misc]
            put(names.SLO_BURN_RATE, self._served(lambda t, x=burn: x), **own, model=MODEL)  # type: ignore[misc]
            for span, times in (("1h", 6.0), ("6h", 4.0), ("3d", 1.2)):
                ratio = burn * times * (1 - target)
                put(f"{names.SLO_ERROR_RATIO}{span}", self._served(lambda t, x=ratio: x), **own, model=MODEL)  # type: ignore[misc]

    def _put_serving(self, put: Any, version: str) -> None:
        labels = {"model": MODEL, "version": version}
        for outcome in names.OUTCOMES:
            put(
                names.INFERENCE_REQUESTS.name,
                lambda t, v=version, o=outcome: self.requests(v, o, t),
                **labels,
                outcome=outcome,
            )
        for metric, factor, spread in (
            (names.INFERENCE_DURATION, 1.0, 0.55),
            (names.INFERENCE_QUEUE, 0.35, 0.8),
            (names.INFERENCE_COMPUTE, 0.5, 0.3),
        ):
            for bound in (*metric.buckets, math.inf):
                put(
                    f"{metric.name}_bucket",
                    self._bucket(version, bound, factor, spread),
                    **labels,
                    le="+Inf" if bound == math.inf else f"{bound:g}",
                )
        for bound in (*names.INFERENCE_BATCH_ROWS.buckets, math.inf):
            put(
                f"{names.INFERENCE_BATCH_ROWS.name}_bucket",
                self._bucket(version, bound, 5 / 0.0042, 0.6),
                **labels,
                le="+Inf" if bound == math.inf else f"{bound:g}",
            )
        put(f"{names.INFERENCE_BATCH_ROWS.name}_sum", lambda t: self.requests(version, "ok", t), **labels)
        put(f"{names.INFERENCE_BATCH_ROWS.name}_count", lambda t: (self.requests(version, "ok", t) or 0) / 5, **labels)
        for reason, part in (("timeout", 0.62), ("full", 0.23), ("idle", 0.15)):
            put(
                names.INFERENCE_BATCHES.name,
                lambda t, p=part: (self.requests(version, "ok", t) or 0) * p,
                **labels,
                close_reason=reason,
            )
        put(
            names.QUEUE_ROWS.name,
            lambda t: (
                None
                if not self.weight(version, t)[0]
                else max(
                    0.0, self.weight(version, t)[0] * (3 + 2 * _noise(t) + (40 if 210 <= self.since(t) < 235 else 0))
                )
            ),
            **labels,
        )
        for role in ("stable", "canary"):
            put(
                names.TRAFFIC_WEIGHT.name,
                lambda t, r=role: self.weight(version, t)[0] or None if self.weight(version, t)[1] == r else None,
                **labels,
                role=role,
            )

    def _bucket(self, version: str, bound: float, factor: float, spread: float) -> Value:
        def value(time: float) -> float | None:
            rate = self.weight(version, time)[0] * 58
            if rate == 0:
                return None
            if bound == math.inf:
                return rate
            z = (math.log(bound) - math.log(self.latency(version, time) * factor)) / spread
            return rate * 0.5 * (1 + math.erf(z / math.sqrt(2)))

        return value

    def _put_quality(self, put: Any, version: str) -> None:
        labels = {"model": MODEL, "version": version}

        def live(value: Value) -> Value:
            return lambda t: value(t) if self.weight(version, t)[0] and self.since(t) > SERVED_1 + 30 else None

        put(names.DRIFT_COLUMNS.name, live(lambda t: self._share(version, t)), **labels)
        put(names.QUALITY_ROWS.name, live(lambda t: self.requests(version, "ok", t)), **labels)
        put(names.QUALITY_DUPLICATED.name, live(lambda t: 0.012 + 0.004 * _noise(t / 9)), **labels)
        put(names.QUALITY_VOLUME.name, self._served(lambda t: 1 + 0.08 * _noise(t / 7)), model=MODEL)
        for column in _COLUMNS:
            put(
                names.QUALITY_MISSING.name,
                live(lambda t, c=column: 0.18 if version == "2" and c.endswith("probability") else 0.004),  # type: ignore[misc]
                **labels,
                column=column,
            )
            put(
                names.QUALITY_OUT_OF_RANGE.name,
                live(lambda t, c=column: 0.4 if version == "2" and c.endswith("temp") else 0.001),  # type: ignore[misc]
                **labels,
                column=column,
            )
            if _COLUMNS[column] == "categorical":
                put(names.QUALITY_UNSEEN.name, live(lambda t: 0.0008), **labels, column=column)
        shift = {"1": 0.045, "2": 0.4, "3": 0.008}[version]

        def moved(time: float) -> float:
            return max(0.0, min(1.0, (self.since(time) - SHIFT) / 160))

        for metric, base, slope in (
            ("log_loss", 0.512, shift),
            ("brier", 0.162, shift / 3),
            ("roc_auc", 0.712, -shift / 4),
            ("accuracy", 0.781, -shift / 2),
            ("positive_ratio", 0.213, 0.07),
            ("prediction_mean", 0.217, 0.07 if version == "3" else 0.02),
        ):
            put(
                names.PERFORMANCE_SCORE.name,
                live(lambda t, b=base, s=slope: b + s * moved(t) + 0.006 * _noise(t / 13)),  # type: ignore[misc]
                **labels,
                metric=metric,
            )
        for metric, base in (("log_loss", 0.509), ("roc_auc", 0.715)):
            put(
                names.ESTIMATED_SCORE.name,
                live(lambda t, b=base: b + 0.004 * _noise(t / 17)),  # type: ignore[misc]
                **labels,
                metric=metric,
            )
        put(names.PERFORMANCE_LABELLED.name, live(lambda t: 1840.0), **labels)

    def _share(self, version: str, time: float) -> float:
        columns = [column for column in _COLUMNS if column.startswith("feature.")]
        return sum(self.psi(column, version, time) > 0.1 for column in columns) / len(columns)

    def _put_evidence(self, put: Any, release: str, candidate: str, start: float, end: float) -> None:
        labels = {"model": MODEL, "release": release, "candidate": candidate, "baseline": "1"}
        bad = candidate == "2"

        def log10(time: float, hypothesis: str) -> float:
            age = self.since(time) - start
            if (hypothesis == "harm") == bad:
                return age * (0.085 if bad else 0.024) + 0.15 * _noise(time / 3)
            return -0.01 * age + 0.05 * _noise(time / 3)

        def outcome_count(time: float, outcome: str) -> float:
            count = (self.since(time) - start) * 5.8
            errors = round(count * (0.19 if bad else 0.0005))
            return float(errors if outcome == "error" else round(count) - errors)

        lasting = min(end + 60, end + 60)
        for hypothesis in ("harm", "safety"):
            put(
                names.CANARY_EVIDENCE.name,
                _between(self.begin, start, lasting, lambda t, h=hypothesis: 10 ** log10(min(t, self.begin + end), h)),  # type: ignore[misc]
                **labels,
                check="errors",
                hypothesis=hypothesis,
            )
        for outcome in ("ok", "error"):
            put(
                names.CANARY_REQUESTS.name,
                _between(self.begin, start, lasting, lambda t, o=outcome: outcome_count(min(t, self.begin + end), o)),  # type: ignore[misc]
                **labels,
                arm="canary",
                outcome=outcome,
            )
        decided = start + (24 if bad else 84)
        final = "rollback" if bad else "advance"
        put(
            names.CANARY_VERDICT.name, _between(self.begin, start, decided, lambda t: 1.0), **labels, verdict="continue"
        )
        put(names.CANARY_VERDICT.name, _between(self.begin, decided, lasting, lambda t: 1.0), **labels, verdict=final)

    def _put_learners(self, put: Any) -> None:
        """An online learner that follows, a federation with one odd client, and a server; counters by the second."""
        model = {"model": MODEL}
        for metric, value, more in (
            (names.ONLINE_EVENTS, 96.0, {"outcome": "learned"}),
            (names.ONLINE_EVENTS, 0.02, {"outcome": "skipped"}),
            (names.ONLINE_SCORE, 0.4971, {"learner": "online", "metric": "log_loss"}),
            (names.ONLINE_SCORE, 0.5037, {"learner": "champion", "metric": "log_loss"}),
            *(
                (names.ONLINE_EXCESS, v, {"bound": b})
                for b, v in (("mean", -0.0066), ("lower", -0.011), ("upper", -0.002))
            ),
            (names.ONLINE_RATE, 1e-4, {}),
            (names.ONLINE_ROLLBACKS, 0.002, {"reason": "worse"}),
            (names.ONLINE_DRIFTS, 0.004, {}),
            (names.FEDERATED_ROUND, 37.0, {}),
            (names.FEDERATED_ROUNDS, 0.07, {"outcome": "aggregated"}),
            (names.FEDERATED_ROUNDS, 0.004, {"outcome": "repeated"}),
            (names.FEDERATED_CLIENTS, 3.0, {}),
            (names.FEDERATED_PARTICIPATION, 2 / 3, {}),
            (names.PARAMETER_SERVER_WORKERS, 4.0, {"server": "0"}),
            (names.PARAMETER_SERVER_UPDATES, 12980.0, {"server": "0"}),
        ):
            put(metric.name, lambda t, v=value: v, **model, **more)
        put(names.ONLINE_POSITION.name, lambda t: t - 40.0, **model)
        for client, suspicion, used, rejected in (("jfk", 0.4, 37, 0), ("lga", 0.9, 36, 1), ("ewr", 7.2, 31, 6)):
            of_client = model | {"client": client}
            put(names.FEDERATED_UPDATES.name, lambda t, n=used: n / 500, **of_client, outcome="used")
            put(names.FEDERATED_UPDATES.name, lambda t, n=rejected: n / 500, **of_client, outcome="rejected")
            put(names.FEDERATED_SUSPICION.name, lambda t, s=suspicion: s, **of_client)
            put(names.FEDERATED_CLIENT_DRIFT.name, lambda t, s=suspicion: s / 20, **of_client)
            put(names.FEDERATED_LOSS.name, lambda t, s=suspicion: 0.49 + s / 60, **of_client)

    def _put_training(self, put: Any, run: str, start: float, end: float) -> None:
        def live(value: Value) -> Value:
            return _between(self.begin, start, end, value)

        labels = {"model": MODEL, "run": run}
        done = end - start
        put(
            names.TRAINING_LOSS.name,
            live(lambda t: 0.497 + 0.2 * math.exp(-(self.since(t) - start) / done * 4) + 0.004 * _noise(t)),
            **labels,
        )
        put(
            names.TRAINING_GRADIENT_NORM.name,
            live(lambda t: 0.35 + 0.9 * math.exp(-(self.since(t) - start) / done * 5) + 0.06 * _noise(t)),
            **labels,
        )
        put(names.TRAINING_THROUGHPUT.name, live(lambda t: 41000 + 2500 * _noise(t / 2)), **labels)
        final = _between(self.begin, end - 3, end + 2, lambda t: 1.0)
        for metric, score in (("log_loss", 0.504), ("roc_auc", 0.716), ("accuracy", 0.784), ("brier", 0.161)):
            put(names.TRAINING_EVALUATION.name, lambda t, s=score: s if final(t) else None, **labels, metric=metric)
        steps = live(lambda t: 160.0)
        model = {"model": MODEL, "pid": run}
        put(names.TRAINING_STEPS.name, steps, **model)
        put(
            names.TRAINING_RUNS.name,
            _between(self.begin, end - 40, end, lambda t: 1 / 40),
            **model,
            outcome="completed",
        )
        middle = (start + end) / 2
        # Once in the run, and known until its end: a reading every few seconds finds it wherever its grid lies.
        spoken = _between(self.begin, middle, end, lambda t: 0.1 if self.since(t) < middle + 10 else 0.0)
        put(names.TRAINING_FINDINGS.name, spoken, **model, guard="loss_spike", action="rewind")
        put(
            names.TRAINING_RESTARTS.name, _between(self.begin, end - 40, end, lambda t: 1 / 40), **model, cause="killed"
        )
        put(names.TRAINING_GOODPUT.name, live(lambda t: 0.963), **labels)
        for cause, spent in (("productive", 96.3), ("starting", 2.1), ("repeated", 0.9), ("data_wait", 0.7)):
            put(names.TRAINING_WALL_TIME.name, lambda t, s=spent: s, **labels, cause=cause)
        for rank, slow in (("0", 1.0), ("1", 1.31)):
            of_rank = labels | {"rank": rank}
            put(names.TRAINING_RANK_UP.name, lambda t: 1.0, **of_rank)
            put(names.TRAINING_RANK_STEP.name, lambda t: 4210.0, **of_rank)
            put(names.TRAINING_RANK_SLOWDOWN.name, lambda t, s=slow: s if s > 1 else 1 / 1.31, **of_rank)
            for phase, seconds in (("data_wait", 7e-4), ("forward", 1.9e-3 * slow), ("backward", 2.6e-3 * slow),
                                   ("communication", 4e-4 if slow > 1 else 1.8e-3), ("optimizer", 8e-4)):  # fmt: skip
                put(names.TRAINING_RANK_PHASE.name, lambda t, s=seconds: s, **of_rank, phase=phase)
        # Both ranks' steps are in what phases took; those of the run are counted once.
        put(f"{names.TRAINING_STEP_DURATION.name}_count", live(lambda t: 320.0), **model)
        for phase, seconds, often in (
            ("data_wait", 0.0007, 1),
            ("forward", 0.0019, 1),
            ("backward", 0.0026, 1),
            ("optimizer", 0.0008, 1),
            ("checkpoint", 0.045, 0.01),
            ("evaluation", 0.4, 0.002),
        ):
            put(
                f"{names.TRAINING_PHASE_DURATION.name}_sum",
                live(lambda t, s=seconds * often: 320 * s),  # type: ignore[misc]
                **model,
                phase=phase,
            )
            put(f"{names.TRAINING_PHASE_DURATION.name}_count", live(lambda t, o=often: 320.0 * o), **model, phase=phase)  # type: ignore[misc]

    def _alerts(self) -> list[tuple[str, str, str, float, float, dict[str, str]]]:
        canary = {"model": MODEL, "release": "flight_delay-1", "version": "2"}
        drift = {"model": MODEL, "version": "1"}
        return [
            ("CanaryHarmful", "critical", "firing", CANARY_2 + 24, BACK_2 + 3, canary),
            ("RequestsRefused", "warning", "pending", 212, 240, {"model": MODEL}),
            ("FeaturesDrifted", "warning", "pending", DRIFT_PENDING, DRIFT_FIRING, drift),
            ("FeaturesDrifted", "warning", "firing", DRIFT_FIRING, DRIFT_OVER, drift),
            ("LabelsLate", "warning", "firing", 835, math.inf, {"model": MODEL}),
            ("LatencyHigh", "critical", "pending", 880, math.inf, {"model": MODEL, "version": "3"}),
        ]


def _noise(x: float) -> float:
    return math.sin(x * 1.7) * 0.5 + math.sin(x * 0.613 + 1) * 0.3 + math.sin(x * 3.1 + 2) * 0.2


def _between(begin: float, start: float, end: float, value: Value) -> Value:
    return lambda t: value(t) if start <= t - begin < end else None


def reference_column(column: str) -> dict[str, Any]:
    """A column's part of the reference profile, in the profile's own layout."""
    kind = _COLUMNS[column]
    if kind == "boolean":
        return {"kind": kind, "categories": ["false", "true"], "counts": [5100, 260], "missing": 0}
    if kind == "categorical":
        categories = (
            _CARRIERS
            if column.endswith("carrier")
            else ("EWR", "JFK", "LGA")
            if column.endswith("origin")
            else tuple(f"D{i:02d}" for i in range(40))
        )
        weights = 1 / np.arange(1.5, len(categories) + 1.5)
        counts = np.round(5360 * weights / weights.sum()).astype(int)
        return {
            "kind": kind,
            "categories": [*categories, "(unseen)", "(other)"],
            "counts": [*counts.tolist(), 0, 0],
            "missing": 0,
        }
    edges = np.round(np.linspace(0, 1, 11) ** (1.5 if column.startswith("prediction") else 1.0) * _scale(column), 3)
    return {"kind": kind, "edges": edges.tolist(), "counts": [0, *[536] * 10, 0], "missing": 12}


def _scale(column: str) -> float:
    return {
        "feature.temp": 78.0,
        "feature.pressure": 40.0,
        "feature.distance": 2500.0,
        "feature.dep_hour": 23.0,
        "prediction.delay_probability": 0.9,
    }.get(column, 10.0)


def window_column(story: Story, column: str, version: str, start: float) -> Mapping[str, Any]:
    """A column of a drift window: counts that move with the story, and the scores."""
    reference = reference_column(column)
    counts = np.array(reference["counts"], dtype=float)
    psi = story.psi(column, version, start)
    tilt = np.exp(np.linspace(-1, 1, len(counts)) * math.sqrt(psi) * 1.6)
    moved = counts * tilt
    if column == "feature.temp" and version == "2":
        moved[0] = moved.sum() * 0.7
    moved = np.round(moved / moved.sum() * 600)
    layout: dict[str, Any] = {key: reference[key] for key in ("edges", "categories") if key in reference}
    return {
        "psi": psi,
        "jensen_shannon": round(math.sqrt(psi) / 3, 4),
        "threshold": 0.1,
        "drifted": psi > 0.1,
        "wasserstein": round(psi * 0.9, 4) if "edges" in reference else None,
        "ks": round(min(1, math.sqrt(psi) * 0.6), 4) if "edges" in reference else None,
        "missing_ratio": 0.004,
        "out_of_range_ratio": 0.001 if "edges" in reference else None,
        "unseen_ratio": 0.0008 if reference["kind"] == "categorical" else None,
        "reason": "",
        "counts": moved.astype(int).tolist(),
        **layout,
    }


def window_joint(story: Story, version: str, start: float) -> dict[str, Any]:
    """The numeric columns together, as far as the temperature is."""
    mmd, threshold = 0.012 + 0.08 * min(story.psi("feature.temp", version, start), 1.5), 0.05
    return {
        "rows": 300,
        "mmd": mmd,
        "threshold": threshold,
        "p_value": 0.4 if mmd < threshold else 1e-6,
        "drifted": mmd >= threshold,
        "reconstruction": 1.0 + 4 * max(mmd - 0.012, 0.0),
    }


def drift_answer(story: Story, now: float, num_windows: int, version: str | None) -> dict[str, Any]:
    """The answer of `/api/drift/{model}`."""
    width = 15.0
    last = math.floor(now / width) * width
    windows = []
    for i in range(num_windows, 0, -1):
        start = last - i * width
        for name in ("1", "3"):
            weight, _ = story.weight(name, start)
            if weight and story.since(start) > SERVED_1 and version in (None, name):
                windows.append(
                    {
                        "version": name,
                        "start": start,
                        "end": start + width,
                        "rows": round(600 * weight),
                        "columns": {column: window_column(story, column, name, start) for column in _COLUMNS},
                        "joint": window_joint(story, name, start),
                    }
                )
    return {
        "model": MODEL,
        "reference": {column: reference_column(column) for column in _COLUMNS},
        "windows": windows,
        "alarms": drift_alarms(story) if version in (None, "1") else [],
        "skew": first_windows(story) if version in (None, "1") else [],
    }


def first_windows(story: Story) -> list[dict[str, Any]]:
    """What the first judged window of version 1 said: serving leaves one column out more often than training did."""
    same = {"score": 0.01, "threshold": 0.03, "missing_ratio": 0.0, "reference_missing_ratio": 0.0}
    columns = {
        "feature.dest": same
        | {"differs": True, "score": 0.02, "missing_ratio": 0.31, "reference_missing_ratio": 0.004},
        **{name: same | {"differs": False} for name in _COLUMNS if name != "feature.dest"},
    }
    start = story.begin + SERVED_1
    return [
        {"version": "1", "start": start, "end": start + 60, "rows": 610, "ratio": 1 / len(columns), "columns": columns}
    ]


def drift_alarms(story: Story) -> list[dict[str, Any]]:
    """The alarms that stand: one of a number and one of a category, both since the season turned."""
    since = story.begin + SHIFT
    return [
        {
            "version": "1",
            "column": "feature.temp",
            "since": since,
            "at": since + 45,
            "evidence": 2.4e4,
            "score": 0.214,
            "threshold": 0.031,
            "reference": {"rows": 24_000, "mean": 36.2, "deviation": 11.4},
            "before": {"rows": 600, "mean": 37.1, "deviation": 10.9},
            "now": {"rows": 600, "mean": 78.4, "deviation": 8.2},
            "columns": [{"column": "feature.pressure", "score": 0.09, "threshold": 0.03}],
            "slices": [{"slice": "feature.origin", "value": "EWR", "rows": 220, "score": 0.22, "threshold": 0.05}],
        },
        {
            "version": "1",
            "column": "feature.dest",
            "since": since + 30,
            "at": since + 90,
            "evidence": 1.9e3,
            "score": 0.17,
            "threshold": 0.11,
            "reference": {"rows": 24_000, "shares": {"ATL": 0.06, "FLL": 0.05}},
            "before": None,
            "now": {"rows": 600, "shares": {"ATL": 0.05, "BOS": 0.05, "FLL": 0.02}},
            "columns": [{"column": "feature.temp", "score": 0.2, "threshold": 0.03}],
            "slices": [],
        },
    ]
