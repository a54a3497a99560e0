"""Every chart: plain values in, a plotly figure out, all of one look. No I/O and no Streamlit in here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from dashboards import format as fmt
from dashboards.sources import Series, Span
from dashboards.theme import Palette, severity_color, version_color
from dashboards.timeline import Timeline, runs

Unit = Literal["number", "seconds", "ratio", "rows"]
Floats = npt.NDArray[np.float64]
FONT = "'Source Sans', 'Source Sans Pro', sans-serif"


@dataclass(frozen=True, slots=True)
class Scale:
    """How values of a unit are written on an axis: multiplied, with a d3 format and a suffix."""

    factor: float
    ticks: str
    hover: str
    suffix: str


def scale(unit: Unit, values: Sequence[Floats]) -> Scale:
    """The scale that suits the greatest of the values."""
    finite = [x[np.isfinite(x)] for x in map(np.asarray, values)]
    top = max((float(np.abs(x).max()) for x in finite if len(x)), default=0.0)
    if unit == "ratio":
        return Scale(100.0, "~r" if top > 0.01 else ".2~r", ".3~r", " %")
    if unit == "seconds":
        factor, suffix = (1e6, " µs") if 0 < top < 1e-3 else (1e3, " ms") if top < 1 else (1.0, " s")
        return Scale(factor, "~r", ".3~r", suffix)
    return Scale(1.0, "~s" if top >= 2000 else ".4~r", ".4~s" if top >= 2000 else ".4~r", "")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart."""

    name: str
    series: Series
    color: str
    dash: str = "solid"


@dataclass(frozen=True, slots=True)
class Frame:
    """What all charts of a page share: the colours, the stretch of time and the reader's time zone."""

    colors: Palette
    span: Span
    zone: tzinfo

    def local(self, times: Sequence[float] | Floats) -> npt.NDArray[np.datetime64]:
        """Wall-clock times of the reader, which is what the axis prints."""
        offset = datetime.fromtimestamp(self.span.end, self.zone).utcoffset()
        shift = offset.total_seconds() if offset else 0.0
        stamps = np.asarray(times, dtype=np.float64)
        return ((stamps + shift) * 1000).astype("datetime64[ms]")

    def figure(self, height: int, *, time_axis: bool = True, legend: bool = True) -> go.Figure:
        """An empty figure in the project's look."""
        colors = self.colors
        axis = {
            "gridcolor": colors.grid,
            "zeroline": False,
            "linecolor": colors.border,
            "ticks": "",
            "tickfont": {"size": 11, "color": colors.muted},
            "automargin": True,
            "fixedrange": True,
        }
        figure = go.Figure()
        figure.update_layout(
            height=height,
            margin={"l": 4, "r": 8, "t": 26 if legend else 6, "b": 4},
            paper_bgcolor="rgba(0,0,0,0)",
            plot_bgcolor="rgba(0,0,0,0)",
            font={"family": FONT, "size": 12, "color": colors.text},
            showlegend=legend,
            bargap=0.25,
            hovermode="x unified" if time_axis else "closest",
            legend={
                "orientation": "h",
                "x": 0,
                "xanchor": "left",
                "y": 1.02,
                "yanchor": "bottom",
                "font": {"size": 11.5, "color": colors.muted},
                "bgcolor": "rgba(0,0,0,0)",
                "itemclick": "toggle",
                "traceorder": "normal",
            },
            hoverlabel={
                "bgcolor": colors.surface,
                "bordercolor": colors.border,
                "font": {"family": FONT, "size": 12, "color": colors.text},
            },
            xaxis=axis,
            yaxis=axis,
            uirevision="keep",
        )
        if time_axis:
            start, end = self.local([self.span.start, self.span.end])
            length = self.span.end - self.span.start
            figure.update_xaxes(
                type="date",
                range=[str(start), str(end)],
                showgrid=False,
                nticks=7,
                hoverformat="%-d %b %H:%M:%S",
                tickformat="%-d %b" if length > 200_000 else "%H:%M" if length > 600 else "%H:%M:%S",
            )
        return figure


def lines(
    frame: Frame,
    shown: Sequence[Line],
    unit: Unit,
    *,
    height: int = 200,
    stacked: bool = False,
    threshold: tuple[float, str] | None = None,
    log: bool = False,
    from_zero: bool = True,
) -> go.Figure:
    """Values over time. `threshold` is a value with the words beside its line."""
    figure = frame.figure(height, legend=len(shown) > 1)
    how = scale(unit, [line.series.values for line in shown])
    for line in shown:
        times, values = _with_holes(line.series, frame.span.step)
        style: dict[str, Any] = {"color": line.color, "width": 0 if stacked else 1.7, "dash": line.dash}
        fill: dict[str, Any] = (
            {"stackgroup": "one", "fillcolor": _faint(line.color, 0.8)} if stacked else {"connectgaps": False}
        )
        figure.add_scatter(
            x=frame.local(times),
            y=values * how.factor,
            name=line.name,
            mode="lines",
            line=style,
            hovertemplate=f"%{{y:{how.hover}}}{how.suffix}",
            **fill,
        )
    figure.update_yaxes(tickformat=how.ticks, ticksuffix=how.suffix, nticks=6)
    if log:
        figure.update_yaxes(type="log", tickformat="~g", exponentformat="power", dtick=_decades(shown))
    elif from_zero:
        figure.update_yaxes(rangemode="tozero")
    if threshold:
        value, words = threshold
        _threshold(figure, frame, value * how.factor, words, log)
    return figure


