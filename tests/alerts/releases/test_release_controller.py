"""The controller on a real database and the real act path: crashes, two engines, what is away, what alerts may ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from alerts.actions import ActionPolicy, ActionRunner, Call, Confirmed, Hook, Prepared
from alerts.actions.claims import TERM_SECONDS
from alerts.actions.journal import entries, verify
from alerts.evidence import Arms, Judgement, Look, Outcome, ReleaseState, VerdictPolicy
from alerts.evidence.releases import Release
from alerts.querier import QueryError, Sample
from alerts.recheck import recheck
from alerts.releases import InProgress, Phase, ReleaseController, Traffic, read_release_policies, simulate
from alerts.releases.serving_eyes import EyesShut
from alerts.schema import open_database
from alerts.states import Alert
from tests.inline import Inline, Killed

POLICIES = read_release_policies("""
models:
  m:
    blessing: none
    steps: [{canary: {weight: 0.1, min_requests: 10, min_e_value: 1}}, {canary: {weight: 0.5, min_requests: 10}}]
""")
POINTS = ("decided", "claimed", "prepared", "done", "confirmed", "written")


class World:
    """Serving and the judge: effects are counted, none of them is idempotent."""

    def __init__(self) -> None:
        self.effects: list[tuple[str, float]] = []
        self.generation, self.stable, self.weight = 1, 1, 0.0
        self.history: list[dict[str, Any]] = []
        self.away = False
        self.requests = 0.0

    # serving's page
    def page(self, model: str) -> Mapping[str, Any]:
        if self.away:
            raise EyesShut("no answer")
        canary = {"version": 2, "weight": self.weight, "release": "m-1"} if self.weight else None
        return {"generation": self.generation, "stable": self.stable, "canary": canary, "history": self.history}

    def examine(self, model: str, version: int, inputs: Mapping[str, Any] | None) -> Mapping[str, Any]:
        raise AssertionError("no blessing is asked for")

    def close(self) -> None:
        pass

    # the hook
    def prepare(self, call: Call) -> Prepared:
        share = float(call.labels.get("share", 0.0))
        done = f"{call.key} is done" if any(key == call.key for key, _ in self.effects) else ""
        return Prepared(target={"share": share}, done=done)

    def run(self, call: Call) -> Mapping[str, Any]:
        share = call.target["share"]
        self.effects.append((call.key, share))
        self.generation += 1
        if call.action in ("promote", "rollback"):
            self.stable, self.weight = (2, 0.0) if call.action == "promote" else (1, 0.0)
            line = {"generation": self.generation, "event": call.action, "release": "m-1", "actor": "trimtab"}
            self.history.append(line)
        else:
            self.weight = share
        return {}

    def confirm(self, call: Call) -> Confirmed:
        return Confirmed(after={"generation": self.generation, "release": "m-1"})

    # the judge and the store
    def judgement(self, model: str, release: str) -> Judgement:
        policy = VerdictPolicy()
        state = ReleaseState(started_at=1.0)
        if self.requests:
            state = state.after(Look(at=2.0, arms=(Arms(0.1, self.requests, 0.0, 9 * self.requests, 0.0),)), policy)
        found = Release(
            model=model, release=release, candidate="2", baseline="1", started_at=1.0,
            verdict=Outcome.ADVANCE if self.requests >= 1000 else Outcome.CONTINUE, reason="counted",
        )  # fmt: skip
        return Judgement(found, state.evidence(policy), state, policy, policy.alpha, "proved_safe")

    def instant(self, expr: str, at: float) -> Sequence[Sample]:
        raise AssertionError("a canary is the judge's to count")

    def instants(self, exprs: Sequence[str], at: float) -> Sequence[Sequence[Sample] | QueryError]:
        raise AssertionError("a canary is the judge's to count")


def leader(
    database: sa.Engine, clock: Any, world: World, at: Callable[[str, str], None] = lambda point, key: None, **mode: Any
) -> tuple[ReleaseController, ActionRunner]:
    hook: Hook = world
    policy = ActionPolicy(**mode)
    kinds = ("step", "promote", "rollback")
    runner = ActionRunner(
        database, policies=dict.fromkeys(kinds, policy), hooks=dict.fromkeys(kinds, hook), clock=clock,
        executor=Inline(), at=at,
    )  # fmt: skip
    controller = ReleaseController(
        database, policies=POLICIES, eyes=world, actor=runner, judgement_of=world.judgement, querier=world, clock=clock,
        executor=Inline(),
    )  # fmt: skip
    return controller, runner


def lead(controller: ReleaseController, clock: Any, world: World, seconds: int = 10) -> Phase:
    for _ in range(seconds):
        clock.advance(1.0)
        world.requests += 200.0 if world.weight else 0.0
        controller.tick(clock())
    return controller.walks()[0].phase


@pytest.fixture(params=["database_url", pytest.param("postgresql_url", marks=pytest.mark.slow)])
def any_url(request: pytest.FixtureRequest) -> str:
    """Of a database of each kind."""
    return str(request.getfixturevalue(request.param))


@pytest.fixture(autouse=True)
def decisions_are_made_again(database: sa.Engine) -> Iterator[None]:
    """Whatever a test led to: the journal's inputs lead there once more."""
    yield
    with database.begin() as connection:
        again = recheck(entries(connection, limit=10_000))
    assert [one.wrong for one in again if one.wrong] == []


