"""What every chart starts from: the look, the axis of time, and how values of a unit are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Literal

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from dashboards.series import Series, Span
from dashboards.theme import Palette

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


def faint(color: str, alpha: float) -> str:
    """A `#rrggbb` colour, seen through."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
