"""Drift: which inputs moved away from the reference, how, since when, and whether the predictions suffer."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from dashboards import charts, queries, readings, shell, skew, slices
from dashboards import format as fmt
from dashboards.charts import Line
from dashboards.distances import (
    busiest,
    drift_matrix,
    joint_series,
    joint_words,
    newest_judged,
    trend,
    verdict_words,
)
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
    report = shell.answered(lambda: view.sources.drift(view.model), problems)
    shell.notice(problems)
    every: Windows = report.get("windows") or ()
    versions = list(
        readings.by([Series({"version": str(w["version"])}, np.empty(0), np.empty(0)) for w in every], "version")
    )
    if versions:
        _drift(view, every, versions)
        with shell.card("alarms", "Drift alarms", "columns whose windows together are evidence of a lasting change"):
            _alarms(view, report.get("alarms") or ())
        if firsts := report.get("skew") or ():
            detail = f"the first window of each version that could be judged; {skew.judged(firsts)}"
            with shell.card("skew", "Training–serving skew", detail):
                _skew(view, firsts)
    else:
        shell.empty(
            "No drift window is closed yet",
            "Windows close by event time once predictions arrive and the version has a reference profile.",
            "collector",
        )
    left, middle, right = st.columns(3)
    labelled = _labelled(found["labelled"])
    if readings.of_numbers(found["performance"]):
        with left, shell.card("score", "RMSE", "in the label's unit, lower is better"):
            _performance(view, found, "rmse", "score")
        with middle, shell.card("auc", "R²", "1 is perfect, 0 no better than the mean label"):
            _performance(view, found, "r2", "auc")
        with right, shell.card("base", "Bias, prediction less label", labelled):
            _performance(view, found, "bias", "base")
    else:
        with left, shell.card("score", "Log loss", "lower is better"):
            _performance(view, found, "log_loss", "score")
        with middle, shell.card("auc", "ROC AUC", "ranking quality, 0.5 is chance"):
            _performance(view, found, "roc_auc", "auc")
        with right, shell.card("base", "Base rate and predictions", labelled):
            _base_rate(view, found["performance"])
    if versions:
        slices.cards(view, _shown_version(every))


def _shown_version(every: Windows) -> str:
    """The version that was chosen, else that of the newest window."""
    chosen = str(st.session_state.get("drift_version"))
    return chosen if any(str(window["version"]) == chosen for window in every) else str(every[-1]["version"])


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
    distance, threshold = joint_series(windows)
    if len(distance.times):
        with shell.card("joint", "Numeric columns together", joint_words(chosen)):
            _joint(view, str(chosen["version"]), distance, threshold)
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
        ("PSI threshold", scores.get("threshold")),
    ]
    shell.rows([name for name, _ in cells], [[fmt.number(value) for _, value in cells]])


def _joint(view: shell.View, version: str, distance: Series, threshold: Series) -> None:
    """Their discrepancy from the reference: columns may each be as they were and yet go together otherwise."""
    shown = [
        Line("discrepancy (MMD)", distance, version_color(version)),
        Line("drift from here on", threshold, view.frame.colors.critical, "dash"),
    ]
    shell.chart("joint", charts.lines(view.frame, shown, "number", height=190))


def _columns(columns: list[str], windows: Windows, chosen: Mapping[str, Any]) -> None:
    scores = [chosen["columns"].get(column) or {} for column in columns]
    table = pd.DataFrame(
        {
            "Column": [fmt.column(column) for column in columns],
            "State": [verdict_words(score) if score else fmt.DASH for score in scores],
            "PSI": [score.get("psi") for score in scores],
            "PSI threshold": [score.get("threshold") for score in scores],
            "Trend": [trend(c, windows[-30:]) for c in columns],
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
        "PSI threshold": number,
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


def _alarms(view: shell.View, alarms: Sequence[Mapping[str, Any]]) -> None:
    if not alarms:
        shell.empty(
            "No alarm stands",
            "An alarm is raised when a column's windows, taken together, cannot be chance; single windows may differ.",
            "collector",
        )
        return
    body = [
        [
            html.escape(fmt.column(str(alarm["column"]))),
            html.escape(fmt.version(str(alarm["version"]))),
            fmt.clock(readings.seconds_of(alarm["since"]), view.zone),
            f"{fmt.number(alarm.get('score'))} of {fmt.number(alarm.get('threshold'))}",
            html.escape(alarm_words(alarm)),
            html.escape(where_words(alarm)),
        ]
        for alarm in alarms
    ]
    shell.rows(
        ["Column", "Version", "Since", "Distance, threshold", "Before and now", "Most of it in"],
        body,
        numeric=(3,),
        tight=(0, 1, 2),
    )


def _skew(view: shell.View, firsts: Sequence[Mapping[str, Any]]) -> None:
    body = skew.rows(firsts, view.zone)
    if body:
        shell.rows(skew.HEADINGS, body, numeric=(3,), tight=(0, 1, 2))
    else:
        shell.empty("Serving makes its data as training did", "No column of a version's first window differed.")


def alarm_words(alarm: Mapping[str, Any]) -> str:
    """What an alarm is about: how the values changed, or what share of them is missing now."""
    if alarm.get("cause") == "missing":
        missing = alarm.get("missing") or {}
        return f"missing: {fmt.percent(missing.get('reference'))} → {fmt.percent(missing.get('now'))}"
    return change_words(alarm.get("before") or alarm.get("reference") or {}, alarm.get("now") or {})


def change_words(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What a column was like and is like: its mean and deviation, or the value whose share changed most."""
    if before.get("mean") is not None and now.get("mean") is not None:
        words = [f"{fmt.number(each['mean'])} ± {fmt.number(each.get('deviation'))}" for each in (before, now)]
        return " → ".join(words)
    old, new = before.get("shares") or {}, now.get("shares") or {}
    if not (old or new):
        return fmt.DASH
    moved = max({*old, *new}, key=lambda value: abs(new.get(value, 0.0) - old.get(value, 0.0)))
    return f"{moved}: {fmt.percent(old.get(moved, 0.0))} → {fmt.percent(new.get(moved, 0.0))}"


