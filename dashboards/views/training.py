"""Training: how runs went, what a step spends its time on, and the versions that came of them."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import streamlit as st

from dashboards import charts, queries, readings, shell
from dashboards import format as fmt
from dashboards.charts import Line
from dashboards.series import Series, Span
from dashboards.sources import SourceError
from dashboards.stats import Stat, stats
from dashboards.theme import SERIES
from dashboards.traffic import shares
from dashboards.views.learners import learners
from observability import names

_MOST_RUNS = 4
_VERSION_COLUMNS = (
    *("Version", "Role", "Registered", "Trained on", "Gate", "Log loss", "Rival", "Difference", "At most", "ROC AUC"),
    *("Parent", "Code", "Digest"),
)
_METRICS = ("log_loss", "base_rate_log_loss", "brier", "roc_auc", "accuracy", "calibration_error")
_COLORS = ("#8C8C8C", "#56B4E9", "#0072B2", "#009E73", "#F0E442", "#E69F00", "#CC79A7", "#D55E00")
_PHASE_COLORS = dict(zip(names.PHASES, _COLORS, strict=True))


def body(view: shell.View) -> None:
    """The page."""
    found, problems = view.sources.ranges(queries.training(view.model), view.span)
    asked = queries.phases(view.model, view.seconds) | queries.learners(view.model, view.seconds)
    now, more = view.sources.instants(asked, view.span.end)
    problems += more
    policy: dict[str, Any] = {}
    try:
        policy = view.sources.model(view.model)
    except SourceError as problem:
        problems.append(problem)
    shell.notice(problems)
    runs = _runs(found)
    _numbers(view, found, policy)
    fine = [_fine(view, run, found["loss"]) for run in runs[-_MOST_RUNS:]]
    left, middle, right = st.columns(3)
    for place, key, title, detail in (
        (left, "loss", "Training loss", "by seconds since the run began"),
        (middle, "gradient_norm", "Gradient norm", "before clipping"),
        (right, "throughput", "Throughput", "samples a second"),
    ):
        with place, shell.card(key, title, detail):
            shown = [series for run in fine for series in run[key]]
            _curve(view, key, shown, runs, _marks(found["findings"], shown) if key == "loss" else ())
    left, right = st.columns((3, 2))
    with left, shell.card("phases", "Where a step's time goes", "mean of the steps in this span"):
        _phases(view, now)
    with right, shell.card("evaluation", "Evaluation", "scores on held-out data"):
        _evaluation(found["evaluation"], policy)
    left, right = st.columns((3, 2))
    with left, shell.card("ranks", "Ranks side by side", "median of a rank's latest steps, by phase"):
        _ranks(view, now)
    with right, shell.card("guards", "Guards and lost time", "what guards found, and where the wall time went"):
        _guards(view, found["findings"], now["wall"])
    learners(view, now)
    with shell.card("versions", "Registered versions", "with where each one comes from"):
        _versions(view, policy)


def _runs(found: Mapping[str, Sequence[Series]]) -> list[str]:
    """Names of the runs, in the order in which they began."""
    begun: dict[str, float] = {}
    for series in (*found["loss"], *found["throughput"]):
        if len(series.times):
            run = series.labels.get("run", "")
            begun[run] = min(begun.get(run, float("inf")), float(series.times[0]))
    return sorted(begun, key=begun.__getitem__)


def _fine(view: shell.View, run: str, coarse: Sequence[Series]) -> dict[str, list[Series]]:
    """The course of one run over its own life, however short that is within the span."""
    lives = [readings.while_running(item) for item in coarse if item.labels.get("run") == run and len(item.times)]
    if not lives:
        return {key: [] for key in queries.run("", "")}
    start = min(float(life.times[0]) for life in lives) - view.span.step
    end = max(float(life.times[-1]) for life in lives)
    found, _ = view.sources.ranges(queries.run(view.model, run), Span(start, end, max(1.0, (end - start) // 150)))
    return found


def _numbers(
    view: shell.View,
    found: Mapping[str, Sequence[Series]],
    policy: Mapping[str, Any],
) -> None:
    ended: dict[str, float] = {}
    for item in found["runs"]:
        outcome = item.labels.get("outcome", "")
        ended[outcome] = ended.get(outcome, 0.0) + readings.gained(item, view.span, gaps_restart=True)
    words = ", ".join(f"{count:.0f} {name}" for name, count in sorted(ended.items()) if count >= 0.5) or "none ended"
    steps, skipped = (
        sum(readings.gained(item, view.span) for item in found[key]) if found[key] else None
        for key in ("steps", "skipped")
    )
    cells = (
        ("Runs in this span", str(len(_runs(found))), words),
        ("Newest loss", fmt.number(readings.latest(found["loss"])), "of the last recorded step"),
        ("Throughput", fmt.number(readings.latest(found["throughput"])), "samples a second"),
        ("Steps in this span", fmt.number(steps), f"{fmt.number(skipped or 0)} skipped, not finite"),
        ("Goodput", fmt.percent(readings.latest(found["goodput"]), 1), _attempts_words(view, found)),
        ("Versions", str(len(policy.get("versions", ()))) if policy else fmt.DASH, _roles_words(policy)),
    )
    stats([Stat(label, value, detail, detail=detail) for label, value, detail in cells], view.colors.accent)


def _roles_words(policy: Mapping[str, Any]) -> str:
    found = [one for one in shares(policy) if one.answers]
    words = [f"{fmt.version(one.version)} {'is stable' if one.role == 'stable' else one.name}" for one in found]
    return ", ".join(words) or "none serves"


def _attempts_words(view: shell.View, found: Mapping[str, Sequence[Series]]) -> str:
    again = sum(readings.gained(item, view.span) for item in found["restarts"])
    used = readings.latest(found["mfu"])
    words = "begun anew once" if round(again) == 1 else f"begun anew {again:.0f} times"
    return words if used is None else f"{words}; {fmt.percent(used, 1)} of the device's peak"


def _marks(findings: Sequence[Series], shown: Sequence[Series]) -> list[tuple[float, str]]:
    """When guards spoke up, in seconds since the beginning of the run that was going on then."""
    found = []
    for item in findings:
        rises = [index for index in range(1, len(item.times)) if item.values[index] > item.values[index - 1]]
        # A counter is born with what it counts first.
        born = [0] if len(item.times) and item.values[0] > 0 else []
        for index in (*born, *rises):
            moment = float(item.times[index])
            begun = [float(one.times[0]) for one in shown if len(one.times) and one.times[0] <= moment <= one.times[-1]]
            if begun:
                found.append((moment - max(begun), item.labels.get("guard", "").replace("_", " ")))
    return found


def _ranks(view: shell.View, now: Mapping[str, Sequence[Series]]) -> None:
    ranks = sorted({item.labels.get("rank", "") for item in now["rank_phases"]}, key=lambda rank: (len(rank), rank))
    if not ranks:
        shell.empty("No run over several ranks", "Start one with <code>trimtab train MODEL --ranks 2</code>.")
        return

    def of(key: str, rank: str) -> float | None:
        return readings.latest([item for item in now[key] if item.labels.get("rank") == rank])

    seconds = {
        (item.labels.get("rank", ""), item.labels.get("phase", "")): item.last or 0.0 for item in now["rank_phases"]
    }
    known = [phase for phase in names.PHASES if any(seconds.get((rank, phase)) for rank in ranks)]
    parts = {phase.replace("_", " "): [seconds.get((rank, phase), 0.0) for rank in ranks] for phase in known}
    colors = {phase.replace("_", " "): _PHASE_COLORS[phase] for phase in known}
    shell.chart(
        "ranks",
        charts.stacked_bar(view.frame, [f"rank {rank}" for rank in ranks], parts, colors, height=90 + 30 * len(ranks)),
    )
    lines = [
        (
            f"rank {html.escape(rank)}",
            shell.tag("up", view.colors.good) if of("rank_up", rank) else shell.tag("ended", view.colors.muted),
            fmt.number(of("rank_step", rank)),
            fmt.number(of("rank_slowdown", rank), 2),
        )
        for rank in ranks
    ]
    shell.rows(("Rank", "State", "Step", "Own work, times the others'"), lines, numeric=(2, 3))


def _guards(view: shell.View, findings: Sequence[Series], wall: Sequence[Series]) -> None:
    counted: dict[tuple[str, str], float] = {}
    for item in findings:
        key = item.labels.get("guard", "").replace("_", " "), item.labels.get("action", "").replace("_", " ")
        counted[key] = counted.get(key, 0.0) + readings.gained(item, view.span)
    lines = [(html.escape(guard), html.escape(action), f"{n:.0f}") for (guard, action), n in sorted(counted.items())]
    if lines:
        shell.rows(("Guard", "What followed", "Times"), lines, numeric=(2,))
    else:
        shell.empty("No guard spoke up", "What one finds is marked on the loss, too.")
    spent = {item.labels.get("cause", ""): item.last or 0.0 for item in wall}
    whole = sum(spent.values())
    if whole > 0:
        shares = sorted(spent.items(), key=lambda one: -one[1])
        shell.rows(
            ("Wall time went to", "Time", "Share"),
            [
                (html.escape(cause.replace("_", " ")), fmt.seconds(seconds), fmt.percent(seconds / whole, 1))
                for cause, seconds in shares
                if seconds
            ],
            numeric=(1, 2),
        )


def _curve(
    view: shell.View,
    key: str,
    series: Sequence[Series],
    runs: Sequence[str],
    marks: Sequence[tuple[float, str]] = (),
) -> None:
    shown = [
        Line(
            item.labels.get("run", ""),
            readings.while_running(item),
            SERIES[runs.index(item.labels.get("run", "")) % len(SERIES)]
            if item.labels.get("run", "") in runs
            else SERIES[-1],
        )
        for item in sorted(series, key=lambda item: float(item.times[0]))
        if len(item.times)
    ]
    if not shown:
        shell.empty(
            "No run in this span",
            "Start one with <code>trimtab train</code>, push those of your own loop, or choose a longer time range.",
        )
        return
    shell.chart(key, charts.curves(view.frame, shown, marks=marks))


def _phases(view: shell.View, now: Mapping[str, Sequence[Series]]) -> None:
    sums = {item.labels.get("phase", ""): item.last or 0.0 for item in now["phase_seconds"]}
    steps = readings.latest(now["steps"]) or 0.0
    known = [phase for phase in names.PHASES if sums.get(phase)]
    if not known or steps <= 0:
        shell.empty(
            "No steps in this span", "The training loop times its data wait, forward, backward and optimizer phases."
        )
        return
    parts = {phase.replace("_", " "): [sums[phase] / steps] for phase in known}
    colors = {phase.replace("_", " "): _PHASE_COLORS[phase] for phase in known}
    bar = charts.stacked_bar(view.frame, ["step"], parts, colors, height=90)
    shell.chart("phases", bar.update_layout(showlegend=False))  # the table below names the colours, on any width
    whole = sum(sums[phase] for phase in known)
    counts = {item.labels.get("phase", ""): item.last or 0.0 for item in now["phase_count"]}
    lines = [
        (
            f'<span style="color:{_PHASE_COLORS[phase]}">■</span> ' + html.escape(phase.replace("_", " ")),
            fmt.percent(sums[phase] / whole, 1),
            fmt.seconds(sums[phase] / counts[phase]) if counts.get(phase) else fmt.DASH,
            fmt.number(round(counts.get(phase, 0.0), 0)),  # increase() extrapolates
        )
        for phase in known
    ]
    shell.rows(("Phase", "Share", "Mean", "Times"), lines, numeric=(1, 2, 3))


def _evaluation(series: Sequence[Series], policy: Mapping[str, Any]) -> None:
    """One column a run, the newest first: scores have long names, and there are many of them."""
    groups = readings.by([item for item in series if len(item.times)], "run")
    if not groups:
        shell.empty("Nothing evaluated in this span", "A run is scored on held-out days before it may be registered.")
        return
    newest = sorted(groups.items(), key=lambda group: -float(group[1][0].times[-1]))[:_MOST_RUNS]
    scores = {run: {item.labels.get("metric", ""): item.last for item in group} for run, group in newest}
    metrics = sorted({metric for found in scores.values() for metric in found}, key=_metric_rank)
    lines = [
        [html.escape(metric.replace("_", " ")), *(fmt.number(found.get(metric), 4) for found in scores.values())]
        for metric in metrics
    ]
    headings = [f'<span title="run {html.escape(run)}">{_made(run, policy)}</span>' for run in scores]
    shell.rows(("Score", *headings), lines, numeric=range(1, len(headings) + 1))


def _made(run: str, policy: Mapping[str, Any]) -> str:
    """The versions that a run made, else the end of its name."""
    made = [str(v["version"]) for v in policy.get("versions", ()) if (v.get("lineage") or {}).get("run") == run]
    return ", ".join(map(fmt.version, made)) if made else html.escape(run[-12:])


def _metric_rank(metric: str) -> tuple[int, str]:
    return (_METRICS.index(metric) if metric in _METRICS else len(_METRICS), metric)


def _versions(view: shell.View, policy: Mapping[str, Any]) -> None:
    versions = sorted(policy.get("versions", ()), key=lambda v: -float(v.get("created_at") or 0))
    if not versions:
        shell.empty(
            "No version registered",
            "A run that passes the gate registers one; so does <code>trimtab models register</code>.",
            "serving",
        )
        return
    lines = [_version_line(view, policy, version) for version in versions[:12]]
    shell.rows(
        _VERSION_COLUMNS,
        lines,
        numeric=(5, 6, 7, 8, 9),
        tight=(1, 2, 3, 4, 11, 12),
    )


def _version_line(view: shell.View, policy: Mapping[str, Any], version: Mapping[str, Any]) -> tuple[str, ...]:
    name, lineage = str(version["version"]), version.get("lineage") or {}
    words = readings.lineage_words(lineage)
    metrics = version.get("metrics") or lineage.get("metrics") or {}
    judged = lineage.get("gate")
    gate: Mapping[str, Any] = judged if isinstance(judged, Mapping) else {}
    rival = html.escape(str(gate.get("rival") or ""))
    created = version.get("created_at")
    created = readings.seconds_of(created) if created is not None else None
    return (
        f"<b>{fmt.version(name)}</b>",
        _role(view, policy, name, str(version.get("state") or "")),
        f'<span title="{fmt.moment(created, view.zone)}">{fmt.ago(created, view.now)}</span>',
        html.escape(words["window"])
        + (f"<div class='tt-sub'>{words['rows']} rows</div>" if words["rows"] != fmt.DASH else ""),
        _gate(view, lineage.get("gate")),
        fmt.number(gate.get("candidate_log_loss", metrics.get("log_loss")), 4),
        f"{fmt.number(gate.get('rival_log_loss'), 4)}<div class='tt-sub'>{rival}</div>",
        fmt.signed(gate.get("difference")),
        f"{fmt.signed(gate.get('upper_bound'))}<div class='tt-sub'>{_confidence(gate)}</div>",
        fmt.number(metrics.get("roc_auc"), 3),
        words["parent"],
        f"<code>{html.escape(words['revision'])}</code>",
        f'<code title="{html.escape(str(version.get("digest")))}">{html.escape(_short(version.get("digest")))}</code>',
    )


def _confidence(gate: Mapping[str, Any]) -> str:
    return f"at {fmt.percent(gate.get('confidence'), 0)}" if gate.get("confidence") is not None else ""


def _short(digest: Any) -> str:
    return str(digest or fmt.DASH).removeprefix("sha256:")[:12]


def _role(view: shell.View, policy: Mapping[str, Any], version: str, state: str) -> str:
    colors = view.colors
    tones = {"stable": colors.good, "canary": colors.warning}
    tags = [
        shell.tag(
            one.name if one.role == "stable" else f"{one.name} {fmt.percent(one.weight, 0)}",
            tones.get(one.role, colors.accent),
        )
        for one in shares(policy)
        if one.version == version
    ]
    if tags:
        return " ".join(tags)
    if version == str(policy.get("previous")):
        return shell.tag("previous", view.colors.muted)
    return f'<span class="dim">{html.escape(state)}</span>'


def _gate(view: shell.View, gate: Any) -> str:
    if gate is None:
        return fmt.DASH
    if not isinstance(gate, Mapping):
        return html.escape(str(gate))
    passed = gate.get("passed", gate.get("accepted"))
    reason = html.escape(str(gate.get("reason") or ""))
    if passed is None:
        return reason or fmt.DASH
    label, color = ("passed", view.colors.good) if passed else ("refused", view.colors.critical)
    return f'<span title="{reason}">{shell.tag(label, color)}</span>'


def promotion(view: shell.View) -> None:
    """The button beside the title."""
    try:
        policy = view.sources.model(view.model) if view.model else {}
    except SourceError:  # the page below says so
        policy = {}
    versions = sorted((str(version["version"]) for version in policy.get("versions", ())), key=len, reverse=True)
    others = [version for version in versions if version != str(policy.get("stable"))]
    if st.button("Promote a version", icon=":material/arrow_upward:", disabled=not others):
        canary = policy.get("canary") or {}
        _confirm_promotion(view, others, str(canary.get("version") or others[0]))


@st.dialog("Promote a version")
def _confirm_promotion(view: shell.View, versions: Sequence[str], preferred: str) -> None:
    st.html(
        f"All requests for <b>{html.escape(view.model)}</b> will be answered by the version you choose. "
        "The one that is stable now stays loaded, so a rollback is at hand."
    )
    version = st.selectbox("Version", versions, index=versions.index(preferred), format_func=fmt.version)
    reason = st.text_input("Reason", placeholder="What speaks for it; kept in the history")
    if st.button("Promote", type="primary", disabled=not reason):
        key = f"dashboard-{uuid4()}"
        shell.attempt(
            lambda: view.sources.promote(view.model, version, reason, key), f"{fmt.version(version)} is stable now"
        )
        st.rerun()


if __name__ == "__main__":
    shell.page(
        "Training",
        "Runs, the time their steps take, and the lineage of every version",
        body,
        levers=promotion,
        since=queries.training_beginnings,
    )
