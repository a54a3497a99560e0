"""Experiments, blue-green, rules and shadows as values: what moves, what a rollback restores, what is refused."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import Conflict, Policy, Registry, Router
from serving.errors import InvalidRequest
from serving.router import position
from serving.routing.policies import PolicyStore
from serving.routing.switches import (
    promoted,
    rolled_back,
    switched,
    taken_out,
    with_canary,
    with_experiment,
    with_hold_back,
    with_rules,
    with_shadow,
    with_standby,
    without_experiment,
    without_version,
)  # fmt: skip
from serving.routing.traffic import STEPS, Rule, Variant, share

STABLE = Policy("m", generation=1, stable=1, releases=1, stable_release="m-1")
UNITS = [f"user-{n}" for n in range(2000)]
AB = [Variant("a", 1, 0.5), Variant("b", 2, 0.5)]


def variants(*weights: float) -> list[Variant]:
    return [Variant(f"v{place}", place + 1, weight) for place, weight in enumerate(weights)]


def arms(policy: Policy) -> list[str]:
    """The arm of each step of the hash, as the router has it."""
    router = Router.of(policy)
    return [router.choose(None, lambda step=step: (step + 0.5) / STEPS).arm for step in range(STEPS)]  # type: ignore[misc, union-attr]


def steps_of(policy: Policy) -> np.ndarray:
    return np.frombuffer(Router.of(policy).steps, np.uint8)


def shares(count: int) -> st.SearchStrategy[list[float]]:
    """`count` weights in whole steps that sum to 1."""
    cuts = st.lists(st.integers(0, STEPS), min_size=count - 1, max_size=count - 1).map(sorted)
    return cuts.map(lambda c: [(b - a) / STEPS for a, b in zip([0, *c], [*c, STEPS], strict=True)])


@given(st.integers(2, 6).flatmap(lambda k: st.lists(shares(k), min_size=1, max_size=5)))
@settings(deadline=None, max_examples=60)
def test_a_change_of_weights_moves_as_few_units_as_it_must_and_the_shares_are_exact(course: list[list[float]]) -> None:
    policy = with_experiment(STABLE, variants(*course[0]), "user", 0.0)
    for weights in course:
        before = steps_of(policy)
        policy = with_experiment(policy, variants(*weights), None, 9.0)
        after = steps_of(policy)
        held, holds = (np.bincount(steps, minlength=len(weights)) for steps in (before, after))
        assert (holds / STEPS).tolist() == weights
        assert np.bincount(before[before != after], minlength=len(weights)).tolist() == (held - holds).clip(0).tolist()
    assert policy.experiment is not None
    assert (policy.experiment.release, policy.experiment.started_at, policy.sticky) == ("m-2", 0.0, "user")


@given(st.lists(st.integers(0, STEPS), min_size=1, max_size=8))
@settings(deadline=None, max_examples=40)
def test_two_variants_do_not_remember_their_past(course: list[int]) -> None:
    policy = with_experiment(STABLE, AB, None, 0.0)
    for steps in course:
        pair = [Variant("a", 1, steps / STEPS), Variant("b", 2, (STEPS - steps) / STEPS)]
        policy = with_experiment(policy, pair, None, 0.0)

    assert (steps_of(policy) == steps_of(with_experiment(STABLE, pair, None, 0.0))).all()


def test_variants_can_come_and_go_and_only_their_units_move() -> None:
    two = with_experiment(STABLE, variants(0.5, 0.5), None, 0.0)
    three = with_experiment(two, [*variants(0.4, 0.4), Variant("v2", 3, 0.2)], None, 0.0)
    back = with_experiment(three, [Variant("v0", 1, 0.5), Variant("v2", 3, 0.5)], None, 0.0)
    moves = Counter(zip(arms(two), arms(three), strict=True))
    later = Counter(zip(arms(three), arms(back), strict=True))

    assert {move: count for move, count in moves.items() if move[0] != move[1]} == {
        ("ab:v0", "ab:v2"): 1000, ("ab:v1", "ab:v2"): 1000,
    }  # fmt: skip
    assert sum(count for move, count in later.items() if move[0] != move[1]) == 4000
    assert all(move[0] == "ab:v1" for move in later if move[0] != move[1])


def test_experiments_divide_the_units_independently_of_each_other() -> None:
    first = Router.of(with_experiment(STABLE, AB, "user", 0.0))
    second = Router.of(with_experiment(without_experiment(first.policy), AB, "user", 0.0))
    both = Counter((first.choose(u).arm, second.choose(u).arm) for u in UNITS)  # type: ignore[union-attr]

    assert all(count == pytest.approx(500, abs=100) for count in both.values())
    assert len(both) == 4
    assert first.choose("user-1") == first.choose("user-1")


def test_a_choice_in_an_experiment_says_its_arm_share_and_release() -> None:
    router = Router.of(with_experiment(STABLE, [Variant("a", 1, 0.9999), Variant("b", 2, 0.0001)], None, 0.0))
    a, b = router.choose(None, lambda: 0.9998), router.choose(None, lambda: 0.9999)

    assert (a.arm, a.version, a.propensity, a.release, a.variant) == ("ab:a", 1, 0.9999, "m-2", "a")  # type: ignore[union-attr]
    assert (b.arm, b.version, b.propensity, b.candidate) == ("ab:b", 2, 0.0001, None)  # type: ignore[union-attr]


def test_weights_in_thirds_are_whole_steps_that_sum_to_all() -> None:
    policy = with_experiment(STABLE, variants(1 / 3, 1 / 3, 1 / 3), None, 0.0)

    assert policy.experiment is not None
    assert sorted(v.weight for v in policy.experiment.variants) == [0.3333, 0.3333, 0.3334]
    assert np.bincount(steps_of(policy)).tolist() == [3334, 3333, 3333]


@given(st.floats(0, 1))
def test_a_share_is_the_nearest_step_and_never_silently_none(weight: float) -> None:
    steps = share(weight, "weight") * STEPS
    assert steps == pytest.approx(round(steps))
    assert abs(share(weight, "weight") - weight) <= 1 / STEPS
    assert (share(weight, "weight") > 0) == (weight > 0)


def test_the_canarys_share_of_the_steps_is_its_logged_probability() -> None:
    for weight in (0.0, 0.0001, 0.1, 0.3333, 0.9, 1.0):
        policy = with_canary(STABLE, 2, weight, None, 0.0)
        counts = Counter(arms(policy))
        canary, stable = Router.of(policy).canary, Router.of(policy).stable
        assert canary is not None
        assert stable is not None
        assert (counts["canary"] / STEPS, counts["stable"] / STEPS) == (canary.propensity, stable.propensity)
    assert position("m-2", "anybody") < 1.0


@pytest.mark.parametrize(
    ("given_variants", "reason"),
    [
        ([Variant("a", 1, 1.0)], "2 to 64"),
        ([Variant("a", 1, 0.5), Variant("a", 2, 0.5)], "named twice"),
        ([Variant("a", 1, 0.5), Variant("b", 2, 0.6)], "sum to 1.1"),
        ([Variant("a", 1, -0.5), Variant("b", 2, 1.5)], "from 0 to 1"),
        ([Variant("canary", 1, 0.5), Variant("b", 2, 0.5)], "letters, digits"),
        ([Variant("a b", 1, 0.5), Variant("b", 2, 0.5)], "letters, digits"),
    ],
)
def test_an_experiment_that_makes_no_sense_is_refused(given_variants: list[Variant], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        with_experiment(STABLE, given_variants, None, 0.0)


def test_a_canary_an_experiment_and_a_switch_do_not_go_together() -> None:
    testing, canary = with_experiment(STABLE, AB, None, 0.0), with_canary(STABLE, 2, 0.1, None, 0.0)
    with pytest.raises(Conflict, match="in progress with the variants a, b"):
        with_canary(testing, 3, 0.1, None, 0.0)
    with pytest.raises(Conflict, match="in progress with version 2"):
        with_experiment(canary, AB, None, 0.0)
    with pytest.raises(Conflict, match="in progress"):
        switched(with_standby(testing, 3))
    with pytest.raises(Conflict, match="answered already"):
        with_experiment(testing, [Variant("a", 1, 0.5), Variant("b", 3, 0.5)], None, 0.0)
    with pytest.raises(Conflict, match="name the version to promote"):
        promoted(testing, None, None)
    with pytest.raises(Conflict, match="roll it back first"):
        promoted(testing, 3, None)
    with pytest.raises(Conflict, match="no experiment"):
        without_experiment(STABLE)


def test_promoting_a_variant_ends_the_experiment() -> None:
    testing = with_experiment(STABLE, AB, "user", 0.0)
    winner, control = promoted(testing, 2, "m-2"), promoted(testing, 1, None)

    assert (winner.stable, winner.previous, winner.experiment, winner.stable_release) == (2, 1, None, "m-2")
    assert (control.stable, control.experiment, control.sticky, control.stable_release) == (1, None, None, "m-1")


def test_a_rollback_ends_an_experiment_and_names_its_release() -> None:
    testing = with_experiment(STABLE, AB, "user", 0.0)
    back = rolled_back(testing, "m-2")

    assert back is not None
    assert (back.stable, back.experiment, back.sticky) == (1, None, None)
    assert taken_out(testing, back) == ("m-2", 2)
    assert Router.of(back).choose("user-1").arm == "stable"  # type: ignore[union-attr]


def test_blue_and_green_change_places_as_often_as_one_likes() -> None:
    ready = with_standby(STABLE, 2)
    green = switched(ready)
    blue = switched(green)

    assert (ready.stable, ready.loaded()) == (1, {1, 2})
    assert (green.stable, green.standby, green.previous, green.stable_release) == (2, 1, 1, "m-2")
    assert (blue.stable, blue.standby, blue.previous, blue.stable_release) == (1, 2, 2, "m-3")
    assert green.loaded() == blue.loaded() == {1, 2}
    back = rolled_back(green, "m-2")
    assert back is not None
    assert (back.stable, back.previous, back.standby) == (1, None, None)
    assert taken_out(green, back) == ("m-2", 2)
    with pytest.raises(Conflict, match="no standby"):
        switched(STABLE)
    with pytest.raises(Conflict, match="is stable already"):
        with_standby(STABLE, 1)


def test_rules_come_before_chance_and_mark_the_request_as_forced() -> None:
    canary = with_canary(STABLE, 2, 0.5, None, 0.0)
    rules = [Rule("x-qa", equals="yes", version=3), Rule("x-team", prefix="beta-", variant="canary")]
    router = Router.of(with_rules(canary, rules))
    choose = lambda **headers: router.choose(  # noqa: E731
        "u", headers={name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    )

    for chosen, version in ((choose(x_qa="yes", x_team="beta-1"), 3), (choose(x_team="beta-9"), 2)):
        assert (chosen.version, chosen.arm, chosen.propensity, chosen.release) == (version, "forced", 1.0, None)
    assert choose(x_qa="no", x_team="alpha").arm in ("stable", "canary")
    assert choose() == choose(x_qa="yes?") == Router.of(canary).choose("u")
    assert router.policy.loaded() == {1, 2, 3}
    ended = rolled_back(router.policy, None)
    assert ended is not None
    assert Router.of(ended).choose("u", headers={b"x-team": b"beta-9"}).arm == "stable"  # type: ignore[union-attr]
    assert Router.of(ended).choose("u", headers={b"x-qa": b"yes"}).arm == "forced"  # type: ignore[union-attr]


def test_a_rollback_takes_the_rules_to_a_bad_version_away_and_restores_the_rules_before() -> None:
    one, two = Rule("x-a", equals="1", version=2), Rule("x-a", equals="2", version=3)
    ruled = with_rules(with_rules(STABLE, [one]), [one, two])
    back = rolled_back(ruled, None)
    assert back is not None
    assert (back.rules, back.rules_before) == ((one,), None)
    assert taken_out(ruled, back) == (None, 3)

    after = promoted(ruled, 4, None)
    again = rolled_back(after, None)
    assert again is not None
    assert (again.stable, again.rules) == (1, (one, two))
    promoted_bad = rolled_back(promoted(ruled, 3, None), None)
    assert promoted_bad is not None
    assert (promoted_bad.stable, promoted_bad.rules) == (1, (one,))


def test_rules_to_a_variant_end_with_it() -> None:
    ruled = with_rules(with_experiment(STABLE, AB, None, 0.0), [Rule("x", prefix="", variant="b")])

    assert Router.of(ruled).choose(None, headers={b"x": b""}).variant == "b"  # type: ignore[union-attr]
    assert without_experiment(ruled).rules == ()
    with pytest.raises(InvalidRequest, match="there are canary, stable"):
        with_rules(STABLE, [Rule("x", equals="", variant="b")])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"header": "x y", "equals": "1", "version": 1}, "name of a request header"),
        ({"header": "x", "version": 1}, "either equals or prefix"),
        ({"header": "x", "equals": "1", "prefix": "1", "version": 1}, "either equals or prefix"),
        ({"header": "x", "equals": 1, "version": 1}, "either equals or prefix"),
        ({"header": "x", "equals": "1"}, "either a version or a variant"),
        ({"header": "x", "equals": "1", "version": True}, "whole number"),
        ({"header": "x", "equals": "1", "version": 1, "regex": "."}, "'regex'"),
        ({"header": "x", "equals": "a\nb", "version": 1}, "no header holds"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused(body: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        Rule.of(body)


def test_several_shadows_live_beside_each_other_and_end_one_by_one() -> None:
    policy = with_shadow(with_shadow(with_shadow(STABLE, 2, 0.5), 3, 1.0), 2, 0.25)
    assert [(s.version, s.fraction) for s in policy.shadows] == [(2, 0.25), (3, 1.0)]
    assert policy.shares() == {(1, "stable"): 1.0, (2, "shadow"): 0.25, (3, "shadow"): 1.0}
    assert [s.version for s in with_shadow(policy, 2, 0.0).shadows] == [3]
    for number in range(4, 10):
        policy = with_shadow(policy, number, 1.0)
    with pytest.raises(InvalidRequest, match="end one"):
        with_shadow(policy, 10, 1.0)


def test_a_version_that_does_not_load_takes_what_needs_it_along() -> None:
    full = with_standby(with_shadow(with_experiment(STABLE, AB, None, 0.0), 3, 1.0), 3)
    assert without_version(full, 3) == replace(full, shadows=(), standby=None)
    without = without_version(full, 2)
    assert (without.experiment, without.generation) == (None, full.generation + 1)


def test_a_full_policy_survives_its_json_and_the_store(registry: Registry) -> None:
    rules = [Rule("x-qa", equals="yes", version=3), Rule("x-team", prefix="b", variant="v1")]
    policy = with_experiment(STABLE, variants(0.2, 0.3, 0.5), "user", 7.5)
    policy = with_rules(with_rules(with_standby(with_shadow(policy, 4, 0.5), 5), rules[:1]), rules)
    store = PolicyStore(registry.database)
    store.save(policy, "route", time=1.0, release=None, version=None, reason="", actor="")

    assert Policy.from_json(json.loads(json.dumps(policy.to_json()))) == policy
    assert store.load("m") == policy


def test_a_policy_stored_by_an_earlier_release_is_read() -> None:
    old = {
        "model": "m", "generation": 4, "stable": 1, "previous": None, "sticky": "user", "releases": 2,
        "canary": {"version": 2, "weight": 0.123456, "release": "m-2", "started_at": 5.0},
        "shadow": {"version": 3, "fraction": 0.5}, "stable_release": "m-1",
    }  # fmt: skip
    policy = Policy.from_json(old)

    assert policy.canary is not None
    assert (policy.canary.weight, [s.version for s in policy.shadows], policy.rules) == (0.1235, [3], ())
    assert Policy.from_json({**old, "canary": None, "shadow": None}).shadows == ()


def test_a_hold_back_keeps_the_units_that_had_the_version_before_longest_and_ends_with_every_change_of_stable() -> None:
    canary = with_canary(STABLE, 2, 0.25, "user", 1.0)
    new = promoted(canary, None, None)
    held = with_hold_back(new, 0.02, "m-2", "user", 5.0)
    router, before = Router.of(held), Router.of(canary)

    assert held.shares() == {(2, "stable"): 0.98, (1, "hold_back"): 0.02}
    assert held.loaded() == {1, 2}
    assert arms(held).count("hold_back") == 200
    kept = [unit for unit in UNITS if router.choose(unit).version == 1]  # type: ignore[union-attr]
    assert kept
    assert all(before.choose(unit).version == 1 for unit in kept)
    choice = router.choose(kept[0])
    assert choice is not None
    assert (choice.arm, choice.release, choice.weight, choice.candidate) == ("hold_back", "m-2", 0.98, 2)
    assert Policy.from_json(json.loads(json.dumps(held.to_json()))) == held

    assert with_hold_back(with_hold_back(held, 0.01, None, None, 9.0), 0.0, None, None, 9.0).hold_back is None
    after = rolled_back(held, "m-2")
    assert after is not None
    assert (after.stable, after.hold_back, after.sticky) == (1, None, None)
    assert taken_out(held, after) == ("m-2", 2)
    for changed in (
        with_canary(held, 3, 0.1, None, 9.0), with_experiment(held, AB, None, 9.0), promoted(held, 3, None),
        switched(with_standby(held, 3)), without_version(held, 1),
    ):  # fmt: skip
        assert changed.hold_back is None
        assert changed.generation > held.generation
    assert (
        with_shadow(held, 3, 1.0).hold_back == held.hold_back == with_rules(held, [Rule("x", "y", version=1)]).hold_back
    )


@pytest.mark.parametrize(
    ("policy", "weight", "release", "words"),
    [
        (STABLE, 0.02, None, "no version before"),
        (STABLE, 0.2, None, "at most 0.1"),
        (STABLE, 0.0, None, "no hold-back"),
        (STABLE, 0.02, "m-7", "did not bring in"),
        (with_canary(STABLE, 2, 0.1, None, 1.0), 0.02, None, "in progress"),
    ],
)
def test_a_hold_back_that_does_not_fit_is_refused(policy: Policy, weight: float, release: str, words: str) -> None:
    with pytest.raises((Conflict, InvalidRequest), match=words):
        with_hold_back(policy, weight, release, None, 1.0)
