"""What was counted of each version, read back from the metrics: the statistics extension, and other names for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from observability import names
from observability.metrics import Metrics
from serving.deployment import Deployment
from serving.signals import NO_VERSION


@dataclass(slots=True)
class Counts:
    """One version since its process began. Times are seconds, summed over requests but `batch_seconds` over batches."""

    outcomes: dict[str, int] = field(default_factory=dict)
    answered: int = 0  # requests with a duration: those that a version was chosen for
    request_seconds: float = 0.0
    queued: int = 0
    queue_seconds: float = 0.0
    batches: int = 0
    batch_seconds: float = 0.0
    rows: int = 0

    @property
    def succeeded(self) -> int:
        """Requests answered with outputs."""
        return self.outcomes.get("ok", 0)

    @property
    def failed(self) -> int:
        """Requests with any other outcome."""
        return sum(self.outcomes.values()) - self.succeeded


_PLAIN = {names.INFERENCE_ROWS: "rows"}
_TIMES = {
    names.INFERENCE_DURATION: ("answered", "request_seconds"),
    names.INFERENCE_QUEUE: ("queued", "queue_seconds"),
    names.INFERENCE_COMPUTE: ("batches", "batch_seconds"),
}


def read_counts(metrics: Metrics) -> dict[tuple[str, str], Counts]:
    """By (model, version). Reading costs the requests nothing: they are counted once, in the catalogue's metrics."""
    found: dict[tuple[str, str], Counts] = defaultdict(Counts)
    for sample in samples_of(metrics, names.INFERENCE_REQUESTS):
        if sample.name.endswith("_total"):
            found[_key(sample)].outcomes[sample.labels["outcome"]] = int(sample.value)
    for metric, name in _PLAIN.items():
        for sample in samples_of(metrics, metric):
            if sample.name.endswith("_total"):
                setattr(found[_key(sample)], name, int(sample.value))
    for metric, (count, total) in _TIMES.items():
        for sample in samples_of(metrics, metric):
            if sample.name.endswith("_count"):
                setattr(found[_key(sample)], count, int(sample.value))
            elif sample.name.endswith("_sum"):
                setattr(found[_key(sample)], total, sample.value)
    return dict(found)


def triton_statistics(
    found: Mapping[tuple[str, str], Counts], deployments: Mapping[str, Deployment], version: str | None = None
) -> dict[str, Any]:
    """Triton's `model_stats` of the loaded versions; times in nanoseconds.

    `success` counts the answers; a request's time in the queue and with the model is that of its batch.
    """
    return {
        "model_stats": [
            _one(model, str(number), found.get((model, str(number)), Counts()))
            for model, deployment in sorted(deployments.items())
            for number in sorted(deployment.versions)
            if version is None or str(number) == version
        ]
    }


def _one(model: str, version: str, counts: Counts) -> dict[str, Any]:
    mean = counts.request_seconds / counts.answered if counts.answered else 0.0
    return {
        "name": model,
        "version": version,
        "last_inference": 0,
        "inference_count": counts.rows,
        "execution_count": counts.batches,
        "inference_stats": {
            "success": _duration(counts.succeeded, mean * counts.succeeded),
            "fail": _duration(counts.failed, mean * counts.failed),
            "queue": _duration(counts.queued, counts.queue_seconds),
            "compute_input": _duration(0, 0.0),
            "compute_infer": _duration(counts.batches, counts.batch_seconds),
            "compute_output": _duration(0, 0.0),
            "cache_hit": _duration(0, 0.0),
            "cache_miss": _duration(0, 0.0),
        },
        "batch_stats": [],
        "memory_usage": [],
    }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9)}


def samples_of(metrics: Metrics, metric: names.Metric) -> list[Any]:
    """The samples of a family that have a version."""
    return [
        sample
        for family in metrics[metric].collect()
        for sample in family.samples
        if sample.labels.get("version", NO_VERSION) != NO_VERSION
    ]


def _key(sample: Any) -> tuple[str, str]:
    return sample.labels["model"], sample.labels["version"]
