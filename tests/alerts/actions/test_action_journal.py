"""The journal: tampering of every kind is found, decisions come out the same, other policies are tried on it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from alerts.actions import ActionPolicy, ActionRunner, ActionState, FunctionHook, PolicyError, read_policies
from alerts.actions.explain import explain
from alerts.actions.journal import Anchor, JournalBroken, Kind, append, entries, head, verify
from alerts.actions.notices import Notices
from alerts.actions.recheck import recheck
from alerts.actions.simulate import simulate
from alerts.evidence import Arms, Look, ReleaseState, VerdictPolicy
from alerts.schema import JOURNAL, JOURNAL_HEAD, open_database
from alerts.states import Alert
from tests.inline import Inline
from trimtab.cli import cli

ALERT = Alert(
    labels=(("action", "rollback"), ("alertname", "CanaryHarmful"), ("model", "m"), ("release", "m-1")),
    annotations=(("summary", "version 2 fails more often"),),
    value=float("nan"),
    state="firing",
    active_at=100.0,
    fired_at=100.0,
)
ROWS = 6


def written(secret: str = "") -> sa.Engine:
    database = open_database("sqlite://")
    for number in range(1, ROWS + 1):
        with database.begin() as connection:
            append(
                connection, "decided", f"k{number}", {"n": number, "x": 0.1 * number}, 1000.0 + number, secret=secret
            )
    return database


def swapped(connection: sa.Connection, one: int, other: int) -> None:
    for old, new in ((one, 10**6), (other, one), (10**6, other)):
        connection.execute(JOURNAL.update().where(JOURNAL.c.seq == old).values(seq=new))


def tampered(kind: str, row: int) -> Callable[[sa.Connection], Any]:
    own = JOURNAL.c.seq == row
    other = row % ROWS + 1
    return {
        "body": lambda c: c.execute(JOURNAL.update().where(own).values(body='{"n": 99}')),
        "time": lambda c: c.execute(JOURNAL.update().where(own).values(time=5.0)),
        "key": lambda c: c.execute(JOURNAL.update().where(own).values(key="another")),
        "delete": lambda c: c.execute(JOURNAL.delete().where(own)),
        "truncate": lambda c: c.execute(JOURNAL.delete().where(JOURNAL.c.seq >= row)),
        "reorder": lambda c: swapped(c, row, other),
    }[kind]


@given(
    kind=st.sampled_from(["body", "time", "key", "delete", "truncate", "reorder"]),
    row=st.integers(1, ROWS),
    secret=st.sampled_from(["", "s"]),
)
@settings(max_examples=15, deadline=None)
def test_every_kind_of_tampering_is_found(kind: str, row: int, secret: str) -> None:
    database = written(secret)
    with database.begin() as connection:
        assert verify(connection, secret=secret) == ROWS
        tampered(kind, row)(connection)
        with pytest.raises(JournalBroken):
            verify(connection, secret=secret)
    database.dispose()


def test_a_chain_that_was_written_anew_is_found_by_the_seal_and_by_an_anchor() -> None:
    database, other = written("s"), open_database("sqlite://")
    with database.begin() as connection:
        anchor = head(connection)
        assert verify(connection, secret="s", anchor=Anchor.parse(str(anchor))) == ROWS
    with other.begin() as connection:
        for number in range(ROWS + 1):
            append(connection, "decided", f"k{number}", {"n": "forged"}, 1000.0 + number)
        assert verify(connection) == ROWS + 1
        with pytest.raises(JournalBroken, match="not sealed with this secret"):
            verify(connection, secret="s")
        with pytest.raises(JournalBroken, match="not the one of the anchor"):
            verify(connection, anchor=anchor)
    for one in (database, other):
        one.dispose()


def test_a_cut_end_with_an_old_head_put_back_needs_an_anchor() -> None:
    database = written("s")
    with database.begin() as connection:
        anchor, old = head(connection), dict(connection.execute(sa.select(JOURNAL_HEAD)).mappings().one())
        append(connection, "decided", "k7", {}, 1007.0, secret="s")
        later = head(connection)
        connection.execute(JOURNAL.delete().where(JOURNAL.c.seq == ROWS + 1))
        connection.execute(JOURNAL_HEAD.update().values(old))
        assert verify(connection, secret="s", anchor=anchor) == ROWS
        with pytest.raises(JournalBroken, match="its end was cut off"):
            verify(connection, secret="s", anchor=later)
    with pytest.raises(ValueError, match="SEQ:HASH"):
        Anchor.parse("7")
    database.dispose()


def judged() -> dict[str, Any]:
    """A release as the judge journals it: a canary that fails one time in five."""
    rng = np.random.default_rng(3)
    policy = VerdictPolicy(warm_up_seconds=0.0)
    state = ReleaseState(started_at=100.0)
    for second in range(20):
        arms = [Arms(0.1, 10.0, float(rng.binomial(10, 0.2)), 90.0, float(rng.binomial(90, 0.01)))]
        state = state.after(Look(at=101.0 + second, arms=tuple(arms)), policy)
    from_policy = {name: getattr(policy, name) for name in policy.__slots__}
    return {"replay": {"state": state.to_json(), "policy": from_policy, "alpha": policy.alpha}}


def engine_of(database: sa.Engine, clock: Any, **policy: Any) -> ActionRunner:
    return ActionRunner(
        database,
        policies={"rollback": ActionPolicy(**policy)},
        hooks={"rollback": FunctionHook(lambda call: {"after": {"stable": 1}})},
        evidence_of=lambda model, release: judged(),
        clock=clock,
        executor=Inline(),
        policy_version="7",
        secret="s",
    )


def release(number: int) -> Alert:
    return replace(ALERT, labels=(*ALERT.labels[:3], ("release", f"m-{number}")))


@pytest.fixture
def recorded(database: sa.Engine, clock: Any) -> ActionRunner:
    """Three releases a minute apart: the first is rolled back, the others are held by the cool-down."""
    actor = engine_of(database, clock, cooldown_seconds=300.0)
    for number in (1, 2, 3):
        actor.consider(release(number))
        clock.advance(60)
    return actor


def test_verdicts_and_decisions_come_out_the_same_from_the_journal(recorded: ActionRunner, database: sa.Engine) -> None:
    with database.begin() as connection:
        rows = entries(connection)
    again = recheck(rows)

    assert [(one.verdict, one.wrong) for one in again] == [(True, "")] * 3
    decided = next(row for row in rows if row.kind == "decided")
    assert decided.body["verdict"]["outcome"] == "rollback"
    assert decided.body["policy"]["version"] == "7"
    forged = replace(decided, body={**decided.body, "decision": "hold", "reason": "it is held"})
    assert "'decision': 'run'" in recheck([forged])[0].wrong
    forged = replace(decided, body={**decided.body, "verdict": {**decided.body["verdict"], "reason": "?"}})
    assert "the verdict was" in recheck([forged])[0].wrong


def test_an_action_is_explained_in_words(recorded: ActionRunner) -> None:
    action = recorded.actions()[-1]
    told = "\n".join(explain(action, recorded.entries(action.key)))

    assert "Action 1: rollback of m, release m-1 is done." in told
    assert "The alert CanaryHarmful asked for rollback: version 2 fails more often." in told
    assert "Verdict: rollback (" in told
    assert "it runs, since the mode is auto. Policy: version 7, digest " in told
    assert "Found after: stable 1." in told


def test_another_policy_is_tried_on_what_was_recorded(recorded: ActionRunner, database: sa.Engine) -> None:
    with database.begin() as connection:
        rows = entries(connection)
    same = simulate(rows, {"rollback": ActionPolicy(cooldown_seconds=300.0)})
    free = simulate(rows, {"rollback": ActionPolicy(cooldown_seconds=30.0)})
    asked = simulate(rows, {"rollback": ActionPolicy(), "rollback:m": ActionPolicy(mode="approve")})
    tight = simulate(rows, {"rollback": ActionPolicy(cooldown_seconds=0.0, budget_per_hour=1)})

    assert [one.differs for one in same] == [False] * 3
    assert [(one.was, one.would) for one in free] == [("run", "run"), ("hold", "run"), ("hold", "run")]
    assert {one.would for one in asked} == {"wait"}
    assert [one.would for one in tight] == ["run", "hold", "hold"]
    assert "budget" in tight[1].would_reason


def test_a_policy_file_says_what_is_wrong_with_it() -> None:
    found = read_policies(
        "version: 3\nactions: {rollback: {mode: approve, cooldown_seconds: 5m}}\n"
        "models: {m: {rollback: {dry_run: true}}}\n"
    )
    assert found.version == "3"
    assert found.policies["rollback"] == ActionPolicy(mode="approve", cooldown_seconds=300.0)
    assert found.policies["rollback:m"] == ActionPolicy(mode="approve", cooldown_seconds=300.0, dry_run=True)
    for text, words in {
        "actions: {reboot: {}}": "unknown field 'reboot'",
        "actions: {rollback: {mode: maybe}}": "advise, approve or auto",
        "actions: {rollback: {cooldown_seconds: soon}}": "actions.rollback.cooldown_seconds",
        "models: {m: {rollback: {budget_per_hour: many}}}": "models.m.rollback.budget_per_hour is 'many'",
        "actions: [": "is not YAML",
        "- 1": "the file is list",
    }.items():
        with pytest.raises(PolicyError, match=words):
            read_policies(text)


def test_the_command_line_verifies_and_replays(
    recorded: ActionRunner, database: sa.Engine, database_url: str, tmp_path: Path, clock: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new.yaml").write_text("actions: {rollback: {cooldown_seconds: 0}}\n")
    (tmp_path / "trimtab.toml").write_text(f'[trimtab]\nsecret = "s"\n[alerts]\ndatabase = "{database_url}"\n')

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(cli, ["actions", *arguments])

    whole = run("verify")
    assert (whole.exit_code, "the chain is whole; its head is sealed" in whole.output) == (0, True), whole.output
    assert "3 decisions and 3 verdicts made again, 0 differ" in whole.output
    tried = run("replay", "--since", "40000d", "--policy", "new.yaml")
    assert (tried.exit_code, "3 actions were asked for" in tried.output) == (0, True), tried.output
    assert "2 would have gone otherwise" in tried.output
    with database.begin() as connection:
        connection.execute(JOURNAL.delete().where(JOURNAL.c.seq == 2))
    broken = run("verify")
    assert (broken.exit_code, "journal row 2 is not there" in broken.output) == (1, True), broken.output
    for arguments, words in (
        (["verify", "--database", f"sqlite:///{tmp_path}/none.db"], "there is no journal at"),
        (["verify", "--anchor", "x"], "an anchor is SEQ:HASH"),
        (["replay", "--since", "soon", "--policy", "new.yaml"], "--since"),
        (["replay", "--policy", "absent.yaml"], "cannot be read"),
    ):
        found = run(*arguments)
        assert (found.exit_code, words in found.output) == (1, True), found.output


def test_a_paused_release_goes_on_only_when_a_person_lets_it(database: sa.Engine, clock: Any) -> None:
    hooks = dict.fromkeys(("pause", "promote", "advance", "rollback"), FunctionHook(lambda call: None))
    policy = ActionPolicy(cooldown_seconds=0.0)
    actor = ActionRunner(database, policies=dict.fromkeys(hooks, policy), hooks=hooks, clock=clock, executor=Inline())

    def ask(action: str, at: float) -> Any:
        return actor.consider(replace(ALERT, fired_at=at, labels=(("action", action), *ALERT.labels[1:])))

    ask("pause", 1.0)
    held = ask("promote", 2.0)
    assert (held.state, "is paused by action 1" in held.reason) == (ActionState.HELD, True)
    actor.request("advance", "m", reason="looked at", actor="ada", release="m-1")
    assert ask("promote", 2.0).state is ActionState.RUNNING


def test_a_release_in_progress_is_not_rolled_over(database: sa.Engine, clock: Any) -> None:
    actor = ActionRunner(
        database, policies={"rollback": ActionPolicy()}, hooks={"rollback": FunctionHook(lambda call: None)},
        clock=clock, executor=Inline(), release_in_progress=lambda model: "m-2",
    )  # fmt: skip
    held = actor.consider(ALERT)

    assert held is not None
    assert (held.state, "release m-2 is in progress" in held.reason) == (ActionState.HELD, True)
    assert actor.consider(release(2)) is not None


def test_receivers_are_told_of_everything_done_and_held_back_once_a_row(
    recorded: ActionRunner, database: sa.Engine, clock: Any
) -> None:
    posted: list[Any] = []

    def away(alerts: Any, now: float) -> None:
        posted.extend(alerts)
        raise ConnectionError("the process dies here")

    with pytest.raises(ConnectionError):
        Notices(database, away).tell(clock())
    first, posted = list(posted), []
    notices = Notices(database, lambda alerts, now: posted.extend(alerts))

    assert notices.tell(clock()) == 3
    assert notices.tell(clock()) == 0
    assert posted == first
    told = [dict(alert.labels) for alert in posted]
    assert [(one["alertname"], one["outcome"], one["release"]) for one in told] == [
        ("ActionTaken", "done", "m-1"), ("ActionHeldBack", "held", "m-2"), ("ActionHeldBack", "held", "m-3"),
    ]  # fmt: skip
    assert "cooling down" in dict(posted[1].annotations)["summary"]
    assert all("action" not in one for one in told)  # or they would ask for actions themselves


def test_a_savepoint_that_is_rolled_back_leaves_the_chain_whole(database: sa.Engine) -> None:
    with database.begin() as connection:
        append(connection, "intent", "a", {}, 1.0)
        with contextlib.suppress(ZeroDivisionError), connection.begin_nested():
            append(connection, "intent", "b", {}, 2.0)
            raise ZeroDivisionError
        append(connection, "result", "a", {}, 3.0)

        assert verify(connection) == 2
        assert [entry.key for entry in entries(connection)] == ["a", "a"]


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_change_to_any_field_of_a_row_of_any_kind_is_found(kind: Kind) -> None:
    database = open_database("sqlite://")
    body = {"told": "x", "evidence": {"errors": [1, 2.5, None]}, "actor": "ada"}
    with database.begin() as connection:
        for number in range(3):
            append(connection, kind, f"k{number}", body, 1000.0 + number, secret="s")
        (row,) = connection.execute(sa.select(JOURNAL).where(JOURNAL.c.seq == 2)).mappings()
        texts = [json.dumps({**body, name: "y"}, sort_keys=True) for name in body]
        changes: list[dict[str, Any]] = [
            {"time": 1001.5}, {"kind": "result" if kind != "result" else "intent"}, {"key": "k9"}, {"hash": "0" * 64},
            {"previous": "0" * 64}, {"seq": 7}, *({"body": text} for text in texts),
        ]  # fmt: skip
        for change in changes:
            connection.execute(JOURNAL.update().where(JOURNAL.c.seq == 2).values(change))
            with pytest.raises(JournalBroken):
                verify(connection, secret="s")
            connection.execute(JOURNAL.update().where(JOURNAL.c.hash == row["hash"]).values(dict(row)))
            connection.execute(JOURNAL.update().where(JOURNAL.c.seq == 2).values(dict(row)))
        assert verify(connection, secret="s") == 3
    database.dispose()
