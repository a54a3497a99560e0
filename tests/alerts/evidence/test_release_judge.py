"""The judge on the counters of a real server's page: latency, the split, sticky routing, restarts, and replays."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from alerts.evidence import Judgement, Outcome, Reason, ReleaseJudge, VerdictPolicy, replayed
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
    def make(**policy: Any) -> ReleaseJudge:
        return ReleaseJudge(database, metering, metering, lambda model: VerdictPolicy(**policy))

    return make


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
