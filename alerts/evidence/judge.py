"""The judge of releases: reads their counters each second, weighs the evidence, writes it back as metrics.

An e-process is never restarted within a release: totals and verdicts are saved, and a proved verdict stays. A new
release id starts anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from alerts.evidence.releases import Release, Weight, in_progress, read_releases, write_release
from alerts.evidence.totals import (
    CANARY,
    ERROR,
    Reading,
    Total,
    add_up,
    counts_of,
    read_totals,
    segments_of,
    write_totals,
)
from alerts.evidence.verdict import Counts, Evidence, Outcome, VerdictPolicy, judge, weigh
from alerts.labels import Labels, labels_of
from alerts.querier import Querier, Sample, SampleWriter
from observability import names

GROUP = "canary-evidence"
_FINAL = (Outcome.ROLLBACK, Outcome.ADVANCE)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A release with its evidence and counts at the time of the last look."""

    release: Release
    evidence: Evidence
    counts: Counts

    def to_json(self) -> dict[str, Any]:
        """The object that `/api/v1/evidence` shows."""
        return {
            **self.release.labels,
            "started_at": self.release.started_at,
            "ended_at": self.release.ended_at,
            "in_progress": self.release.ended_at is None,
            "verdict": self.release.verdict.value,
            "reason": self.release.reason,
            "decided_at": self.release.decided_at,
            "evidence": {"errors": {"harm": self.evidence.harm, "safety": self.evidence.safety}},
            "counts": {
                "canary": {"requests": self.counts.canary_requests, "errors": self.counts.canary_errors},
                "stable": {"requests": self.counts.stable_requests, "errors": self.counts.stable_errors},
            },
        }


class ReleaseJudge:
    """Judges the releases in progress; `look` is called from one thread."""

    def __init__(
        self,
        engine: sa.Engine,
        querier: Querier,
        writer: SampleWriter,
        policy_of: Callable[[str], VerdictPolicy],
    ) -> None:
        self._engine = engine
        self._querier = querier
        self._writer = writer
        self._policy_of = policy_of
        self._has_series = True

    def look(self, now: float) -> list[Judgement]:
        """Read, weigh, save and write. Raises QueryError or WriteError; nothing is concluded from missing data."""
        readings = _readings(self._querier.instant(names.RELEASE_REQUESTS.name, now))
        weights = _weights(self._querier.instant(names.TRAFFIC_WEIGHT.name, now))
        with self._engine.begin() as connection:
            judgements = self._update(connection, readings, weights, now)
        samples = [sample for judgement in judgements for sample in samples_of(judgement)]
        if samples or self._has_series:
            self._writer.replace(GROUP, samples, now)
            self._has_series = bool(samples)
        return judgements

    def judgements(self, limit: int = 100) -> list[Judgement]:
        """The releases known, newest first, from what was saved."""
        with self._engine.begin() as connection:
            releases = read_releases(connection, limit)
            return [
                self._weighed(release, read_totals(connection, release.model, release.release)) for release in releases
            ]

    def release_in_progress(self, model: str) -> str:
        """The id of the model's release in progress, "" when there is none."""
        with self._engine.begin() as connection:
            open_ones = [r for r in read_releases(connection) if r.model == model and r.ended_at is None]
        return open_ones[0].release if open_ones else ""

    def _update(
        self,
        connection: sa.Connection,
        readings: Mapping[Labels, Sequence[Reading]],
        weights: Sequence[Weight],
        now: float,
    ) -> list[Judgement]:
        known = {(release.model, release.release): release for release in read_releases(connection)}
        for labels in readings:
            named = dict(labels)
            known.setdefault((named["model"], named["release"]), _new(named, now))
        # A version may be released again under a new id: the old release comes back only if it is counted again.
        candidates = [
            release
            for key, release in known.items()
            if release.ended_at is None or _grew(read_totals(connection, *key), readings.get(_labels(release), ()))
        ]
        current = {(release.model, release.release) for release in in_progress(candidates, weights)}
        judgements = []
        for key, release in known.items():
            if key not in current:
                if release.ended_at is None:
                    write_release(connection, replace(release, ended_at=now))
                continue
            totals = add_up(read_totals(connection, *key), readings.get(_labels(release), ()))
            write_totals(connection, *key, totals)
            judgement = self._judged(replace(release, ended_at=None), totals, now)
            write_release(connection, judgement.release)
            judgements.append(judgement)
        return judgements

    def _judged(self, release: Release, totals: Sequence[Total], now: float) -> Judgement:
        weighed = self._weighed(release, totals)
        if release.verdict is Outcome.ROLLBACK:
            return weighed
        verdict = judge(weighed.evidence, weighed.counts, self._policy_of(release.model), now)
        if release.verdict in _FINAL and verdict.outcome is not Outcome.ROLLBACK:
            return weighed
        decided = release.decided_at if verdict.outcome is release.verdict else now
        updated = replace(release, verdict=verdict.outcome, reason=verdict.reason, decided_at=decided)
        return replace(weighed, release=updated)

    def _weighed(self, release: Release, totals: Sequence[Total]) -> Judgement:
        counts = counts_of(totals)
        policy = self._policy_of(release.model)
        return Judgement(release, weigh(segments_of(totals), counts, policy, release.started_at), counts)