@pytest.mark.parametrize("point", POINTS)
def test_a_leader_that_dies_at_every_step_is_followed_by_another_and_each_effect_happens_once(
    point: str, database: sa.Engine, clock: Any
) -> None:
    world = World()
    leader(database, clock, world)[0].begin("m", 2, actor="ada")

    def die(passed: str, key: str) -> None:
        if passed == point:
            raise Killed(key)

    for _ in range(8):
        dying, runner = leader(database, clock, world, die)
        try:
            runner.resume()
            lead(dying, clock, world, 4)
        except Killed:
            clock.advance(TERM_SECONDS + 1)
        else:
            break
        following, runner = leader(database, clock, world)
        runner.resume()
        for _ in range(2):
            clock.advance(1.0)
            following.tick(clock())
    last, runner = leader(database, clock, world)
    runner.resume()

    assert lead(last, clock, world) is Phase.PROMOTED
    assert [share for _, share in world.effects] == [0.1, 0.5, 0.0]
    assert world.effects[-1][0] == "promote:m:m-1"
    with database.begin() as connection:
        verify(connection)
        told = [entry.body["told"] for entry in entries(connection, key="release:m:1")]
    assert [line.split(",")[0] for line in told[1:]] == [
        "entering",
        "watching",
        "entering",
        "watching",
        "promoting",
        "promoted",
    ]


def test_every_state_of_a_walk_is_kept_as_it_was_and_led_to_again(any_url: str, clock: Any) -> None:
    world, database = World(), open_database(any_url)
    controller, _ = leader(database, clock, world)
    controller.begin("m", 2, actor="ada", reason="a reason with ünusual letters")
    kept = []
    for person in (None, "pause", "resume", "abort"):
        if person is not None:
            getattr(controller, person)("m", actor="ada", reason="why not")
        lead(controller, clock, world, 2)
        again = leader(database, clock, world)[0]  # another process reads the rows anew
        assert again.walks() == controller.walks()
        kept.append((again.walks()[0].phase, bool(again.walks()[0].paused)))
    with database.begin() as connection:
        rows = entries(connection, key="release:m:1")
        found = recheck(entries(connection, limit=1000))
    database.dispose()

    assert kept == [
        (Phase.WATCHING, False),
        (Phase.WATCHING, True),
        (Phase.ENTERING, False),
        (Phase.ROLLED_BACK, False),
    ]
    assert [row.body["replay"]["deed"] for row in rows[1:] if row.body["replay"]["deed"]] == [
        {"name": name, "actor": "ada", "reason": "why not"} for name in ("pause", "resume", "abort")
    ]
    assert {one.wrong for one in found} == {""}
    assert all("why not" in row.body["told"] for row in rows if (row.body.get("replay") or {}).get("deed"))
    released = sum(row.kind == "release" for row in rows) - 1  # the begin decides nothing
    assert sum(one.key == "release:m:1" for one in found) == released


def test_each_change_to_what_a_step_rests_on_is_found(database: sa.Engine, clock: Any) -> None:
    world = World()
    controller, _ = leader(database, clock, world)
    controller.begin("m", 2, actor="ada")
    lead(controller, clock, world, 3)
    controller.abort("m", actor="ada", reason="why not")
    with database.begin() as connection:
        rows = [row for row in entries(connection, key="release:m:1") if "replay" in row.body]

    for row in rows:
        replay = row.body["replay"]
        told = [{name: f"{row.body[name]}?"} for name in ("phase", "place", "release", "actor", "policy", "model")]
        inputs = [
            {"to": "0" * 64},
            {"from": {**replay["from"], "attempt": replay["from"]["attempt"] + 1}},
            {"from": {**replay["from"], "policy_text": "{}"}},
            {"seen": {**replay["seen"], "now": replay["seen"]["now"] + 1.0}},
            {"seen": "nothing"},
            {"deed": {"name": "pause", "actor": "eve", "reason": ""}},
        ]
        forged = [*told, {"version": 7}, *({"replay": {**replay, **one}} for one in inputs)]
        for one in forged:
            assert recheck([replace(row, body={**row.body, **one})])[0].wrong, (row.body["told"], one)


