"""Drift: which inputs moved away from the reference, how, since when, and whether the predictions suffer."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from dashboards import charts, queries, readings, shell
from dashboards import format as fmt
from dashboards.charts import Line
from dashboards.distances import busiest, drift_matrix, newest_judged, verdict_words
from dashboards.distributions import compare
from dashboards.series import Series
from dashboards.sources import Refused, SourceError, Sources, Unavailable
from dashboards.theme import version_color

Windows = Sequence[Mapping[str, Any]]
_ALL = "All versions"
_NEWEST = "Newest with a verdict"


def body(view: shell.View) -> None:
    """The page."""
    found, problems = view.sources.ranges(queries.drift(view.model), view.span)
    try:
        report: dict[str, Any] = view.sources.drift(view.model)
    except Refused:  # the collector does not know this model yet: that is 'no data', not a failure
        report = {}
    except Unavailable as problem:
        problems.append(problem)
        report = {}
    shell.notice(problems)
    every: Windows = report.get("windows") or ()
    versions = list(
        readings.by([Series({"version": str(w["version"])}, np.empty(0), np.empty(0)) for w in every], "version")
    )
    if versions:
        _drift(view, every, versions)
    else:
        shell.empty(
            "No drift window is closed yet",
            "Windows close by event time once predictions arrive and the version has a reference profile.",
            "collector",
        )
    left, middle, right = st.columns(3)
    with left, shell.card("score", "Log loss", "lower is better"):
        _performance(view, found["performance"], ("log_loss", "none"), "number", "score", from_zero=False)
    with middle, shell.card("auc", "ROC AUC", "ranking quality, 0.5 is chance"):
        _performance(view, found["performance"], ("roc_auc", "none"), "number", "auc", from_zero=False)
    with right, shell.card("base", "Base rate and predictions", _labelled(found["labelled"])):
        _performance(view, found["performance"], ("positive_ratio", "prediction_mean"), "ratio", "base")


def _drift(view: shell.View, every: Windows, versions: list[str]) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        version = st.selectbox(
            "Version",
            [_ALL, *versions],
            format_func=lambda v: v if v == _ALL else fmt.version(v),
            width=170,
            key="drift_version",
            help="Of all versions, the one with the most rows",
        )
        windows = busiest([w for w in every if version in (_ALL, str(w["version"]))])
        matrix = drift_matrix(windows)
        columns = list(matrix.columns)
        if not columns:
            shell.empty("No column can be compared", "The version needs a reference profile; training registers one.")
            return
        column = str(
            st.selectbox(
                "Column",
                columns,
                index=columns.index(matrix.most_drifted),
                format_func=fmt.column,
                width=230,
                key="drift_column",
            )
        )
        when = st.selectbox(
            "Window",
            [_NEWEST, *matrix.ends[::-1]],
            width=230,
            key="drift_window",
            format_func=lambda t: t if t == _NEWEST else f"until {fmt.moment(float(t), view.zone)}",
        )
    chosen = newest_judged(windows) if when not in matrix.ends else windows[matrix.ends.index(when)]
    scores = chosen["columns"].get(column) or {}
    left, right = st.columns((3, 2))
    detail = "population stability index; a dot is drift, a dash was not judged"
    with left, shell.card("heat", "Distance from the reference by feature", detail):
        names = [fmt.column(c) for c in columns]
        shell.chart(
            "heat",
            charts.heat_map(
                view.frame, names, matrix.ends, matrix.values, matrix.drifted, matrix.words, matrix.threshold
            ),
        )
    with right:
        with shell.card("distribution", fmt.column(column), _window_words(view, chosen)):
            _distribution(view, chosen, column)
        with shell.card("scores", "Distances in this window", verdict_words(scores) if scores else ""):
            _scores(scores)
    with shell.card("columns", "Columns in this window", f"{fmt.number(chosen.get('rows'))} rows"):
        _columns(columns, windows, chosen)


def _window_words(view: shell.View, window: Mapping[str, Any]) -> str:
    start, end = readings.seconds_of(window["start"]), readings.seconds_of(window["end"])
    rows = f"{fmt.number(window.get('rows'))} rows of {fmt.version(str(window['version']))}"
    return f"{fmt.clock(start, view.zone)} to {fmt.clock(end, view.zone)}, {rows}"


def _distribution(view: shell.View, window: Mapping[str, Any], column: str) -> None:
    version = str(window["version"])
    # Asked for by version: each version has a reference of its own.
    reference = view.sources.drift(view.model, version, 1).get("reference") or {}
    both = compare(reference.get(column) or {}, window["columns"].get(column) or {})
    if both is None:
        shell.empty(
            "No comparison", "The window and the reference of this version have different bins for this column."
        )
        return
    shares, color = (both.reference, both.current), version_color(version)
    if both.edges is None:
        figure = charts.compare_categories(view.frame, both.labels, shares, color=color)
    else:
        figure = charts.compare_bins(view.frame, both.edges, both.labels, shares, color=color)
    shell.chart("distribution", figure)


def _scores(scores: Mapping[str, Any]) -> None:
    cells = [
        ("PSI", scores.get("psi")),
        ("Jensen–Shannon", scores.get("jensen_shannon")),
        ("Wasserstein", scores.get("wasserstein")),
        ("KS", scores.get("ks")),
        ("Threshold", scores.get("threshold")),
    ]
    shell.rows([name for name, _ in cells], [[fmt.number(value) for _, value in cells]])


def _columns(columns: list[str], windows: Windows, chosen: Mapping[str, Any]) -> None:
    scores = [chosen["columns"].get(column) or {} for column in columns]
    table = pd.DataFrame(
        {
            "Column": [fmt.column(column) for column in columns],
            "State": [verdict_words(score) if score else fmt.DASH for score in scores],
            "PSI": [score.get("psi") for score in scores],
            "Threshold": [score.get("threshold") for score in scores],
            "Trend": [[(w["columns"].get(c) or {}).get("psi") or 0.0 for w in windows[-30:]] for c in columns],
            "Jensen–Shannon": [score.get("jensen_shannon") for score in scores],
            "Wasserstein": [score.get("wasserstein") for score in scores],
            "KS": [score.get("ks") for score in scores],
            "Missing": [score.get("missing_ratio") for score in scores],
            "Out of range": [score.get("out_of_range_ratio") for score in scores],
            "Unseen": [score.get("unseen_ratio") for score in scores],
        }
    )
    number, ratio = st.column_config.NumberColumn(format="%.3f"), st.column_config.NumberColumn(format="percent")
    config = {
        "PSI": number,
        "Threshold": number,
        "Jensen–Shannon": number,
        "Wasserstein": number,
        "KS": number,
        "Missing": ratio,
        "Out of range": ratio,
        "Unseen": ratio,
        "Trend": st.column_config.LineChartColumn(width="small", help="PSI over the newest 30 windows", y_min=0),
    }
    st.dataframe(
        table.astype({name: "float64" for name in config if name != "Trend"}),
        hide_index=True,
        column_config=config,
        height="content",
        placeholder=fmt.DASH,
    )


def _performance(
    view: shell.View,
    series: Sequence[Series],
    metrics: tuple[str, str],
    unit: charts.Unit,
    key: str,
    from_zero: bool = True,
) -> None:
    words = {"log_loss": "", "roc_auc": "", "positive_ratio": " labels", "prediction_mean": " predicted"}
    dashes = dict(zip(metrics, ("solid", "dot"), strict=True))
    shown = [
        Line(
            f"{fmt.version(item.labels.get('version'))}{words[item.labels['metric']]}",
            item,
            version_color(item.labels.get("version", "")),
            dashes[item.labels["metric"]],
        )
        for group in readings.by(series, "version").values()
        for item in group
        if item.labels.get("metric") in metrics and len(item.times)
    ]
    if not shown:
        shell.empty("No labels yet", "Scores appear when labels of served predictions come in.")
        return
    shell.chart(key, charts.lines(view.frame, shown, unit, height=215, from_zero=from_zero))


def _labelled(series: Sequence[Series]) -> str:
    rows = readings.latest(series)
    return "" if rows is None else f"{fmt.number(rows)} labelled rows"


def report(view: shell.View) -> None:
    """The Evidently report, outside what refreshes."""
    try:
        windows = view.sources.drift(view.model).get("windows") or ()
    except SourceError:  # the page above says so
        windows = ()
    versions = sorted({str(window["version"]) for window in windows})
    with shell.card("report", "Evidently report", "made on demand from the newest events; takes some seconds"):
        _report(view, versions)


def _report(view: shell.View, versions: Sequence[str]) -> None:
    held: dict[str, Any] | None = st.session_state.get("evidently")
    if held and held["model"] != view.model:
        held = None
    with st.container(horizontal=True, vertical_alignment="center"):
        chosen = str(st.session_state.get("drift_version"))
        version = chosen if chosen in versions else (versions[-1] if versions else "")
        label = f"Make the report of {fmt.version(version)}" if version else "Make the report"
        if st.button(label, disabled=not version, icon=":material/description:"):
            held = _fetch(view.sources, view.model, version) or held
        if held:
            st.download_button(
                "Download",
                held["html"],
                f"drift-{held['model']}-v{held['version']}.html",
                "text/html",
                on_click="ignore",
                icon=":material/download:",
            )
            if st.button("Close"):
                st.session_state.pop("evidently", None)
                held = None
    if held:
        st.iframe(held["html"].decode("utf-8", "replace"), height=820)
    elif not version:
        shell.empty("Nothing to report on", "The report compares served events with the version's reference.")


def _fetch(sources: Sources, model: str, version: str) -> dict[str, Any] | None:
    try:
        with st.spinner("Evidently is comparing the window with the reference…"):
            body = sources.drift_report(model, version)
    except Refused as problem:
        remedy = "Reports need events, and on the collector's machine <code>pip install 'trimtab[reports]'</code>."
        shell.empty("The report is not there", f"{html.escape(problem.reason)}<br>{remedy}")
        return None
    except Unavailable as problem:
        shell.notice([problem])
        return None
    st.session_state["evidently"] = held = {"model": model, "version": version, "html": body}
    return held


if __name__ == "__main__":
    shell.page(
        "Drift", "Inputs against the training reference, data quality, and scores once labels come", body, below=report
    )
