"""Overview: is it well, what is it doing, and what happened."""

from __future__ import annotations

import html
from collections.abc import Sequence

import streamlit as st

from dashboards import charts, queries, readings, shell
from dashboards import format as fmt
from dashboards.charts import Line
from dashboards.series import Series
from dashboards.sources import SourceError
from dashboards.stats import Stat, stats
from dashboards.theme import severity_color, version_color
from dashboards.timeline import Timeline, timeline
from dashboards.traffic import shares

_MOST_TOLD = 7


def body(view: shell.View) -> None:
    """The page."""
    sources = view.sources
    found, problems = sources.ranges(queries.overview(view.model, view.over, view.span.step), view.span)
    now, more = sources.instants(queries.objectives(view.model, view.seconds), view.span.end)
    problems += more
    policy, actions = {}, []
    try:
        policy = sources.model(view.model)
    except SourceError as problem:
        problems.append(problem)
    try:
        actions = sources.actions(view.model)
    except SourceError as problem:
        problems.append(problem)
    shell.notice(problems)
    _numbers(view, found)
    left, middle, right = st.columns((1, 1, 1))
    with left, shell.card("slo", "Service level objectives", f"over the {shell.RANGES[int(view.seconds)].lower()}"):
        _objectives(view, found["outcomes"], now)
    with middle, shell.card("traffic", "Traffic split", _generation(policy)):
        _traffic(view, policy)
    with right, shell.card("active", "Active alerts"):
        _alerts(view, found["alerts"])
    story = timeline(view.span, found["weights"], found["alerts"], actions, policy.get("history", ()))
    with shell.card("timeline", "Timeline", "bands are traffic weights, bars are alerts, marks are actions"):
        if story.empty:
            shell.empty("Nothing happened yet", "Releases, alerts and actions appear here as they come.")
        else:
            shell.chart("timeline", charts.timeline_chart(view.frame, story))
    left, right = st.columns((3, 2))
    with left, shell.card("requests", "Requests by version", "per second"):
        _requests(view, found["requests"])
    with right, shell.card("happened", "What happened", "newest first"):
        _happened(view, story)


def _numbers(view: shell.View, found: dict[str, list[Series]]) -> None:
    requests = found["requests"]
    whole, judged = readings.total(requests), readings.total(requests, readings.is_judged)
    errors = readings.share(readings.total(requests, readings.is_fault), judged)
    look_back = f"over the last {fmt.seconds(view.over)}"
    of_numbers = readings.of_numbers([*found["log_loss"], *found["rmse"]])
    score, scored = ("RMSE", found["rmse"]) if of_numbers else ("Log loss", found["log_loss"])
    cells = (
        ("Requests", _with(fmt.number(whole.last), "/s"), whole, f"Requests a second, {look_back}"),
        ("Latency p50", fmt.seconds(readings.latest(found["p50"])), _one(found["p50"]), f"Median, {look_back}"),
        (
            "Latency p99",
            fmt.seconds(readings.latest(found["p99"])),
            _one(found["p99"]),
            f"One request in a hundred is slower, {look_back}",
        ),
        (
            "Error ratio",
            fmt.percent(errors.last),
            errors,
            f"Share of requests that failed through a version's fault, {look_back}",
        ),
        (
            "Drifted features",
            fmt.percent(readings.latest(found["drift"]), 0),
            _newest(found["drift"]),
            "Share of the feature columns that drifted in the last closed window",
        ),
        (
            score,
            fmt.number(readings.latest(scored)),
            _newest(scored),
            "Of predictions whose labels have come; lower is better",
        ),
    )
    stats([Stat(label, value, words, series) for label, value, series, words in cells], view.colors.accent)


def _with(text: str, unit: str) -> str:
    return text if text == fmt.DASH else f"{text} {unit}"


def _one(series: Sequence[Series]) -> Series:
    return series[0] if series else readings.total(())


def _newest(series: Sequence[Series]) -> Series:
    """The series that was written last: the version that carries the traffic."""
    return max(series, key=lambda item: (item.times[-1], len(item.times)), default=readings.total(()))


def _objectives(view: shell.View, outcomes: Sequence[Series], now: dict[str, list[Series]]) -> None:
    config, colors = view.config, view.colors
    kept = readings.availability(outcomes, config.availability_objective, view.span)
    p99 = readings.latest(now["p99"])
    if kept.ratio is None and p99 is None:
        shell.empty("No requests in this span", "Send one, or choose a longer time range.")
        return
    good = kept.ratio is None or kept.ratio >= config.availability_objective
    quick = p99 is None or p99 <= config.latency_objective_seconds
    left = max(0.0, min(1.0, kept.budget_left or 0.0))
    color = colors.good if left > 0.25 else colors.warning if left > 0 else colors.critical
    st.html(
        f'<div class="tt-split"><div><div class="tt-sub">Availability</div>'
        f'<div class="tt-big" style="color:{colors.good if good else colors.critical}">'
        f"{fmt.percent(kept.ratio, 3)}</div>"
        f'<div class="tt-sub">objective {fmt.percent(config.availability_objective, 3)}</div></div>'
        f'<div><div class="tt-sub">Latency p99</div>'
        f'<div class="tt-big" style="color:{colors.good if quick else colors.critical}">{fmt.seconds(p99)}</div>'
        f'<div class="tt-sub">objective {fmt.seconds(config.latency_objective_seconds)}</div></div></div>'
        f'<div class="tt-bar"><div style="width:{left * 100:.1f}%;background:{color}"></div></div>'
        f'<div class="tt-sub">{_budget(kept)}</div>'
    )


