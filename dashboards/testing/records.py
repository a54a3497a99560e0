"""What the services hold beside metrics, in the story: actions, alerts, rules, silences, versions, traces."""

from __future__ import annotations

import hashlib
import math
import time
from datetime import UTC, datetime
from typing import Any

from dashboards.testing import story as tale
from dashboards.testing.story import MODEL, Story
from observability import names


def action(
    identity: int, at: float, kind: str, state: str, reason: str, *, alert: str = "", actor: str = "", **more: Any
) -> dict[str, Any]:
    """One action as the API gives it."""
    ended = state in ("done", "failed")
    return {
        "id": identity,
        "key": f"{kind}/{MODEL}/{identity}",
        "action": kind,
        "model": MODEL,
        "mode": "auto",
        "state": state,
        "alert": alert,
        "labels": {"model": MODEL},
        "reason": reason,
        "evidence": {},
        "created_at": at,
        "started_at": at + 0.02 if ended else None,
        "completed_at": at + 0.34 if ended else None,
        "result": None,
        "actor": actor,
        **more,
    }


def actions(story: Story) -> list[dict[str, Any]]:
    """The journal."""
    begin = story.begin
    return [
        action(
            1,
            begin + tale.BACK_2 - 0.4,
            "rollback",
            "done",
            "CanaryHarmful: Version 2 fails more often than version 1 (the mode is auto)",
            alert="CanaryHarmful",
            release="flight_delay-1",
            evidence=_alert_evidence(story, "Version 2 fails more often than version 1", tale.BACK_2, 1),
        ),
        action(
            2,
            begin + tale.TRAINED_3[0] - 2,
            "retrain",
            "done",
            "4 of 11 features drifted for 30 s: temp, pressure, visib, wind_speed.",
            alert="FeaturesDrifted",
            evidence={"drift_columns": 0.364, "psi_temp": 0.64},
            completed_at=begin + tale.TRAINED_3[1],
        ),
        action(
            3,
            begin + tale.PROMOTED_3,
            "promote",
            "done",
            "CanarySafe: Version 3 is proved safe (the mode is auto)",
            alert="CanarySafe",
            release="flight_delay-2",
            evidence=_alert_evidence(story, "Version 3 is proved safe", tale.PROMOTED_3, 0),
        ),
        action(
            4,
            begin + 868,
            "retrain",
            "waiting",
            "Labels are late; a retraining now would learn from 1 840 labelled rows only.",
            alert="LabelsLate",
            mode="approve",
            evidence={"labelled_rows": 1840},
        ),
    ]


def _alert_evidence(story: Story, summary: str, at: float, release: int) -> dict[str, Any]:
    fired = story.begin + at - 1
    return {
        "value": 200.0,
        "annotations": {"summary": summary},
        "active_at": fired,
        "fired_at": fired,
        "release": evidence(story, math.inf)[release],
    }


def evidence(story: Story, now: float) -> list[dict[str, Any]]:
    """The releases as `/api/v1/evidence` tells them, newest first."""
    told = (
        ("flight_delay-2", "3", tale.CANARY_3, tale.PROMOTED_3, "advance", (0.9, 104.2), (592, 0)),
        ("flight_delay-1", "2", tale.CANARY_2, tale.BACK_2, "rollback", (1287.4, 0.4), (215, 41)),
    )
    return [
        {
            "model": MODEL,
            "release": release,
            "candidate": candidate,
            "baseline": "1",
            "started_at": story.begin + start,
            "ended_at": story.begin + end if over else None,
            "in_progress": not over,
            "verdict": verdict if over else "continue",
            "reason": _verdict_reason(verdict, harm, safety, requests, errors) if over else "nothing is proved yet",
            "decided_at": story.begin + end - 1 if over else None,
            "evidence": {"errors": {"harm": harm, "safety": safety}},
            "counts": {
                "canary": {"requests": requests, "errors": errors},
                "stable": {"requests": 9 * requests, "errors": 0},
            },
        }
        for release, candidate, start, end, verdict, (harm, safety), (requests, errors) in told
        if story.begin + start <= now
        for over in [story.begin + end <= now]
    ]


