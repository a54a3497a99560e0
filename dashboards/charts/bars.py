"""Bars: one value a category, and durations that add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from dashboards import format as fmt
from dashboards.charts.frame import Frame, Unit, scale


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
