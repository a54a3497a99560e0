"""The timeline: what happened, row by row on one axis of time."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from dashboards import format as fmt
from dashboards.charts.frame import Frame, faint
from dashboards.theme import severity_color, version_color
from dashboards.timeline import Mark, Timeline


def timeline_chart(frame: Frame, story: Timeline) -> go.Figure:
    """Releases as bands with their weights, alerts as spans, actions as marks: one row each, one axis of time."""
    rows: list[str] = []
    figure = frame.figure(100, legend=False)
    figure.update_layout(hovermode="closest", barmode="overlay")
    for band in story.bands:
        row = f"{fmt.version(band.version)} traffic" if band.role != "shadow" else f"{fmt.version(band.version)} shadow"
        _add_row(rows, row)
        words = f"{fmt.percent(band.weight, 0)} of requests, {band.role}"
        share = fmt.percent(band.weight, 0)
        color = faint(version_color(band.version), 0.3 + 0.7 * band.weight)
        _add_span(figure, frame, row, (band.start, band.end), color, (row, words, share))
    for alert in story.alerts:
        _add_row(rows, alert.name)
        color = severity_color(alert.severity, frame.colors)
        color = color if alert.state == "firing" else faint(color, 0.35)
        words = f"{alert.state}, severity {alert.severity}"
        _add_span(figure, frame, alert.name, (alert.start, alert.end), color, (alert.name, words, ""))
    for kind, row in (("traffic", "Traffic changes"), ("action", "Actions")):
        marks = [mark for mark in story.marks if mark.kind == kind]
        if marks:
            _add_row(rows, row)
            _add_marks(figure, frame, row, marks)
    figure.update_yaxes(
        categoryorder="array",
        categoryarray=rows[::-1],
        showgrid=True,
        tickfont={"size": 12},
        range=[-0.6, len(rows) - 0.4],
    )
    figure.update_layout(height=44 + 27 * max(len(rows), 2), bargap=0.35)
    return figure


def _add_row(rows: list[str], row: str) -> None:
    if row not in rows:
        rows.append(row)


def _add_span(
    figure: go.Figure, frame: Frame, row: str, when: tuple[float, float], color: str, words: tuple[str, str, str]
) -> None:
    start, end = when
    title, detail, inside = words
    hover = (
        f"<b>{title}</b><br>{detail}<br>{fmt.clock(start, frame.zone)} to {fmt.clock(end, frame.zone)}, "
        f"{fmt.seconds(end - start)}<extra></extra>"
    )
    ink = frame.colors.text if color.startswith("rgba") and float(color[:-1].rsplit(",")[-1]) < 0.7 else "#FFFFFF"
    wide = (end - start) / (frame.span.end - frame.span.start) > 0.035
    figure.add_bar(
        x=[(end - start) * 1000],
        base=[str(frame.local([start])[0])],
        y=[row],
        orientation="h",
        marker={"color": color},
        hovertemplate=hover,
        text=[inside if wide else ""],
        textposition="inside",
        insidetextanchor="start",
        textfont={"size": 11, "color": ink},
        textangle=0,
        constraintext="none",
    )


def _add_marks(figure: go.Figure, frame: Frame, row: str, marks: Sequence[Mark]) -> None:
    colors = frame.colors
    shade = {"failed": colors.critical, "waiting": colors.warning, "running": colors.accent, "done": colors.good}
    small = marks[0].kind == "traffic"
    symbol = {"failed": "x", "waiting": "circle-open", "running": "circle-open", "held": "square-open"}
    figure.add_scatter(
        x=frame.local([mark.time for mark in marks]),
        y=[row] * len(marks),
        mode="markers",
        marker={
            "size": 10 if small else 13,
            "color": [colors.muted if small else shade.get(mark.state, colors.muted) for mark in marks],
            "symbol": [symbol.get(mark.state, "triangle-up" if small else "diamond") for mark in marks],
            "line": {"width": 1.5, "color": colors.surface},
        },
        customdata=[(mark.title, _wrap(mark.why), fmt.clock(mark.time, frame.zone)) for mark in marks],
        hovertemplate="<b>%{customdata[0]}</b> at %{customdata[2]}<br>%{customdata[1]}<extra></extra>",
    )


def _wrap(text: str, width: int = 64) -> str:
    words, length, out = text.split(), 0, ""
    for word in words:
        length += len(word) + 1
        out += ("<br>" if length > width else " ") + word
        length = len(word) if length > width else length
    return out.strip()
