"""What a watch reads of the store: the series of a release that goes on beside a hold-back, or of two versions."""

from __future__ import annotations

from collections.abc import Sequence

from alerts.evidence.counters import QUERIES, Counted
from alerts.evidence.histograms import histograms
from alerts.evidence.totals import CANARY, ERROR, Reading
from alerts.querier import Sample
from alerts.releases.sight import quoted
from alerts.releases.walk import Walk
from alerts.releases.watch import Beside, Watched
from observability import names

_OF_RELEASE = (
    names.RELEASE_REQUESTS.name,
    f"{names.RELEASE_DURATION.name}_bucket",
    names.RELEASE_FAILED_UNITS.name,
    names.RELEASE_UNITS.name,
)


def watch_queries(walk: Walk, beside: Beside) -> tuple[str, ...]:
    """The expressions whose answers `watched` takes apart."""
    model = quoted(walk.model)
    if beside is Beside.HOLD_BACK:
        of = f'{{model="{model}",release="{quoted(walk.release)}"}}'
        return tuple(f"{name}{of}" for name in _OF_RELEASE)
    of = f'{{model="{model}",version=~"{walk.version}|{walk.baseline}"}}'
    return f"{names.INFERENCE_REQUESTS.name}{of}", f"{names.INFERENCE_DURATION.name}_bucket{of}"


def watched(walk: Walk, beside: Beside, answers: Sequence[Sequence[Sample]]) -> Watched:
    """The answers to `watch_queries` as what a watch looks at."""
    if beside is Beside.HOLD_BACK:
        found = dict(zip(_OF_RELEASE, answers, strict=True))
        counted = Counted.of([found.get(name, ()) for name in QUERIES])
        return Watched(
            [one for found in counted.readings.values() for one in found],
            [one for found in counted.histograms.values() for one in found],
        )
    counters, buckets = ([_of_version(walk, sample) for sample in answer] for answer in answers)
    return Watched(
        [
            Reading(series, arm, 1.0, "ok" if labels["outcome"] == "ok" else ERROR, value)
            for series, arm, labels, value in counters
            if labels.get("outcome") in ("ok", *names.FAULTS)
        ],
        histograms([(series, arm, 1.0, labels.get("le", ""), value) for series, arm, labels, value in buckets]),
    )


def _of_version(walk: Walk, sample: Sample) -> tuple[str, str, dict[str, str], float]:
    """Series without the bucket, arm, labels and value."""
    labels = dict(sample.labels)
    series = ",".join(f"{name}={value}" for name, value in sample.labels if name != "le")
    arm = CANARY if labels.get("version") == str(walk.version) else "stable"
    return series, arm, labels, sample.value
