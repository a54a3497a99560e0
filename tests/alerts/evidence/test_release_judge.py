"""The judge on the counters of a real server's page: latency, the split, sticky routing, restarts, and replays."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from alerts.evidence import (
    FeedAway,
    FeedPage,
    FeedRow,
    Judgement,
    LabelFeed,
    Outcome,
    Reason,
    ReleaseJudge,
    VerdictPolicy,
    replayed,
)
from observability import names
from observability.metrics import Metrics

RELEASE = ("m", "m-1", "2", "1")


class Server:
    """A server's series: requests of a release with their durations, by arm."""

    def __init__(self, metering: Any, clock: Any) -> None:
        self.metering, self.clock = metering, clock
        self.metrics = Metrics()
        self.rng = np.random.default_rng(1)
        self.weight = 0.1

    def restart(self) -> None:
        self.metrics = Metrics()

    def second(self, *, slower: float = 1.0, lost: float = 0.0, sticky: bool = False, rps: int = 100) -> float:
        metrics = self.metrics
        for arm, share, factor in (("canary", self.weight, slower), ("stable", 1 - self.weight, 1.0)):
            asked = int(self.rng.poisson(rps * share * (1 - lost if arm == "canary" else 1.0)))
            metrics[names.RELEASE_REQUESTS].labels(*RELEASE, arm, "0.1", "ok").inc(asked)
            duration = metrics[names.RELEASE_DURATION].labels(*RELEASE, arm, "0.1")
            for seconds in self.rng.lognormal(np.log(0.05 * factor), 0.5, asked).tolist():
                duration.observe(seconds)
        metrics[names.TRAFFIC_STICKY].labels("m").set(sticky)
        metrics[names.TRAFFIC_WEIGHT].labels("m", "2", "canary").set(self.weight)
        now = self.clock.advance(1.0)
        self.metering.scrape(now, dict(_series(metrics)))
        return float(now)


def _series(metrics: Metrics) -> Sequence[tuple[str, float]]:
    return [
        (sample.name + "{" + ",".join(f'{k}="{v}"' for k, v in sample.labels.items()) + "}", sample.value)
        for family in metrics.registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]


@pytest.fixture
def make_judge(database: sa.Engine, metering: Any) -> Callable[..., ReleaseJudge]:
    def make(labels: LabelFeed | None = None, **policy: Any) -> ReleaseJudge:
        return ReleaseJudge(database, metering, metering, lambda model: VerdictPolicy(**policy), labels)

    return make


class Feed:
    """A collector's feed of a release with one half of its labels the canary's, which is wrong with `wrong`."""

    def __init__(self, wrong: float, page: int) -> None:
        rng = np.random.default_rng(7)
        versions = rng.choice(["1", "2"], 4000)
        misses = rng.random(4000) < np.where(versions == "2", wrong, 0.1)
        self.rows = [
            FeedRow(2 * n, version, "?", 0.5, float(miss), 0.0, None)
            for n, (version, miss) in enumerate(zip(versions.tolist(), misses.tolist(), strict=True), start=1)
        ]
        self.page, self.come, self.asked = page, 0, 0

    def read(self, model: str, feed: str, after: int) -> FeedPage:
        assert (model, feed) == ("m", "m-1")
        self.asked += 1
        if self.asked % 5 == 0:
            raise FeedAway("no answer")
        known = self.rows[: self.come]
        return FeedPage([row for row in known if row.number > after][: self.page], known[-1].number if known else 0)

    def close(self) -> None:
        pass


def test_worse_predictions_are_found_by_late_labels_alone_and_counted_once_over_restarts(
    make_judge: Callable[..., ReleaseJudge], metering: Any, clock: Any
) -> None:
    server, feed = Server(metering, clock), Feed(wrong=0.2, page=90)
    judge = make_judge(feed, loss="zero-one")
    for second in range(60):
        feed.come = max(second - 5, 0) * 80
        if second % 4 == 0:
            judge = make_judge(feed, loss="zero-one")
        found = only(judge.look(server.second()))
        quality = found.state.quality
        read = 0 if quality is None else quality.candidate.labels + quality.stable.labels
        assert quality is None or quality.read == 2 * read
        verdict = replayed(json.loads(json.dumps(found.to_json()))["replay"], clock.now)
        if found.release.verdict is Outcome.ROLLBACK:
            break

    assert (found.because, verdict.outcome, verdict.reason) == ("quality", Outcome.ROLLBACK, found.release.reason)
    assert 200 < read < 3000
    assert metering.value('canary_evidence{check="quality",hypothesis="harm"}', clock.now) >= 90
    assert "the mean zero-one loss of the candidate is 0." in found.to_json()["told"][0]


