"""The collector's own page: its counters, and the values it computed, in one registry."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector as FamilySource

from collectors.computed import Value
from observability import names
from observability.metrics import Metrics

COUNTED = (
    names.EVENT_ROWS,
    names.EVENT_ERRORS,
    names.LABEL_ROWS,
    names.QUARANTINED_ROWS,
    names.PROFILE_ROWS,
    names.LATE_EVENT_ROWS,
    names.AMENDED_ROWS,
    names.QUALITY_VIOLATIONS,
    names.WATERMARK,
    names.BACKLOG_ROWS,
    names.BACKLOG_BYTES,
    names.BACKLOG_SECONDS,
    names.SPANS,
    names.STORE_SAMPLES,
    names.STORE_SERIES,
    names.STORE_REFUSED,
    names.STORE_OUT_OF_ORDER,
    names.STORE_DUPLICATES,
    names.STORE_COMPACTED,
    names.STORE_EXEMPLARS,
    names.STORE_COMMITS,
    names.STORE_BYTES,
    names.CONFIG_LOADED,
    names.CONFIG_LOADED_AT,
)


class Signals:
    """Counters by catalogue entry (`signals.metrics[names.SPANS]`), and computed values, replaced by owner.

    An owner is whatever the values belong to, for example ("pane", model, version); `publish(owner, [])` takes its
    values off the page. Thread-safe.
    """

    def __init__(self) -> None:
        self.metrics = Metrics(families=COUNTED).register_all()
        self.registry = self.metrics.registry
        self._computed = _Computed()
        self.registry.register(self._computed)

    def publish(self, owner: tuple[str, ...], values: list[Value]) -> None:
        """Replaces the values of `owner`."""
        self._computed.replace(owner, values)

    def published(self) -> Mapping[tuple[str, ...], list[Value]]:
        """The values on the page, by owner."""
        return self._computed.values()


class _Computed(FamilySource):
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[str, ...], list[Value]] = {}

    def replace(self, owner: tuple[str, ...], values: list[Value]) -> None:
        with self._lock:
            if values:
                self._values[owner] = values
            else:
                self._values.pop(owner, None)

    def values(self) -> dict[tuple[str, ...], list[Value]]:
        with self._lock:
            return dict(self._values)

    def describe(self) -> list[Family]:
        return []

    def collect(self) -> Iterator[Family]:
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for values in self.values().values():
            for value in values:
                metric = value.metric
                kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                family = families.setdefault(metric.name, kind(metric.name, metric.help, labels=metric.labels))
                family.add_metric([value.labels[label] for label in metric.labels], value.value)
        yield from families.values()
