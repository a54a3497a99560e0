from __future__ import annotations

import json

import pytest

from serving.clients.quick import Answer
from trimtab.demo.replay import Tally
from trimtab.demo.report import Report, job_outcome, rolled_back, seen
from trimtab.demo.timeline import Timeline

ACTION = {
    "id": 1,
    "alert": "CanaryHarmful",
    "labels": {"release": "m-2"},
    "reason": "CanaryHarmful: e-value 120",
    "evidence": {"annotations": {"summary": "Version 2 fails more often"}},
    "created_at": 105.0,
    "completed_at": 107.0,
    "result": {"completed_at": 106.5},
}


def test_a_report_is_complete_only_with_every_step_and_nothing_missing() -> None:
    steps = {name: {} for name in ("trained", "rollback", "drift", "retrain", "promoted")}
    whole = Report(**steps)

    assert whole.complete
    assert [name for name in steps if Report(**{**steps, name: None}).complete] == []
    assert not Report(**steps, missing="no promote within 1 s").complete
    assert not Report().complete
    assert list(json.loads(json.dumps(whole.as_json()))) == [*steps, "requests", "missing", "seconds"]


def test_the_rollback_step_counts_bad_answers_and_what_the_switch_failed() -> None:
    tally = Tally()
    tally.note(101.0, Answer(500, version="2", error="NaN"), 101.0)
    tally.note(102.0, Answer(503, version="1"), 102.0)
    tally.note(99.0, Answer(503, version="1"), 99.0)
    tally.note(108.0, Answer(200, version="2"), 108.0)

    step = rolled_back(ACTION, 100.0, tally)

    assert (step["bad_requests"], step["failed_by_switch"], step["answered_after_switch"]) == (1, 1, 1)
    assert (step["release_at"], step["detected_at"], step["completed_at"], step["seconds"]) == (
        100.0,
        105.0,
        106.5,
        6.5,
    )
    assert (step["alert"], step["release"]) == ("CanaryHarmful", "m-2")


def test_without_a_time_in_the_hooks_answer_the_journals_counts() -> None:
    assert rolled_back({**ACTION, "result": None}, 100.0, Tally())["completed_at"] == 107.0


def test_what_was_seen_is_worded_by_the_rule_and_else_by_the_journal() -> None:
    assert seen(ACTION) == "CanaryHarmful: Version 2 fails more often"
    assert seen({**ACTION, "evidence": {}}) == "CanaryHarmful: CanaryHarmful: e-value 120"
    assert seen({**ACTION, "evidence": None}).startswith("CanaryHarmful: ")


@pytest.mark.parametrize(
    ("result", "outcome"),
    [
        ({"output": 'a warning\n{"passed": true}\n'}, {"passed": True}),
        ({"output": "Traceback"}, {}),
        ({"output": "[1]"}, {}),
        ({"output": ""}, {}),
        ({}, {}),
        (None, {}),
        ("text", {}),
    ],
)
def test_a_jobs_outcome_is_the_json_object_of_its_last_line(result: object, outcome: dict[str, object]) -> None:
    assert job_outcome({"result": result}) == outcome


def test_moments_are_told_as_they_come_and_listed_by_their_time() -> None:
    told: list[str] = []
    timeline = Timeline(started_at=100.0, show=told.append)

    timeline.add("done", "rolled back", at=104.0, day="2013-03-09")
    timeline.add("seen", "the alert", at=102.5)

    assert [line.split()[-1] for line in told] == ["back", "alert"]
    assert timeline.text().splitlines() == [told[1], told[0]]
    assert told[0].split() == ["4.0", "s", "2013-03-09", "done", "rolled", "back"]
