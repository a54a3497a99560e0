"""One page of metrics for several processes: what each says of itself, taken apart, added up, and written again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from observability import names
from observability.metrics import WithoutCreated, exposition

Rule = Literal["sum", "max", "min"]
Labels = tuple[tuple[str, str], ...]
# A family as it travels: name, type, help, unit, [sample name, labels, value, exemplar or None].
Dump = list[Any]

# How the gauges of several replicas become one; what is not named here follows from the unit at the end of its name.
_RULES: Mapping[str, Rule] = {
    names.QUEUE_ROWS.name: "sum",
    names.QUEUE_LIMIT_ROWS.name: "sum",
    names.CONCURRENCY_LIMIT.name: "sum",
    names.BATCH_LIMIT_ROWS.name: "max",
    # Loaded means loaded everywhere, and a generation is in force when all have it.
    names.MODEL_READY.name: "min",
    names.TRAFFIC_GENERATION.name: "min",
    names.MODEL_INFO.name: "max",
    names.MODEL_LOAD_DURATION.name: "max",
    names.TRAFFIC_WEIGHT.name: "max",
}
_ADDED = ("_rows", "_bytes", "_requests", "_count", "_connections", "_entries", "_batches", "_in_flight", "_per_second")


def rule_of(name: str) -> Rule:
    """How a gauge's values of several processes become one: amounts add, of all else the largest counts."""
    return _RULES.get(name, "sum" if name.endswith(_ADDED) else "max")


def dump(registry: CollectorRegistry) -> list[Dump]:
    """A registry's families as plain lists, without the `_created` series."""
    return [
        [
            family.name, family.type, family.documentation, family.unit,
            [[s.name, dict(s.labels), s.value, _plain(s.exemplar)] for s in family.samples],
        ]
        for family in WithoutCreated(registry).collect()
    ]  # fmt: skip


def _plain(exemplar: Exemplar | None) -> list[Any] | None:
    return None if exemplar is None else [dict(exemplar.labels), exemplar.value, exemplar.timestamp]


@dataclass(slots=True)
class _Sum:
    """One family of several processes."""

    type: str
    help: str
    unit: str
    values: dict[tuple[str, Labels], float] = field(default_factory=dict)
    exemplars: dict[tuple[str, Labels], list[Any]] = field(default_factory=dict)

    def add(self, samples: Iterable[Sequence[Any]], rule: Rule) -> None:
        for name, labels, value, exemplar in samples:
            # The order of labels is that of the writer, and part of a histogram's form: `le` stays last.
            key = (name, tuple(labels.items()))
            known = self.values.get(key)
            if known is None:
                self.values[key] = value
            elif rule == "sum":
                self.values[key] = known + value
            else:
                self.values[key] = max(known, value) if rule == "max" else min(known, value)
            if exemplar is not None and (exemplar[2] or 0.0) >= (self.exemplars.get(key, [0, 0, 0.0])[2] or 0.0):
                self.exemplars[key] = exemplar


class Totals:
    """Families of several processes as one. Counters and histograms add; gauges by `rule_of`."""

    def __init__(self) -> None:
        self._families: dict[str, _Sum] = {}

    def add(self, families: Iterable[Dump], *, gauges: bool = True) -> Totals:
        """Adds a process's dump; without `gauges` only what counts up, which is what remains of one that ended."""
        for name, type, help, unit, samples in families:
            counts = type in ("counter", "histogram", "summary")
            if counts or gauges:
                found = self._families.setdefault(name, _Sum(type, help, unit))
                found.add(samples, "sum" if counts else rule_of(name))
        return self

    def dump(self) -> list[Dump]:
        """The sum, in the form in which it can be added to another."""
        return [
            [
                name, family.type, family.help, family.unit,
                [[sample, dict(labels), value, family.exemplars.get((sample, labels))]
                 for (sample, labels), value in family.values.items()],
            ]
            for name, family in self._families.items()
        ]  # fmt: skip

    def page(self, accept: str | None = None) -> tuple[bytes, str]:
        """The sum as (body, content type): text, or OpenMetrics with exemplars where `accept` asks it."""
        registry = CollectorRegistry()
        registry.register(_Merged(self.dump()))
        return exposition(registry, accept)


class _Merged(Collector):
    """Dumped families as a registry can collect them."""

    def __init__(self, families: Sequence[Dump]) -> None:
        self._families = families

    def describe(self) -> Iterator[Family]:
        """Nothing: what is not declared is not checked for a second owner."""
        return iter(())

    def collect(self) -> Iterator[Family]:
        for name, type, help, unit, samples in self._families:
            family = Family(name, help, type, unit)
            for sample, labels, value, exemplar in _grouped(samples):
                family.add_sample(sample, labels, value, exemplar=None if exemplar is None else Exemplar(*exemplar))
            yield family


def _grouped(samples: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
    """The samples of one label set side by side, in the order of their first one: OpenMetrics asks for it."""
    groups: dict[Labels, list[Sequence[Any]]] = {}
    for sample in samples:
        labels = tuple((name, value) for name, value in sample[1].items() if name != "le")
        groups.setdefault(labels, []).append(sample)
    return [sample for group in groups.values() for sample in group]