def _threshold(figure: go.Figure, frame: Frame, value: float, words: str, log: bool) -> None:
    color = frame.colors.critical
    figure.add_shape(
        type="line", xref="paper", x0=0, x1=1, y0=value, y1=value, line={"color": color, "width": 1.2, "dash": "dash"}
    )
    # An annotation on a log axis counts in exponents, a shape in values.
    figure.add_annotation(
        xref="paper",
        x=0.003,
        y=np.log10(value) if log else value,
        text=words,
        showarrow=False,
        xanchor="left",
        yanchor="bottom",
        font={"size": 11, "color": color},
    )


def _decades(shown: Sequence[Line]) -> int:
    """Steps of the exponent between ticks of a log axis, so that about five are drawn."""
    values = np.concatenate([line.series.values for line in shown]) if shown else np.array([1.0])
    values = values[(values > 0) & np.isfinite(values)]
    decades = np.log10(values.max() / values.min()) if len(values) else 1.0
    return max(1, int(np.ceil(decades / 6)))


def _with_holes(series: Series, step: float) -> tuple[Floats, Floats]:
    """The points with a NaN wherever data is missing, so that no line is drawn where nothing was measured."""
    parts = runs(series.times, 2 * step)
    if len(parts) < 2:
        return series.times, series.values
    breaks = [first for first, _ in parts[1:]]
    times = np.insert(series.times, breaks, [series.times[b] - step for b in breaks])
    return times, np.insert(series.values, breaks, np.nan)


def _faint(color: str, alpha: float) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


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
        color = _faint(version_color(band.version), 0.3 + 0.7 * band.weight)
        _add_span(figure, frame, row, (band.start, band.end), color, (row, words, share))
    for alert in story.alerts:
        _add_row(rows, alert.name)
        color = severity_color(alert.severity, frame.colors)
        color = color if alert.state == "firing" else _faint(color, 0.35)
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


def _add_marks(figure: go.Figure, frame: Frame, row: str, marks: Sequence[Any]) -> None:
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


def heat_map(frame: Frame, rows: Sequence[str], starts: Sequence[float], values: Floats, drifted: Any) -> go.Figure:
    """A value by row and window, dark is much; a dot marks the cells that count as drifted."""
    colors = frame.colors
    figure = frame.figure(max(380, 46 + 22 * len(rows)), legend=False)
    figure.update_layout(hovermode="closest")
    labels = [str(t) for t in frame.local(starts)]
    scale = [(i / (len(colors.sequential) - 1), c) for i, c in enumerate(colors.sequential)]
    figure.add_heatmap(
        x=labels,
        y=list(rows),
        z=values,
        colorscale=scale,
        zmin=0,
        zmax=max(0.4, float(np.nanmax(values, initial=0.4))),
        xgap=1,
        ygap=1,
        hoverongaps=False,
        hovertemplate="<b>%{y}</b><br>window from %{x}<br>PSI %{z:.3f}<extra></extra>",
        colorbar={
            "thickness": 10,
            "outlinewidth": 0,
            "tickfont": {"size": 11, "color": colors.muted},
            "title": {"text": "PSI", "font": {"size": 11, "color": colors.muted}},
            "len": 1.0,
            "y": 0.5,
        },
    )
    where = np.argwhere(drifted)
    if len(where):
        figure.add_scatter(
            x=[labels[j] for _, j in where],
            y=[rows[i] for i, _ in where],
            mode="markers",
            hoverinfo="skip",
            marker={"size": 4, "color": colors.warning, "line": {"width": 0}},
        )
    figure.update_xaxes(
        type="category",
        tickvals=_spread(labels),
        ticktext=_clocks(frame, starts),
        range=None,
        tickangle=0,
        showgrid=False,
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, tickfont={"size": 12, "color": colors.text})
    return figure


