"""The spans of one trace under each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dashboards import format as fmt
from dashboards.charts.frame import Frame, scale


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
