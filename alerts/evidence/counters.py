"""What the judge reads of a server: the series of releases, taken apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from alerts.evidence.histograms import Histogram, histograms
from alerts.evidence.label_feed import FeedPage
from alerts.evidence.releases import Weight
from alerts.evidence.totals import BIN, FAILED_UNIT, UNIT, Reading
from alerts.labels import Labels
from alerts.querier import Sample
from collectors.releases import BINS
from observability import names

_RELEASE = ("model", "release", "candidate", "baseline")
QUERIES = (
    names.RELEASE_REQUESTS.name,
    f"{names.RELEASE_DURATION.name}_bucket",
    names.RELEASE_FAILED_UNITS.name,
    names.RELEASE_UNITS.name,
    names.TRAFFIC_STICKY.name,
    names.TRAFFIC_WEIGHT.name,
    names.RELEASE_PREDICTIONS.name,
)


@dataclass(frozen=True, slots=True)
class Counted:
    """What the server's counters read now, by release, the models whose units keep their arm, and the weights."""

    readings: Mapping[Labels, Sequence[Reading]]
    histograms: Mapping[Labels, Sequence[Histogram]]
    sticky: frozenset[str]
    weights: Sequence[Weight]
    labels: Mapping[tuple[str, str], FeedPage] = field(default_factory=dict)
    """What the collector has joined since, by model and release."""

    @staticmethod
    def of(answers: Sequence[Sequence[Sample]]) -> Counted:
        """Of the answers to `QUERIES`."""
        requests, durations, failed, units, sticky, weights, predictions = answers
        readings = _readings(requests, failed, units, predictions)
        return Counted(readings, _histograms(durations), _models(sticky), _weights(weights))


def _readings(
    vector: Sequence[Sample], failed: Sequence[Sample], units: Sequence[Sample], predictions: Sequence[Sample]
) -> dict[Labels, list[Reading]]:
    readings: dict[Labels, list[Reading]] = {}
    for release, labels, series, propensity, value in _of_releases(vector):
        reading = Reading(series, labels.get("arm", ""), propensity, labels.get("outcome", ""), value)
        readings.setdefault(release, []).append(reading)
    for kind, found in ((FAILED_UNIT, failed), (UNIT, units)):
        for release, labels, series, propensity, value in _of_releases(found):
            reading = Reading(f"{kind},{series}", labels.get("arm", ""), propensity, kind, value)
            readings.setdefault(release, []).append(reading)
    for release, labels, series, propensity, value in _of_releases(predictions):
        place = labels.get("bin", "")
        # Of a release that no server counts there is nothing to judge.
        if release in readings and place.isdigit() and int(place) < BINS:
            reading = Reading(f"{BIN}{series}", labels.get("arm", ""), propensity, f"{BIN}{place}", value)
            readings[release].append(reading)
    return readings


def _histograms(vector: Sequence[Sample]) -> dict[Labels, list[Histogram]]:
    buckets: dict[Labels, list[tuple[str, str, float, str, float]]] = {}
    for release, labels, series, propensity, value in _of_releases(vector, "le"):
        bucket = series, labels.get("arm", ""), propensity, labels.get("le", ""), value
        buckets.setdefault(release, []).append(bucket)
    return {release: histograms(found) for release, found in buckets.items()}


def _of_releases(
    vector: Sequence[Sample], *apart: str
) -> Iterable[tuple[Labels, Mapping[str, str], str, float, float]]:
    """Release, labels, the series' other labels as a text (without those `apart`), propensity and value of each."""
    for sample in vector:
        labels = dict(sample.labels)
        key = {name: labels.get(name, "") for name in _RELEASE}
        try:
            propensity = float(labels.get("propensity", ""))
        except ValueError:
            continue  # not a series of ours: without a propensity it says nothing
        if not key["release"] or not 0.0 <= propensity <= 1.0:
            continue
        left_out = (*key, "__name__", *apart)
        series = ",".join(f"{name}={value}" for name, value in sample.labels if name not in left_out)
        yield tuple(sorted(key.items())), labels, series, propensity, sample.value


def _models(vector: Sequence[Sample]) -> frozenset[str]:
    return frozenset(dict(sample.labels).get("model", "") for sample in vector if sample.value > 0)


def _weights(vector: Sequence[Sample]) -> list[Weight]:
    weights = []
    for sample in vector:
        labels = dict(sample.labels)
        weights.append(Weight(labels.get("model", ""), labels.get("version", ""), labels.get("role", ""), sample.value))
    return weights
