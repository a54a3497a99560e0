"""What events and their columns are called on the wire; apart from `events.py`: who only sends need not load Arrow."""

from __future__ import annotations

from observability.stream_schema import Field

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
FEATURE, PREDICTION = "feature.", "prediction."
# The columns that every event has, in this order; `feature.<name>` and `prediction.<name>` come behind them.
EVENT_FIELDS = (
    Field("id", "utf8", nullable=False),
    Field("time", "time", nullable=False),
    Field("model", "utf8", nullable=False),
    Field("version", "utf8", nullable=False),
    Field("arm", "utf8", nullable=False),
    Field("release", "utf8"),
    Field("propensity", "float64"),
    Field("outcome", "utf8", nullable=False),
    Field("latency_seconds", "float64"),
    Field("trace_id", "utf8"),
    Field("attributes", "utf8"),
)


class BadBatch(ValueError):
    """A body or table that is not a batch of events or labels; the message names the column."""