def _verdict_reason(verdict: str, harm: float, safety: float, requests: int, errors: int) -> str:
    proved, e_value = ("harm", harm) if verdict == "rollback" else ("safety", safety)
    seen = f"{errors} of {requests} canary requests failed, 0 of {9 * requests} stable ones"
    return f"{proved} is proved (e-value {e_value:.3g} >= 100): {seen}"


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def silences(story: Story) -> list[dict[str, Any]]:
    """One silence in force and one that has ended."""
    matcher = {"name": "alertname", "value": "RequestsRefused", "isRegex": False, "isEqual": True}
    ends = {"active": 5400.0, "expired": 500.0}
    return [
        {
            "id": f"s-{state}",
            "matchers": [matcher],
            "startsAt": _stamp(story.begin + 300),
            "endsAt": _stamp(story.begin + end),
            "updatedAt": _stamp(story.begin + 300),
            "createdBy": "Ada",
            "comment": "load test of the afternoon",
            "status": {"state": state},
        }
        for state, end in ends.items()
    ]


def alerts(story: Story) -> list[dict[str, Any]]:
    """What Alertmanager's API would say now."""
    since = _stamp(story.begin + 835)
    return [
        {
            "labels": {"alertname": "LabelsLate", "severity": "warning", "model": MODEL},
            "startsAt": since,
            "updatedAt": since,
            "annotations": {"summary": "Fewer than 2 000 labels came in the last ten minutes."},
            "endsAt": _stamp(story.begin + 5000),
            "fingerprint": "a1b2",
            "receivers": [{"name": "default"}],
            "status": {"state": "active", "silencedBy": [], "inhibitedBy": []},
            "generatorURL": "",
        }
    ]


def rule_groups(story: Story) -> list[dict[str, Any]]:
    """Rules with their states, one of them broken."""
    judged = _stamp(time.time() - 0.6)

    def rule(name: str, query: str, state: str, duration: float = 0, error: str = "") -> dict[str, Any]:
        return {
            "name": name,
            "query": query,
            "duration": duration,
            "labels": {"severity": "warning"},
            "annotations": {},
            "alerts": [],
            "health": "err" if error else "ok",
            "lastError": error,
            "type": "alerting",
            "state": state,
            "lastEvaluation": judged,
            "evaluationTime": 0.0021,
        }

    evidence = f'{names.CANARY_EVIDENCE.name}{{hypothesis="harm"}} > 100'
    recording = {
        "name": "model:requests:rate1m",
        "query": f"sum by (model) (rate({names.INFERENCE_REQUESTS.name}[1m]))",
        "labels": {},
        "health": "ok",
        "lastError": "",
        "type": "recording",
        "lastEvaluation": judged,
        "evaluationTime": 0.0008,
    }
    return [
        {
            "name": "canary",
            "file": "canary.yml",
            "interval": 1,
            "rules": [
                rule("CanaryHarmful", evidence, "inactive"),
                rule("CanarySafe", f'{names.CANARY_EVIDENCE.name}{{hypothesis="safety"}} > 100', "inactive"),
            ],
        },
        {
            "name": "drift",
            "file": "drift.yml",
            "interval": 1,
            "rules": [
                rule("FeaturesDrifted", f"{names.DRIFT_COLUMNS.name} > 0.25", "inactive", 30),
                rule("LabelsLate", f"{names.PERFORMANCE_LABELLED.name} < 2000", "firing"),
            ],
        },
        {
            "name": "serving",
            "file": "serving.yml",
            "interval": 1,
            "rules": [
                recording,
                rule(
                    "LatencyHigh",
                    f"histogram_quantile(0.99, sum by (le, version) (rate({names.INFERENCE_DURATION.name}"
                    "_bucket[1m]))) > 0.01",
                    "pending",
                    30,
                ),
                rule(
                    "TargetDown",
                    "up == on (job) group_left (team) owners",
                    "inactive",
                    10,
                    'many-to-many matching: two series of `owners` have job="trimtab-serving"',
                ),
            ],
        },
    ]


