"""When an episode retrains again: not blindly, not for ever, and sooner after a crash than after a refusal."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts.actions import Action, ActionState
from alerts.retraining import Again, Attempt, NotYet, Retrain, RetrainingPolicy, next_attempt
from alerts.retraining.attempts import attempt_of

POLICY = RetrainingPolicy(
    backoff_seconds=100.0, max_backoff_seconds=1000.0, min_new_labels=50, failure_backoff_seconds=10.0, max_failures=3,
    settle_seconds=300.0, budget_per_day=4,
)  # fmt: skip
REFUSED = Attempt(outcome="refused", ended_at=1000.0, why="no better")
FAILED = Attempt(outcome="failed", ended_at=1000.0, why="killed")
RELEASED = Attempt(outcome="released", ended_at=1000.0, why="version 2 passed its gate")
DONE = Action(key="k", action="retrain", model="m", state=ActionState.DONE, created_at=1.0, completed_at=5.0)


def decide(
    *attempts: Attempt, now: float, labels: float | None = 1e6, today: int = 1, busy: str = ""
) -> Retrain | Again | NotYet:
    return next_attempt(attempts, labels, today, busy, POLICY, now)


def test_the_first_runs_at_once_and_an_open_one_is_asked_for_again() -> None:
    assert isinstance(decide(now=0.0), Retrain)
    assert isinstance(decide(Attempt(outcome="open"), now=0.0), Again)


def test_one_that_did_not_help_waits_ever_longer_and_needs_new_labels() -> None:
    assert isinstance(decide(REFUSED, now=1099.0), NotYet)
    assert isinstance(decide(REFUSED, now=1100.0), Retrain)
    assert isinstance(decide(REFUSED, REFUSED, now=1199.0), NotYet)
    assert isinstance(decide(REFUSED, REFUSED, now=1200.0), Retrain)
    assert isinstance(decide(*[REFUSED] * 9, now=2000.0), Retrain), "the back-off has a limit"
    few = decide(REFUSED, now=5000.0, labels=49.0)
    assert isinstance(few, NotYet)
    assert "needs 50 labelled events" in few.reason
    assert isinstance(decide(REFUSED, now=4599.0, labels=None), NotYet), "nobody counts: it must be old"
    assert isinstance(decide(REFUSED, now=4600.0, labels=None), Retrain)


def test_a_broken_one_is_tried_again_soon_without_new_labels_and_not_for_ever() -> None:
    assert isinstance(decide(FAILED, now=1009.0, labels=0.0), NotYet)
    assert isinstance(decide(FAILED, now=1010.0, labels=0.0), Retrain)
    assert isinstance(decide(FAILED, FAILED, now=1019.0, labels=0.0), NotYet)
    assert isinstance(decide(FAILED, FAILED, now=1020.0, labels=0.0), Retrain)
    assert isinstance(decide(FAILED, FAILED, FAILED, now=1e9), NotYet)
    assert isinstance(decide(FAILED, FAILED, REFUSED, FAILED, now=1010.0), Retrain), "in a row, not in all"


def test_a_released_one_has_time_to_come_into_service_and_a_release_in_progress_is_waited_for() -> None:
    assert isinstance(decide(RELEASED, now=1299.0), NotYet)
    assert isinstance(decide(RELEASED, now=1300.0), Retrain)
    busy = decide(RELEASED, now=9999.0, busy="m-3")
    assert isinstance(busy, NotYet)
    assert "m-3" in busy.reason


def test_a_person_and_the_budget_of_a_day_end_it() -> None:
    forbidden = decide(Attempt(outcome="forbidden", ended_at=1.0, why="ada rejected action 3"), now=1e9)
    assert isinstance(forbidden, NotYet)
    assert "ada" in forbidden.reason
    assert isinstance(decide(now=0.0, today=4), NotYet)
    assert isinstance(decide(REFUSED, now=1e9, today=4), NotYet)


@given(
    outcomes=st.lists(st.sampled_from(["refused", "failed", "released"]), max_size=8),
    now=st.floats(1000.0, 1e7),
    labels=st.one_of(st.none(), st.floats(0, 1e6)),
)
def test_what_waits_names_no_passing_number(outcomes: list[str], now: float, labels: float | None) -> None:
    attempts = [Attempt(outcome=outcome, ended_at=1000.0, why="x") for outcome in outcomes]  # type: ignore[arg-type]
    first = next_attempt(attempts, labels, 1, "", POLICY, now)
    again = next_attempt(attempts, None if labels is None else labels * 0.999, 1, "", POLICY, now + 1e-3)
    if isinstance(first, NotYet) and isinstance(again, NotYet):
        assert first == again


def test_what_became_of_an_action_is_read_from_its_answer() -> None:
    def outcome(state: ActionState, result: dict[str, object]) -> str:
        return attempt_of(replace(DONE, state=state, result=result)).outcome

    assert outcome(ActionState.RUNNING, {}) == "open"
    assert outcome(ActionState.HELD, {}) == "open"
    assert outcome(ActionState.REJECTED, {}) == "forbidden"
    refused = 'note\n{"outcome": "rejected", "passed": false, "reason": "no better"}\n'
    assert outcome(ActionState.FAILED, {"exit_status": 2, "output": refused}) == "refused"
    assert attempt_of(replace(DONE, state=ActionState.FAILED, result={"output": refused})).why == "no better"
    assert outcome(ActionState.FAILED, {"exit_status": 137, "output": "", "error": "Killed"}) == "failed"
    assert (
        outcome(ActionState.FAILED, {"exit_status": 1, "output": '{"outcome": "failed", "passed": false}'}) == "failed"
    )
    assert outcome(ActionState.DONE, {"status": 200, "answer": {"passed": False, "reason": "r"}}) == "refused"
    assert outcome(ActionState.DONE, {"passed": True, "version": 3}) == "released"
    assert outcome(ActionState.DONE, {"status": 202, "answer": "accepted"}) == "released"


def test_a_negative_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="calm_seconds must be at least 0, got -1"):
        RetrainingPolicy(calm_seconds=-1.0)
