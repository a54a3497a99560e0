"""Alerts and actions: what is wrong, what was done about it and why, and the levers for people."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import uuid4

import streamlit as st

from dashboards import budgets, readings, shell
from dashboards import format as fmt
from dashboards.journal import evidence_words, reason_words
from dashboards.sources import SourceError
from dashboards.theme import severity_color

Items = Sequence[Mapping[str, Any]]
_SILENCE_SECONDS = {900: "15 minutes", 3600: "1 hour", 14400: "4 hours", 86400: "1 day", 604800: "1 week"}


def body(view: shell.View) -> None:
    """The page."""
    problems: list[SourceError] = []

    def ask(question: Callable[[], Items]) -> Items:
        try:
            return question()
        except SourceError as problem:
            problems.append(problem)
            return []

    sources = view.sources
    alerts, groups, silences = ask(sources.alerts), ask(sources.rule_groups), ask(sources.silences)
    actions = ask(lambda: sources.actions(limit=100))
    found, away = sources.instants(budgets.queries(), view.span.end)
    shell.notice([*problems, *away])
    _waiting(view, [action for action in actions if action.get("state") == "waiting"])
    left, right = st.columns((3, 2))
    with left, shell.card("alerts", "Active alerts", f"{len(alerts)} firing" if alerts else ""):
        _alerts(view, alerts)
    with right, shell.card("silences", "Silences", "silenced alerts are told to nobody, and no action follows"):
        _silences(view, silences)
    with shell.card("budgets", "Error budgets", "of the objectives; a burn rate of 1 spends the budget just in time"):
        _budgets(view, budgets.budgets(found, view.model))
    with shell.card("journal", "Journal of actions", "what the loop and people did, and why; newest first"):
        _journal(view, actions)
    with shell.card("rules", "Rules", _rules_words(groups)):
        _rules(view, groups)


def levers(view: shell.View) -> None:
    """The buttons beside the title. Each opens a dialog that says what will happen and asks for a reason."""
    if st.button("Inspect an action", icon=":material/data_object:"):
        _in_full(view)
    if st.button("New silence", icon=":material/notifications_off:"):
        _new_silence(view)
    if st.button("Retrain", disabled=not view.model, icon=":material/model_training:"):
        _confirm(view, "retrain")
    if st.button("Roll back", disabled=not view.model, icon=":material/undo:"):
        _confirm(view, "rollback")


def _waiting(view: shell.View, actions: Items) -> None:
    for action in actions:
        with st.container(key=f"card-waiting-{action['id']}", horizontal=True, vertical_alignment="center"):
            st.html(
                f"{shell.tag('waits for approval', view.colors.warning)}&ensp;<b>{_say(action, 'action')} "
                f"{html.escape(str(action.get('model')))}</b> "
                f"<span class='tt-sub'>{_age(view, action)}, {html.escape(_cause(action))}</span>"
                f"<div>{html.escape(_reason(action))}</div>",
                width="stretch",
            )
            st.button(
                "Approve",
                key=f"approve-{action['id']}",
                type="primary",
                on_click=_decide,
                args=(view, action, "approve"),
            )
            st.button("Reject", key=f"reject-{action['id']}", on_click=_decide, args=(view, action, "reject"))


def _decide(view: shell.View, action: Mapping[str, Any], decision: Literal["approve", "reject"]) -> None:
    done = "Approved" if decision == "approve" else "Rejected"
    shell.attempt(
        lambda: view.sources.decide(str(action["id"]), decision, "dashboard"), f"{done}: {action.get('action')}"
    )


def _say(item: Mapping[str, Any], key: str) -> str:
    return html.escape(str(item.get(key) or ""))


def _age(view: shell.View, action: Mapping[str, Any]) -> str:
    return fmt.ago(action.get("created_at"), view.now)


def _short(text: str, most: int = 110) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _cause(action: Mapping[str, Any]) -> str:
    return f"after {action['alert']}" if action.get("alert") else f"by {action.get('actor') or 'hand'}"


def _budgets(view: shell.View, listed: Sequence[budgets.Budget]) -> None:
    if not listed:
        shell.empty(
            "No objective is measured yet",
            "Shipped ones begin with the first requests; <code>trimtab slo generate</code> makes rules of your own.",
            "query",
        )
        return
    colors = view.colors
    lines = []
    for budget in listed:
        about = ", ".join(f"{key} {text}" for key, text in budget.labels.items() if key != "model")
        share = max(0.0, min(1.0, budget.left or 0.0))
        color = colors.good if share > 0.25 else colors.warning if share > 0 else colors.critical
        bar = f'<div class="tt-bar"><div style="width:{share * 100:.1f}%;background:{color}"></div></div>'
        burns = [budget.burns.get(name) for name in budgets.BURNS]
        lines.append(
            (
                f"<b>{html.escape(budget.title)}</b><div class='tt-sub'>{html.escape(about)}</div>",
                f"{html.escape(budget.objective)} % in {html.escape(budget.period)}",
                f"{fmt.percent(budget.left, 0)}{bar}",
                *(fmt.DASH if burn is None else f"{burn:.2g}" for burn in burns),
            )
        )
    headings = ("Objective", "Promised", "Budget left", *(f"Burn {name}" for name in budgets.BURNS))
    shell.rows(headings, lines, numeric=(3, 4, 5, 6), tight=(1,))


def _alerts(view: shell.View, alerts: Items) -> None:
    if not alerts:
        shell.empty("No alert is active", "Rules are judged all the time; what they find appears here.", "alerts")
        return
    lines = []
    for alert in sorted(alerts, key=lambda a: str(a.get("startsAt")), reverse=True):
        labels, notes = alert.get("labels") or {}, alert.get("annotations") or {}
        status = alert.get("status") or {}
        severity = labels.get("severity", "warning")
        state = "silenced" if status.get("silencedBy") else "inhibited" if status.get("inhibitedBy") else "firing"
        color = severity_color(severity, view.colors) if state == "firing" else view.colors.muted
        about = ", ".join(f"{k}={v}" for k, v in sorted(labels.items()) if k not in ("alertname", "severity"))
        words = notes.get("summary") or notes.get("description") or ""
        since = readings.seconds_of(alert["startsAt"]) if alert.get("startsAt") else None
        lines.append(
            (
                f"<b>{html.escape(str(labels.get('alertname')))}</b><div class='tt-sub'>{html.escape(about)}</div>",
                html.escape(str(words)),
                shell.tag(severity, color) if state == "firing" else shell.tag(state, color),
                f'<span title="{fmt.moment(since, view.zone)}">{fmt.ago(since, view.now)}</span>',
            )
        )
    shell.rows(("Alert", "Summary", "State", "Since"), lines, tight=(2, 3))


def _silences(view: shell.View, silences: Items) -> None:
    alive = [s for s in silences if (s.get("status") or {}).get("state") != "expired"]
    if not alive:
        shell.empty(
            "No silence is in force",
            "Silence what you are working on: nobody is told of it, and nothing acts on it.",
            "alerts",
        )
    for silence in alive:
        with st.container(horizontal=True, vertical_alignment="center"):
            matchers = ", ".join(_matcher(matcher) for matcher in silence.get("matchers") or ())
            end = readings.seconds_of(silence["endsAt"])
            st.html(
                f"<span class='tt-code'>{html.escape(matchers)}</span><div class='tt-sub'>ends "
                f"{fmt.ago(end, view.now)}, by "
                f"{html.escape(str(silence.get('createdBy') or ''))}: {html.escape(str(silence.get('comment') or ''))}"
                "</div>",
                width="stretch",
            )
            st.button("Expire", key=f"expire-{silence['id']}", on_click=_expire, args=(view, str(silence["id"])))


def _expire(view: shell.View, identity: str) -> None:
    shell.attempt(lambda: view.sources.expire_silence(identity), "The silence has ended")


def _matcher(matcher: Mapping[str, Any]) -> str:
    equal, regex = matcher.get("isEqual", True), matcher.get("isRegex", False)
    sign = {(True, False): "=", (False, False): "!=", (True, True): "=~", (False, True): "!~"}[
        (bool(equal), bool(regex))
    ]
    return f'{matcher.get("name")}{sign}"{matcher.get("value")}"'


@st.dialog("New silence")
def _new_silence(view: shell.View) -> None:
    try:
        known = sorted({str((alert.get("labels") or {}).get("alertname")) for alert in view.sources.alerts()})
    except SourceError as problem:
        shell.notice([problem])
        return
    name = st.selectbox(
        "Alert", known, index=0 if known else None, accept_new_options=True, placeholder="The alert's name"
    )
    only = st.checkbox(f"Only for model {view.model}", value=False) if view.model else False
    seconds = st.selectbox("For", list(_SILENCE_SECONDS), index=1, format_func=_SILENCE_SECONDS.__getitem__)
    creator = st.text_input("Your name", value="dashboard")
    comment = st.text_input("Comment", placeholder="Why, and what you are doing about it")
    if st.button("Silence", type="primary", disabled=not (name and creator and comment)):
        matchers = [{"name": "alertname", "value": name, "isRegex": False, "isEqual": True}]
        if only:
            matchers.append({"name": "model", "value": view.model, "isRegex": False, "isEqual": True})
        start = datetime.now(UTC)
        times = [(start + timedelta(seconds=after)).isoformat().replace("+00:00", "Z") for after in (0, seconds)]
        shell.attempt(
            lambda: view.sources.create_silence(matchers, times[0], times[1], creator, comment), f"{name} is silenced"
        )
        st.rerun()


def _journal(view: shell.View, actions: Items) -> None:
    colors = view.colors
    shade = {"done": colors.good, "failed": colors.critical, "waiting": colors.warning, "running": colors.accent}
    if not actions:
        shell.empty(
            "Nothing was done yet", "Rollbacks and retrainings stand here with their reason and evidence.", "alerts"
        )
    else:
        lines = []
        for action in actions[:15]:
            took = _took(action)
            state = str(action.get("state") or "")
            lines.append(
                (
                    f'<span title="{fmt.moment(action.get("created_at"), view.zone)}">{_age(view, action)}</span>',
                    f"<b>{_say(action, 'action')}</b><div class='tt-sub'>{_say(action, 'model')}</div>",
                    shell.tag(state, shade.get(state, colors.muted)),
                    html.escape(str(action.get("mode") or "")),
                    f"{html.escape(_reason(action))}<div class='tt-sub'>{html.escape(_cause(action))}</div>",
                    html.escape(_evidence(action)),
                    took,
                )
            )
        shell.rows(("When", "Action", "State", "Mode", "Reason", "Evidence", "Took"), lines, numeric=(6,), tight=(0, 1))


def _took(action: Mapping[str, Any]) -> str:
    start, end = action.get("started_at"), action.get("completed_at")
    return fmt.seconds(float(end) - float(start)) if start and end else fmt.DASH


def _reason(action: Mapping[str, Any]) -> str:
    return reason_words(action.get("reason"), str(action.get("alert") or ""))


def _evidence(action: Mapping[str, Any]) -> str:
    """What stands behind the action, unless that is what its reason says already."""
    words = evidence_words(action.get("evidence"))
    return words if words and words != _reason(action) else fmt.DASH


@st.dialog("An action in full", width="large")
def _in_full(view: shell.View) -> None:
    try:
        actions = view.sources.actions(limit=100)
    except SourceError as problem:
        shell.notice([problem])
        return
    if not actions:
        shell.empty("Nothing was done yet", "The journal is empty.", "alerts")
        return
    chosen = st.selectbox(
        "Action",
        list(actions),
        format_func=lambda a: (
            f"{fmt.moment(a.get('created_at'), view.zone)}  {a.get('action')} {a.get('model')}, {a.get('state')}"
        ),
    )
    st.json(chosen)


@st.dialog("Act by hand")
def _confirm(view: shell.View, action: str) -> None:
    words = {
        "rollback": "All traffic goes to the last good version: the stable one if a canary runs, otherwise the one "
        "before it. No request fails by the switch.",
        "retrain": "A training run starts on recent labelled events. What it makes must pass the gate and a canary.",
    }
    st.html(f"<b>{'Roll back' if action == 'rollback' else 'Retrain'} {html.escape(view.model)}?</b> {words[action]}")
    actor = st.text_input("Your name", value="dashboard")
    reason = st.text_input("Reason", placeholder="What you saw; kept in the journal")
    away = view.sources.health()["alerts"] is not None
    if away and action == "rollback":
        shell.notice([problem for problem in [view.sources.health()["alerts"]] if problem])
        st.html('<div class="tt-sub">The call goes straight to serving, and no journal is written.</div>')
    label = "Roll back" if action == "rollback" else "Retrain"
    if st.button(label, type="primary", disabled=not (actor and reason)):
        key = f"dashboard-{uuid4()}"
        if away and action == "rollback":
            shell.attempt(lambda: view.sources.rollback(view.model, f"{reason} ({actor})", key), "Rolled back")
        else:
            shell.attempt(lambda: view.sources.request_action(action, view.model, reason, actor), f"{label}: asked for")
        st.rerun()


def _rules_words(groups: Items) -> str:
    rules = [rule for group in groups for rule in group.get("rules") or ()]
    bad = sum(1 for rule in rules if rule.get("health") == "err")
    return f"{len(rules)} in {len(groups)} groups, {bad} failing" if rules else ""


def _rules(view: shell.View, groups: Items) -> None:
    colors = view.colors
    shade = {"firing": colors.critical, "pending": colors.warning, "inactive": colors.muted}
    lines = []
    for group in groups:
        for rule in group.get("rules") or ():
            state = str(rule.get("state") or "recording")
            error = str(rule.get("lastError") or "")
            health = (
                shell.tag("failing", colors.critical)
                if rule.get("health") == "err"
                else html.escape(str(rule.get("health") or fmt.DASH))
            )
            held = float(rule.get("duration") or 0)
            query = str(rule.get("query") or "")
            lines.append(
                (
                    _rank(state),
                    f"<b>{_say(rule, 'name')}</b><div class='tt-sub'>{_say(group, 'name')}</div>",
                    shell.tag(state, shade[state])
                    if state in shade
                    else f'<span class="dim">{html.escape(state)}</span>',
                    f'<code title="{html.escape(query)}">{html.escape(_short(query))}</code>',
                    fmt.seconds(held) if held else fmt.DASH,
                    health + (f"<div class='tt-sub'>{html.escape(error)}</div>" if error else ""),
                    _when(view, rule.get("lastEvaluation")),
                )
            )
    if not lines:
        shell.empty(
            "No rules are loaded", "The alerts service reads Prometheus rule files; it ships some of its own.", "alerts"
        )
        return
    lines.sort(key=lambda line: line[0])
    shell.rows(
        ("Rule", "State", "Expression", "For", "Health", "Judged"), [line[1:] for line in lines], tight=(1, 3, 5)
    )


def _rank(state: str) -> int:
    return {"firing": 0, "pending": 1, "inactive": 2}.get(state, 3)


def _when(view: shell.View, time: Any) -> str:
    return fmt.ago(readings.seconds_of(time), view.now) if time else fmt.DASH


if __name__ == "__main__":
    shell.page(
        "Alerts and actions", "What is wrong, what was done about it, and why", body, levers=levers, needs_model=False
    )
