"""The act path under crashes, two engines and lost claims: one effect, one result, a whole chain."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alerts.actions import (
    ActionPolicy,
    ActionRunner,
    ActionState,
    Call,
    Confirmed,
    FunctionHook,
    HookAway,
    HookError,
    Prepared,
)
from alerts.actions.claims import BRIEF_TERM_SECONDS, TERM_SECONDS
from alerts.actions.journal import entries, verify
from alerts.schema import ACTION_CLAIMS, open_database
from alerts.states import Alert
from tests.inline import Inline, Killed

POINTS = ("decided", "claimed", "prepared", "done", "confirmed", "written")
KEY = "rollback:m:m-1"
ALERT = Alert(
    labels=(("action", "rollback"), ("alertname", "CanaryHarmful"), ("model", "m"), ("release", "m-1")),
    annotations=(("summary", "version 2 fails more often"),),
    value=120.0,
    state="firing",
    active_at=100.0,
    fired_at=100.0,
)


class Traffic:
    """A server with a stable and a bad version; every rollback counts, none of them is idempotent."""

    def __init__(self) -> None:
        self.version = 2
        self.effects: list[str] = []
        self.problem = self.person = self.broken = ""
        self.before_effect: Callable[[], None] = lambda: None
        self.away = 0

    def prepare(self, call: Call) -> Prepared:
        if self.away:
            self.away -= 1
            raise HookAway("no answer")
        target = call.target or {"version": 1, "digest": "ab"}
        done = "version 1 is in force" if call.target and self.version == target["version"] else ""
        return Prepared(
            before={"version": self.version}, target=target, done=done, problem=self.problem, person=self.person
        )

    def run(self, call: Call) -> Mapping[str, Any]:
        self.before_effect()
        self.version = call.target["version"]
        self.effects.append(call.key)
        return {"version": self.version}

    def confirm(self, call: Call) -> Confirmed:
        return Confirmed(after={"version": self.version}, problem=self.broken)

    def close(self) -> None:
        pass


def engine_of(
    database: sa.Engine, clock: Any, hook: Any, at: Callable[[str, str], None] = lambda point, key: None, **policy: Any
) -> ActionRunner:
    return ActionRunner(
        database,
        policies={"rollback": ActionPolicy(**{"cooldown_seconds": 0.0, **policy})},
        hooks={"rollback": hook},
        clock=clock,
        executor=Inline(),
        at=at,
    )


def dying(at: str) -> Callable[[str, str], None]:
    def die(point: str, key: str) -> None:
        if point == at:
            raise Killed(point)

    return die


def kinds(database: sa.Engine) -> list[str]:
    with database.begin() as connection:
        verify(connection)
        return [entry.kind for entry in entries(connection, key=KEY)]


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_at_any_point_leaves_one_effect_and_one_result(point: str, database: sa.Engine, clock: Any) -> None:
    traffic = Traffic()
    with pytest.raises(Killed):
        engine_of(database, clock, traffic, dying(point)).consider(ALERT)

    clock.advance(TERM_SECONDS + 1)
    after = engine_of(database, clock, traffic)
    after.resume()
    after.consider(ALERT)

    (action,) = after.actions()
    assert (action.state, traffic.effects, traffic.version) == (ActionState.DONE, [KEY], 1)
    found = kinds(database)
    assert (found.count("intent"), found.count("prepared"), found.count("result")) == (1, 1, 1)
    assert action.result is not None
    assert (action.result["before"], action.result["after"]) == ({"version": 2}, {"version": 1})


@given(crashes=st.lists(st.sampled_from(POINTS), max_size=6))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_number_of_crashes_leaves_one_effect(crashes: list[str], clock: Any) -> None:
    database, traffic = open_database("sqlite://"), Traffic()
    for point in crashes:
        dead = engine_of(database, clock, traffic, dying(point))
        try:
            dead.resume()
            dead.consider(ALERT)
        except Killed:
            pass
        clock.advance(TERM_SECONDS + 1)

    last = engine_of(database, clock, traffic)
    last.resume()
    last.consider(ALERT)

    assert traffic.effects == [KEY]
    assert last.actions()[0].state is ActionState.DONE
    assert kinds(database).count("result") == 1
    database.dispose()


def test_a_living_engines_claim_is_respected_and_a_lost_one_refuses_its_result(database: sa.Engine, clock: Any) -> None:
    traffic = Traffic()
    second = engine_of(database, clock, traffic)
    taken: list[Any] = []

    def while_the_first_hangs() -> None:
        traffic.before_effect = lambda: None
        taken.append(second.resume())
        clock.advance(TERM_SECONDS + 1)
        taken.append(second.resume())

    traffic.before_effect = while_the_first_hangs
    first = engine_of(database, clock, traffic)
    first.consider(ALERT)

    assert [len(actions) for actions in taken] == [0, 1]
    with database.begin() as connection:
        claim = connection.execute(sa.select(ACTION_CLAIMS)).one()
    assert (claim.token, claim.holder) == (2, second.holder)
    assert kinds(database).count("result") == 1
    assert first.actions()[0].state is ActionState.DONE


@pytest.mark.parametrize(
    ("looks", "term"), [(True, BRIEF_TERM_SECONDS), (False, TERM_SECONDS)], ids=["looks", "does not look"]
)
def test_a_claim_ends_early_only_where_the_effect_shows_that_it_is_there(
    database: sa.Engine, clock: Any, looks: bool, term: float
) -> None:
    traffic = Traffic()
    hook = traffic if looks else FunctionHook(lambda call: {"key": traffic.effects.append(call.key)})
    with pytest.raises(Killed):
        engine_of(database, clock, hook, dying("claimed")).consider(ALERT)
    second = engine_of(database, clock, hook)
    clock.advance(term - 0.1)

    early = second.resume()  # the first may only be slow: its process lives
    clock.advance(0.2)
    late = second.resume()

    assert (len(early), len(late)) == (0, 1)
    assert traffic.effects == [KEY]


def test_two_engines_that_see_one_alert_act_once(database_url: str, clock: Any) -> None:
    traffic, start = Traffic(), threading.Barrier(2)
    databases = [open_database(database_url) for _ in range(2)]
    found: list[Any] = []

    def engine(database: sa.Engine) -> None:
        actor = engine_of(database, clock, traffic)
        start.wait(30)
        found.append(actor.consider(ALERT))

    threads = [threading.Thread(target=engine, args=[database]) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(action is not None for action in found) == 1
    assert traffic.effects == [KEY]
    assert kinds(databases[0]).count("decided") == 1
    for database in databases:
        database.dispose()


def test_a_target_that_is_not_fit_stops_the_action_before_its_effect(database: sa.Engine, clock: Any) -> None:
    traffic = Traffic()
    traffic.problem = "version 1 does not load"
    actor = engine_of(database, clock, traffic)
    actor.consider(ALERT)

    (action,) = actor.actions()
    assert (action.state, traffic.effects) == (ActionState.FAILED, [])
    assert action.result is not None
    assert action.result["error"] == "not done: version 1 does not load"


def test_an_effect_that_is_not_as_it_should_be_is_no_success(database: sa.Engine, clock: Any) -> None:
    traffic = Traffic()
    traffic.broken = "version 1 does not answer"
    actor = engine_of(database, clock, traffic)
    actor.consider(ALERT)

    (action,) = actor.actions()
    assert action.state is ActionState.FAILED
    assert action.result is not None
    assert "version 1 does not answer" in action.result["error"]


def test_a_persons_decision_at_the_server_holds_the_machine_back_until_a_person_approves(
    database: sa.Engine, clock: Any
) -> None:
    traffic = Traffic()
    traffic.person = "ada promoted m-1"
    actor = engine_of(database, clock, traffic)
    actor.consider(ALERT)
    again = actor.consider(ALERT)

    (held,) = actor.actions()
    assert (held.state, traffic.effects, again) == (ActionState.HELD, [], None)
    assert "ada promoted m-1" in held.reason
    actor.approve(held.id, "bob")
    assert (actor.actions()[0].state, traffic.effects) == (ActionState.DONE, [KEY])


def test_a_dry_run_looks_and_writes_down_and_does_nothing(database: sa.Engine, clock: Any) -> None:
    traffic = Traffic()
    actor = engine_of(database, clock, traffic, dry_run=True)
    actor.consider(ALERT)

    (action,) = actor.actions()
    assert (action.state, traffic.effects) == (ActionState.ADVISED, [])
    assert action.result == {"dry_run": True, "before": {"version": 2}, "target": {"version": 1, "digest": "ab"}}
    assert kinds(database) == ["decided", "rehearsed"]


def test_what_cannot_be_reached_is_tried_again_and_given_up_in_the_end(database: sa.Engine, clock: Any) -> None:
    traffic = Traffic()
    traffic.away = 2
    actor = ActionRunner(
        database, policies={"rollback": ActionPolicy(cooldown_seconds=0.0)}, hooks={"rollback": traffic}
    )
    actor.start()
    actor.consider(ALERT)
    wait_for(actor, ActionState.DONE)
    actor.close()
    assert traffic.effects == [KEY]

    other = replace(ALERT, labels=(*ALERT.labels[:3], ("release", "m-2")))
    traffic.away = 10**6
    impatient = ActionRunner(
        database, policies={"rollback": ActionPolicy(cooldown_seconds=0.0)}, hooks={"rollback": traffic},
        give_up_seconds=0.0,
    )  # fmt: skip
    impatient.start()
    impatient.consider(other)
    failed = wait_for(impatient, ActionState.FAILED)
    impatient.close()
    assert failed.result == {"error": "no answer"}


def wait_for(actor: ActionRunner, state: ActionState) -> Any:
    waiting = threading.Event()
    for _ in range(3000):
        if actor.actions()[0].state is state:
            return actor.actions()[0]
        waiting.wait(0.02)
    pytest.fail(f"it is {actor.actions()[0].state}, not {state}")


def test_failures_in_a_row_open_the_circuit_breaker_and_a_success_closes_it(database: sa.Engine, clock: Any) -> None:
    broken = True

    def hook(call: Call) -> None:
        if broken:
            raise HookError("no")

    actor = engine_of(database, clock, FunctionHook(hook), breaker_failures=2, breaker_seconds=600.0)

    def release(number: int) -> Any:
        clock.advance(1)
        return actor.consider(replace(ALERT, labels=(*ALERT.labels[:3], ("release", f"m-{number}"))))

    release(1)
    release(2)
    held = release(3)
    assert held.state is ActionState.HELD
    assert "the circuit breaker is open: the last 2 rollback actions failed" in held.reason
    clock.advance(600)
    broken = False
    release(3)
    release(4)
    assert [action.state for action in actor.actions()] == ["done", "done", "failed", "failed"]


@pytest.mark.slow
@pytest.mark.parametrize("point", ["claimed", "done"])
def test_kill_9_at_a_point_is_taken_over_at_once(point: str, database_url: str, tmp_path: Any) -> None:
    effects = tmp_path / "effects"

    def hook(call: Call) -> None:
        if not effects.exists():
            effects.write_text(call.key)

    pid = os.fork()
    if pid == 0:
        try:

            def die(passed: str, key: str) -> None:
                if passed == point:
                    os.kill(os.getpid(), signal.SIGKILL)

            engine_of(open_database(database_url), lambda: 1000.0, FunctionHook(hook), die).consider(ALERT)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    database = open_database(database_url)
    # The dead process's claim has most of its term left: that it is dead is known all the same.
    survivor = engine_of(database, lambda: 1001.0, FunctionHook(hook))
    taken = survivor.resume()

    assert os.WTERMSIG(status) == signal.SIGKILL
    assert len(taken) == 1
    assert survivor.actions()[0].state is ActionState.DONE
    assert effects.read_text() == KEY
    assert kinds(database).count("result") == 1
    database.dispose()
