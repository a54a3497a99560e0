"""The collector's own reading side: drift, traces, logs, reports, page and health, beside the Prometheus API."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import httpx
import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from collectors.computed import methods, missing_share
from collectors.drift import ColumnDrift, DriftThresholds, drifted_share
from collectors.history import JudgedWindow
from collectors.measure import Measures
from collectors.quality import column_quality
from collectors.quality.aside import KeptAside
from collectors.query.errors import QueryError
from collectors.report import NoReport, Reports
from collectors.scores import Estimate, Score
from collectors.signals import Signals
from collectors.spans import SpanStore
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
from observability.metrics import exposition

MAX_TRACES = 1_000
MAX_LOGS = 10_000
MAX_KEPT = 2_000
PROXY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Views:
    """What the handlers read; `routes()` are added to the query application."""

    measures: Measures
    aside: KeptAside
    spans: SpanStore
    signals: Signals
    reports: Reports
    healthy: Callable[[], bool]

    def routes(self) -> list[Route]:
        return [
            Route("/api/drift/{model}", self.drift),
            Route("/api/performance/{model}", self.performance),
            Route("/api/quality/{model}", self.quality),
            Route("/api/traces", self.traces),
            Route("/api/traces/{trace_id}", self.trace),
            Route("/api/services", self.services),
            Route("/api/logs", self.logs),
            Route("/api/reports/drift", self.report),
            Route("/metrics", self.page),
            Route("/-/healthy", self.health),
            Route("/-/ready", self.health),
        ]

    async def drift(self, request: Request) -> Response:
        model, version = request.path_params["model"], request.query_params.get("version")
        limit = _count(request, "windows", 60, self.measures.settings.history_windows)
        slices = request.query_params.get("slices", "").lower() in ("1", "true")
        return _json(await asyncio.to_thread(drift_view, self.measures, model, version, limit, slices=slices))

    async def performance(self, request: Request) -> Response:
        model, version = request.path_params["model"], request.query_params.get("version")
        limit = _count(request, "windows", 60, self.measures.settings.history_windows)
        return _json(await asyncio.to_thread(performance_view, self.measures, model, version, limit))

    async def quality(self, request: Request) -> Response:
        model, version = request.path_params["model"], request.query_params.get("version")
        limit = _count(request, "limit", 100, MAX_KEPT)
        column = request.query_params.get("column")
        return _json(await asyncio.to_thread(quality_view, self.measures, self.aside, model, version, limit, column))

    async def traces(self, request: Request) -> Response:
        limit = _count(request, "limit", 20, MAX_TRACES)
        found = await asyncio.to_thread(self.spans.traces, request.query_params.get("service"), limit)
        return _json({"data": found, "total": len(found), "limit": limit, "offset": 0, "errors": None})

    async def trace(self, request: Request) -> Response:
        trace_id = request.path_params["trace_id"]
        found = await asyncio.to_thread(self.spans.trace, trace_id)
        if found is None:
            errors = [{"code": 404, "msg": f"trace {trace_id} is not known"}]
            return _json({"data": None, "total": 0, "limit": 0, "offset": 0, "errors": errors}, 404)
        return _json({"data": [found], "total": 1, "limit": 0, "offset": 0, "errors": None})

    async def services(self, _: Request) -> Response:
        found = await asyncio.to_thread(self.spans.services)
        return _json({"data": found, "total": len(found), "limit": 0, "offset": 0, "errors": None})

    async def logs(self, request: Request) -> Response:
        limit = _count(request, "limit", 100, MAX_LOGS)
        return _json({"data": await asyncio.to_thread(self.spans.logs, limit, request.query_params.get("trace_id"))})

    async def report(self, request: Request) -> Response:
        model = request.query_params.get("model", "")
        if not model:
            return _json({"error": "name the model: ?model=NAME, and &version=V for one that is not the latest"}, 400)
        try:
            return HTMLResponse(await self.reports.drift(model, request.query_params.get("version")))
        except NoReport as error:
            return _json({"error": str(error)}, error.status)

    async def page(self, request: Request) -> Response:
        body, content_type = exposition(self.signals.registry, request.headers.get("accept"))
        return Response(body, headers={"Content-Type": content_type})

    async def health(self, _: Request) -> Response:
        healthy = self.healthy()
        return PlainTextResponse("ok" if healthy else "not ready", status_code=200 if healthy else 503)


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


def quality_view(
    measures: Measures, aside: KeptAside, model: str, version: str | None, limit: int, column: str | None
) -> dict[str, Any]:
    """The JSON of `/api/quality`: the schema in force for a version (the latest), and the rows that broke it."""
    versions = measures.versions(model)
    chosen = version or (versions[-1] if versions else None)
    schema, broken = measures.quality_of(model, chosen or "")
    kept = [
        {
            "version": row.version,
            "id": row.id,
            "time": row.time,
            "column": row.column,
            "rule": row.rule,
            "value": row.value,
        }
        for row in aside.latest(model, limit, column)
    ]
    return {"model": model, "version": chosen, "schema": schema.to_json(), "broken": broken, "rows": kept}


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


def passed_on(alerts_url: str, path: str) -> Callable[[], Awaitable[Any]]:
    """A provider of the `data` that the alerts service answers on `path`."""

    async def provide() -> Any:
        try:
            async with httpx.AsyncClient(timeout=PROXY_SECONDS, trust_env=False) as client:
                answer = await client.get(f"{alerts_url.rstrip('/')}{path}")
                answer.raise_for_status()
                return answer.json()["data"]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise QueryError(f"the alerts service at {alerts_url} did not answer: {error!r}", "unavailable") from error

    return provide


def _count(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name, "")
    return min(int(text), most) if text.isdigit() else default


def _json(body: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
