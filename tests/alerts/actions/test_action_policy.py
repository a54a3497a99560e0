"""Whether an action runs: modes, conflicts, cool-down, budget, and people's decisions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from alerts.actions import Action, ActionPolicy, ActionState, Advise, Hold, Proposal, Run, Wait, decide

NOW = 1_700_000_000.0
ROLLBACK = Proposal(action="rollback", model="m", release="m-1")
RETRAIN = Proposal(action="retrain", model="m")


def past(action: str = "rollback", **changes: object) -> Action:
    done = Action(
        id=7, key="k", action=action, model="m", release="m-0", state=ActionState.DONE,
        created_at=NOW - 5000, started_at=NOW - 5000, completed_at=NOW - 5000,
    )  # fmt: skip
    return replace(done, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("mode", "kind"), [("auto", Run), ("approve", Wait), ("advise", Advise)])
def test_the_mode_decides_when_nothing_else_does(mode: str, kind: type) -> None:
    assert isinstance(decide(ROLLBACK, [], ActionPolicy(mode=mode), NOW), kind)  # type: ignore[arg-type]


def test_an_action_without_a_hook_is_only_advised() -> None:
    decision = decide(replace(ROLLBACK, has_hook=False), [], ActionPolicy(), NOW)

    assert isinstance(decision, Advise)
    assert "no hook is set for rollback" in decision.reason


@pytest.mark.parametrize("state", [ActionState.DONE, ActionState.RUNNING])
@pytest.mark.parametrize(("before", "word"), [("rollback", "rolled back"), ("promote", "promoted")])
@pytest.mark.parametrize("action", ["rollback", "promote"])
def test_a_release_is_rolled_back_or_promoted_once(state: ActionState, before: str, word: str, action: str) -> None:
    history = [past(before, release="m-1", state=state)]

    decision = decide(replace(ROLLBACK, action=action), history, ActionPolicy(cooldown_seconds=0), NOW)

    assert decision == Hold(f"release m-1 was {word} by action 7")


def test_no_retrain_while_a_release_is_in_progress_or_another_retrain_runs() -> None:
    busy = decide(replace(RETRAIN, release_in_progress="m-3"), [], ActionPolicy(), NOW)
    running = decide(RETRAIN, [past("retrain", state=ActionState.RUNNING, completed_at=None)], ActionPolicy(), NOW)

    assert isinstance(busy, Hold)
    assert "m-3 is in progress" in busy.reason
    assert running == Hold("retrain 7 is still running")


def test_an_action_cools_down_after_the_last_of_its_kind() -> None:
    policy = ActionPolicy(cooldown_seconds=300)
    history = [past(completed_at=NOW - 299), past("retrain", completed_at=NOW)]

    assert isinstance(decide(ROLLBACK, history, policy, NOW), Hold)
    assert isinstance(decide(ROLLBACK, history, policy, NOW + 1), Run)


def test_the_budget_of_an_hour_is_kept() -> None:
    policy = ActionPolicy(cooldown_seconds=0, budget_per_hour=2)
    spent = [past(started_at=NOW - 10), past(started_at=NOW - 3599)]

    assert decide(ROLLBACK, spent, policy, NOW) == Hold("the budget of 2 rollback actions an hour is spent")
    assert isinstance(decide(ROLLBACK, spent, policy, NOW + 1), Run)


def test_a_persons_decision_on_a_release_stands_for_its_hold() -> None:
    promoted = past("promote", release="m-1", actor="ada", decided_at=NOW - 100)
    rejected = past("rollback", release="m-1", actor="ada", decided_at=NOW - 100, state=ActionState.REJECTED)

    for decision in (decide(ROLLBACK, [history], ActionPolicy(), NOW) for history in (promoted, rejected)):
        assert isinstance(decision, Hold)
        assert decision.reason.startswith("ada decided on")
    assert isinstance(decide(ROLLBACK, [rejected], ActionPolicy(hold_seconds=99), NOW), Run)
    assert isinstance(decide(replace(ROLLBACK, release="m-2"), [rejected], ActionPolicy(), NOW), Run)


def test_a_persons_rejection_of_a_retrain_stands_too() -> None:
    rejected = past("retrain", release="", actor="ada", decided_at=NOW - 100, state=ActionState.REJECTED)

    assert isinstance(decide(RETRAIN, [rejected], ActionPolicy(cooldown_seconds=0), NOW), Hold)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="advise, approve or auto"):
        ActionPolicy(mode="always")  # type: ignore[arg-type]
