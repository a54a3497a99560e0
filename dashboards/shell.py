"""The frame around every page: navigation, choices, services' health, live refresh, cards, notices and empty states."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import plotly.graph_objects as go
import streamlit as st

from dashboards import format as fmt
from dashboards import queries
from dashboards.charts import Frame
from dashboards.launch import DashboardConfig
from dashboards.series import Span
from dashboards.sources import TITLES, Refused, Service, SourceError, Sources, Unavailable
from dashboards.theme import Palette, palette

RANGES = {
    300: "Last 5 minutes",
    900: "Last 15 minutes",
    3600: "Last hour",
    21600: "Last 6 hours",
    86400: "Last 24 hours",
    604800: "Last 7 days",
}
REFRESHES = {0.0: "Off", 2.0: "Every 2 s", 5.0: "Every 5 s", 15.0: "Every 15 s", 60.0: "Every minute"}
_VIEW = "view"
_AWAY = "away"
_PLOTLY = {"displayModeBar": False, "responsive": True}


@dataclass(frozen=True, slots=True)
class View:
    """What a page is asked to show: of which model, how far back, for whom."""

    config: DashboardConfig
    sources: Sources
    model: str
    span: Span
    seconds: float
    refresh: float
    zone: tzinfo
    now: float

    @property
    def colors(self) -> Palette:
        """The colours of the theme."""
        return palette(self.config.theme)

    @property
    def frame(self) -> Frame:
        """What the charts of the page share."""
        return Frame(self.colors, self.span, self.zone)

    @property
    def over(self) -> float:
        """How far a rate looks back, seconds: four scrapes, and never less than two steps of the chart."""
        return max(4 * self.config.scrape_seconds, 2 * self.span.step)

    def at(self, now: float) -> View:
        """The same view at another time."""
        return replace(self, span=Span.last(self.seconds, now), now=now)

    def fitted(self, probes: Mapping[str, str]) -> View:
        """The same view from where the probes' data begins, if that is later: a young stack fills its plots."""
        found, _ = self.sources.ranges(probes, self.span)
        return replace(self, span=self.span.since_first(item for group in found.values() for item in group))


def choose(config: DashboardConfig, sources: Sources) -> None:
    """Draw the sidebar and keep what was chosen for the page that runs next."""
    known = known_models(sources)
    models = known or ([config.model] if config.model else [])
    with st.sidebar:
        preferred = models.index(config.model) if config.model in models else 0
        model = st.selectbox(
            "Model",
            models,
            index=preferred if models else None,
            key="model",
            placeholder="None yet",
            disabled=not models,
        )
        seconds = st.selectbox("Time range", list(RANGES), index=1, format_func=RANGES.__getitem__, key="range")
        refreshes = dict(sorted({**REFRESHES, config.refresh_seconds: _every(config.refresh_seconds)}.items()))
        refresh = st.selectbox(
            "Refresh",
            list(refreshes),
            index=list(refreshes).index(config.refresh_seconds),
            format_func=refreshes.__getitem__,
            key="refresh",
        )
        now = time.time()
        zone = _zone()
        view = View(config, sources, model or "", Span.last(seconds, now), seconds, refresh, zone, now)
        st.session_state[_VIEW] = view
        st.caption(f"Times in {fmt.zone(zone, now)}")
        st.fragment(_services, run_every=refresh or None)(sources, tuple(known))


def _every(seconds: float) -> str:
    return REFRESHES.get(seconds, f"Every {fmt.seconds(seconds)}")


def _zone() -> tzinfo:
    try:
        return ZoneInfo(st.context.timezone or "UTC")
    except (ZoneInfoNotFoundError, ValueError):  # a browser may name a zone that this machine's database lacks
        return UTC


def known_models(sources: Sources) -> list[str]:
    """Models that serving knows, or, when it is away, those that the store has seen."""
    for ask in (sources.models, lambda: sources.label_values("model")):
        try:
            found = ask()
        except SourceError:  # the sidebar and the page say so; here the next source is asked
            continue
        if found:
            return found
    return []


def _services(sources: Sources, drawn: tuple[str, ...]) -> None:
    health = sources.health()
    rows = ""
    for service, problem in health.items():
        color, words = ("var(--tt-good)", "up") if problem is None else ("var(--tt-critical)", "away")
        title = html.escape(sources.urls[service] if problem is None else str(problem))
        rows += f'<div title="{title}"><span class="tt-dot" style="background:{color}"></span>{TITLES[service]}'
        rows += f"<i>{words}</i></div>"
    st.html(f'<div class="tt-label">Services</div><div class="tt-services">{rows}</div>')
    if tuple(known_models(sources)) != drawn:
        st.rerun()


