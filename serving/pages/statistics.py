"""What was counted of each version, read back from the metrics: the statistics extension, and other names for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.samples import Sample

from observability import names
from observability.metrics import Metrics
from serving.telemetry.signals import NO_VERSION
from serving.versions.deployment import Deployment


@dataclass(slots=True)
class Span:
    """How often something took place, and the seconds that it took in all."""

    count: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Counts:
    """One version since its process began. `spans` are by stage of a request, and `total`; `batches` are batches.

    `last` is when the last batch ran, in seconds since the epoch.
    """

    outcomes: dict[str, int] = field(default_factory=dict)
    spans: dict[str, Span] = field(default_factory=lambda: defaultdict(Span))
    batches: Span = field(default_factory=Span)
    rows: int = 0
    cached: dict[str, int] = field(default_factory=dict)
    last: float = 0.0

    @property
    def succeeded(self) -> int:
        """Requests answered with outputs."""
        return self.outcomes.get("ok", 0)

    @property
    def failed(self) -> int:
        """Requests with any other outcome."""
        return sum(self.outcomes.values()) - self.succeeded

    @property
    def hits(self) -> int:
        """Requests that the response cache answered, or that waited for an equal one's answer."""
        return self.cached.get("hit", 0) + self.cached.get("shared", 0)

    @property
    def misses(self) -> int:
        """Requests that the response cache did not know."""
        return self.cached.get("miss", 0)


_COUNTED = (
    names.INFERENCE_REQUESTS, names.INFERENCE_ROWS, names.RESPONSE_CACHE_REQUESTS, names.INFERENCE_DURATION,
    names.INFERENCE_STAGE_DURATION, names.INFERENCE_COMPUTE, names.INFERENCE_LAST,
)  # fmt: skip
# The names of what is read, as families of metrics have them.
COUNTED_FAMILIES = tuple(metric.name.removesuffix("_total") for metric in _COUNTED)


def read_counts(metrics: Metrics) -> dict[tuple[str, str], Counts]:
    """By (model, version). Reading costs the requests nothing: they are counted once, in the catalogue's metrics.

    What was counted a moment ago and is not yet in the series is not here; whoever reads settles it before.
    """
    return _counts(sample for metric in _COUNTED for sample in samples_of(metrics, metric))


def counts_in(families: Iterable[Sequence[Any]]) -> dict[tuple[str, str], Counts]:
    """The same of families as processes send them to each other: name, type, help, unit, samples."""
    return _counts(
        Sample(name, labels, value)
        for *_, samples in families
        for name, labels, value, _ in samples
        if labels.get("version", NO_VERSION) != NO_VERSION
    )


def _counts(samples: Iterable[Any]) -> dict[tuple[str, str], Counts]:
    found: dict[tuple[str, str], Counts] = defaultdict(Counts)
    for sample in samples:
        counts, labels = found[_key(sample)], sample.labels
        if sample.name == names.INFERENCE_REQUESTS.name:
            counts.outcomes[labels["outcome"]] = int(sample.value)
        elif sample.name == names.INFERENCE_ROWS.name:
            counts.rows = int(sample.value)
        elif sample.name == names.INFERENCE_LAST.name:
            counts.last = sample.value
        elif sample.name == names.RESPONSE_CACHE_REQUESTS.name:
            counts.cached[labels["result"]] = int(sample.value)
        elif sample.name.startswith(names.INFERENCE_STAGE_DURATION.name):
            _add(counts.spans[labels["stage"]], sample)
        elif sample.name.startswith(names.INFERENCE_COMPUTE.name):
            _add(counts.batches, sample)
        elif sample.name.startswith(names.INFERENCE_DURATION.name):
            _add(counts.spans["total"], sample)
    return dict(found)


def _add(span: Span, sample: Any) -> None:
    if sample.name.endswith("_count"):
        span.count = int(sample.value)
    elif sample.name.endswith("_sum"):
        span.seconds = sample.value


def triton_statistics(
    found: Mapping[tuple[str, str], Counts], deployments: Mapping[str, Deployment], version: str | None = None
) -> dict[str, Any]:
    """Triton's `model_stats` of the loaded versions; times in nanoseconds.

    A request's time with the model is that of its batch. `success` and `fail` have the mean time of all requests, which
    is not counted by outcome; `last_inference` is when the last batch ran, in milliseconds since 1970, 0 before the
    first; `batch_stats` are not known.
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
    total = counts.spans["total"]
    mean = total.seconds / total.count if total.count else 0.0
    return {
        "name": model,
        "version": version,
        "last_inference": int(counts.last * 1000),
        "inference_count": counts.rows,
        "execution_count": counts.batches.count,
        "inference_stats": {
            "success": _duration(Span(counts.succeeded, mean * counts.succeeded)),
            "fail": _duration(Span(counts.failed, mean * counts.failed)),
            "queue": _duration(counts.spans["queue"]),
            "compute_input": _duration(counts.spans["decode"]),
            "compute_infer": _duration(counts.spans["model"]),
            "compute_output": _duration(counts.spans["encode"]),
            "cache_hit": _duration(Span(counts.hits)),
            "cache_miss": _duration(Span(counts.misses)),
        },
        "batch_stats": [],
        "memory_usage": [],
    }


def _duration(span: Span) -> dict[str, int]:
    return {"count": span.count, "ns": round(span.seconds * 1e9)}


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
