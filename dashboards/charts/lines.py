"""Values over time, and runs laid over each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dashboards.charts.frame import Floats, Frame, Line, Unit, faint, scale
from dashboards.series import Series
from dashboards.timeline import runs

_FEW = 12


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
            {"stackgroup": "one", "fillcolor": faint(line.color, 0.8)} if stacked else {"connectgaps": False}
        )
        figure.add_scatter(
            x=frame.local(times),
            y=values * how.factor,
            name=line.name,
            mode="lines" if stacked else _mode(line.series),
            marker={"size": 4},
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
        x=0.997,
        y=np.log10(value) if log else value,
        text=words,
        showarrow=False,
        xanchor="right",
        yanchor="top",
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


def curves(
    frame: Frame,
    shown: Sequence[Line],
    *,
    unit: Unit = "number",
    height: int = 220,
    log: bool = False,
    threshold: tuple[float, str] | None = None,
    marks: Sequence[tuple[float, str]] = (),
) -> go.Figure:
    """Runs or releases laid over each other: the axis counts seconds since each one's first sample.

    `marks` are moments on that axis, with a word each.
    """
    figure = frame.figure(height, time_axis=False, legend=len(shown) > 1)
    figure.update_layout(hovermode="x unified")
    for line in shown:
        figure.add_scatter(
            x=line.series.times - line.series.times[0],
            y=line.series.values,
            name=line.name,
            mode=_mode(line.series),
            line={"color": line.color, "width": 1.8, "dash": line.dash},
            marker={"size": 5},
            hovertemplate="%{y:.4~g}",
        )
    figure.update_xaxes(ticksuffix=" s", showgrid=False, hoverformat=".0f", rangemode="tozero")
    how = scale(unit, [line.series.values for line in shown])
    figure.update_yaxes(tickformat=how.ticks, nticks=5)
    if log:
        figure.update_yaxes(type="log", tickformat="~g", exponentformat="power", dtick=_decades(shown))
    if threshold:
        _threshold(figure, frame, *threshold, log)
    for seconds, words in marks:
        figure.add_vline(x=seconds, line={"color": frame.colors.warning, "width": 1, "dash": "dot"})
        figure.add_annotation(
            x=seconds, y=1, yref="paper", text=words, showarrow=False, xanchor="left", yanchor="top",
            textangle=90, font={"size": 10, "color": frame.colors.muted},
        )  # fmt: skip
    return figure


def _mode(series: Series) -> str:
    """Few points are marked: a line alone would hide how few they are, and one point has no line."""
    return "lines+markers" if len(series.times) <= _FEW else "lines"
