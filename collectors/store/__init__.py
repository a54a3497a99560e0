"""The time-series store of the collector: scrapes as vectors, in SQL, with a head in memory."""

from collectors.store.matchers import Matcher
from collectors.store.store import Store
from collectors.store.values import (
    STALE_NAN,
    Block,
    Exemplar,
    Labels,
    MetricMetadata,
    Sample,
    SampleReader,
    SeriesData,
    StoreCounts,
    is_stale,
)

__all__ = [
    "STALE_NAN",
    "Block",
    "Exemplar",
    "Labels",
    "Matcher",
    "MetricMetadata",
    "Sample",
    "SampleReader",
    "SeriesData",
    "Store",
    "StoreCounts",
    "is_stale",
]
