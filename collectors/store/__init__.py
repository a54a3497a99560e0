"""The time-series store of the collector: scrapes as vectors, in SQL, with a head in memory."""

from collectors.store.limits import LimitExceeded, Limits
from collectors.store.matchers import Matcher
from collectors.store.store import Store
from collectors.store.values import (
    STALE_NAN,
    Append,
    Block,
    Columns,
    Exemplar,
    Labels,
    MetricMetadata,
    Sample,
    SampleReader,
    Scrape,
    SeriesData,
    StoreCounts,
    Taken,
    is_stale,
)

__all__ = [
    "STALE_NAN",
    "Append",
    "Block",
    "Columns",
    "Exemplar",
    "Labels",
    "LimitExceeded",
    "Limits",
    "Matcher",
    "MetricMetadata",
    "Sample",
    "SampleReader",
    "Scrape",
    "SeriesData",
    "Store",
    "StoreCounts",
    "Taken",
    "is_stale",
]
