"""A release's stages and the decisions that fit to it."""

from __future__ import annotations

import pytest

from dashboards.releases import Stage, checks, decisions, stages

STEPS = ["canary with 5 % of the requests", "canary with 50 % of the requests"]


@pytest.mark.parametrize(
    ("walk", "marks"),
    [
        ({"phase": "blessing"}, ["now", "later", "later"]),
        ({"phase": "held", "held": "blessing"}, ["waits", "later", "later"]),
        ({"phase": "refused"}, ["bad", "later", "later"]),
        ({"phase": "watching", "step": 2}, ["done", "done", "now"]),
        ({"phase": "watching", "step": 1, "paused": "ana paused it"}, ["done", "waits", "later"]),
        ({"phase": "held", "held": "harm", "step": 1}, ["done", "bad", "later"]),
        ({"phase": "rolled_back", "step": 1}, ["done", "bad", "later"]),
        ({"phase": "promoted", "step": 2}, ["done", "done", "done"]),
    ],
)
def test_stages_tell_what_is_done_and_what_is_to_come(walk: dict[str, object], marks: list[str]) -> None:
    found = stages({"steps": STEPS, **walk})

    assert [stage.name for stage in found] == ["blessing", *STEPS]
    assert [stage.mark for stage in found] == marks


@pytest.mark.parametrize("phase", ["promoting", "holding_back", "not_thought_of"])
def test_a_phase_after_the_steps_stands_by_its_own_name(phase: str) -> None:
    found = stages({"steps": STEPS, "phase": phase, "step": 2})

    assert [stage.mark for stage in found] == ["done", "done", "done", "now"]
    assert found[-1] == Stage(phase.replace("_", " "), "now")


@pytest.mark.parametrize(
    ("walk", "fitting"),
    [
        ({}, []),
        ({"phase": "promoted", "ended_at": 1.0}, []),
        ({"phase": "watching", "ended_at": None}, ["pause", "abort"]),
        ({"phase": "watching", "paused": "by ana", "ended_at": None}, ["resume", "abort"]),
        ({"phase": "held", "held": "gate", "ended_at": None}, ["approve", "pause", "abort"]),
        ({"phase": "held", "held": "deadline", "ended_at": None}, ["approve", "resume", "abort"]),
        ({"phase": "held", "held": "harm", "ended_at": None}, ["pause", "abort"]),
    ],
)
def test_only_decisions_that_fit_are_offered(walk: dict[str, object], fitting: list[str]) -> None:
    assert decisions(walk) == fitting


def test_a_check_that_is_required_and_was_not_looked_at_is_open() -> None:
    walk = {"blessing": {"required": ["loads", "skew"], "checks": {"loads": {"state": "passed", "why": "in 1 s"}}}}

    assert checks(walk) == [("loads", "passed", "in 1 s"), ("skew", "unknown", "not looked at")]
