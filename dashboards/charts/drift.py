"""How far columns moved, by feature and time, and a column's distribution then and now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import tzinfo

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from dashboards import format as fmt
from dashboards.charts.frame import Floats, Frame
from dashboards.theme import Palette

CAP = 4.0  # thresholds at which the heat map's colours end: far beyond "drifted" they tell nothing more


def heat_map(
    frame: Frame,
    rows: Sequence[str],
    ends: Sequence[float],
    values: Floats,
    drifted: npt.NDArray[np.bool_],
    words: npt.NDArray[np.str_],
    threshold: float,
) -> go.Figure:
    """Distances by row and window, dark is much; a dot marks drift, a dash what was not judged (NaN).

    Colours end at `CAP` thresholds, so that one column that is far off does not hide the rest; `words` are the
    cells' exact tooltips.
    """
    colors = frame.colors
    figure = frame.figure(max(380, 46 + 22 * len(rows)), legend=False)
    figure.update_layout(hovermode="closest")
    labels = [str(t) for t in frame.local(ends)]
    top = CAP * threshold
    ticks = [i * threshold for i in range(int(CAP) + 1)]
    figure.add_heatmap(
        x=labels,
        y=list(rows),
        z=np.minimum(values, top),
        colorscale=[(i / (len(colors.sequential) - 1), c) for i, c in enumerate(colors.sequential)],
        zmin=0,
        zmax=top,
        xgap=1,
        ygap=1,
        customdata=_moments(frame, ends, words),
        hoverongaps=True,
        hovertemplate="<b>%{y}</b><br>%{customdata}<extra></extra>",
        colorbar={
            "thickness": 10,
            "outlinewidth": 0,
            "tickfont": {"size": 11, "color": colors.muted},
            "tickvals": ticks,
            "ticktext": [_tick(value, threshold, top) for value in ticks],
            "title": {"text": "PSI", "font": {"size": 11, "color": colors.muted}},
            "len": 1.0,
            "y": 0.5,
        },
    )
    _marks(figure, labels, rows, np.isnan(values), {"symbol": "line-ew", "size": 2.5, "line": _stroke(colors.muted)})
    _marks(figure, labels, rows, drifted, _dot(colors))
    figure.update_xaxes(
        type="category",
        tickvals=_spread(labels),
        ticktext=_clocks(frame, ends),
        range=[-0.5, len(labels) - 0.5],
        tickangle=0,
        showgrid=False,
    )
    figure.update_yaxes(range=[len(rows) - 0.5, -0.5], showgrid=False, tickfont={"size": 12, "color": colors.text})
    return figure


def _tick(value: float, threshold: float, top: float) -> str:
    if value == threshold:
        return f"<b>{value:g} drift</b>"
    return f"≥ {value:g}" if value == top else f"{value:g}"


def _dot(colors: Palette) -> dict[str, object]:
    """A rim keeps the dot apart from the palest and the darkest cell alike."""
    return {"size": 5.5, "color": colors.warning, "line": _stroke(colors.surface)}


def _stroke(color: str) -> dict[str, object]:
    return {"width": 1, "color": color}


def _moments(frame: Frame, ends: Sequence[float], words: npt.NDArray[np.str_]) -> list[list[str]]:
    return [
        [f"{cell}<br>window that ended {fmt.clock(end, frame.zone)}" for end, cell in zip(ends, row, strict=True)]
        for row in words
    ]


def _marks(
    figure: go.Figure, labels: Sequence[str], rows: Sequence[str], where: npt.NDArray[np.bool_], marker: object
) -> None:
    found = np.argwhere(where)
    if len(found):
        x, y = [labels[j] for _, j in found], [rows[i] for i, _ in found]
        figure.add_scatter(x=x, y=y, mode="markers", hoverinfo="skip", marker=marker)


def _spread(labels: Sequence[str], most: int = 5) -> list[str]:
    return list(labels[:: max(1, -(-len(labels) // most))])


def _clocks(frame: Frame, ends: Sequence[float], most: int = 5) -> list[str]:
    long = len(ends) > 1 and ends[-1] - ends[0] > 86400
    say: Callable[[float, tzinfo], str] = fmt.moment if long else fmt.clock
    return [say(t, frame.zone) for t in ends[:: max(1, -(-len(ends) // most))]]


def compare_bins(
    frame: Frame, edges: Floats, labels: Sequence[str], shares: tuple[Floats, Floats], *, color: str, height: int = 250
) -> go.Figure:
    """Reference and window over stretches of one numeric axis; an open end is as wide as its neighbours are."""
    inner = edges[np.isfinite(edges)]
    width = float(np.median(np.diff(inner))) if len(inner) > 1 else 1.0
    low, high = np.array(edges[:-1]), np.array(edges[1:])
    low[0] = low[0] if np.isfinite(low[0]) else high[0] - width
    high[-1] = high[-1] if np.isfinite(high[-1]) else low[-1] + width
    figure = _two(frame, (low + high) / 2, labels, shares, color, height)
    for trace, part in zip(figure.data, (1.0, 0.55), strict=True):
        trace.width = (high - low) * part * 0.94
    figure.update_layout(barmode="overlay", bargap=0)
    ticks, words = _bin_ticks(edges, (low + high) / 2)
    figure.update_xaxes(showgrid=False, tickangle=0, tickvals=ticks, ticktext=words)
    return figure


def _bin_ticks(edges: Floats, middles: Floats) -> tuple[list[float], list[str]]:
    """A few round numbers, and at an open end what it holds."""
    inner = edges[np.isfinite(edges)]
    rough = (inner[-1] - inner[0]) / 5 or 1.0
    size = 10.0 ** np.floor(np.log10(rough))
    step = size * min((1, 2, 5, 10), key=lambda factor: abs(factor * size - rough))
    ticks = [float(t) for t in np.arange(np.ceil(inner[0] / step), np.floor(inner[-1] / step) + 1) * step]
    words = [f"{tick:.6g}" for tick in ticks]
    for end, middle, sign in ((0, middles[0], "<"), (-1, middles[-1], "≥")):
        if np.isinf(edges[end]):
            # The end's own words need room: a number too near them goes.
            near = [i for i, tick in enumerate(ticks) if abs(tick - middle) < 0.6 * step]
            ticks = [t for i, t in enumerate(ticks) if i not in near] + [float(middle)]
            words = [w for i, w in enumerate(words) if i not in near] + [f"{sign} {inner[end]:.3g}"]
    return ticks, words


def compare_categories(
    frame: Frame, labels: Sequence[str], shares: tuple[Floats, Floats], *, color: str, height: int = 250
) -> go.Figure:
    """Reference and window by category; long names lie beside horizontal bars, where they can be read."""
    if sum(map(len, labels)) <= 5 * len(labels) or len(labels) < 6:
        figure = _two(frame, labels, labels, shares, color, height)
        figure.update_xaxes(type="category", showgrid=False, tickangle=0, tickfont={"size": 10})
    else:
        figure = _two(frame, labels, labels, shares, color, max(height, 60 + 20 * len(labels)), flat=True)
        figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    figure.update_layout(barmode="group", bargap=0.25, bargroupgap=0.05)
    return figure


def _two(
    frame: Frame,
    where: Sequence[str] | Floats,
    labels: Sequence[str],
    shares: tuple[Floats, Floats],
    color: str,
    height: int,
    *,
    flat: bool = False,
) -> go.Figure:
    figure = frame.figure(height, time_axis=False)
    looks = (("Reference", {"color": frame.colors.muted, "opacity": 0.4}), ("Window", {"color": color, "opacity": 0.9}))
    for (name, marker), values in zip(looks, shares, strict=True):
        figure.add_bar(
            x=values * 100 if flat else where,
            y=where if flat else values * 100,
            orientation="h" if flat else "v",
            name=name,
            marker={**marker, "line": {"width": 0}},
            customdata=list(labels),
            hovertemplate=f"%{{customdata}}<br>{name.lower()} %{{{'x' if flat else 'y'}:.3~r}} %<extra></extra>",
        )
    shown = figure.update_xaxes if flat else figure.update_yaxes
    shown(tickformat="~r", ticksuffix=" %", nticks=5)
    return figure