def test_two_leaders_of_one_database_lead_once(any_url: str, clock: Any) -> None:
    world, databases = World(), [open_database(any_url) for _ in range(2)]
    leaders = [leader(database, clock, world)[0] for database in databases]
    leaders[0].begin("m", 2, actor="ada")
    with pytest.raises(InProgress, match="abort it first"):
        leaders[1].begin("m", 3, actor="bob")

    for _ in range(12):
        clock.advance(1.0)
        world.requests += 200.0 if world.weight else 0.0
        for controller in leaders:
            controller.tick(clock())

    assert leaders[1].walks()[0].phase is Phase.PROMOTED
    assert [share for _, share in world.effects] == [0.1, 0.5, 0.0]
    for database in databases:
        database.dispose()


def test_a_server_that_is_away_stops_nothing_but_the_walk(database: sa.Engine, clock: Any) -> None:
    world = World()
    controller, _ = leader(database, clock, world)
    controller.begin("m", 2, actor="ada")
    lead(controller, clock, world, 2)
    world.away = True
    lead(controller, clock, world, 20)
    walk = controller.walks()[0]

    assert (walk.phase, walk.step, len(world.effects)) == (Phase.WATCHING, 0, 1)
    assert "Serving does not answer" in " ".join(controller.explain(walk))
    world.away = False
    assert lead(controller, clock, world) is Phase.PROMOTED


def test_where_steps_are_approved_by_people_each_waits_and_says_how(database: sa.Engine, clock: Any) -> None:
    world = World()
    controller, runner = leader(database, clock, world, mode="approve")
    controller.begin("m", 2, actor="ada")
    lead(controller, clock, world, 5)

    assert world.effects == []
    (action,) = runner.actions()
    assert f"trimtab actions approve {action.id}" in " ".join(controller.explain(controller.walks()[0]))
    runner.approve(action.id, "ada")
    lead(controller, clock, world, 2)
    assert world.weight == 0.1

    controller.abort("m", actor="ada", reason="no")  # a person's word needs no further approval
    assert lead(controller, clock, world, 3) is Phase.ROLLED_BACK
    assert world.weight == 0.0


def test_alerts_promote_nothing_past_the_steps_and_roll_back_all_the_same(database: sa.Engine, clock: Any) -> None:
    world = World()
    controller, runner = leader(database, clock, world)
    labels = (("action", "promote"), ("alertname", "CanaryProvedSafe"), ("model", "m"), ("release", "m-1"))
    promote = Alert(labels=labels, annotations=(), value=200.0, state="firing", active_at=1.0, fired_at=1.0)
    rollback = replace(promote, labels=(("action", "rollback"), *labels[1:]))

    assert not controller.leads(promote)
    controller.begin("m", 2, actor="ada")
    assert controller.leads(promote)
    assert not controller.leads(rollback)

    lead(controller, clock, world, 2)
    runner.consider(rollback)
    assert lead(controller, clock, world, 2) is Phase.ROLLED_BACK
    assert [share for _, share in world.effects] == [0.1, 0.0]


def test_a_simulation_shows_when_a_bad_version_goes_back_and_a_good_one_is_promoted() -> None:
    policy = read_release_policies("""
models:
  m:
    verdict: {max_error_rate: 0.05}
    steps:
      - shadow: {fraction: 0.5, min_pairs: 200, max_failed_ratio: 0.1}
      - canary: {weight: 0.1, deadline_seconds: 60}
""").policies["m"]

    good = simulate(policy, Traffic(requests_per_second=200.0, error_ratio=0.001))
    bad = simulate(policy, Traffic(requests_per_second=200.0, error_ratio=0.5))
    again = simulate(policy, Traffic(requests_per_second=200.0, error_ratio=0.5))
    canary = "models: {m: {steps: [{canary: {weight: 0.1, deadline_seconds: 60}}]}}"
    none = simulate(read_release_policies(canary).policies["m"], Traffic(requests_per_second=0.0))

    assert (good.walk.phase, bad.walk.phase, none.walk.phase) == (Phase.PROMOTED, Phase.ROLLED_BACK, Phase.HELD)
    assert [event.weight for event in good.events][-1] == 1.0
    assert [event.to_json() for event in bad.events] == [event.to_json() for event in again.events]
    assert bad.events[-1].after < 60
    with pytest.raises(ValueError, match="not that of its text"):
        simulate(replace(policy, steps=policy.steps[1:]), Traffic())
