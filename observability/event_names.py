"""What events are called on the wire; apart from `events.py`, so that who only counts need not load Arrow."""

from __future__ import annotations

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
FEATURE, PREDICTION = "feature.", "prediction."
