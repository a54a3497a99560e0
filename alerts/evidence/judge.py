"""The judge of releases: reads their counters each second, weighs the evidence, writes it back as metrics.

An e-process is never restarted within a release: totals, state and verdicts are saved, and a proved verdict stays. A
new release id starts anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import sqlalchemy as sa

from alerts.evidence.counters import QUERIES, Counted
from alerts.evidence.histograms import Cumulative
from alerts.evidence.histograms import grown as slower
from alerts.evidence.judgement import Judgement, samples_of
from alerts.evidence.label_feed import FeedAway, FeedPage, LabelFeed, NoLabels
from alerts.evidence.releases import (
    Release,
    in_progress,
    order,
    read_releases,
    read_state,
    write_release,
    write_state,
)
from alerts.evidence.state import Look, ReleaseState
from alerts.evidence.totals import (
    Reading,
    Total,
    add_up,
    first_failures,
    first_requests,
    grown,
    predicted,
    read_totals,
    write_totals,
)
from alerts.evidence.verdict import (
    Outcome,
    Reason,
    VerdictPolicy,
    judge,
)
from alerts.labels import Labels
from alerts.querier import Querier, QueryError, Sample, SampleWriter

log = logging.getLogger(__name__)

GROUP = "canary-evidence"
_FINAL = (Outcome.ROLLBACK, Outcome.ADVANCE)


class ReleaseJudge:
    """Judges the releases in progress; `look` is called from one thread."""

    def __init__(
        self,
        engine: sa.Engine,
        querier: Querier,
        writer: SampleWriter,
        policy_of: Callable[[str], VerdictPolicy],
        labels: LabelFeed | None = None,
    ) -> None:
        self._labels: LabelFeed = labels or NoLabels()
        self._engine = engine
        self._querier = querier
        self._writer = writer
        self._policy_of = policy_of
        self._has_series = True
        # The states of releases in progress as they were last read or written, beside their text.
        self._states: dict[tuple[str, str], tuple[str, ReleaseState]] = {}

    def look(self, now: float) -> list[Judgement]:
        """Read, weigh, save and write. Raises QueryError or WriteError; nothing is concluded from missing data."""
        counted = Counted.of([_or_raise(answer) for answer in self._querier.instants(QUERIES, now)])
        counted = replace(counted, labels=self._labels_since(counted))
        with self._engine.begin() as connection:
            judgements = self._update(connection, counted, now)
        samples = [sample for judgement in judgements for sample in samples_of(judgement)]
        if samples or self._has_series:
            self._writer.replace(GROUP, samples, now)
            self._has_series = bool(samples)
        return judgements

    def judgements(self, limit: int = 100) -> list[Judgement]:
        """The releases known, newest first, from what was saved."""
        with self._engine.begin() as connection:
            everything = read_releases(connection)
            found = []
            for release in everything[:limit]:
                state, _, because = self._state(connection, release)
                found.append(self._weighed(release, state, everything, because))
            return found

    def release_in_progress(self, model: str) -> str:
        """The id of the model's release in progress, "" when there is none."""
        with self._engine.begin() as connection:
            open_ones = [r for r in read_releases(connection) if r.model == model and r.ended_at is None]
        return open_ones[0].release if open_ones else ""

    def _labels_since(self, counted: Counted) -> dict[tuple[str, str], FeedPage]:
        """The labels that came since the last look, of releases whose policy judges them; without any where they cannot
        be had: they come at the next look."""
        with self._engine.begin() as connection:
            ended = {(r.model, r.release) for r in read_releases(connection) if r.ended_at is not None}
            wanted = {}
            for key in ((dict(labels)["model"], dict(labels)["release"]) for labels in counted.readings):
                if key not in ended and self._policy_of(key[0]).loss:
                    saved = read_state(connection, *key)
                    quality = self._parsed(key, saved[0]).quality if saved else None
                    wanted[key] = 0 if quality is None else quality.read
        found = {}
        for key, read in wanted.items():
            try:
                found[key] = self._labels.read(*key, read)
            except FeedAway as error:
                log.debug("labels of release %s of %s: %s", key[1], key[0], error)
        return found

    def _update(self, connection: sa.Connection, counted: Counted, now: float) -> list[Judgement]:
        known = {(release.model, release.release): release for release in read_releases(connection)}
        for labels in counted.readings:
            named = dict(labels)
            known.setdefault((named["model"], named["release"]), _new(named, now))
        # A version may be released again under a new id: the old release comes back only if it is counted again.
        candidates = [
            release
            for key, release in known.items()
            if release.ended_at is None
            or _grew(read_totals(connection, *key), counted.readings.get(_labels(release), ()))
        ]
        current = {(release.model, release.release) for release in in_progress(candidates, counted.weights)}
        judgements = []
        for key, release in known.items():
            if key in current:
                judgement = self._looked_at(connection, release, counted, list(known.values()), now)
                write_release(connection, judgement.release)
                judgements.append(judgement)
            elif release.ended_at is None:
                write_release(connection, replace(release, ended_at=now))
        self._states = {key: known for key, known in self._states.items() if key in current}
        return judgements

    def _looked_at(
        self, connection: sa.Connection, release: Release, counted: Counted, everything: Sequence[Release], now: float
    ) -> Judgement:
        key, labels = (release.model, release.release), _labels(release)
        state, last, because = self._state(connection, release)
        before = read_totals(connection, *key)
        totals = add_up(before, counted.readings.get(labels, ()))
        bounds, slow, last = slower(counted.histograms.get(labels, ()), last)
        sticky = release.model in counted.sticky
        units = first_requests(before, totals) if sticky else None
        if sticky and units is None:
            slow = ()  # a server that does not count units has timed every request of theirs
        if state.bounds and bounds != state.bounds:
            slow = ()  # a server with other bounds has come: latency goes on with what is there, the rest as ever
        look = Look(
            at=now, arms=grown(before, totals), bounds=bounds if slow else (), slow=slow, sticky=sticky,
            first_failures=first_failures(before, totals) if sticky else None, units=units or (),
            predicted=predicted(before, totals),
            labelled=counted.labels.get(key, FeedPage()).labelled(release.candidate),
        )  # fmt: skip
        state = state.after(look, self._policy_of(release.model))
        write_totals(connection, *key, totals)
        judged = self._judged(self._weighed(replace(release, ended_at=None), state, everything, because), now)
        text = state.to_json()
        write_state(connection, *key, text, last, judged.because)
        self._states[key] = text, state
        return judged

    def _state(self, connection: sa.Connection, release: Release) -> tuple[ReleaseState, dict[str, Cumulative], str]:
        """The saved state, the histograms as they last read, and the verdict's reason in one word."""
        saved = read_state(connection, release.model, release.release)
        if saved is not None:
            return self._parsed((release.model, release.release), saved[0]).continued(), saved[1], saved[2]
        totals = read_totals(connection, release.model, release.release)
        begun = ReleaseState(started_at=release.started_at)
        if not totals:
            return begun, {}, ""
        # Written before states were: the totals are all that there is.
        policy = replace(self._policy_of(release.model), warm_up_seconds=0.0)
        return begun.after(Look(at=release.started_at, arms=grown((), totals)), policy), {}, ""

    def _parsed(self, key: tuple[str, str], text: str) -> ReleaseState:
        """The state of a text, which another process may have written; known without parsing where it is the last."""
        known = self._states.get(key)
        return known[1] if known is not None and known[0] == text else ReleaseState.from_json(text)

    def _judged(self, weighed: Judgement, now: float) -> Judgement:
        release = weighed.release
        if release.verdict is Outcome.ROLLBACK:
            return weighed
        verdict = judge(weighed.evidence, weighed.counts, weighed.policy, now, weighed.alpha)
        overrides = verdict.outcome is Outcome.ROLLBACK or verdict.because is Reason.SAMPLE_RATIO
        if release.verdict in _FINAL and not overrides:
            return weighed
        decided = release.decided_at if verdict.outcome is release.verdict else now
        updated = replace(release, verdict=verdict.outcome, reason=verdict.reason, decided_at=decided)
        return replace(weighed, release=updated, because=verdict.because.value)

    def _weighed(self, release: Release, state: ReleaseState, everything: Sequence[Release], because: str) -> Judgement:
        policy = self._policy_of(release.model)
        earlier = [r for r in everything if r.model == release.model and order(r) < order(release)]
        rollbacks = sum(r.verdict is Outcome.ROLLBACK for r in earlier)
        alpha = policy.level(len(earlier) + 1, rollbacks)
        return Judgement(release, state.evidence(policy), state, policy, alpha, because)


def _or_raise(answer: Sequence[Sample] | QueryError) -> Sequence[Sample]:
    if isinstance(answer, QueryError):
        raise answer
    return answer


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
