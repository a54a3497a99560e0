"""What releases are judged by besides counters: labelled predictions by arm, shadow pairs, predictions by bin."""

from collectors.releases.labels import SHADOW_FEED, LabelRow, ReleaseLabels, feed_of
from collectors.releases.predictions import BINS, ReleasePredictions

__all__ = [
    "BINS",
    "SHADOW_FEED",
    "LabelRow",
    "ReleaseLabels",
    "ReleasePredictions",
    "feed_of",
]
