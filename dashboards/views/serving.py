"""Serving: load, outcomes, latency, batching, the canary's evidence, and single requests down to their spans."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pandas as pd
import streamlit as st

from dashboards import charts, queries, readings, shell
from dashboards import format as fmt
from dashboards.charts import Line
from dashboards.evidence import DECIDED, evidence_lines
from dashboards.journal import plain
from dashboards.series import Series
from dashboards.sources import SourceError
from dashboards.theme import SERIES, version_color
from dashboards.traces import TraceRow, trace_rows, waterfall_spans
from observability import names

_MOST_RELEASES = 4
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
    releases, not_judged = _releases(view)
    shell.notice(problems + more + not_judged)
    first, second = st.columns(2)
    with first, shell.card("load", "Requests by version", "per second"):
        _by_version(view, "load", found["requests"], "number", stacked=True)
    with second, shell.card("outcomes", "Outcomes other than ok", "share of all requests"):
        _outcomes(view, found["requests"], found["outcomes"])
    for place, q in zip(st.columns(3), ("p50", "p95", "p99"), strict=True):
        with place, shell.card(q, f"Latency {q}", "by version"):
            _while_served(view, q, found[q], found["requests"], "seconds")
    first, second, third = st.columns(3)
    with first, shell.card("where", "Queue wait and compute", "p95"):
        _queue_and_compute(view, found)
    with second, shell.card("depth", "Queue depth", _limit(found["queue_limit"])):
        _while_served(view, "depth", found["queue_rows"], found["requests"], "rows")
    with third, shell.card("batches", "Batch sizes", _reasons(now["close_reasons"])):
        _batch_sizes(view, now["batch_sizes"])
    with shell.card("evidence", "Canary evidence", "e-values since the release began; 100 decides at 1 % false alarms"):
        _evidence(view, releases)
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


def _while_served(
    view: shell.View, key: str, series: Sequence[Series], requests: Sequence[Series], unit: charts.Unit
) -> None:
    """Lines that end where their version's requests end."""
    rates = {version: readings.total(group) for version, group in readings.by(requests, "version").items()}
    nothing = readings.total(())
    kept = [readings.while_served(item.finite, rates.get(item.labels.get("version", ""), nothing)) for item in series]
    _by_version(view, key, kept, unit, height=175)


def _outcomes(view: shell.View, requests: Sequence[Series], counters: Sequence[Series]) -> None:
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
    elif not shown and (counts := _failures(view, counters)):
        shell.empty("Too brief for a rate", f"In this span: {counts}.")
    elif not shown:
        shell.empty("Every request was ok", "No request was refused, late or failed in this span.")
    else:
        figure = charts.lines(view.frame, shown, "ratio", height=210, stacked=True)
        figure.update_layout(showlegend=True, margin={"t": 26})
        shell.chart("outcomes", figure)


def _failures(view: shell.View, counters: Sequence[Series]) -> str:
    """Counts of the outcomes other than ok, those among them that a series was born with."""
    counts = readings.counts(counters, view.span, "outcome")
    return ", ".join(
        f"{fmt.number(count)} {html.escape(name.replace('_', ' '))}"
        for name, count in counts.items()
        if name != "ok" and count
    )


def _queue_and_compute(view: shell.View, found: dict[str, list[Series]]) -> None:
    shown = [
        Line(name, found[key][0].finite, color)
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


def _releases(view: shell.View) -> tuple[list[Any], list[SourceError]]:
    try:
        found = view.sources.evidence(view.model)
    except SourceError as problem:
        return [], [problem]
    return sorted(found, key=lambda release: -float(release["started_at"]))[:_MOST_RELEASES], []


def _evidence(view: shell.View, releases: Sequence[Any]) -> None:
    if not releases:
        shell.empty(
            "No canary yet",
            "Release one with <code>trimtab models canary</code>: its evidence of harm "
            "and of safety mounts here, request by request.",
            "alerts",
        )
        return
    left, right = st.columns((3, 2))
    shown = [line for release in releases for line in evidence_lines(view, release)]
    with left:
        if shown:
            shell.chart("evidence", charts.curves(view.frame, shown, height=270, log=True, threshold=DECIDED))
        else:
            shell.empty("The course is not known", "The store does not hold these releases' evidence any more.")
    with right:
        _verdicts(view, releases)


def _verdicts(view: shell.View, releases: Sequence[Any]) -> None:
    colors = {"rollback": view.colors.critical, "advance": view.colors.good}
    lines = []
    for release in releases:
        verdict = str(release["verdict"])
        e_values = release.get("evidence", {}).get("errors", {})
        reason = html.escape(plain(release.get("reason") or ""))
        versions = f"{fmt.version(str(release['candidate']))} against {fmt.version(str(release['baseline']))}"
        lines.append(
            (
                f"<b>{versions}</b> <span class='dim'>{html.escape(str(release['release']))}, "
                f"{_lived(view, release)}</span><div class='tt-sub'>{reason}</div>",
                fmt.number(e_values.get("harm")),
                fmt.number(e_values.get("safety")),
                shell.tag(verdict, colors.get(verdict, view.colors.muted)),
            )
        )
    shell.rows(("Release", "Harm", "Safety", "Verdict"), lines, numeric=(1, 2), tight=(3,))


def _lived(view: shell.View, release: Mapping[str, Any]) -> str:
    start, end = float(release["started_at"]), release.get("ended_at")
    return f"ran {fmt.seconds(float(end) - start)}" if end else f"runs since {fmt.clock(start, view.zone)}"


def _traces(view: shell.View) -> None:
    chosen = st.session_state.get("trace")
    table = st.session_state.get("trace_rows") if chosen else None
    try:
        if table is None:
            found = [row for row in trace_rows(view.sources.traces()) if row.name.startswith("inference")]
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
    spans = waterfall_spans(trace)
    st.html(f'<div class="tt-card-title"><b>Trace {html.escape(trace_id)}</b><span>{len(spans)} spans</span></div>')
    shell.chart("waterfall", charts.waterfall(view.frame, spans))


if __name__ == "__main__":
    shell.page("Serving", "Load, latency, batching and the judgement of canaries", body)
