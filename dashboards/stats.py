"""The numbers that matter, side by side over a page, each with a small line of its course."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import streamlit as st

from dashboards.series import Series


@dataclass(frozen=True, slots=True)
class Stat:
    """A number that matters: its name, its value in words, what it means, and its course."""

    label: str
    value: str
    meaning: str
    course: Series | None = None
    detail: str = ""


def stats(shown: Sequence[Stat], color: str) -> None:
    """Numbers side by side, each with a small line of its course; hovering tells what it means."""
    cells = "".join(
        f'<div class="tt-stat" title="{html.escape(stat.meaning)}">'
        f'<div class="tt-sub" style="padding:0">{stat.label}</div>'
        f'<div class="tt-big">{stat.value}</div>'
        + (_spark(stat.course, color) if stat.course else f'<div class="tt-sub">{html.escape(stat.detail)}</div>')
        + "</div>"
        for stat in shown
    )
    st.html(f'<div class="tt-stats">{cells}</div>')


def _spark(series: Series, color: str) -> str:
    """A line without axes; a series that hardly moves is drawn flat, not blown up."""
    keep = np.isfinite(series.values)
    times, values = series.times[keep], series.values[keep]
    if len(times) < 2:
        return '<div class="tt-flat"></div>'
    low, high = float(values.min()), float(values.max())
    room = max(high - low, 0.1 * abs(high), 1e-12)
    middle = (high + low) / 2
    x = (times - times[0]) / (times[-1] - times[0]) * 100
    y = 15 - (values - middle) / room * 22
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    drawing = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 30" preserveAspectRatio="none">'
        f'<polygon points="0,30 {line} 100,30" fill="{color}" fill-opacity="0.10"/>'
        f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.5" '
        'vector-effect="non-scaling-stroke"/>'
        "</svg>"
    )
    # As an image: Streamlit's sanitizer takes inline SVG out.
    return f'<img alt="" src="data:image/svg+xml;base64,{base64.b64encode(drawing.encode()).decode()}">'
