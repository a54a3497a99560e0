"""The alert state machine: the written fixture, laws that always hold, and promtool's verdict on random series."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts.rules import Rule
from alerts.states import RESOLVED_RETENTION_SECONDS, DuplicateAlert, Instance, RuleState, resumed, step

MINUTE = 60.0
LABELS = (("alertname", "A"), ("x", "1"))


def rule(for_minutes: float = 0, keep_minutes: float = 0) -> Rule:
    return Rule(
        kind="alert", name="A", expr="m > 0", for_seconds=for_minutes * MINUTE,
        keep_firing_for_seconds=keep_minutes * MINUTE,
    )  # fmt: skip


def walk(one: Rule, holds: list[bool]) -> list[tuple[str, list[str]]]:
    """State and events after each minute's evaluation."""
    state: RuleState = {}
    seen = []
    for minute, present in enumerate(holds):
        result = step(one, state, [Instance(LABELS, (), 1.0)] if present else [], minute * MINUTE)
        state = result.state
        alert = state.get(LABELS)
        seen.append((alert.state if alert else "", [event.kind for event in result.events]))
    return seen


FIXTURE = [bool(int(digit)) for digit in "0111100011111" + "11111" + "000"]  # the last sample lives 5 minutes more


def test_pending_until_for_has_passed_then_firing_then_resolved() -> None:
    states = [state for state, _ in walk(rule(2), FIXTURE)]

    assert states[:9] == ["", "pending", "pending", "firing", "firing", "inactive", "inactive", "inactive", "pending"]
    assert states[10:18] == ["firing"] * 8
    assert states[18] == "inactive"


def test_keep_firing_for_outlives_the_condition() -> None:
    seen = walk(rule(2, 2), FIXTURE)

    assert [state for state, _ in seen][3:8] == ["firing"] * 4 + ["inactive"]
    assert seen[7][1] == ["resolved"]
    assert [state for state, _ in seen][18:21] == ["firing", "firing", "inactive"]


def test_without_for_an_alert_fires_in_the_evaluation_that_finds_it() -> None:
    assert walk(rule(), [True, False, True]) == [
        ("firing", ["firing"]), ("inactive", ["resolved"]), ("firing", ["firing"]),
    ]  # fmt: skip


def test_a_pending_alert_whose_condition_ends_is_forgotten() -> None:
    assert walk(rule(5), [True, False]) == [("pending", ["pending"]), ("", ["dropped"])]


def test_a_resolved_alert_is_kept_for_15_minutes() -> None:
    state = step(rule(), {}, [Instance(LABELS, (), 1.0)], 0.0).state
    state = step(rule(), state, [], 60.0).state

    kept = step(rule(), state, [], 60.0 + RESOLVED_RETENTION_SECONDS).state
    gone = step(rule(), kept, [], 61.0 + RESOLVED_RETENTION_SECONDS).state

    assert kept[LABELS].resolved_at == 60.0
    assert gone == {}


def test_value_and_annotations_follow_the_last_evaluation_and_times_stay() -> None:
    first = step(rule(1), {}, [Instance(LABELS, (("s", "a"),), 1.0)], 100.0).state
    alert = step(rule(1), first, [Instance(LABELS, (("s", "b"),), 2.0)], 160.0).state[LABELS]

    assert (alert.value, alert.annotation("s"), alert.active_at, alert.fired_at) == (2.0, "b", 100.0, 160.0)


def test_the_series_are_alerts_and_alerts_for_state_and_none_for_a_resolved_one() -> None:
    first = step(rule(), {}, [Instance(LABELS, (), 1.0)], 100.7)
    second = step(rule(), first.state, [], 101.0)

    assert {(dict(s.labels)["__name__"], dict(s.labels).get("alertstate"), s.value) for s in first.samples} == {
        ("ALERTS", "firing", 1.0), ("ALERTS_FOR_STATE", None, 100.0),
    }  # fmt: skip
    assert second.samples == ()


def test_two_results_with_the_same_labels_are_an_error() -> None:
    with pytest.raises(DuplicateAlert, match="aggregate"):
        step(rule(), {}, [Instance(LABELS, (), 1.0), Instance(LABELS, (), 2.0)], 0.0)


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 5), st.integers(0, 5))
def test_an_alert_fires_only_after_holding_for_its_for(holds: list[bool], wait: int, keep: int) -> None:
    held, last = 0, ""
    for (state, events), present in zip(walk(rule(wait, keep), holds), holds, strict=True):
        held = held + 1 if present else 0
        if "firing" in events:
            assert held > wait
        if state == "inactive" and last == "firing":
            assert not present
        if present:
            assert state in ("pending", "firing")
        last = state


@pytest.mark.slow
def test_promtool_agrees_on_random_series(tmp_path: Path) -> None:
    """250 series of ons and offs, each with its own `for` and `keep_firing_for`, at every evaluation."""
    rng = random.Random(7)
    rules: list[dict[str, Any]] = []
    series: list[dict[str, str]] = []
    cases: list[dict[str, Any]] = []
    states = {"pending": 0, "firing": 0, "kept": 0}
    for number in range(250):
        wait, keep = rng.randint(0, 4), rng.randint(0, 4)
        holds = []
        while len(holds) < 24:
            holds += [rng.random() < 0.5] * rng.randint(1, 6)
        holds = holds[:24]
        rules.append({
            "alert": f"A{number}", "expr": f"m{number} > 0", "for": f"{wait}m", "keep_firing_for": f"{keep}m",
        })  # fmt: skip
        series.append({"series": f"m{number}", "values": " ".join(str(int(h)) for h in holds)})
        for minute, (state, _) in enumerate(walk(rule(wait, keep), holds)):
            expected = [{"exp_labels": {}}] if state == "firing" else []
            cases.append({"eval_time": f"{minute}m", "alertname": f"A{number}", "exp_alerts": expected})
            states["pending"] += state == "pending"
            states["firing"] += state == "firing"
            states["kept"] += state == "firing" and not holds[minute]
    tests = [{"interval": "1m", "input_series": series, "alert_rule_test": cases}]
    # JSON is YAML, and written much faster.
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "g", "rules": rules}]}))
    (tmp_path / "test.yml").write_text(
        json.dumps({"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests})
    )

    done = subprocess.run(["promtool", "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, (done.stdout + done.stderr)[:3000]
    assert min(states.values()) > 200, states


def test_a_longer_for_makes_a_firing_alert_wait_again() -> None:
    firing = step(rule(1), {}, [Instance(LABELS, (), 1.0)], 0.0).state
    firing = step(rule(1), firing, [Instance(LABELS, (), 1.0)], 60.0).state

    longer = step(rule(5), firing, [Instance(LABELS, (), 1.0)], 120.0).state[LABELS]

    assert (longer.state, longer.fired_at, longer.active_at) == ("pending", None, 0.0)


def test_time_in_which_nobody_looked_does_not_count() -> None:
    pending = step(rule(3), {}, [Instance(LABELS, (), 1.0)], 100.0).state
    kept = step(rule(0, 5), step(rule(0, 5), {}, [Instance(LABELS, (), 1.0)], 0.0).state, [], 60.0).state

    assert resumed(pending, 500.0)[LABELS].active_at == 600.0
    assert resumed(kept, 500.0)[LABELS].keep_firing_since == 560.0
    assert resumed(kept, 500.0)[LABELS].fired_at == 0.0
