"""What a release policy does with a version that it has promoted: a hold-back, a watch, a way back, and an end."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from alerts.actions import Action, ActionState, Proposal, decide
from alerts.actions.policy import ActionPolicy, Hold, Run
from alerts.evidence import Detector, Segment, VerdictPolicy
from alerts.evidence.histograms import Histogram
from alerts.evidence.totals import Reading
from alerts.releases import (
    Beside,
    Held,
    NotNow,
    Page,
    Phase,
    ReleasePolicy,
    Seen,
    Traffic,
    Walk,
    Watch,
    Watched,
    advance,
    asked,
    named,
    read_release_policies,
    simulate,
)
from alerts.releases.decisions import aborted, approved, paused, resumed
from alerts.releases.explain import explained
from alerts.releases.gauges import watch_samples
from alerts.releases.walk import wish

BOUNDS = (0.025, 0.05, 0.1, 0.25)
BEFORE = {"canary": 0, "stable": 2000}
PLAIN = VerdictPolicy()


def policy_of(after: str, more: str = "") -> ReleasePolicy:
    steps = "[{canary: {weight: 0.5, min_requests: 10}}]"
    text = f"models:\n  m:\n    blessing: none\n    steps: {steps}\n    after_promotion: {after}\n    {more}\n"
    return read_release_policies(text).policies["m"]


GUARDED = policy_of("{hold_back: 0.02, seconds: 60s, run_length: 1000s}")
ALONE = policy_of("{hold_back: 0, seconds: 60s, run_length: 1000s}")


def watched(second: int, failing: float, held: float = 0.0, *, slow: float = 0.0, since: bool = False) -> Watched:
    """Counters after so many seconds of 98 requests of the new version and 2 of the other, which answered before."""
    known = dict.fromkeys(BEFORE, 0) if since else BEFORE
    counts = (("canary", 98.0, failing, slow), ("stable", 2.0, held, 0.0))
    readings = [
        Reading(f"{arm},{outcome}", arm, 0.98, outcome, (second + known[arm]) * value)
        for arm, asked, bad, _ in counts
        for outcome, value in (("ok", asked - bad), ("error", bad))
    ]
    cumulative = {arm: (0.1 * n, 0.5 * n, (0.9 - late) * n, (1.0 - late) * n, n) for arm, n, _, late in counts}
    timed = [
        Histogram(arm, arm, 0.98, BOUNDS, tuple((second + known[arm]) * value for value in values))
        for arm, values in cumulative.items()
    ]  # fmt: skip
    return Watched(readings, timed)


class Story:
    """A promoted walk, looked at once a second, and saved and read in between as at a restart."""

    def __init__(self, policy: ReleasePolicy = GUARDED) -> None:
        self.now, self.seconds, self.hold_back, self.stable = 1000.0, 0, 0.0, 2
        self.generation, self.other = 5, ""
        self.history: list[dict[str, Any]] = []
        self.asks: list[tuple[str, str]] = []
        self.counted = watched(0, 0.0)
        self.walk = Walk(
            id=1, model="m", version=2, policy=policy, began_at=0.0, entered_at=0.0, release="m-1", share=0.5,
            phase=Phase.PROMOTING, baseline=1, generation=4, attempt=3,
        )  # fmt: skip

    @property
    def page(self) -> Page:
        return Page(
            generation=self.generation, stable=self.stable, hold_back=self.hold_back, release=self.other,
            history=tuple(self.history),
        )  # fmt: skip

    def seen(self) -> Seen:
        ask = wish(self.walk)
        done = None
        if ask is not None and (ask.action, ask.key) in self.asks:
            after = {"generation": self.generation}
            done = Action(
                id=1, key=ask.key, action=ask.action, model="m", state=ActionState.DONE, created_at=self.now,
                result={"after": after},
            )  # fmt: skip
        return Seen(now=self.now, page=self.page, watched=self.counted, action=done)

    def look(self, times: int = 1, failing: float = 0.5, *, slow: float = 0.0, counts: bool = True) -> Walk:
        for _ in range(times):
            self.now += 1.0
            if counts:
                self.seconds += 1
                self.counted = watched(self.seconds, failing, 0.01, slow=slow)
            self.walk = advance(self.walk, self.seen())
            assert Walk.from_json(json.loads(self.walk.dumped())) == self.walk
            self.do()
        return self.walk

    def do(self) -> None:
        ask = asked(self.walk, self.now)
        if ask is None or (ask.action, ask.key) in self.asks:
            return
        self.asks.append((ask.action, ask.key))
        self.generation += 1
        if ask.action == "step":
            assert ask.labels["traffic"] == "hold_back"
            self.hold_back = float(ask.labels["share"])
        elif ask.action == "rollback":
            self.stable, self.hold_back = 1, 0.0
            self.history.append({"event": "rollback", "release": "m-1", "actor": "trimtab", "generation": 9})


@pytest.mark.parametrize("policy", [GUARDED, ALONE])
def test_a_good_version_is_watched_for_its_time_and_then_nothing_is_held_back(policy: ReleasePolicy) -> None:
    story = Story(policy)
    story.look(4)
    assert story.walk.phase is Phase.GUARDING
    assert story.hold_back == (0.02 if policy is GUARDED else 0.0)
    told = " ".join(explained(story.walk, story.seen()))
    assert "ends the watch" in told
    assert "evidence" in told

    story.look(70)

    assert (story.walk.phase, story.stable, story.hold_back) == (Phase.PROMOTED, 2, 0.0)
    assert "1m are over" in story.walk.reason


@pytest.mark.parametrize("policy", [GUARDED, ALONE])
@pytest.mark.parametrize("how", ["fails", "slow"])
def test_a_version_that_turns_bad_goes_back_by_an_ordinary_rollback(policy: ReleasePolicy, how: str) -> None:
    story = Story(policy)
    story.look(20)
    fails = how == "fails"
    base = story.seconds
    for second in range(1, 40):
        story.seconds = base + second
        story.counted = _turned(base, second, fails=fails)
        story.look(counts=False)
        if story.walk.ended:
            break

    assert (story.walk.phase, story.stable, story.hold_back) == (Phase.ROLLED_BACK, 1, 0.0)
    assert story.asks[-1] == ("rollback", "rollback:m:m-1")
    assert "after its promotion" in story.walk.reason
    assert ("failed" if fails else "take over") in story.walk.reason


def _turned(base: int, second: int, *, fails: bool) -> Watched:
    """Counters that grow as before for `base` seconds, and then badly."""
    before = watched(base, 0.5, 0.01)
    more = watched(second, 60.0 if fails else 0.5, 0.01, slow=0.0 if fails else 0.6, since=True)
    return Watched(
        [replace(a, value=a.value + b.value) for a, b in zip(before.readings, more.readings, strict=True)],
        [
            replace(a, cumulative=tuple(x + y for x, y in zip(a.cumulative, b.cumulative, strict=True)))
            for a, b in zip(before.histograms, more.histograms, strict=True)
        ],
    )  # fmt: skip


def test_the_evidence_of_a_watch_is_a_metric_of_which_100_is_an_alarm() -> None:
    story = Story(ALONE)
    story.look(5)
    (calm,) = watch_samples([story.walk])
    story.counted = _turned(story.seconds, 1, fails=True)
    for second in range(1, 5):
        story.counted = _turned(story.seconds, second, fails=True)
        before = story.walk
        story.look(counts=False)
    assert dict(calm.labels) | {"check": "after_promotion", "hypothesis": "harm"} == dict(calm.labels)
    assert 0.0 <= calm.value < 10.0
    assert story.walk.watch is not None
    alarmed = watch_samples([story.walk])[0].value >= 100.0
    assert alarmed == (story.walk.phase is not Phase.GUARDING)
    assert before.watch is not None
    assert watch_samples([replace(before, promoted_at=None)]) == []


def test_people_end_the_watch_pause_it_or_take_the_version_back_and_what_they_do_at_serving_stands() -> None:
    ended = Story()
    ended.look(5)
    ended.walk = approved(ended.walk, ended.seen(), "ada")
    assert ended.look(3).phase is Phase.PROMOTED
    assert ended.hold_back == 0.0
    assert "ada ended the watch" in ended.walk.reason

    held = Story()
    held.look(5)
    held.walk = paused(held.walk, "ada")
    assert held.look(80).phase is Phase.GUARDING
    held.walk = resumed(held.walk, held.seen(), "ada")
    assert held.look(3).phase is Phase.PROMOTED

    back = Story()
    back.look(5)
    back.walk = aborted(back.walk, back.seen(), "ada")
    assert (back.look(2).phase, back.stable) == (Phase.ROLLED_BACK, 1)

    other = Story()
    other.look(5)
    other.generation, other.other, other.hold_back = 20, "m-2", 0.0
    assert other.look().phase is Phase.PROMOTED
    assert "m-2 has begun" in other.walk.reason

    undone = Story()
    undone.look(5)
    undone.generation, undone.stable, undone.hold_back = 20, 1, 0.0
    undone.history.append({"event": "rollback", "release": "m-1", "actor": "bob", "generation": 20})
    assert undone.look().phase is Phase.ROLLED_BACK
    assert "bob" in undone.walk.reason


def test_harm_after_the_promotion_is_only_held_where_the_policy_says_so() -> None:
    story = Story(policy_of("{hold_back: 0, seconds: 60s, run_length: 1000s}", "on_failure: hold"))
    story.look(5)
    story.counted = _turned(story.seconds, 20, fails=True)
    for second in range(1, 20):
        story.counted = _turned(story.seconds, second, fails=True)
        story.look(counts=False)
    assert (story.walk.phase, story.walk.held, story.stable) == (Phase.HELD, Held.HARM, 2)
    with pytest.raises(NotNow):
        approved(story.walk, story.seen(), "ada")


@pytest.mark.parametrize("beside", [Beside.HOLD_BACK, Beside.USUAL])
def test_what_the_counters_held_before_and_a_look_without_requests_are_not_the_watchs(beside: Beside) -> None:
    watch = Watch(beside=beside).after(watched(1000, 50.0), PLAIN)
    assert watch.counts.canary_requests == 0.0
    once = watch.after(watched(1001, 50.0), PLAIN)
    assert once.counts.canary_requests == 98.0
    assert once.after(watched(1001, 50.0), PLAIN) == once
    assert once.after(Watched(), PLAIN) == once
    assert Watch.from_json(json.loads(json.dumps(once.to_json()))) == once


def test_a_hold_back_that_does_not_get_its_share_is_no_evidence() -> None:
    watch = Watch(beside=Beside.HOLD_BACK).after(watched(0, 0.0), PLAIN)
    for second in range(1, 200):
        counted = watched(second, 60.0)
        only = [one for one in counted.readings if one.arm == "canary"]
        watch = watch.after(Watched(only, counted.histograms), PLAIN)
    assert watch.errors.log_evidence > math.log(1000.0)
    assert watch.log_evidence(PLAIN) == 0.0


def test_the_mean_time_to_a_false_alarm_is_what_was_asked_for() -> None:
    rng, runs, most, wanted = np.random.default_rng(11), 10, 300, 100.0
    lengths = {"beside": [], "alone": []}  # type: dict[str, list[int]]
    for _ in range(runs):
        states = {"beside": Detector(), "alone": Detector()}
        ends: dict[str, int] = {}
        for look in range(1, most + 1):
            canary, other = int(rng.binomial(98, 0.05)), int(rng.binomial(10, 0.05))
            states["beside"] = states["beside"].beside([Segment(98 / 108, canary, canary + other)])
            states["alone"] = states["alone"].alone(98, canary, 0.05)
            for name, state in states.items():
                if state.log_evidence >= math.log(wanted):
                    ends.setdefault(name, look)
            if len(ends) == 2:
                break
        for name, found in lengths.items():
            found.append(ends.get(name, most))
    # What is cut off at the end makes the means smaller than they are.
    assert min(np.mean(found) for found in lengths.values()) >= wanted, lengths


def test_a_promoted_release_is_taken_back_by_its_policy_and_not_by_a_late_alert() -> None:
    history = [Action(
        id=1, key="promote:m:m-1", action="promote", model="m", release="m-1", state=ActionState.DONE, created_at=1.0,
        completed_at=2.0,
    )]  # fmt: skip
    late = Proposal(action="rollback", model="m", release="m-1")
    assert isinstance(decide(late, history, ActionPolicy(), 10.0), Hold)
    for action in ("rollback", "step"):
        assert isinstance(decide(replace(late, action=action, planned=True), history, ActionPolicy(), 10.0), Run)
    person = [replace(history[0], actor="ada", decided_at=5.0)]
    assert isinstance(decide(replace(late, planned=True), person, ActionPolicy(), 10.0), Hold)


def test_a_simulation_goes_beyond_the_promotion() -> None:
    policy = read_release_policies("""
