"""Drift as JSON: windows with their verdicts, whole and by slice, columns, and the alarms that stand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from collectors.computed import methods, missing_share
from collectors.drift import ColumnDrift, DriftThresholds, drifted_share
from collectors.history import JudgedWindow
from collectors.measure import Measures
from collectors.quality import column_quality
from collectors.windows import Pane
from observability.columns import (
    BooleanColumn,
    CategoricalColumn,
    Column,
    DatetimeColumn,
    EmbeddingColumn,
    NumericColumn,
    TextColumn,
)


def drift_view(
    measures: Measures, model: str, version: str | None, limit: int, *, slices: bool = False
) -> dict[str, Any]:
    """The JSON of `/api/drift`: the last windows of the model's versions, each column judged; the reference beside.

    The last window of each version has its slices too; with `slices` all windows have.
    """
    versions = [version] if version else measures.versions(model)
    windows = [
        window_json(measures, window, slices=slices or window is judged[-1])
        for name in versions
        if (judged := measures.judged(model, name, limit))
        for window in judged
        if window.pane.seen
    ]
    windows.sort(key=lambda window: (window["end"], window["version"]))
    references = [found for name in versions if (found := measures.reference(model, name)) is not None]
    reference = {name: column_json(column) for name, column in references[-1].columns.items()} if references else {}
    return {
        "model": model,
        "versions": versions,
        "reference": reference,
        "alarms": [alarm for name in versions for alarm in alarms_json(measures, model, name)],
        "skew": [first.to_json(name) for name in versions if (first := measures.first_window(model, name)) is not None],
        "windows": windows[-limit:] if limit else [],
    }


def alarms_json(measures: Measures, model: str, version: str) -> list[dict[str, Any]]:
    """The alarms of a version that stand: which column, how far, since when, what it was like before, and where."""
    _, raised = measures.alarms(model, version)
    return [
        {
            "version": version,
            "column": alarm.column,
            "since": alarm.since,
            "at": alarm.at,
            "evidence": alarm.evidence,
            **alarm.explanation,
        }
        for alarm in raised
    ]


def window_json(measures: Measures, window: JudgedWindow, *, slices: bool) -> dict[str, Any]:
    """One judged window with its verdicts, whole and by slice where `slices` are asked for."""
    pane = window.pane
    against = measures.against(pane.model, pane.version)
    thresholds = measures.settings.thresholds
    verdicts = window.verdicts(against)
    columns: dict[str, Any] = {}
    for name, column in pane.profile.columns.items() if pane.profile else ():
        columns[name] = column_json(column)
        if (verdict := verdicts.get(name)) is not None:
            columns[name] |= verdict_json(verdict, thresholds)
    body: dict[str, Any] = {
        "version": pane.version,
        "start": pane.start,
        "end": pane.end,
        "rows": pane.seen,
        "revision": window.revision,
        "outcomes": pane.outcomes,
        "columns": columns,
    }
    if (joint := window.joint(against)) is not None:
        body["joint"] = {
            name: value if not isinstance(value, float) or math.isfinite(value) else None
            for name, value in asdict(joint).items()
        }
    if slices and pane.slices:
        found = window.slice_verdicts(against)
        body["slices"] = {
            name: {value: slice_json(part, found[name, value]) for value, part in sorted(parts.items())}
            for name, parts in pane.slices.items()
        }
    return body


def slice_json(part: Pane, verdicts: Mapping[str, ColumnDrift]) -> dict[str, Any]:
    """One slice of a window: its rows, what share of the columns drifted in it, and which."""
    return {
        "rows": part.rows,
        "outcomes": part.outcomes,
        "missing_ratio": missing_share(part),
        "drifted_share": drifted_share(verdicts) if verdicts else None,
        "columns": {
            name: {**methods(verdict), "drifted": verdict.drifted, "reason": verdict.reason}
            for name, verdict in verdicts.items()
        },
    }


def verdict_json(verdict: ColumnDrift, thresholds: DriftThresholds) -> dict[str, Any]:
    """The distances of one column and what they were judged to mean."""
    return {
        **methods(verdict),
        "psi_expected": verdict.psi_expected,
        "threshold": thresholds.psi,
        "score": verdict.score,
        "score_threshold": verdict.threshold,
        "p_value": verdict.p_value,
        "method": verdict.method,
        "drifted": verdict.drifted,
        "reason": verdict.reason,
        "missing_changed": verdict.missing_changed,
    }


def column_json(column: Column) -> dict[str, Any]:
    """A column's counts and what they are counts of. Beside `edges`, counts have a cell for each open tail."""
    quality = column_quality(column)
    body: dict[str, Any] = {
        "kind": column.kind,
        "counts": column.counts.tolist(),
        "rows": column.rows,
        "missing_ratio": quality.missing_ratio,
    }
    if isinstance(column, TextColumn | EmbeddingColumn):
        body |= _shape_json(column)
    elif isinstance(column, NumericColumn):
        body["edges"] = column.edges.tolist()
        body["mean"] = column.mean if column.count else None
        body["deviation"] = math.sqrt(column.variance) if column.count else None
        body["minimum"] = column.minimum if column.count else None
        body["maximum"] = column.maximum if column.count else None
        body["out_of_range_ratio"] = quality.out_of_range_ratio
    elif isinstance(column, CategoricalColumn | BooleanColumn | DatetimeColumn):
        body["categories"] = list(column.labels)
    if isinstance(column, CategoricalColumn):
        body["unseen_ratio"] = quality.unseen_ratio
    return body


def _shape_json(column: TextColumn | EmbeddingColumn) -> dict[str, Any]:
    """Of text the cells are those of its length, of embeddings those of their norm."""
    part = column.parts["length"] if isinstance(column, TextColumn) else column.norm
    body: dict[str, Any] = {} if isinstance(column, TextColumn) else {"dimensions": column.dimensions}
    if isinstance(part, NumericColumn):
        body["edges"] = part.edges.tolist()
        body["mean"] = part.mean if part.count else None
        body["deviation"] = math.sqrt(part.variance) if part.count else None
    return body
