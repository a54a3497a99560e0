"""The traffic policy: who is chosen, with which probability, and which changes are allowed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import Conflict, Policy, Registry, Router
from serving.errors import InvalidRequest
from serving.router import position
from serving.routing.policies import PolicyStore
from serving.routing.switches import promoted, rolled_back, with_canary, with_shadow

STABLE = Policy("m", generation=1, stable=1, releases=1, stable_release="m-1")


def test_without_a_canary_everything_goes_to_stable_for_sure() -> None:
    choice = Router.of(STABLE).choose(None)

    assert choice is not None
    assert (choice.version, choice.arm, choice.propensity, choice.release) == (1, "stable", 1.0, None)


def test_without_a_stable_version_nobody_is_chosen() -> None:
    assert Router.of(Policy("m")).choose(None) is None


def test_the_propensity_is_the_probability_of_the_arm_that_was_chosen() -> None:
    router = Router.of(with_canary(STABLE, 2, 0.25, None, 0.0))

    canary, stable = router.choose(None, lambda: 0.2), router.choose(None, lambda: 0.3)
    assert canary is not None
    assert stable is not None
    assert (canary.arm, canary.propensity, canary.version, canary.weight) == ("canary", 0.25, 2, 0.25)
    assert (stable.arm, stable.propensity, stable.version, stable.weight) == ("stable", 0.75, 1, 0.25)
    assert canary.release == stable.release == "m-2"
    assert (stable.candidate, stable.baseline) == (2, 1)


@given(st.text(min_size=1), st.floats(0, 1), st.floats(0, 1))
def test_a_sticky_unit_keeps_its_arm_and_a_higher_weight_only_adds_units(unit: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    first = with_canary(STABLE, 2, low, "user", 0.0)
    ramped = with_canary(first, 2, high, None, 9.0)

    before, after = Router.of(first).choose(unit), Router.of(ramped).choose(unit)
    assert before is not None
    assert after is not None
    assert before == Router.of(first).choose(unit)
    assert not (before.arm == "canary" and after.arm == "stable")
    assert ramped.canary is not None
    assert (ramped.canary.release, ramped.canary.started_at, ramped.sticky) == ("m-2", 0.0, "user")


def test_units_spread_evenly_and_anew_for_each_release() -> None:
    places = [position("m-2", str(unit)) for unit in range(20_000)]
    share = sum(place < 0.1 for place in places) / len(places)
    both = sum(position("m-2", str(u)) < 0.1 and position("m-3", str(u)) < 0.1 for u in range(20_000)) / 20_000

    assert share == pytest.approx(0.1, abs=0.01)
    assert both == pytest.approx(0.01, abs=0.004)


def test_a_canary_needs_a_stable_version_another_version_and_a_weight_from_0_to_1() -> None:
    with pytest.raises(Conflict, match="no stable version"):
        with_canary(Policy("m"), 2, 0.1, None, 0.0)
    with pytest.raises(Conflict, match="is stable already"):
        with_canary(STABLE, 1, 0.1, None, 0.0)
    with pytest.raises(InvalidRequest, match="from 0 to 1"):
        with_canary(STABLE, 2, 1.5, None, 0.0)
    with pytest.raises(Conflict, match="in progress"):
        with_canary(with_canary(STABLE, 2, 0.1, None, 0.0), 3, 0.1, None, 0.0)


def test_promotion_keeps_the_old_stable_as_previous_and_the_release_as_its_origin() -> None:
    policy = promoted(with_canary(STABLE, 2, 0.1, None, 0.0), None, "m-2")

    assert (policy.stable, policy.previous, policy.canary, policy.stable_release, policy.generation) == (
        2,
        1,
        None,
        "m-2",
        3,
    )
    assert promoted(policy, 2, None) is policy
    with pytest.raises(Conflict, match="not in progress"):
        promoted(policy, None, "m-2")
    with pytest.raises(Conflict, match="no canary"):
        promoted(policy, None, None)


def test_rollback_ends_a_canary_or_takes_stable_back_to_previous_and_then_nothing_is_left() -> None:
    canary = with_canary(STABLE, 2, 0.1, "user", 0.0)
    ended = rolled_back(canary, None)
    assert ended is not None
    assert (ended.stable, ended.canary, ended.sticky) == (1, None, None)

    second = promoted(canary, None, None)
    back = rolled_back(second, "m-2")
    assert back is not None
    assert (back.stable, back.previous) == (1, None)
    assert rolled_back(back, None) is None
    assert rolled_back(second, "m-7") is None


def test_a_rollback_of_a_named_release_leaves_another_canary_alone() -> None:
    assert rolled_back(with_canary(STABLE, 2, 0.1, None, 0.0), "m-9") is None


def test_a_policy_survives_its_json_and_the_store(registry: Registry) -> None:
    policy = with_shadow(with_canary(STABLE, 2, 0.1, "user", 7.5), 3, 0.5)
    store = PolicyStore(registry.database)
    store.save(policy, "canary", time=1.0, release="m-2", version=2, reason="why", actor="me")

    assert Policy.from_json(policy.to_json()) == policy
    assert store.load("m") == policy
    assert store.history("m") == [
        {
            "generation": 3,
            "time": 1.0,
            "event": "canary",
            "release": "m-2",
            "version": 2,
            "reason": "why",
            "actor": "me",
        }
    ]


def test_the_second_of_two_writers_from_one_generation_is_refused(registry: Registry) -> None:
    store = PolicyStore(registry.database)
    told = {"time": 0.0, "release": None, "version": 1, "reason": "", "actor": ""}
    store.save(STABLE, "promote", **told)

    with pytest.raises(Conflict, match="already"):
        store.save(STABLE, "promote", **told)
    assert len(store.history("m")) == 1
