"""Serving: load, outcomes, latency, batching, the canary's evidence, and single requests down to their spans."""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pandas as pd
import streamlit as st

from dashboards import charts, queries, readings, shell
from dashboards import format as fmt
from dashboards.charts import Line
from dashboards.readings import TraceRow
from dashboards.sources import Series, SourceError
from dashboards.theme import SERIES, version_color
from observability import names

ENOUGH_EVIDENCE = 100.0  # an e-value of 100 is evidence at alpha = 1 %
_OUTCOME_COLORS = dict(
    zip(
        names.OUTCOMES,
        ("#009E73", "#8C8C8C", "#E69F00", "#D55E00", "#CC79A7", "#B8BEC6", "#A5320C", "#6B1D5C"),
        strict=True,
    )
)


def body(view: shell.View) -> None:
    """The page."""
    found, problems = view.sources.ranges(queries.serving(view.model, view.over), view.span)
    now, more = view.sources.instants(queries.batches(view.model, view.seconds), view.span.end)
    shell.notice(problems + more)
    first, second = st.columns(2)
    with first, shell.card("load", "Requests by version", "per second"):
        _by_version(view, "load", found["requests"], "number", stacked=True)
    with second, shell.card("outcomes", "Outcomes other than ok", "share of all requests"):
        _outcomes(view, found["requests"])
    for place, q in zip(st.columns(3), ("p50", "p95", "p99"), strict=True):
        with place, shell.card(q, f"Latency {q}", "by version"):
            _by_version(view, q, found[q], "seconds", height=175)
    first, second, third = st.columns(3)
    with first, shell.card("where", "Queue wait and compute", "p95"):
        _queue_and_compute(view, found)
    with second, shell.card("depth", "Queue depth", _limit(found["queue_limit"])):
        _by_version(view, "depth", found["queue_rows"], "rows", height=175)
    with third, shell.card("batches", "Batch sizes", _reasons(now["close_reasons"])):
        _batch_sizes(view, now["batch_sizes"])
    with shell.card("evidence", "Canary evidence", "e-values; 100 decides at 1 % false alarms"):
        _evidence(view, found)
    with shell.card("traces", "Slow and failed requests", "failed first, then the slowest; select a row for its spans"):
        _traces(view)


def _by_version(
    view: shell.View, key: str, series: Sequence[Series], unit: charts.Unit, *, stacked: bool = False, height: int = 210
) -> None:
    groups = readings.by([item for item in series if len(item.times)], "version")
    if not groups:
        shell.empty("No requests in this span", "Lines appear with the first request.")
        return
    shown = [Line(fmt.version(name), readings.total(group), version_color(name)) for name, group in groups.items()]
    shell.chart(key, charts.lines(view.frame, shown, unit, stacked=stacked, height=height))


def _outcomes(view: shell.View, requests: Sequence[Series]) -> None:
    whole = readings.total(requests)
    groups = readings.by(requests, "outcome")
    shown = [
        Line(
            name.replace("_", " "), readings.share(readings.total(group), whole), _OUTCOME_COLORS.get(name, SERIES[-1])
        )
        for name, group in groups.items()
        if name != "ok" and readings.total(group).values.any()
    ]
    if not len(whole.times):
        shell.empty("No requests in this span", "Shares appear with the first request.")
    elif not shown:
        shell.empty("Every request was ok", "No request was refused, late or failed in this span.")
    else:
        figure = charts.lines(view.frame, shown, "ratio", height=210, stacked=True)
        figure.update_layout(showlegend=True, margin={"t": 26})
        shell.chart("outcomes", figure)


def _queue_and_compute(view: shell.View, found: dict[str, list[Series]]) -> None:
    shown = [
        Line(name, found[key][0], color)
        for name, key, color in (("queue wait", "queue", "#E69F00"), ("compute", "compute", "#0072B2"))
        if found[key]
    ]
    if not shown:
        shell.empty("No batches in this span", "The server reports queue and compute time for each batch.")
        return
    shell.chart("where", charts.lines(view.frame, shown, "seconds", height=175))


def _limit(series: Sequence[Series]) -> str:
    limit = readings.latest(series)
    return "rows waiting" if limit is None else f"rows waiting, refused above {fmt.number(limit)}"


def _reasons(series: Sequence[Series]) -> str:
    counts = {item.labels.get("close_reason", ""): item.last or 0.0 for item in series}
    whole = sum(counts.values())
    if whole <= 0:
        return "rows in a batch"
    top = sorted(counts.items(), key=lambda item: -item[1])[:2]
    return "closed by " + ", ".join(f"{html.escape(name)} {fmt.percent(count / whole, 0)}" for name, count in top)


def _batch_sizes(view: shell.View, buckets: Sequence[Series]) -> None:
    ordered = sorted((float(item.labels.get("le", "inf")), item.last or 0.0) for item in buckets)
    counts = [after - before for (_, before), (_, after) in zip([(0.0, 0.0), *ordered], ordered, strict=False)]
    if sum(counts) <= 0:
        shell.empty("No batches in this span", "Batches form as soon as requests come.")
        return
    bounds = [0.0, *(bound for bound, _ in ordered)]
    last = max(i for i, count in enumerate(counts) if count >= 0.001 * sum(counts))
    labels = [_bucket(low, high) for low, high in pairwise(bounds)][: last + 1]
    shares = [count / sum(counts) for count in counts[: last + 1]]
    figure = charts.bars(view.frame, labels, shares, "ratio", color=SERIES[0], height=175)
    shell.chart("batches", figure.update_xaxes(title={"text": "rows", "font": {"size": 11}, "standoff": 2}))


