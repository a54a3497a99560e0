"""Actions end to end: journalled before and after, carried out once whatever dies, and never in the way of rules."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from alerts.actions import (
    ActionPolicy,
    ActionRunner,
    ActionState,
    Call,
    CommandHook,
    FunctionHook,
    HookError,
    HttpHook,
    NotWaiting,
    UnknownAction,
    serving_hooks,
)
from alerts.actions.claims import TERM_SECONDS
from alerts.actions.journal import JournalBroken, entries, verify
from alerts.schema import JOURNAL, open_database
from alerts.states import Alert
from observability import signing
from tests.inline import Inline

ALERT = Alert(
    labels=(("action", "rollback"), ("alertname", "CanaryHarmful"), ("model", "m"), ("release", "m-1")),
    annotations=(("summary", "version 2 fails more often"),),
    value=120.0,
    state="firing",
    active_at=100.0,
    fired_at=100.0,
)
RETRAIN = replace(ALERT, labels=(("action", "retrain"), ("alertname", "DriftDetected"), ("model", "m")))


class Dead(Executor):
    """A process killed after the intent: nothing that is submitted ever runs."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return Future()


def runner(database: sa.Engine, clock: Any, hook: Any, executor: Executor | None = None, **policy: Any) -> ActionRunner:
    return ActionRunner(
        database,
        policies={kind: ActionPolicy(**policy) for kind in ("rollback", "promote", "retrain")},
        hooks=dict.fromkeys(("rollback", "promote", "retrain"), hook),
        clock=clock,
        executor=executor or Inline(),
    )


def kinds(database: sa.Engine, key: str) -> list[str]:
    with database.begin() as connection:
        verify(connection)
        return [entry.kind for entry in entries(connection, key=key)]


def test_an_alert_acts_once_and_the_journal_says_why(database: sa.Engine, clock: Any, hook_server: Any) -> None:
    actor = runner(database, clock, HttpHook(hook_server.url, secret="s3cret", clock=clock))

    first = actor.consider(ALERT)
    again = [actor.consider(replace(ALERT, value=float(n))) for n in range(5)]

    assert first is not None
    assert again == [None] * 5
    (action,) = actor.actions()
    (request,) = hook_server.requests
    assert (action.state, action.key) == (ActionState.DONE, "rollback:m:m-1")
    assert action.result is not None
    assert action.result["status"] == 200
    assert "version 2 fails more often" in action.reason
    assert request["headers"]["Idempotency-Key"] == action.key
    signing.verify("s3cret", request["headers"][signing.HEADER], request["raw"], clock())
    assert kinds(database, action.key) == ["decided", "intent", "result"]


def test_alerts_that_ask_for_nothing_or_are_only_kept_firing_do_nothing(database: sa.Engine, clock: Any) -> None:
    actor = runner(database, clock, FunctionHook(lambda call: None))

    assert actor.consider(replace(ALERT, state="pending")) is None
    assert actor.consider(replace(ALERT, state="inactive")) is None
    assert actor.consider(replace(ALERT, keep_firing_since=99.0)) is None
    assert actor.consider(replace(ALERT, labels=(("alertname", "A"), ("model", "m")))) is None
    assert actor.consider(replace(ALERT, labels=(("action", "reboot"), ("model", "m")))) is None
    assert actor.actions() == []


def test_a_new_episode_of_an_alert_is_a_new_action_after_the_cooldown(database: sa.Engine, clock: Any) -> None:
    actor = runner(database, clock, FunctionHook(lambda call: None), cooldown_seconds=60)

    actor.consider(RETRAIN)
    held = actor.consider(replace(RETRAIN, fired_at=200.0))
    still = actor.consider(replace(RETRAIN, fired_at=200.0, value=5.0))
    clock.advance(61)
    released = actor.consider(replace(RETRAIN, fired_at=200.0))

    assert held is not None
    assert held.state is ActionState.HELD
    assert still is None
    assert released is not None
    assert [a.state for a in actor.actions()] == [ActionState.DONE, ActionState.DONE]