models:
  m:
    blessing: none
    verdict: {max_error_rate: 0.1}
    steps: [{canary: {weight: 0.5}}]
    after_promotion: {hold_back: 0.1, seconds: 40s, run_length: 1000s}
""").policies["m"]
    common: dict[str, Any] = {"requests_per_second": 100.0, "stable_error_ratio": 0.001, "error_ratio": 0.001}
    good = simulate(policy, Traffic(**common))
    bad = simulate(policy, Traffic(**common, later_error_ratio=0.5, later_seconds=10.0))

    assert (good.walk.phase, bad.walk.phase) == (Phase.PROMOTED, Phase.ROLLED_BACK)
    assert [event.weight for event in good.events][-3:] == [0.9, 1.0, 1.0]
    assert bad.events[-1].weight == 0.0
    assert named(policy.steps[0]).startswith("canary")


@pytest.mark.parametrize(
    ("after", "traffic", "why"),
    [
        (None, {"error_ratio": 0.001}, "has no `after_promotion`"),
        ("{seconds: 20s, run_length: 1000s}", {"error_ratio": 0.5}, "was not promoted"),
        ("{seconds: 20s, run_length: 1000s}", {"error_ratio": 0.001}, "was over"),
        ("{seconds: 40s, run_length: 1000s, hold_back: 0}", {"error_ratio": 0.001, "later_seconds": 5.0}, ""),
    ],
)
def test_a_simulation_says_why_what_was_to_happen_later_did_not(
    after: str | None, traffic: dict[str, float], why: str
) -> None:
    body = "models: {m: {blessing: none, verdict: {max_error_rate: 0.1}, steps: [{canary: {weight: 0.5}}]%s}}"
    policy = read_release_policies(body % (f", after_promotion: {after}" if after else "")).policies["m"]
    later: dict[str, Any] = {"stable_error_ratio": 0.001, "later_error_ratio": 0.5, "later_seconds": 60.0, **traffic}

    found = simulate(policy, Traffic(**later))

    told = [line for line in found.explanation if "was not simulated" in line]
    assert [why in line for line in told] == ([True] if why else [])
    assert found.walk.phase is (Phase.PROMOTED if "promoted" not in why and why else Phase.ROLLED_BACK)


@pytest.mark.parametrize(("worse", "ends"), [({}, Phase.PROMOTED), ({"latency_factor": 2.0}, Phase.ROLLED_BACK)])
def test_a_switch_and_an_experiment_are_judged_by_latency_too(worse: dict[str, float], ends: Phase) -> None:
    text = "models: {m: {blessing: none, verdict: {max_error_rate: 0.1}, steps: [%s]}}"
    for step, end in (
        ("{switch: {min_requests: 500, min_seconds: 20s, deadline_seconds: 10m}}", ends),
        ("{experiment: {weight: 0.5, seconds: 25s}}", Phase.COMPARED if ends is Phase.PROMOTED else ends),
    ):
        found = simulate(read_release_policies(text % step).policies["m"], Traffic(**worse, error_ratio=0.001))
        assert found.walk.phase is end, found.walk.reason
        if worse:
            assert "take over" in found.walk.reason


@pytest.mark.parametrize(
    ("traffic", "why"),
    [
        ({"requests_per_second": math.inf}, "from 0 to 100000"),
        ({"requests_per_second": math.nan}, "from 0 to 100000"),
        ({"latency_factor": math.inf}, "finite"),
        ({"later_latency_factor": 0.0}, "above 0"),
    ],
)
def test_traffic_that_cannot_be_simulated_is_refused(traffic: dict[str, float], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Traffic(**traffic)