def policy(story: Story, now: float) -> dict[str, Any]:
    """A model's traffic policy, versions and history."""
    t = story.since(now)
    canary = None
    for version, release, start, end in (
        ("2", "flight_delay-1", tale.CANARY_2, tale.BACK_2),
        ("3", "flight_delay-2", tale.CANARY_3, tale.PROMOTED_3),
    ):
        if start <= t < end:
            weight, _ = story.weight(version, now)
            canary = {"version": version, "weight": weight, "release": release, "started_at": story.begin + start}
    events = (
        (tale.SERVED_1, "promote", None, "1", "first version, better than the base rate"),
        (tale.CANARY_2, "canary", "flight_delay-1", "2", "10 % of requests"),
        (tale.BACK_2, "rollback", "flight_delay-1", "1", "evidence of harm"),
        (tale.CANARY_3, "canary", "flight_delay-2", "3", "10 % of requests"),
        (tale.HALF_3, "canary", "flight_delay-2", "3", "50 % of requests"),
        (tale.PROMOTED_3, "promote", "flight_delay-2", "3", "evidence of safety"),
    )
    history = [
        {
            "generation": i,
            "time": story.begin + at,
            "event": event,
            "release": release,
            "version": version,
            "reason": reason,
            "actor": "trimtab alerts" if event != "canary" else "trimtab demo",
        }
        for i, (at, event, release, version, reason) in enumerate(events, 1)
        if at <= t
    ]
    promoted = t >= tale.PROMOTED_3
    return {
        "model": MODEL,
        "generation": len(history),
        "stable": "3" if promoted else "1",
        "previous": "1" if promoted else None,
        "canary": canary,
        "shadow": None,
        "sticky": False,
        "versions": _versions(story, t),
        "history": history,
    }


def _versions(story: Story, t: float) -> list[dict[str, Any]]:
    windows = {"1": ("2013-01-01", "2013-03-01"), "2": ("2013-01-01", "2013-03-01"), "3": ("2013-04-15", "2013-07-01")}
    known = (
        ("1", tale.TRAINED_1[1], None, 48210),
        ("2", tale.CANARY_2 - 20, "1", 48210),
        ("3", tale.TRAINED_3[1], "1", 20480),
    )
    return [
        {
            "version": version,
            "digest": "sha256:" + hashlib.sha256(version.encode()).hexdigest(),
            "state": "ready",
            "created_at": story.begin + at,
            "metrics": {"log_loss": 0.504 - 0.004 * i, "roc_auc": 0.716},
            "lineage": {
                "run": f"run-{version}",
                "code_revision": "4e3b51f0c2d1",
                "parent": parent,
                "metrics": {},
                "data": {"window": list(windows[version]), "rows": rows, "source": "lake"},
                "gate": {
                    "passed": True,
                    "reason": "log loss differs from the base rate's by -0.0270, at most -0.0102 at 95%",
                    "rival": "champion" if parent else "base rate",
                    "candidate_log_loss": 0.504 - 0.004 * i,
                    "rival_log_loss": 0.531,
                    "difference": -0.027 - 0.004 * i,
                    "upper_bound": -0.0102,
                    "confidence": 0.95,
                },
            },
        }
        for i, (version, at, parent, rows) in enumerate(known)
        if at <= t
    ]


def traces(story: Story) -> list[dict[str, Any]]:
    """Forty requests, some slow, some failed, in Jaeger's JSON."""
    return [_trace(story, i) for i in range(40)]