def page(
    title: str,
    subtitle: str,
    body: Callable[[View], None],
    *,
    levers: Callable[[View], None] | None = None,
    below: Callable[[View], None] | None = None,
    since: Callable[[str], Mapping[str, str]] = queries.beginnings,
    needs_model: bool = True,
) -> None:
    """Run a page's body, again and again as the reader chose. What a service withholds becomes a one-line notice.

    `levers` (buttons beside the title) and `below` (under the body) run only when the reader does something: a dialog
    or an embedded report must not vanish with the next refresh. `since` gives the range queries whose first point is
    where the page's plots may begin.
    """
    view: View = st.session_state[_VIEW]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.html(f'<p class="tt-title">{title}</p><p class="tt-subtitle">{subtitle}</p>', width="stretch")
        if levers:
            levers(view)

    def live() -> None:
        current = view.at(time.time())
        if needs_model and not view.model:
            _no_model(current)
            return
        try:
            body(current.fitted(since(view.model)) if view.model else current)
        except SourceError as problem:
            notice([problem])

    st.fragment(live, run_every=view.refresh or None)()
    if below and (view.model or not needs_model):
        st.fragment(below)(view)


def _no_model(view: View) -> None:
    notice([problem for problem in view.sources.health().values() if problem])
    empty(
        "No model yet",
        "Train and register one with <code>trimtab train</code>, or see the whole loop with "
        "<code>trimtab demo</code>. This page fills by itself.",
    )


def notice(problems: Sequence[SourceError]) -> None:
    """One calm line for each service that is away, and for each kind of refusal."""
    st.session_state[_AWAY] = {problem.service for problem in problems if isinstance(problem, Unavailable)}
    lines: dict[str, str] = {}
    for problem in problems:
        name = TITLES[problem.service]
        url = f"<code>{html.escape(problem.url)}</code>"
        if isinstance(problem, Unavailable):
            text = (
                f"{name} at {url} is away ({html.escape(problem.reason)}). Start it with <code>{problem.remedy}</code>."
            )
        else:
            text = f"{name} at {url} refused: {html.escape(problem.reason)}"
        lines[text] = text
    if lines:
        st.html("".join(f'<div class="tt-notice">{text}</div>' for text in lines))


def answered(ask: Callable[[], dict[str, Any]], problems: list[SourceError]) -> dict[str, Any]:
    """A service's answer about the model; nothing where it does not know the model yet, or is away (a problem)."""
    try:
        return ask()
    except Refused:  # it does not know this model yet: that is 'no data', not a failure
        return {}
    except Unavailable as problem:
        problems.append(problem)
        return {}


def away(service: Service) -> bool:
    """True when a notice of this run said that the service is away: what it knows is then unknown, not nothing."""
    return _asked(service) in st.session_state.get(_AWAY, ())


def _asked(service: Service) -> Service:
    """The service that answers in its place: PromQL is the collector's own where no other Prometheus is read."""
    view: View = st.session_state[_VIEW]
    return service if service in view.sources.urls else "collector"


def empty(title: str, remedy: str, needs: Service = "query") -> None:
    """Says why there is nothing to see and what will change that. `remedy` may hold HTML.

    While the service that would know is away, it says so instead: no answer is not an empty one.
    """
    if away(needs):
        title, remedy = "Not known", f"{TITLES[_asked(needs)]} is away; what it knows appears when it is back."
    st.html(f'<div class="tt-empty"><b>{title}</b>{remedy}</div>')


@contextmanager
def card(key: str, title: str, detail: str = "") -> Iterator[None]:
    """A titled box; `detail` stands small at its right and may hold HTML."""
    with st.container(key=f"card-{key}", height="stretch"):
        st.html(f'<div class="tt-card-title"><b>{title}</b><span>{detail}</span></div>')
        yield


def chart(key: str, figure: go.Figure, *, fill: bool = False) -> None:
    """Draw a figure in place: the same key keeps the element, so that a refresh does not blink.

    With `fill` it takes the height that its card has, and at least the height that it is drawn for.
    """
    st.plotly_chart(figure, key=key, theme=None, config=_PLOTLY, height="stretch" if fill else "content")


def attempt(deed: Callable[[], object], done: str) -> None:
    """Do what the user asked, and say how it went."""
    try:
        deed()
    except Refused as problem:
        st.toast(f"Refused: {problem.reason}", icon=":material/block:", duration="long")
    except SourceError as problem:
        st.toast(f"Not done: {problem}", icon=":material/cloud_off:", duration="long")
    else:
        st.toast(done, icon=":material/check:")


def tag(text: str, color: str) -> str:
    """A small outlined label as HTML."""
    return f'<span class="tt-tag" style="color:{color}">{html.escape(text)}</span>'


def rows(
    headings: Sequence[str], body: Sequence[Sequence[str]], numeric: Sequence[int] = (), tight: Sequence[int] = ()
) -> None:
    """A plain table; `numeric` columns stand right, `tight` ones do not wrap. Cells are HTML: escape others' words."""
    kinds = [f"{'num nw' if i in numeric else ''} {'nw' if i in tight else ''}".strip() for i in range(len(headings))]
    head = "".join(f'<th class="{kind}">{text}</th>' for kind, text in zip(kinds, headings, strict=True))
    lines = "".join(
        "<tr>" + "".join(f'<td class="{kind}">{cell}</td>' for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in body
    )
    # What is wider than its card, on a narrow screen, is scrolled and not cut off.
    table = f'<table class="tt-rows"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'
    st.html(f'<div class="tt-wide">{table}</div>')