def _spread(labels: Sequence[str], most: int = 8) -> list[str]:
    return list(labels[:: max(1, -(-len(labels) // most))])


def _clocks(frame: Frame, starts: Sequence[float], most: int = 8) -> list[str]:
    long = len(starts) > 1 and starts[-1] - starts[0] > 86400
    say: Callable[[float, tzinfo], str] = fmt.moment if long else fmt.clock
    return [say(t, frame.zone) for t in starts[:: max(1, -(-len(starts) // most))]]


def compare_shares(
    frame: Frame, labels: Sequence[str], reference: Floats, current: Floats, *, color: str, height: int = 250
) -> go.Figure:
    """Two distributions over the same bins or categories, as shares."""
    figure = frame.figure(height, time_axis=False)
    hover = "%{x}<br>%{y:.3~r} %"
    figure.add_bar(
        x=list(labels),
        y=reference * 100,
        name="Reference",
        marker={"color": frame.colors.muted, "opacity": 0.55},
        hovertemplate=hover,
    )
    figure.add_bar(x=list(labels), y=current * 100, name="Window", marker={"color": color}, hovertemplate=hover)
    figure.update_layout(barmode="group", bargap=0.2, bargroupgap=0.05)
    figure.update_xaxes(type="category", showgrid=False, tickangle=-35 if max(map(len, labels), default=0) > 6 else 0)
    figure.update_yaxes(tickformat="~r", ticksuffix=" %", nticks=5)
    return figure


def bars(
    frame: Frame, labels: Sequence[str], values: Sequence[float], unit: Unit, *, color: str, height: int = 200
) -> go.Figure:
    """One value a category."""
    how = scale(unit, [np.asarray(values)])
    figure = frame.figure(height, time_axis=False, legend=False)
    figure.add_bar(
        x=list(labels),
        y=np.asarray(values) * how.factor,
        marker={"color": color},
        hovertemplate=f"%{{x}}: %{{y:{how.hover}}}{how.suffix}<extra></extra>",
    )
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(tickformat=how.ticks, ticksuffix=how.suffix, nticks=5)
    return figure


def stacked_bar(
    frame: Frame,
    rows: Sequence[str],
    parts: Mapping[str, Sequence[float]],
    colors: Mapping[str, str],
    height: int = 110,
) -> go.Figure:
    """Durations that add up, one horizontal bar a row."""
    figure = frame.figure(height, time_axis=False)
    how = scale("seconds", [np.sum([np.asarray(values) for values in parts.values()], axis=0)])
    for name, values in parts.items():
        figure.add_bar(
            x=np.asarray(values) * how.factor,
            y=list(rows),
            name=name,
            orientation="h",
            marker={"color": colors[name]},
            text=[fmt.seconds(value) for value in values],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            textfont={"size": 11},
            hovertemplate=f"{name}: %{{text}}<extra></extra>",
        )
    figure.update_layout(
        barmode="stack", bargap=0.3, uniformtext={"minsize": 10, "mode": "hide"}, legend_traceorder="normal"
    )
    figure.update_xaxes(tickformat=how.ticks, ticksuffix=how.suffix)
    figure.update_yaxes(showticklabels=len(rows) > 1, autorange="reversed", showgrid=False)
    return figure


def curves(
    frame: Frame, shown: Sequence[Line], *, unit: Unit = "number", height: int = 220, log: bool = False
) -> go.Figure:
    """Runs laid over each other: the axis counts seconds since each run's first sample."""
    figure = frame.figure(height, time_axis=False, legend=len(shown) > 1)
    figure.update_layout(hovermode="x unified")
    for line in shown:
        figure.add_scatter(
            x=line.series.times - line.series.times[0],
            y=line.series.values,
            name=line.name,
            mode="lines",
            line={"color": line.color, "width": 1.8, "dash": line.dash},
            hovertemplate="%{y:.4~g}",
        )
    figure.update_xaxes(ticksuffix=" s", showgrid=False, hoverformat=".0f")
    how = scale(unit, [line.series.values for line in shown])
    figure.update_yaxes(tickformat=how.ticks, nticks=5, type="log" if log else "linear")
    return figure


def waterfall(frame: Frame, spans: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Spans of a trace under each other: name, service, offset and duration (seconds), depth, failed, detail."""
    colors = frame.colors
    services = list(dict.fromkeys(span["service"] for span in spans))
    shades = dict(zip(services, ("#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00") * 3, strict=False))
    rows = [f"{'   ' * span['depth']}{span['name']}" for span in spans]
    keys = list(range(len(spans)))
    whole = max((span["offset"] + span["duration"] for span in spans), default=1.0)
    how = scale("seconds", [np.array([whole])])
    figure = frame.figure(60 + 27 * len(spans), time_axis=False, legend=False)
    figure.add_bar(
        base=[span["offset"] * how.factor for span in spans],
        x=[max(span["duration"], 1e-7) * how.factor for span in spans],
        y=keys,
        orientation="h",
        marker={"color": [colors.critical if span["failed"] else shades[span["service"]] for span in spans]},
        text=[fmt.seconds(span["duration"]) for span in spans],
        textposition="outside",
        textfont={"size": 11},
        cliponaxis=False,
        customdata=[(span["name"], span["service"], span["detail"]) for span in spans],
        hovertemplate="<b>%{customdata[0]}</b> (%{customdata[1]})<br>%{text}<br>%{customdata[2]}<extra></extra>",
    )
    figure.update_xaxes(tickformat=how.ticks, ticksuffix=how.suffix, range=[0, whole * how.factor * 1.12], side="top")
    figure.update_yaxes(tickvals=keys, ticktext=rows, autorange="reversed", showgrid=False, tickfont={"size": 12})
    figure.update_layout(bargap=0.35)
    return figure