def _trace(story: Story, i: int) -> dict[str, Any]:
    at = story.begin + tale.LENGTH - 20 * i - 3.2
    version = (
        "2" if tale.CANARY_2 <= story.since(at) < tale.BACK_2 else "3" if story.since(at) > tale.PROMOTED_3 else "1"
    )
    failed = version == "2"
    whole = 0.004 * (1 + (i * 7 % 13)) + (0.11 if i % 11 == 3 else 0)
    identity = hashlib.sha256(str(i).encode()).hexdigest()[:32]
    parts = (
        ("1", None, "POST /v2/models/infer", "flights-client", 0.0, whole + 0.0012),
        ("2", "1", names.SPAN_REQUEST, "trimtab-serving", 0.0006, whole),
        ("3", "2", names.SPAN_QUEUE, "trimtab-serving", 0.0008, whole * 0.35),
        ("4", "2", names.SPAN_BATCH, "trimtab-serving", 0.0008 + whole * 0.35, whole * 0.55),
        ("5", "4", names.SPAN_MODEL, "trimtab-serving", 0.0010 + whole * 0.36, whole * 0.45),
    )
    outcome = "non_finite" if failed else "ok"
    tags = [
        {"key": "model.version", "type": "string", "value": version},
        {"key": "inference.outcome", "type": "string", "value": outcome},
    ]
    spans = [
        {
            "traceID": identity,
            "spanID": span,
            "operationName": name,
            "startTime": math.floor((at + offset) * 1e6),
            "references": [{"refType": "CHILD_OF", "traceID": identity, "spanID": parent}] if parent else [],
            "duration": math.ceil(duration * 1e6),
            "processID": process,
            "logs": [],
            "warnings": None,
            "tags": [*tags, *([{"key": "error", "type": "bool", "value": True}] if failed and span in "25" else [])],
        }
        for span, parent, name, process, offset, duration in parts
        if span != "1" or i % 2
    ]
    processes: dict[str, Any] = {
        name: {"serviceName": name, "tags": []} for name in ("flights-client", "trimtab-serving")
    }
    return {"traceID": identity, "spans": spans, "processes": processes, "warnings": None}


def quality(story: Story) -> dict[str, Any]:
    """The answer of `/api/quality/{model}`."""
    begin = story.begin
    rows = [
        {
            "version": "2",
            "id": f"flight-{20130301000 + number}",
            "time": begin + tale.CANARY_2 + number,
            "column": column,
            "rule": rule,
            "value": value,
        }
        for number, (column, rule, value) in enumerate(
            [
                ("feature.temp", "range", "451.0"),
                ("feature.dest", "categories", "HDN"),
                ("feature.temp", "required", None),
                ("feature.wind_speed", "finite", "inf"),
            ]
        )
    ]
    columns = {
        "feature.temp": {"type": "numeric", "required": True, "finite": True, "minimum": -40.0, "maximum": 140.0},
        "feature.wind_speed": {"type": "numeric", "finite": True, "minimum": -40.0, "maximum": 84.0},
        "feature.dest": {"type": "categorical", "required": True, "categories": [f"A{i:02d}" for i in range(90)]},
        "feature.holiday": {"type": "boolean"},
    }
    broken = [
        {"version": "2", "column": "feature.temp", "rule": "range", "rows": 1204},
        {"version": "1", "column": "feature.dest", "rule": "categories", "rows": 31},
        {"version": "2", "column": "feature.wind_speed", "rule": "finite", "rows": 2},
    ]
    return {
        "model": MODEL,
        "version": "3",
        "schema": {"columns": columns, "rows_per_second": None, "max_age_seconds": None},
        "broken": broken,
        "rows": rows[::-1],
    }


def slices(story: Story, version: str) -> dict[str, Any]:
    """The answer of `/api/slices/{model}`."""
    begin, middle, end = story.begin + tale.SHIFT, story.begin + tale.SHIFT + 300, story.begin + tale.SHIFT + 600
    told = {"qvalue": 1e-6, "effect": 0.4}
    errors = [
        told
        | {
            "conditions": ["feature.origin = EWR", "61.2 <= feature.temp < 78.4"],
            "rows": 262,
            "share": 0.142,
            "mean": 0.913,
            "rest": 0.482,
            "contribution": 0.113,
            "drift": None,
        },
        told
        | {
            "conditions": ["feature.dest = <HDN>"],
            "rows": 96,
            "share": 0.052,
            "mean": 0.803,
            "rest": 0.531,
            "contribution": 0.026,
            "drift": None,
        },
    ]
    moved = told | {
        "conditions": ["feature.temp >= 78.4"],
        "rows": 1310,
        "share": 0.262,
        "mean": 0.262,
        "rest": 0.031,
        "contribution": 0.49,
        "drift": 0.231,
    }
    return {
        "model": MODEL,
        "version": version,
        "error": {
            "rows": 1840,
            "measure": "log_loss",
            "mean": 0.543,
            "start": begin,
            "end": end,
            "slices": errors,
        },
        "drift": {
            "before": {"rows": 5000, "start": begin, "end": middle},
            "now": {"rows": 5000, "start": middle, "end": end},
            "slices": [moved],
        },
    }
