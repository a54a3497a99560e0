"""Performance as JSON: realised and expected scores of versions, now and by window."""

from __future__ import annotations

from typing import Any

from collectors.measure import Measures
from collectors.scores import Estimate, Score


def performance_view(measures: Measures, model: str, version: str | None, limit: int) -> dict[str, Any]:
    """The JSON of `/api/performance`: realised and expected scores of each version now, and by window."""
    versions = [version] if version else measures.versions(model)
    now = {}
    for name in versions:
        found = measures.scoring.expected_of(model, name)
        now[name] = {
            "labels": found.labels,
            "scores": {metric: score_json(score) for metric, score in found.realised.items()},
            "expected": {metric: estimate_json(estimate) for metric, estimate in found.expected.items()},
            "expected_error": found.honesty,
        }
    windows = [window for name in versions for window in scored_json(measures, model, name, limit)]
    windows.sort(key=lambda window: (window["start"], window["version"]))
    return {"model": model, "versions": versions, "now": now, "windows": windows[-limit:] if limit else []}


def scored_json(measures: Measures, model: str, version: str, limit: int) -> list[dict[str, Any]]:
    """The windows of a version that have labels: their scores so far, what was expected of the same rows, and how many
    of the window's rows are labelled."""
    estimator = measures.scoring.estimator(model, version)
    rows = {window.last.start: window.last.seen for window in measures.judged(model, version, limit)}
    seconds = measures.settings.windows.window_seconds
    bodies = []
    for window, scored in measures.scoring.windows(model, version, limit):
        found, total = scored.scores(), rows.get(window.start)
        honesty = estimator.honesty(scored.classes) if estimator and scored.binary else {}
        bodies.append(
            {
                "version": version,
                "start": window.start,
                "end": window.start + seconds,
                "rows": total,
                "labelled_rows": scored.rows,
                "labelled_ratio": min(1.0, scored.rows / total) if total else None,
                "scores": {metric: score_json(score) for metric, score in found.items()},
                "expected": {metric: found[metric].value + error for metric, error in honesty.items()},
                "expected_error": honesty,
            }
        )
    return bodies


def score_json(score: Score) -> dict[str, float]:
    """A realised score with its 95 % confidence interval and the bound of its binning error."""
    return {"value": score.value, "low": score.low, "high": score.high, "error": score.error}


def estimate_json(estimate: Estimate) -> dict[str, Any]:
    """An expected score, where the realised one will lie, and the band that it has left if there is an alert."""
    return {
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "band_low": estimate.band_low,
        "band_high": estimate.band_high,
        "alert": estimate.alert,
        "worse": estimate.worse,
    }
