"""The catalogue of names bound to a prometheus_client registry, and its text exposition."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from observability import names
from observability.names import Metric

Instrument = Any  # Counter | Gauge | Histogram: the kind is the catalogue's, so that callers need no cast

_INSTRUMENTS: dict[str, Callable[..., Instrument]] = {
    "counter": Counter,
    "gauge": Gauge,
    "histogram": Histogram,
}
_lock = Lock()
# Two `Metrics` on one registry share its families: prometheus_client refuses to register a name twice.
_bound: WeakKeyDictionary[CollectorRegistry, dict[str, Instrument]] = WeakKeyDictionary()


class Metrics:
    """The catalogue's instruments on one registry, each registered when it is first asked for.

    `metrics[names.MODEL_READY].labels("delay", "1").set(1)`. Without a registry it makes its own, so that
    several services can live in one process. `families` limits it to a part of the catalogue.
    """

    def __init__(self, registry: CollectorRegistry | None = None, families: Iterable[Metric] = names.CATALOGUE) -> None:
        self.registry = CollectorRegistry(auto_describe=True) if registry is None else registry
        self._known = {metric.name: metric for metric in families}
        with _lock:
            self._instruments = _bound.setdefault(self.registry, {})

    def __getitem__(self, metric: Metric) -> Instrument:
        """The instrument of a catalogue entry. KeyError if the entry is not in this catalogue."""
        instrument = self._instruments.get(metric.name)
        return self._register(metric) if instrument is None else instrument

    def register_all(self) -> Metrics:
        """Registers every family at once, so that a page shows help and type before the first sample."""
        for metric in self._known.values():
            self[metric]
        return self

    def _register(self, metric: Metric) -> Instrument:
        if self._known.get(metric.name) != metric:
            raise KeyError(f"{metric.name} is not in this catalogue: declare it in observability/names.py")
        with _lock:
            if metric.name not in self._instruments:
                options = {"buckets": metric.buckets} if metric.kind == "histogram" else {}
                self._instruments[metric.name] = _INSTRUMENTS[metric.kind](
                    metric.name, metric.help, metric.labels, registry=self.registry, **options
                )
            return self._instruments[metric.name]


def exposition(source: Metrics | CollectorRegistry, accept: str | None = None) -> tuple[bytes, str]:
    """The page of a registry as (body, content type): text, or OpenMetrics with exemplars where `accept` asks it."""
    registry = source.registry if isinstance(source, Metrics) else source
    encode, content_type = choose_encoder(accept or "")
    return encode(WithoutCreated(registry)), content_type


def observe_many(histogram: Histogram, values: NDArray[np.float64]) -> None:
    """The same as `histogram.observe` of each value, at the cost of a few; NaN is left out. `histogram` is a child."""
    total = float(values.sum())
    if total != total:
        values = values[~np.isnan(values)]
        total = float(values.sum())
    bounds = histogram._upper_bounds
    if len(values) > 256:
        # Comparing all values with one bound after the other is several times faster than a search for each value.
        below = [int(np.count_nonzero(values <= bound)) for bound in bounds]
        cells = [below[0], *(upper - lower for lower, upper in pairwise(below))]
    else:
        cells = np.bincount(np.searchsorted(bounds, values, side="left"), minlength=len(bounds)).tolist()
    observe_cells(histogram, cells, total)


def point_to(histogram: Histogram, value: float, exemplar: Mapping[str, str]) -> None:
    """Names an exemplar of a child's cell that the value falls in, which is observed otherwise."""
    place = bisect_left(histogram._upper_bounds, value)
    histogram._buckets[place].set_exemplar(Exemplar(dict(exemplar), value, time.time()))


def bounds_of(histogram: Histogram) -> Sequence[float]:
    """The upper bounds of a child's cells; the last is infinite."""
    return histogram._upper_bounds


def observe_cells(histogram: Histogram, cells: Sequence[int], total: float) -> None:
    """Adds so many values to each cell of a child, whose sum is `total`; cells beyond its last are 0."""
    for bucket, count in zip(histogram._buckets, cells, strict=False):
        if count:
            bucket.inc(count)
    histogram._sum.inc(total)


class WithoutCreated(Collector):
    """A registry's families less the `_created` series, which double the series of a page and carry nothing we use.

    prometheus_client's own switch is global to the process, and the process belongs to our host.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Family]:
        for family in self._registry.collect():
            if any(sample.name.endswith("_created") for sample in family.samples):
                kept = Family(family.name, family.documentation, family.type, family.unit)
                kept.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
                yield kept
            else:
                yield family