def _budget(kept: readings.Availability) -> str:
    if kept.budget_left is None:
        return "No requests, so no error budget was spent."
    counts = f"{fmt.number(round(kept.faults))} faults in {fmt.number(kept.requests)} requests"
    if kept.budget_left < 0:
        return f"Error budget spent {fmt.number(1 - kept.budget_left)} times: {counts}"
    return f"Error budget {fmt.percent(kept.budget_left, 0)} left: {counts}"


def _generation(policy: dict[str, object]) -> str:
    return f"policy {policy['generation']}" if "generation" in policy else ""


def _traffic(view: shell.View, policy: dict[str, object]) -> None:
    if not policy.get("stable"):
        shell.empty("No version serves yet", "Promote one: <code>trimtab models promote</code>.", "serving")
        return
    found = shares(policy)
    bar = "".join(
        f'<div style="width:{one.weight * 100:.2f}%;background:{version_color(one.version)}"></div>'
        for one in found
        if one.answers
    )
    lines = "".join(
        f'<div><span class="tt-dot" style="background:{version_color(one.version)}"></span>{fmt.version(one.version)}'
        f'&ensp;<span class="tt-sub">{html.escape(", ".join(filter(None, (one.name, one.release))))}</span>'
        f"<i>{fmt.percent(one.weight)}{'' if one.answers else ' copied'}</i></div>"
        for one in found
    )
    trial = policy.get("canary") or policy.get("experiment")
    previous = fmt.version(str(policy["previous"])) if policy.get("previous") else None
    note = (
        f"A rollback goes to {previous if not trial else fmt.version(str(policy['stable']))}."
        if (previous or trial)
        else "There is no version to roll back to."
    )
    st.html(
        f'<div class="tt-big">{fmt.version(str(policy["stable"]))}</div><div class="tt-bar">{bar}</div>'
        f'<div class="tt-services">{lines}</div><div class="tt-sub">{note}</div>'
    )


def _alerts(view: shell.View, series: Sequence[Series]) -> None:
    active = [item for item in series if len(item.times) and item.times[-1] >= view.span.end - view.span.step]
    if not active and shell.away("query"):
        shell.empty("Not known", "")
        return
    if not active:
        dot = f'<span class="tt-dot" style="background:{view.colors.good}"></span>'
        st.html(f'<div style="font-size:.95rem">{dot}All quiet: no alert is pending or firing.</div>')
        return
    active.sort(key=lambda item: (item.labels.get("alertstate") != "firing", item.labels.get("alertname", "")))
    lines = []
    for item in active[:6]:
        labels = item.labels
        color = severity_color(labels.get("severity", ""), view.colors)
        about = ", ".join(
            f"{key} {html.escape(labels[key])}" for key in ("version", "release", "column") if labels.get(key)
        )
        lines.append(
            (
                f"<b>{html.escape(labels.get('alertname', ''))}</b><div class='tt-sub'>{about}</div>",
                shell.tag(labels.get("alertstate", ""), color),
            )
        )
    shell.rows(("Alert", "State"), lines, tight=(1,))
    if len(active) > 6:
        st.html(f'<div class="tt-sub">and {len(active) - 6} more</div>')


def _requests(view: shell.View, requests: Sequence[Series]) -> None:
    groups = readings.by(requests, "version")
    if not groups:
        shell.empty(
            "No requests yet", f"Send one to <code>{view.config.serving_url}/v2/models/{view.model}/infer</code>."
        )
        return
    shown = [Line(fmt.version(name), readings.total(group), version_color(name)) for name, group in groups.items()]
    shell.chart("requests", charts.lines(view.frame, shown, "number", stacked=True, height=290), fill=True)


def _happened(view: shell.View, story: Timeline) -> None:
    if not story.marks:
        shell.empty("No actions yet", "Rollbacks, retrains and promotions are told here, with their reasons.", "alerts")
        return
    told = [mark for mark in story.marks if mark.told]
    lines = [
        (
            f'<span class="dim">{fmt.clock(mark.time, view.zone)}</span>',
            f"{html.escape(mark.title)}<div class='tt-sub'>{html.escape(mark.why)}</div>",
        )
        for mark in told[: -_MOST_TOLD - 1 : -1]
    ]
    shell.rows(("When", "What and why"), lines, tight=(0,))


if __name__ == "__main__":
    shell.page("Overview", "Health, objectives and what the loop has done", body)