def _bucket(low: float, high: float) -> str:
    if high == float("inf"):
        return f"> {low:g}"
    return f"{high:g}" if high - low <= 1 else f"{low + 1:g}–{high:g}"


def _evidence(view: shell.View, found: dict[str, list[Series]]) -> None:
    series = [item for item in found["evidence"] if len(item.times)]
    if not series:
        shell.empty(
            "No canary in this span",
            "Release one with <code>trimtab models canary</code>: its evidence of harm "
            "and of safety mounts here, request by request.",
        )
        return
    left, right = st.columns((5, 2))
    shown = []
    for item in series:
        labels, harm = item.labels, item.labels.get("hypothesis") == "harm"
        name = f"{labels.get('release', '')} {labels.get('hypothesis', '')}"
        positive = Series(labels, item.times, item.values.clip(1e-4, 1e12))
        color = version_color(labels.get("candidate", ""))
        shown.append(Line(name, positive, color, "solid" if harm else "dot"))
    figure = charts.lines(
        view.frame, shown, "number", height=250, log=True, threshold=(ENOUGH_EVIDENCE, "100: decided")
    )
    with left:
        shell.chart("evidence", figure)
    with right:
        _releases(view, series, found)


def _releases(view: shell.View, series: Sequence[Series], found: dict[str, list[Series]]) -> None:
    lines = []
    for release, group in sorted(readings.by(series, "release").items(), key=lambda g: -float(g[1][0].times[0])):
        counts: dict[str, float] = {}
        for item in found["canary_requests"]:
            if item.labels.get("release") == release and item.labels.get("arm") == "canary":
                counts[item.labels.get("outcome", "")] = item.last or 0.0
        versions = (
            f"{fmt.version(group[0].labels.get('candidate'))} against {fmt.version(group[0].labels.get('baseline'))}"
        )
        harm = max((float(i.values.max()) for i in group if i.labels.get("hypothesis") == "harm"), default=None)
        lines.append(
            (
                f"{html.escape(release)}<div class='tt-sub'>{versions}</div>",
                f"{fmt.number(sum(counts.values()))}<div class='tt-sub'>"
                f"{fmt.number(counts.get('error', 0.0))} failed</div>",
                fmt.number(harm),
                _verdict(view, release, found["verdict"]),
            )
        )
    shell.rows(("Release", "Requests", "Harm", "Verdict"), lines[:5], numeric=(1, 2), tight=(3,))


def _verdict(view: shell.View, release: str, series: Sequence[Series]) -> str:
    of_release = [item for item in series if item.labels.get("release") == release and item.last == 1.0]
    if not of_release:
        return fmt.DASH
    verdict = max(of_release, key=lambda item: item.times[-1]).labels.get("verdict", "")
    colors = {"rollback": view.colors.critical, "advance": view.colors.good}
    return shell.tag(verdict, colors.get(verdict, view.colors.muted))


def _traces(view: shell.View) -> None:
    chosen = st.session_state.get("trace")
    table = st.session_state.get("trace_rows") if chosen else None
    try:
        if table is None:
            found = [row for row in readings.trace_rows(view.sources.traces()) if row.name.startswith("inference")]
            table = found[:40]
        if not table:
            shell.empty("No traces yet", "Requests that carry or start a trace appear here, each with its spans.")
            return
        st.session_state["trace_rows"] = table
        st.dataframe(
            _frame(view, table),
            key="trace_table",
            on_select=_select,
            selection_mode="single-row",
            hide_index=True,
            height=290,
            column_config=_COLUMNS,
        )
        if chosen:
            _waterfall(view, chosen)
    except SourceError as problem:
        shell.notice([problem])


_COLUMNS = {
    "Duration": st.column_config.NumberColumn(format="%.2f ms"),
    "Trace": st.column_config.TextColumn(width="medium", help="W3C trace id"),
    "When": st.column_config.TextColumn(width="small"),
}


def _select() -> None:
    """Keep the chosen trace, and the table as it is, until another row or none is chosen."""
    picked = st.session_state["trace_table"]["selection"]["rows"]
    rows: list[TraceRow] = st.session_state.get("trace_rows", [])
    st.session_state["trace"] = rows[picked[0]].trace_id if picked and picked[0] < len(rows) else None


def _frame(view: shell.View, table: Sequence[TraceRow]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "When": [fmt.clock(row.start, view.zone) for row in table],
            "Duration": [row.duration * 1000 for row in table],
            "Status": ["failed" if row.failed else "ok" for row in table],
            "Outcome": [row.outcome.replace("_", " ") for row in table],
            "Version": [fmt.version(row.version) for row in table],
            "Spans": [row.num_spans for row in table],
            "Service": [row.service for row in table],
            "Trace": [row.trace_id for row in table],
        }
    )


def _waterfall(view: shell.View, trace_id: str) -> None:
    trace: Any = view.sources.trace(trace_id)
    if trace is None:
        shell.empty("This trace is gone", "The collector keeps traces for a while only; choose another one.")
        return
    spans = readings.waterfall_spans(trace)
    st.html(f'<div class="tt-card-title"><b>Trace {html.escape(trace_id)}</b><span>{len(spans)} spans</span></div>')
    shell.chart("waterfall", charts.waterfall(view.frame, spans))


if __name__ == "__main__":
    shell.page("Serving", "Load, latency, batching and the judgement of canaries", body)