def test_labels_of_an_equal_version_are_no_evidence_and_those_that_do_not_fit_are_told(
    make_judge: Callable[..., ReleaseJudge], metering: Any, clock: Any
) -> None:
    server, feed = Server(metering, clock), Feed(wrong=0.1, page=4000)
    feed.rows[7] = FeedRow(16, "2", "?", 0.5, 7.0, 0.0, None)
    feed.come = 4000
    found = only(make_judge(feed, loss="brier").look(server.second()))

    assert found.state.quality is not None
    assert found.state.quality.log_harm < 2.0
    assert found.state.quality.unfit == 1
    assert "says nothing of 1 further" in found.to_json()["told"][0]
    assert found.release.verdict is Outcome.CONTINUE


@pytest.mark.parametrize("moved", [False, True])
def test_a_shift_of_predictions_is_evidence_but_no_harm(
    moved: bool, make_judge: Callable[..., ReleaseJudge], metering: Any, clock: Any
) -> None:
    server, judge = Server(metering, clock), make_judge()
    for second in range(12):
        if second in (4, 8):
            judge = make_judge()
        if second == 6:
            server.restart()  # the collector's page goes on where it was
        for arm, share in (("canary", 0.1), ("stable", 0.9)):
            at = server.rng.random(int(400 * share)) ** (3.0 if moved and arm == "canary" else 1.0)
            for place, count in enumerate(np.histogram(at, 12, (0.0, 1.0))[0].tolist()):
                server.metrics[names.RELEASE_PREDICTIONS].labels(*RELEASE, arm, "0.1", str(place)).inc(count)
        found = only(judge.look(server.second()))
        verdict = replayed(found.to_json()["replay"], clock.now)

    shift = metering.value('canary_evidence{check="prediction",hypothesis="shift"}', clock.now)
    assert (shift > 100.0) is moved
    assert sum(sum(part.canary) for part in found.state.predicted) == 12 * 40
    assert (verdict.outcome, found.release.verdict) == (Outcome.CONTINUE, Outcome.CONTINUE)
    assert (found.to_json()["evidence"]["prediction"]["total_variation"] > 0.3) is moved


def only(judgements: Sequence[Judgement]) -> Judgement:
    (judgement,) = judgements
    return judgement


def test_a_slower_canary_is_found_through_the_histogram_over_a_restart_of_server_and_judge(
    make_judge: Callable[..., ReleaseJudge], metering: Any, clock: Any
) -> None:
    server, judge, seen = Server(metering, clock), make_judge(), []
    for second in range(120):
        if second == 5:
            server.restart()
            judge = make_judge()
        found = only(judge.look(server.second(slower=1.6)))
        seen.append(found.release.verdict)
        if found.release.verdict is Outcome.ROLLBACK:
            break

    assert found.because == Reason.LATENCY.value
    assert "more of its answers take over" in found.release.reason
    assert len(seen) <= 60
    assert metering.value('canary_evidence{check="latency",hypothesis="harm"}', clock.now) >= 10
    assert found.counts.canary_requests == pytest.approx(10 * len(seen), rel=0.5)


def test_the_journalled_replay_makes_the_same_verdict(
    make_judge: Callable[..., ReleaseJudge], metering: Any, clock: Any
) -> None:
    server, judge = Server(metering, clock), make_judge()
    for _ in range(30):
        found = only(judge.look(server.second()))
        body = json.loads(json.dumps(found.to_json()))
        verdict = replayed(body["replay"], clock.now)
        assert (verdict.outcome.value, verdict.because.value, verdict.reason) == (
            body["verdict"],
            body["because"],
            body["reason"],
        )
    assert only(judge.judgements()).to_json() == found.to_json()
    assert body["counts"]["canary"]["error_rate"]["low"] == 0.0