def test_killed_between_intent_and_effect_the_effect_comes_exactly_once(
    database: sa.Engine, clock: Any, hook_server: Any
) -> None:
    runner(database, clock, HttpHook(hook_server.url), Dead()).consider(ALERT)
    assert hook_server.requests == []

    clock.advance(TERM_SECONDS + 1)  # this process, which holds the claim, lives on
    restarted = runner(database, clock, HttpHook(hook_server.url))
    restarted.resume()
    restarted.consider(ALERT)
    runner(database, clock, HttpHook(hook_server.url)).resume()

    assert len(hook_server.requests) == 1
    assert hook_server.effects == ["rollback:m:m-1"]
    assert kinds(database, "rollback:m:m-1") == ["decided", "intent", "retried", "result"]


@pytest.mark.slow
def test_kill_9_after_the_effect_repeats_it_only_under_the_same_key(
    database_url: str, clock: Any, hook_server: Any
) -> None:
    program = textwrap.dedent(f"""
        import os, signal, sys
        from alerts.actions import ActionPolicy, ActionRunner, FunctionHook, HttpHook
        from alerts.schema import open_database
        from alerts.states import Alert

        http = HttpHook({hook_server.url!r})
        def hook(call):
            http.run(call)
            os.kill(os.getpid(), signal.SIGKILL)

        runner = ActionRunner(open_database({database_url!r}), policies={{"rollback": ActionPolicy()}},
                              hooks={{"rollback": FunctionHook(hook)}})
        runner.consider(Alert(labels={ALERT.labels!r}, annotations=(), value=1.0, state="firing",
                              active_at=100.0, fired_at=100.0))
        runner.close()
    """)

    died = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3])
    database = open_database(database_url)
    runner(database, clock, HttpHook(hook_server.url)).resume()

    assert died.returncode == -signal.SIGKILL
    assert len(hook_server.requests) == 2
    assert hook_server.effects == ["rollback:m:m-1"]
    assert kinds(database, "rollback:m:m-1") == ["decided", "intent", "retried", "result"]
    database.dispose()


def test_a_waiting_action_runs_when_a_person_approves(database: sa.Engine, clock: Any) -> None:
    calls: list[Call] = []
    actor = runner(database, clock, FunctionHook(lambda call: calls.append(call)), mode="approve")

    waiting = actor.consider(ALERT)
    assert waiting is not None
    assert (waiting.state, calls) == (ActionState.WAITING, [])
    actor.approve(waiting.id, "ada")

    assert [call.actor for call in calls] == ["ada"]
    assert actor.action(waiting.id).state is ActionState.DONE
    with pytest.raises(NotWaiting, match="is done"):
        actor.reject(waiting.id, "ada")
    with pytest.raises(UnknownAction):
        actor.approve(99, "ada")


def test_a_rejected_action_never_runs(database: sa.Engine, clock: Any) -> None:
    actor = runner(database, clock, FunctionHook(lambda call: pytest.fail("ran")), mode="approve")

    waiting = actor.consider(ALERT)
    assert waiting is not None
    actor.reject(waiting.id, "ada")

    assert actor.consider(replace(ALERT, value=2.0)) is None
    assert actor.action(waiting.id).state is ActionState.REJECTED


def test_a_persons_request_runs_past_mode_and_budget_and_once_a_key(database: sa.Engine, clock: Any) -> None:
    calls: list[Call] = []
    actor = runner(database, clock, FunctionHook(lambda call: calls.append(call)), mode="advise", budget_per_hour=0)

    one = actor.request("rollback", "m", reason="looks bad", actor="ada", key="k-1")
    two = actor.request("rollback", "m", reason="looks bad", actor="ada", key="k-1")

    assert one.id == two.id
    assert [(call.actor, call.reason) for call in calls] == [("ada", "looks bad")]
    with pytest.raises(ValueError, match="unknown action 'reboot'"):
        actor.request("reboot", "m", reason="", actor="ada")


def test_a_hook_that_fails_leaves_the_reason(database: sa.Engine, clock: Any) -> None:
    def fail(call: Call) -> None:
        raise ZeroDivisionError("oh")

    actor = runner(database, clock, FunctionHook(fail))
    actor.consider(ALERT)

    (action,) = actor.actions()
    assert action.state is ActionState.FAILED
    assert action.result == {"error": "ZeroDivisionError('oh')"}