def samples_of(judgement: Judgement) -> Iterable[Sample]:
    """The series of a judgement: evidence by hypothesis, requests by arm and outcome, one 1 among the verdicts."""
    labels, counts = judgement.release.labels, judgement.counts

    def sample(metric: names.Metric, value: float, **more: str) -> Sample:
        return Sample(labels_of({**labels, **more, "__name__": metric.name}), value)

    yield sample(names.CANARY_EVIDENCE, judgement.evidence.harm, check="errors", hypothesis="harm")
    yield sample(names.CANARY_EVIDENCE, judgement.evidence.safety, check="errors", hypothesis="safety")
    for arm, requests, errors in (
        (CANARY, counts.canary_requests, counts.canary_errors),
        ("stable", counts.stable_requests, counts.stable_errors),
    ):
        yield sample(names.CANARY_REQUESTS, requests - errors, arm=arm, outcome="ok")
        yield sample(names.CANARY_REQUESTS, errors, arm=arm, outcome=ERROR)
    for outcome in Outcome:
        yield sample(names.CANARY_VERDICT, float(outcome is judgement.release.verdict), verdict=outcome.value)


def _new(labels: Mapping[str, str], now: float) -> Release:
    return Release(
        model=labels["model"],
        release=labels["release"],
        candidate=labels["candidate"],
        baseline=labels["baseline"],
        started_at=now,
    )


def _labels(release: Release) -> Labels:
    return tuple(sorted(release.labels.items()))


def _grew(totals: Sequence[Total], readings: Sequence[Reading]) -> bool:
    """Whether a counter has moved since it was last read."""
    last = {total.series: total.last for total in totals}
    return any(reading.value != last.get(reading.series, reading.value) for reading in readings)


def _readings(vector: Sequence[Sample]) -> dict[Labels, list[Reading]]:
    readings: dict[Labels, list[Reading]] = {}
    for sample in vector:
        labels = dict(sample.labels)
        key = {name: labels.get(name, "") for name in ("model", "release", "candidate", "baseline")}
        try:
            propensity = float(labels.get("propensity", ""))
        except ValueError:
            continue  # not a series of ours: without a propensity it says nothing
        if not key["release"] or not 0.0 <= propensity <= 1.0:
            continue
        series = ",".join(f"{name}={value}" for name, value in sample.labels if name not in (*key, "__name__"))
        readings.setdefault(tuple(sorted(key.items())), []).append(
            Reading(series, labels.get("arm", ""), propensity, labels.get("outcome", ""), sample.value)
        )
    return readings


def _weights(vector: Sequence[Sample]) -> list[Weight]:
    weights = []
    for sample in vector:
        labels = dict(sample.labels)
        weights.append(Weight(labels.get("model", ""), labels.get("version", ""), labels.get("role", ""), sample.value))
    return weights
