"""Every chart: plain values in, a plotly figure out, all of one look. No I/O and no Streamlit in here."""

from dashboards.charts.bars import bars, stacked_bar
from dashboards.charts.drift import compare_bins, compare_categories, heat_map
from dashboards.charts.frame import Frame, Line, Unit
from dashboards.charts.lines import curves, lines
from dashboards.charts.story import timeline_chart
from dashboards.charts.waterfall import waterfall

__all__ = [
    "Frame",
    "Line",
    "Unit",
    "bars",
    "compare_bins",
    "compare_categories",
    "curves",
    "heat_map",
    "lines",
    "stacked_bar",
    "timeline_chart",
    "waterfall",
]