def test_two_judges_on_one_database_go_on_from_each_others_states(
    make_judge: Callable[..., ReleaseJudge], metering: Any, clock: Any
) -> None:
    server, judges = Server(metering, clock), [make_judge(), make_judge()]
    server.second()  # what stands there at the first look counts from 0
    for second in range(12):
        found = only(judges[second // 3 % 2].look(server.second()))

    total = sum(value for name, value in _series(server.metrics) if name.startswith(names.RELEASE_REQUESTS.name))
    assert found.counts.canary_requests + found.counts.stable_requests == total
    assert found.state == only(make_judge().judgements()).state


def test_requests_that_get_lost_void_the_release_until_the_split_is_right(
    make_judge: Callable[..., ReleaseJudge], metering: Any, clock: Any
) -> None:
    server, judge = Server(metering, clock), make_judge()
    for _ in range(30):
        found = only(judge.look(server.second(lost=0.7)))

    assert (found.release.verdict, found.because) == (Outcome.INCONCLUSIVE, Reason.SAMPLE_RATIO.value)
    assert found.to_json()["evidence"]["sample_ratio"]["voided"] is True
    assert metering.value('canary_evidence{check="sample_ratio",hypothesis="mismatch"}', clock.now) >= 1000
    for hypothesis in ("harm", "safety"):
        assert metering.value(f'canary_evidence{{check="errors",hypothesis="{hypothesis}"}}', clock.now) <= 1


def test_where_units_keep_their_arm_requests_say_nothing_on_the_split(
    make_judge: Callable[..., ReleaseJudge], metering: Any, clock: Any
) -> None:
    server, judge = Server(metering, clock), make_judge()
    for _ in range(30):
        found = only(judge.look(server.second(lost=0.7, sticky=True)))

    assert found.because != Reason.SAMPLE_RATIO.value


def test_where_units_keep_their_arm_their_first_requests_are_timed_and_tell_of_the_split(
    make_judge: Callable[..., ReleaseJudge], metering: Any, clock: Any
) -> None:
    server, judge = Server(metering, clock), make_judge()
    for _ in range(20):  # a server that counts no units has timed all of their requests: they are no evidence
        assert "latency" not in only(judge.look(server.second(slower=3.0, sticky=True))).evidence.log_harm
    for _ in range(20):
        for arm, units in (("canary", 2), ("stable", 98)):
            server.metrics[names.RELEASE_UNITS].labels(*RELEASE, arm, "0.1").inc(units)
        found = only(judge.look(server.second(slower=3.0, sticky=True)))

    assert found.evidence.log_harm["latency"] > 5
    assert found.state.units[0].canary_requests == 40
    assert found.because == Reason.SAMPLE_RATIO.value  # a unit in 50, not in 10


def test_with_sticky_routing_a_users_failures_count_once(
    make_judge: Callable[..., ReleaseJudge], metering: Any, clock: Any
) -> None:
    server, judge = Server(metering, clock), make_judge()
    for second in range(40):
        for arm in ("canary", "stable"):  # one user of each arm fails with all of its requests, the canary's more often
            failures = 5 if arm == "canary" else 1
            server.metrics[names.RELEASE_REQUESTS].labels(*RELEASE, arm, "0.1", "error").inc(failures)
            if not second:
                server.metrics[names.RELEASE_FAILED_UNITS].labels(*RELEASE, arm, "0.1").inc()
        found = only(judge.look(server.second(sticky=True)))

    assert found.counts.canary_errors == 200
    assert found.evidence.harm < 10
    assert found.release.verdict is Outcome.CONTINUE


def test_over_releases_each_next_one_needs_more(
    make_judge: Callable[..., ReleaseJudge], database: sa.Engine, metering: Any, clock: Any
) -> None:
    judge = make_judge(over_releases=True)
    for number in (1, 2, 3):
        labels = f'model="m",release="m-{number}",candidate="{number + 1}",baseline="1",arm="canary",propensity="0.1"'
        metering.scrape(
            clock.advance(1.0),
            {
                f'release_requests_total{{{labels},outcome="ok"}}': 1.0,
                f'traffic_weight_ratio{{model="m",version="{number + 1}",role="canary"}}': 0.1,
            },
        )
        found = only(judge.look(clock.now))
        assert found.alpha == pytest.approx(0.01 / (number * (number + 1)))