def where_words(alarm: Mapping[str, Any]) -> str:
    """The slices that explain an alarm, each with how far it moved, else the columns that moved with it."""
    slices = [
        f"{fmt.column(str(item['slice']))} {item['value']} ({fmt.number(item.get('effect', item.get('score')))})"
        for item in alarm.get("slices") or ()
    ]
    others = [fmt.column(str(item["column"])) for item in alarm.get("columns") or ()]
    if slices:
        return ", ".join(slices[:3])
    return "with " + ", ".join(others[:3]) if others else fmt.DASH


def _performance(view: shell.View, found: Mapping[str, Sequence[Series]], metric: str, key: str) -> None:
    """A score as labels tell it, and as it was expected before they came."""
    scored = _lines(found["performance"], metric, "", "solid")
    expected = _lines(found["estimated"], metric, " expected", "dot")
    _scored(view, scored + expected, "number", key, from_zero=False)


def _base_rate(view: shell.View, series: Sequence[Series]) -> None:
    labels = _lines(series, "positive_ratio", " labels", "solid")
    _scored(view, labels + _lines(series, "prediction_mean", " predicted", "dot"), "ratio", "base")


def _lines(series: Sequence[Series], metric: str, words: str, dash: str) -> list[Line]:
    return [
        Line(
            f"{fmt.version(item.labels.get('version'))}{words}",
            item,
            version_color(item.labels.get("version", "")),
            dash,
        )
        for group in readings.by(series, "version").values()
        for item in group
        if item.labels.get("metric") == metric and len(item.times)
    ]


def _scored(view: shell.View, shown: Sequence[Line], unit: charts.Unit, key: str, from_zero: bool = True) -> None:
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
    # By its newest window, not its name: of "9", "10" and a canary taken back, what runs now is wanted.
    latest = {str(window["version"]): readings.seconds_of(window["end"]) for window in windows}
    versions = sorted(latest, key=lambda version: latest[version])
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