def test_a_slow_hook_does_not_delay_the_decision(database: sa.Engine, clock: Any, hook_server: Any) -> None:
    hook_server.gate.clear()
    actor = ActionRunner(
        database, policies={"rollback": ActionPolicy()}, hooks={"rollback": HttpHook(hook_server.url)}, clock=clock
    )

    actor.consider(ALERT)
    assert hook_server.arrived.wait(60)
    running = actor.actions()[0].state
    hook_server.gate.set()
    actor.close()

    assert running is ActionState.RUNNING
    assert actor.actions()[0].state is ActionState.DONE


def test_a_changed_journal_row_is_found(database: sa.Engine, clock: Any) -> None:
    runner(database, clock, FunctionHook(lambda call: None)).consider(ALERT)
    with database.begin() as connection:
        assert verify(connection) == 3
        connection.execute(JOURNAL.update().where(JOURNAL.c.seq == 2).values(body="{}"))

    with database.begin() as connection, pytest.raises(JournalBroken, match="row 2"):
        verify(connection)


CALL = Call(key="k", action="retrain", model="m/1", release="m-1", reason="because {model}; rm -rf")


def test_http_hooks_retry_what_may_pass_and_not_what_is_refused(hook_server: Any) -> None:
    hook_server.statuses = [503, 429, 200]
    result = HttpHook(hook_server.url, backoff_seconds=0.001).run(CALL)
    assert (result["tries"], result["answer"]) == (3, {"ok": True})

    hook_server.statuses = [404]
    with pytest.raises(HookError, match="refused: 404"):
        HttpHook(hook_server.url, backoff_seconds=0.001).run(CALL)
    hook_server.statuses = [500] * 9
    with pytest.raises(HookError, match="failed 2 times"):
        HttpHook(hook_server.url, tries=2, backoff_seconds=0.001).run(CALL)
    assert len(hook_server.effects) == 1


def test_serving_hooks_speak_the_control_api(hook_server: Any) -> None:
    serving_hooks(hook_server.url)["promote"].run(replace(CALL, action="promote"))

    (request,) = hook_server.requests
    assert request["path"] == "/api/v1/models/m%2F1/promote"
    assert request["body"] == {"release": "m-1", "reason": CALL.reason}


def test_a_command_gets_its_arguments_unbroken_and_its_output_is_kept() -> None:
    code = "import os, sys; print(sys.argv[1:], os.environ['TRIMTAB_IDEMPOTENCY_KEY'])"

    result = CommandHook([sys.executable, "-c", code, "{model}", "{reason}"]).run(CALL)

    assert result["output"] == "['m/1', 'because m/1; rm -rf'] k\n".replace("because m/1", "because {model}")
    assert result["exit_status"] == 0


def test_a_command_that_fails_is_missing_or_takes_too_long_is_an_error() -> None:
    with pytest.raises(HookError, match="status 3: bad luck") as failed:
        CommandHook([sys.executable, "-c", "print('bad luck'); raise SystemExit(3)"]).run(CALL)
    with pytest.raises(HookError, match="cannot start"):
        CommandHook(["/no/such/program"]).run(CALL)
    with pytest.raises(HookError, match="longer than"):
        CommandHook([sys.executable, "-c", "import time; time.sleep(60)"], timeout_seconds=0.5).run(CALL)
    with pytest.raises(ValueError, match="a list of arguments"):
        CommandHook("rm -rf /")

    assert failed.value.result["exit_status"] == 3


@pytest.mark.slow
def test_a_command_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    child = (
        f"import pathlib, time\nwhile True: pathlib.Path({str(beat)!r}).write_text(str(time.time())); time.sleep(0.02)"
    )
    program = textwrap.dedent(f"""
        import sys
        from alerts.actions import Call, CommandHook
        CommandHook([sys.executable, "-c", {child!r}]).run(Call(key="k", action="retrain", model="m"))
    """)
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[3])
    deadline = time.monotonic() + 60
    while not beat.exists() and time.monotonic() < deadline:
        time.sleep(0.02)

    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    last = 0
    while (now := beat.stat().st_mtime_ns) != last:
        assert time.monotonic() < deadline + 60, "the command runs on without its parent"
        last = now
        time.sleep(0.5)
