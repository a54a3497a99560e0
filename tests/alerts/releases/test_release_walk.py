"""The walk of a release: what lets it go on, what stops it, and that nothing but evidence raises a weight."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alerts.actions import Action, ActionState
from alerts.evidence import Outcome
from alerts.releases import (
    Blessing,
    CanaryStep,
    Finding,
    Held,
    HoldStep,
    Judged,
    Known,
    NotNow,
    Page,
    Phase,
    ReleasePolicy,
    Seen,
    Walk,
    advance,
    asked,
    needs,
    read_release_policies,
)
from alerts.releases.decisions import Deed, aborted, approved, decided, paused, resumed
from alerts.releases.walk import ENDED, wish

STABLE, NEW = 1, 2
BLESSED = Blessing({"loads": Finding(Known.PASSED, "loaded")}, ("loads",))


def policy_of(steps: str, more: str = "") -> ReleasePolicy:
    return read_release_policies(f"models:\n  m:\n    steps: [{steps}]\n    {more}\n").policies["m"]


LADDER = policy_of(
    "{canary: {weight: 0.05, min_requests: 50, min_e_value: 10, deadline_seconds: 600}},"
    "{hold: manual},"
    "{canary: {weight: 0.5, min_requests: 100, min_seconds: 30, deadline_seconds: 600, on_deadline: advance}}"
)


class Serving:
    """What the act path and serving do with what a walk asks, and what the judge would say."""

    def __init__(self) -> None:
        self.generation, self.stable, self.weight = 1, STABLE, 0.0
        self.release, self.shadow, self.experiment = "", 0.0, 0.0
        self.history: list[dict[str, Any]] = []
        self.actions: dict[str, Action] = {}
        self.fails: set[str] = set()
        self.away = False
        self.raised: list[float] = []

    @property
    def page(self) -> Page | None:
        arms = {NEW: self.weight} if self.weight else {NEW: self.experiment} if self.experiment else {}
        return None if self.away else Page(
            generation=self.generation, stable=self.stable, release=self.release if arms else "", arms=arms,
            shadows={NEW: self.shadow} if self.shadow else {}, history=tuple(self.history),
        )  # fmt: skip

    def do(self, walk: Walk, now: float) -> None:
        ask = asked(walk, now)
        if ask is None or ask.key in self.actions or self.away:
            return
        state, result = ActionState.DONE, dict[str, Any]()
        if ask.action in self.fails:
            state, result = ActionState.FAILED, {"error": "no"}
        else:
            self.generation += 1
            if ask.action in ("promote", "rollback"):
                self.end(ask.action)
            else:
                share, kind = float(ask.labels["share"]), ask.labels["traffic"]
                if kind == "shadow":
                    self.shadow = share
                else:
                    self.release = self.release or "m-1"
                    if kind == "canary":
                        self.raised += [share] if share > self.weight else []
                        self.weight = share
                    elif kind == "experiment":
                        self.experiment = share
                    else:
                        self.stable = NEW
            result = {"after": {"generation": self.generation, "release": self.release}}
        self.actions[ask.key] = Action(
            id=len(self.actions) + 1, key=ask.key, action=ask.action, model="m", state=state, created_at=now,
            result=result,
        )  # fmt: skip

    def end(self, event: str, actor: str = "trimtab") -> None:
        self.generation += 1
        self.stable = NEW if event == "promote" else STABLE
        self.weight = self.experiment = 0.0
        line = {"generation": self.generation, "event": event, "release": self.release, "actor": actor}
        self.history.append(line)

    def seen(self, walk: Walk, now: float, judged: Judged | None = None, **more: Any) -> Seen:
        ask = wish(walk)
        action = None if ask is None else self.actions.get(ask.key)
        return Seen(now=now, page=self.page, judged=judged, action=action, **{"blessing": BLESSED, **more})


class Story:
    """A walk with its serving, looked at once a second."""

    def __init__(self, policy: ReleasePolicy) -> None:
        self.serving, self.now = Serving(), 1000.0
        self.walk = Walk(id=1, model="m", version=NEW, policy=policy, began_at=self.now, entered_at=self.now)

    def look(self, judged: Judged | None = None, seconds: float = 1.0, times: int = 1) -> Walk:
        for _ in range(times):
            self.now += seconds
            self.walk = advance(self.walk, self.serving.seen(self.walk, self.now, judged))
            self.walk = Walk.from_json(json.loads(self.walk.dumped()))  # as after a restart
            self.serving.do(self.walk, self.now)
        return self.walk

    def watching(self, judged: Judged | None = None) -> Story:
        for _ in range(10):
            if self.walk.phase is Phase.WATCHING:
                return self
            self.look(judged)
        raise AssertionError(self.walk)


def judged(requests: float, outcome: Outcome = Outcome.CONTINUE, **more: Any) -> Judged:
    return Judged(outcome=outcome, requests=requests, **more)


def test_a_release_walks_up_with_evidence_and_a_persons_yes_and_is_promoted() -> None:
    story = Story(LADDER).watching()
    assert (story.serving.weight, story.walk.release, story.walk.step) == (0.05, "m-1", 0)

    assert story.look(judged(49, safety=20)).step == 0
    assert story.look(judged(50, safety=9)).step == 0
    held = story.look(judged(50, safety=10))
    assert (held.phase, held.held, story.serving.weight) == (Phase.HELD, Held.GATE, 0.05)
    assert story.look(judged(5000, Outcome.ADVANCE), times=50).phase is Phase.HELD

    story.walk = approved(story.walk, story.serving.seen(story.walk, story.now), "ada")
    story.serving.do(story.walk, story.now)
    story.watching(judged(5000, Outcome.ADVANCE))
    assert (story.serving.weight, story.walk.step, story.walk.mark) == (0.5, 2, 5000)
    story.look(judged(5099, Outcome.ADVANCE), seconds=40)
    assert story.walk.phase is Phase.WATCHING
    story.look(judged(5100, Outcome.ADVANCE), times=3)

    assert (story.walk.phase, story.serving.stable) == (Phase.PROMOTED, NEW)
    assert sorted(story.serving.raised) == [0.05, 0.5]


def test_the_last_weight_is_not_promoted_without_proof_whatever_the_step_asks_for() -> None:
    policy = policy_of("{canary: {weight: 0.5, min_requests: 1, min_e_value: 1}}, {hold: 1s}")
    story = Story(policy).watching()

    assert story.look(judged(1e6, safety=99.0), times=20).phase is Phase.WATCHING
    assert story.look(judged(1e6, Outcome.ADVANCE, doubts="too much fails"), times=20).phase is Phase.WATCHING
    assert story.look(judged(1e6, Outcome.ADVANCE), times=5).phase is Phase.PROMOTED


@pytest.mark.parametrize(
    ("then", "seen", "ends"),
    [
        ("hold", None, Phase.HELD),
        ("hold", judged(10), Phase.HELD),
        ("rollback", judged(10), Phase.ROLLED_BACK),
        ("advance", None, Phase.HELD),
        ("advance", judged(0, Outcome.ADVANCE), Phase.HELD),
        ("advance", judged(10), Phase.HELD),
        ("advance", judged(10, Outcome.ADVANCE), Phase.PROMOTED),
    ],
)
def test_at_the_deadline_the_policy_decides_and_no_data_never_advances(
    then: str, seen: Judged | None, ends: Phase
) -> None:
    steps = f"{{canary: {{weight: 0.1, min_requests: 100, deadline_seconds: 60, on_deadline: {then}}}}}"
    story = Story(policy_of(steps)).watching()

    story.look(seen, times=70)

    assert story.walk.phase is ends
    assert needs(replace(story.walk, phase=Phase.WATCHING), Seen(now=story.now))


@pytest.mark.parametrize("state", ["watching", "held", "paused"])
def test_proved_harm_rolls_back_in_every_state(state: str) -> None:
    story = Story(LADDER).watching()
    if state == "held":
        story.look(judged(60, safety=20))
        assert story.walk.held is Held.GATE
    if state == "paused":
        story.walk = paused(story.walk, "ada", "lunch")

    story.look(judged(70, Outcome.ROLLBACK, reason="harm is proved"), times=3)

    assert (story.walk.phase, story.serving.weight) == (Phase.ROLLED_BACK, 0.0)
    assert "harm is proved" in story.walk.reason


def test_harm_is_only_held_where_the_policy_says_so_and_cannot_be_approved() -> None:
    story = Story(policy_of("{canary: {weight: 0.1}}", "on_failure: hold")).watching()
    story.look(judged(70, Outcome.ROLLBACK, reason="harm"), times=3)

    assert (story.walk.held, story.serving.weight) == (Held.HARM, 0.1)
    with pytest.raises(NotNow, match="harm is proved"):
        approved(story.walk, story.serving.seen(story.walk, story.now), "ada")
    story.walk = aborted(story.walk, story.serving.seen(story.walk, story.now), "ada")
    story.serving.do(story.walk, story.now)
    assert story.look(times=2).phase is Phase.ROLLED_BACK


def test_a_weight_that_a_person_sets_pauses_the_walk_and_stands() -> None:
    story = Story(LADDER).watching()
    story.serving.weight, story.serving.generation = 0.6, 9

    story.look(judged(5000, Outcome.ADVANCE), times=30)
    assert "60 % of the requests, not 5 %" in story.walk.paused
    assert story.serving.weight == 0.6

    story.walk = resumed(story.walk, story.serving.seen(story.walk, story.now), "ada")
    assert (story.walk.step, story.walk.share, story.walk.paused) == (2, 0.6, "")
    story.look(judged(5000, Outcome.ADVANCE))
    story.look(judged(5101, Outcome.ADVANCE), seconds=31, times=3)
    assert story.walk.phase is Phase.PROMOTED


@pytest.mark.parametrize(("event", "ends"), [("promote", Phase.PROMOTED), ("rollback", Phase.ROLLED_BACK)])
def test_a_person_who_ends_the_release_at_serving_ends_the_walk(event: str, ends: Phase) -> None:
    story = Story(LADDER).watching()
    story.serving.end(event, "ada")

    assert story.look().phase is ends
    assert "ada" in story.walk.reason


def test_what_cannot_be_looked_at_leads_nowhere_and_it_goes_on_when_it_is_back() -> None:
    story = Story(policy_of("{canary: {weight: 0.1, min_requests: 10}}")).watching()
    story.serving.away = True
    assert story.look(judged(1000, Outcome.ADVANCE), times=30).phase is Phase.WATCHING

    story.serving.away = False
    assert story.look(judged(1000, Outcome.ADVANCE), times=3).phase is Phase.PROMOTED


def test_an_action_that_fails_is_tried_again_and_then_asks_a_person() -> None:
    story = Story(policy_of("{canary: {weight: 0.1, min_requests: 10}}"))
    story.serving.fails.add("step")
    story.look(times=60)

    assert (story.walk.phase, story.walk.held, len(story.serving.actions)) == (Phase.HELD, Held.ACTION, 3)
    story.serving.fails.clear()
    story.walk = resumed(story.walk, story.serving.seen(story.walk, story.now), "ada")
    story.serving.do(story.walk, story.now)
    assert story.watching().serving.weight == 0.1


def test_an_open_blessing_waits_for_a_reason_and_a_failed_one_refuses() -> None:
    open_one = Blessing({"loads": Finding(Known.PASSED, "")}, ("loads", "quality"))
    failed = Blessing({"loads": Finding(Known.PASSED, ""), "skew": Finding(Known.FAILED, "off by 2")}, ("loads",))
    story = Story(LADDER)

    refused = advance(story.walk, story.serving.seen(story.walk, 1001.0, blessing=failed))
    assert (refused.phase, "off by 2" in refused.reason) == (Phase.REFUSED, True)
    forced = advance(replace(story.walk, override="known"), story.serving.seen(story.walk, 1001.0, blessing=failed))
    assert forced.phase is Phase.ENTERING
    waits = advance(story.walk, story.serving.seen(story.walk, 1001.0, blessing=open_one))
    assert waits.held is Held.BLESSING
    seen = story.serving.seen(waits, 1002.0)
    with pytest.raises(NotNow, match="--override"):
        approved(waits, seen, "ada")
    assert approved(waits, seen, "ada", "labels come tomorrow").phase is Phase.ENTERING
    with pytest.raises(NotNow, match="--override"):  # a reason beside an empty override is none for the blessing
        decided(waits, seen, Deed("approve", "ada", "looked at it", ""))
    assert decided(waits, seen, Deed("approve", "ada", "labels come tomorrow")).override == "labels come tomorrow"
    assert decided(waits, seen, Deed("approve", "ada", "looked at it", "known")).override == "known"


def test_nothing_gets_more_traffic_while_a_freeze_holds_and_rollbacks_happen() -> None:
    frozen = "freeze: [{years: ['1970']}]"
    story = Story(policy_of("{canary: {weight: 0.1, min_requests: 1}}", frozen))
    assert story.look(times=50).phase is Phase.BLESSING

    story = Story(policy_of("{canary: {weight: 0.1, min_requests: 1}}")).watching()
    story.walk = replace(story.walk, policy=policy_of("{canary: {weight: 0.1, min_requests: 1}}", frozen))
    assert story.look(judged(1000, Outcome.ADVANCE), times=50).phase is Phase.WATCHING
    assert story.look(judged(1000, Outcome.ROLLBACK), times=3).phase is Phase.ROLLED_BACK


_DEEDS = ["away", "back", "fail", "mend", "approve", "resume", "pause", "hand"]
_OUTCOMES = [*[Outcome.CONTINUE] * 6, *[Outcome.ADVANCE] * 3, Outcome.INCONCLUSIVE, Outcome.ROLLBACK]
_MOMENTS = st.fixed_dictionaries({
    "what": st.sampled_from(["look"] * 12 + _DEEDS),
    "requests": st.integers(0, 200),
    "outcome": st.sampled_from(_OUTCOMES),
    "safety": st.sampled_from([0.5, 9.0, 11.0, 200.0]),
    "doubts": st.sampled_from(["", "", "", "too much fails"]),
    "known": st.booleans(),
    "seconds": st.sampled_from([1.0, 5.0, 200.0]),
})  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(moments=st.lists(_MOMENTS, max_size=40))
def test_a_weight_rises_on_evidence_or_a_persons_word_alone_and_every_release_comes_to_an_end(
    moments: list[dict[str, Any]],
) -> None:
    story, counted, people = Story(LADDER), 0.0, False
    serving = story.serving
    for moment in moments:
        walk = story.walk
        match moment["what"]:
            case "away" | "back":
                serving.away = moment["what"] == "away"
            case "fail":
                serving.fails |= {"step", "promote", "rollback"}
            case "mend":
                serving.fails.clear()
            case "hand" if serving.weight:
                serving.weight, serving.generation, people = 0.3, serving.generation + 1, True
            case "approve" | "resume" | "pause" as deed:
                seen = serving.seen(walk, story.now)
                try:
                    if deed == "pause":
                        story.walk = paused(walk, "ada")
                    else:
                        story.walk = (approved if deed == "approve" else resumed)(walk, seen, "ada")
                        people = True
                except NotNow:
                    pass
            case _:
                counted += moment["requests"] if walk.live else 0.0
                sight = Judged(
                    outcome=moment["outcome"], requests=counted, safety=moment["safety"], doubts=moment["doubts"]
                )
                now = story.now + moment["seconds"]
                seen = serving.seen(walk, now, sight if walk.live and moment["known"] else None)
                after = advance(walk, seen)
                went_on = after.step > walk.step or after.phase is Phase.PROMOTING
                if went_on and walk.phase is Phase.WATCHING and isinstance(walk.current, CanaryStep):
                    assert seen.judged is not None
                    assert not seen.judged.doubts
                    assert seen.judged.requests > walk.mark >= 0
                    assert seen.judged.proved or (walk.step == 0 and seen.judged.safety >= 10)
                story.walk, story.now = Walk.from_json(json.loads(after.dumped())), now  # as after a restart
        serving.do(story.walk, story.now)
    # No more is to come: within its deadlines and tries it ends, or asks a person.
    serving.away = False
    for _ in range(60):
        story.look(Judged(outcome=Outcome.INCONCLUSIVE, requests=counted), seconds=60.0)
    assert story.walk.phase in ENDED or story.walk.phase is Phase.HELD or story.walk.paused
    assert serving.raised == sorted(set(serving.raised)) or people
    assert not isinstance(story.walk.current, HoldStep) or story.walk.ended or story.walk.held or story.walk.paused
