"""The counts under the names that Triton's, KServe's and MLServer's dashboards expect, worked out at each scrape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client.metrics_core import HistogramMetricFamily, UnknownMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from observability import names
from observability.metrics import Metrics
from observability.names import Alias
from serving.pages.statistics import Counts, read_counts, samples_of
from serving.versions.deployment import Deployment

# Triton's reasons; every other outcome is OTHER.
_REASONS = {"rejected": "REJECTED", "cancelled": "CANCELED", "model_error": "BACKEND", "non_finite": "BACKEND"}
_ALL_REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
_PLAIN: tuple[tuple[Alias, Callable[[Counts], float]], ...] = (
    (names.TRITON_SUCCESS, lambda counts: counts.succeeded),
    (names.TRITON_ROWS, lambda counts: counts.rows),
    (names.TRITON_BATCHES, lambda counts: counts.batches.count),
    (names.TRITON_REQUEST_US, lambda counts: counts.spans["total"].seconds * 1e6),
    (names.TRITON_QUEUE_US, lambda counts: counts.spans["queue"].seconds * 1e6),
    (names.TRITON_INPUT_US, lambda counts: counts.spans["decode"].seconds * 1e6),
    (names.TRITON_INFER_US, lambda counts: counts.spans["model"].seconds * 1e6),
    (names.TRITON_OUTPUT_US, lambda counts: counts.spans["encode"].seconds * 1e6),
    (names.TRITON_CACHE_HITS, lambda counts: counts.hits),
    (names.TRITON_CACHE_MISSES, lambda counts: counts.misses),
    (names.MLSERVER_SUCCESS, lambda counts: counts.succeeded),
    (names.MLSERVER_FAILURE, lambda counts: counts.failed),
)
# KServe's three, by our stages; None is the whole request.
_HISTOGRAMS = ((names.KSERVE_PREPROCESS, "decode"), (names.KSERVE_PREDICT, None), (names.KSERVE_POSTPROCESS, "encode"))


class Aliases(Collector):
    """Register it with the registry of `metrics`: the page then has both names, at no cost to a request."""

    def __init__(self, metrics: Metrics, deployments: Mapping[str, Deployment]) -> None:
        self._metrics = metrics
        self._deployments = deployments

    def describe(self) -> list[Family]:
        """None: what is collected is read from the registry that this is registered with."""
        return []

    def collect(self) -> Iterator[Family]:
        """The families, for every version that was counted."""
        found = read_counts(self._metrics)
        for alias, value in _PLAIN:
            yield _family(alias, [(key, value(counts)) for key, counts in found.items()])
        yield _family(names.TRITON_FAILURE, [
            ((*key, reason), count) for key, counts in found.items() for reason, count in _failures(counts).items()
        ])  # fmt: skip
        yield _family(names.TRITON_PENDING, [
            ((model, str(number)), version.lane.queue.requests)
            for model, deployment in self._deployments.items()
            for number, version in deployment.versions.items()
        ])  # fmt: skip
        stages = samples_of(self._metrics, names.INFERENCE_STAGE_DURATION)
        whole = samples_of(self._metrics, names.INFERENCE_DURATION)
        for alias, stage in _HISTOGRAMS:
            yield _by_model(alias, [s for s in stages if s.labels["stage"] == stage] if stage else whole)


def _failures(counts: Counts) -> dict[str, int]:
    failures = dict.fromkeys(_ALL_REASONS, 0)
    for outcome, count in counts.outcomes.items():
        if outcome != "ok":
            failures[_REASONS.get(outcome, "OTHER")] += count
    return failures


def _family(alias: Alias, values: list[tuple[tuple[str, ...], float]]) -> Family:
    family = UnknownMetricFamily(alias.name, alias.help, labels=alias.labels)
    for labels, value in values:
        family.add_metric(labels, value)
    return family


def _by_model(alias: Alias, samples: list[Any]) -> Family:
    """A histogram by model from one by model and version: the buckets of versions add up."""
    buckets: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    sums: dict[str, float] = defaultdict(float)
    for sample in samples:
        if sample.name.endswith("_bucket"):
            buckets[sample.labels["model"]][sample.labels["le"]] += sample.value
        elif sample.name.endswith("_sum"):
            sums[sample.labels["model"]] += sample.value
    family = HistogramMetricFamily(alias.name, alias.help, labels=alias.labels)
    for model, found in buckets.items():
        family.add_metric([model], sorted(found.items(), key=lambda bucket: float(bucket[0])), sums[model])
    return family
