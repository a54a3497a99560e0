"""Releases: where each is on its way, what it lacks, who decided what, and what became of the ones before."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from dashboards import charts, queries, releases, shell
from dashboards import format as fmt
from dashboards.charts import Frame, Line
from dashboards.evidence import DECIDED, evidence_lines, life
from dashboards.journal import plain
from dashboards.sources import SourceError
from dashboards.theme import version_color
from observability import names

Items = Sequence[Mapping[str, Any]]
_DECISIONS = {
    "approve": "It goes on past what it waits for. An open blessing is overridden: your reason is kept with it.",
    "resume": "It goes on from what is in force at serving; what its step needs is counted anew.",
    "pause": "It stays where it is. Proved harm still rolls it back.",
    "abort": "All traffic goes back to the stable version.",
}


def body(view: shell.View) -> None:
    """The page."""
    problems: list[SourceError] = []
    sources, model = view.sources, view.model
    latest = shell.answered(lambda: sources.release(model), problems)
    past = shell.answered(lambda: {"found": sources.releases(model)}, problems).get("found", [])
    judged = shell.answered(lambda: {"found": sources.evidence(model)}, problems).get("found", [])
    episodes = shell.answered(lambda: {"found": sources.episodes(model)}, problems).get("found", [])
    shell.notice(problems)
    if latest:
        _walk(view, latest, judged)
    else:
        with shell.card("none", "Releases"):
            shell.empty(
                "No release by a policy yet",
                f"Write the steps into the file that <code>releases.policies</code> names, then begin one with "
                f"<code>trimtab releases start {html.escape(model)} VERSION</code>.",
                "alerts",
            )
    left, right = st.columns((3, 2))
    with left, shell.card("past", "Releases so far", "newest first"):
        _past(view, past)
    with right, shell.card("episodes", "Retraining episodes", "one for each stretch of drift or decay"):
        _episodes(view, episodes)


def levers(view: shell.View) -> None:
    """The button beside the title; its dialog offers what fits to where the release is."""
    if st.button("Decide on the release", disabled=not view.model, icon=":material/gavel:"):
        _decide(view)


def _walk(view: shell.View, walk: Mapping[str, Any], judged: Items) -> None:
    version = fmt.version(str(walk.get("version")))
    over = releases.ended(walk)
    since = fmt.ago(walk.get("ended_at") or walk.get("entered_at"), view.now)
    with shell.card("walk", f"{'Latest release' if over else 'In progress'}: {version}", f"since {since}"):
        _stages(view, walk)
        _state(view, walk)
    left, right = st.columns((3, 2))
    with left, shell.card("evidence", "Evidence", "e-values of this release; 100 decides at 1 % false alarms"):
        _evidence(view, walk, judged)
    with right, shell.card("share", "Its share of the requests", "by the role that it has at serving"):
        _share(view, walk)
    left, right = st.columns((3, 2))
    with left, shell.card("told", "What happened", "holds, approvals and steps, as the journal has them"):
        _told(view, walk.get("journal") or ())
    with right, shell.card("blessing", "Blessing", "what a version must show before any traffic"):
        _blessing(view, walk)


def _stages(view: shell.View, walk: Mapping[str, Any]) -> None:
    colors = view.colors
    shade = {"done": colors.good, "now": colors.accent, "waits": colors.warning, "bad": colors.critical,
             "later": colors.border}  # fmt: skip
    boxes = "".join(
        f'<div class="tt-stage tt-{stage.mark}" style="border-top-color:{shade[stage.mark]}">'
        f"{html.escape(stage.name)}</div>"
        for stage in releases.stages(walk)
    )
    st.html(f'<div class="tt-stages">{boxes}</div>')


def _state(view: shell.View, walk: Mapping[str, Any]) -> None:
    said = "".join(f"<li>{_words(line)}</li>" for line in releases.needed(walk))
    tag, place = shell.tag(releases.state(walk), _shade(view, walk)), html.escape(str(walk.get("place") or ""))
    st.html(
        f"{tag}&ensp;<b>{place}</b> "
        f"<span class='tt-sub'>asked for by {html.escape(str(walk.get('actor') or 'nobody'))}, policy "
        f"<span class='tt-code'>{html.escape(str(walk.get('policy') or '')[:12])}</span></span>"
        f'<ul class="tt-said">{said}</ul>'
    )


def _words(line: str) -> str:
    """A sentence; what stands between backticks is a command."""
    parts = plain(line).split("`")
    return "".join(f"<code>{html.escape(part)}</code>" if i % 2 else html.escape(part) for i, part in enumerate(parts))


def _shade(view: shell.View, walk: Mapping[str, Any]) -> str:
    colors, phase = view.colors, str(walk.get("phase"))
    if phase in ("rolled_back", "rolling_back", "refused") or walk.get("held") == "harm":
        return colors.critical
    if walk.get("paused") or phase == "held":
        return colors.warning
    return colors.good if phase == "promoted" else colors.muted if releases.ended(walk) else colors.accent


def _evidence(view: shell.View, walk: Mapping[str, Any], judged: Items) -> None:
    mine = [one for one in judged if walk.get("release") and one.get("release") == walk["release"]]
    if not mine:
        shell.empty(
            "Nothing is judged yet", "Evidence mounts here request by request, once the version has traffic.", "alerts"
        )
        return
    shown = [line for one in mine for line in evidence_lines(view, one)]
    if shown:
        figure = charts.curves(view.frame, shown, height=230, log=True, threshold=DECIDED)
        shell.chart("release-evidence", figure)
    else:
        shell.empty("The course is not known", "The store does not hold this release's evidence any more.")
    for one in mine:
        st.html(
            f"{shell.tag(str(one.get('verdict')), _verdict_color(view, str(one.get('verdict'))))}&ensp;"
            f"{html.escape(plain(one.get('reason') or ''))}"
        )


def _verdict_color(view: shell.View, verdict: str) -> str:
    return {"rollback": view.colors.critical, "advance": view.colors.good}.get(verdict, view.colors.muted)


def _share(view: shell.View, walk: Mapping[str, Any]) -> None:
    span = life(view, walk["began_at"], walk.get("ended_at"))
    version = str(walk["version"])
    found, _ = view.sources.ranges({"share": queries.gauge(names.TRAFFIC_WEIGHT, view.model, version=version)}, span)
    dashes = {"canary": "solid", "shadow": "dot"}
    shown = [
        Line(role, item, version_color(version), dashes.get(role, "dash"))
        for item in found["share"]
        if len(item.times) and (role := item.labels.get("role", ""))
    ]
    if not shown:
        shell.empty("No traffic yet", "The share rises step by step, each on requests that the step has seen.")
        return
    frame = Frame(view.colors, span, view.zone)
    shell.chart("release-share", charts.lines(frame, shown, "ratio", height=230))


def _told(view: shell.View, journal: Items) -> None:
    if not journal:
        shell.empty("Nothing happened yet", "Every step, hold and decision stands here with its reason.", "alerts")
        return
    lines = []
    for row in reversed(list(journal)[-20:]):
        inner = row.get("body") or {}
        when = f'<span title="{fmt.moment(row.get("time"), view.zone)}">{fmt.ago(row.get("time"), view.now)}</span>'
        lines.append((when, html.escape(plain(inner.get("told") or "")), html.escape(str(inner.get("actor") or ""))))
    shell.rows(("When", "What", "Who"), lines, tight=(0, 2))


def _blessing(view: shell.View, walk: Mapping[str, Any]) -> None:
    checks = releases.checks(walk)
    if not checks:
        shell.empty("Not tried yet", "Serving loads the version and tries it, unless the policy asks for no blessing.")
        return
    shade = {"passed": view.colors.good, "failed": view.colors.critical}
    shell.rows(
        ("Check", "State", "Why"),
        [
            (html.escape(name.replace("_", " ")), shell.tag(state, shade.get(state, view.colors.warning)),
             html.escape(plain(why)))
            for name, state, why in checks
        ],
        tight=(0, 1),
    )  # fmt: skip


def _past(view: shell.View, walks: Items) -> None:
    if not walks:
        shell.empty("No release so far", "Each stands here with its end and its reason.", "alerts")
        return
    lines = []
    for walk in walks:
        took = float(walk.get("ended_at") or view.now) - float(walk["began_at"])
        title = fmt.moment(walk["began_at"], view.zone)
        lines.append(
            (
                f'<span title="{title}">{fmt.ago(walk["began_at"], view.now)}</span>',
                f"<b>{fmt.version(str(walk.get('version')))}</b>"
                f"<div class='tt-sub'>{html.escape(str(walk.get('release') or ''))}</div>",
                shell.tag(releases.state(walk), _shade(view, walk)),
                f"{html.escape(plain(walk.get('reason') or ''))}"
                f"<div class='tt-sub'>{html.escape(str(walk.get('place') or ''))}</div>",
                fmt.seconds(took),
            )
        )
    shell.rows(("Began", "Version", "State", "Why", "Took"), lines, numeric=(4,), tight=(0, 1, 2))


def _episodes(view: shell.View, episodes: Items) -> None:
    if not episodes:
        shell.empty(
            "No episode yet", "Drift or decay that asks for a retraining opens one; it is retrained once.", "alerts"
        )
        return
    lines = []
    for episode in episodes:
        attempts = [f"{one.get('outcome')}: {one.get('why')}" for one in episode.get("attempts") or ()]
        done = html.escape(plain("; ".join(attempts))) or "no retraining yet"
        over = episode.get("ended_at") is not None
        note = episode.get("ended_because") if over else episode.get("waits")
        lines.append(
            (
                fmt.ago(episode.get("opened_at"), view.now),
                f"<b>{html.escape(str(episode.get('cause')))}</b><div class='tt-sub'>"
                f"{fmt.version(str(episode.get('version') or ''))}</div>",
                shell.tag("over" if over else "open", view.colors.muted if over else view.colors.warning),
                f"{done}<div class='tt-sub'>{html.escape(plain(note or ''))}</div>",
            )
        )
    shell.rows(("Opened", "Cause", "State", "Retrainings"), lines, tight=(0, 2))


@st.dialog("Decide on the release")
def _decide(view: shell.View) -> None:
    try:
        walk = view.sources.release(view.model)
    except SourceError as problem:
        shell.notice([problem])
        return
    fitting = releases.decisions(walk)
    version = fmt.version(str(walk.get("version")))
    if not fitting:
        shell.empty(f"The release of {version} is over", "There is nothing to decide on.", "alerts")
        return
    st.html(f"<b>{html.escape(view.model)} {version}</b>, {releases.state(walk)}, at {html.escape(str(walk['place']))}")
    deed = st.radio("Decision", fitting, format_func=str.capitalize, captions=[_DECISIONS[one] for one in fitting])
    actor = st.text_input("Your name", value="dashboard")
    reason = st.text_input("Reason", placeholder="What you saw; kept in the journal")
    if st.button("Do it", type="primary", disabled=not (deed and actor and reason)):
        words = f"{str(deed).capitalize()}: {version}"
        shell.attempt(lambda: view.sources.decide_release(view.model, str(deed), actor, reason), words)
        st.rerun()


if __name__ == "__main__":
    shell.page("Releases", "Versions on their way through their policy's steps", body, levers=levers)
