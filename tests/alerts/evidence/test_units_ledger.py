"""Units, not requests: first failures, retries, warm-up, and what that does to false alarms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alerts.evidence import Ledger, Segment, Served, log_evidence


def served(id: str, unit: str | None = None, *, time: float = 10.0, failed: bool = False, slow: int = 0) -> Served:
    return Served(id, time, canary=True, propensity=0.1, failed=failed, unit=unit, slow=slow)


def test_a_units_first_failure_counts_and_its_first_time_above_each_bound() -> None:
    found = Ledger().take(
        [
            served("1", "ada", slow=2),
            served("2", "ada", failed=True, slow=1),
            served("3", "ada", failed=True, slow=4),
            served("4", "bob", failed=True),
        ]
    )

    assert [news.request for news in found] == [True, False, False, True]
    assert [news.failure for news in found] == [False, True, False, True]
    assert [(news.slow_from, news.slow_to) for news in found] == [(0, 2), (2, 2), (2, 4), (0, 0)]


def test_retries_collapse_and_the_warm_up_is_left_out() -> None:
    ledger = Ledger(warm_from=5.0)

    found = ledger.take([served("1", time=4.0), served("2"), served("2", failed=True), served("3")])

    assert [news.served.id for news in found] == ["2", "3"]
    assert ledger.take([served("3", time=11.0)]) == []


def test_ids_are_forgotten_and_a_restart_changes_nothing() -> None:
    ledger = Ledger(remember_seconds=60.0)
    ledger.take([served("1", "ada", time=0.0, failed=True)])
    again = Ledger.from_json(ledger.to_json())

    for one in (ledger, again):
        (news,) = one.take([served("2", "ada", time=70.0, failed=True)])
        assert not news.failure
        assert len(one.take([served("1", "ada", time=71.0)])) == 1
    assert again.to_json() == ledger.to_json()
    assert '"ada"' not in ledger.to_json()  # who failed is nobody's business: units are hashed
    with pytest.raises(ValueError, match="no ledger"):
        Ledger.from_json("[]")


def test_first_failures_of_sticky_users_raise_no_false_alarms_where_all_failures_do() -> None:
    rng = np.random.default_rng(12)
    raised = {"first": 0, "all": 0}
    for _ in range(60):
        activity = rng.pareto(1.2, 400) + 0.05
        users = rng.choice(400, size=8000, p=activity / activity.sum())
        broken, canary = rng.random(400) < 0.02, rng.random(400) < 0.1
        failed = broken[users] | (rng.random(8000) < 0.002)
        ledger, counts, over = Ledger(), {"first": [0, 0], "all": [0, 0]}, {"first": False, "all": False}
        for place in np.flatnonzero(failed).tolist():
            user = int(users[place])
            request = Served(str(place), place / 100, bool(canary[user]), 0.1, True, str(user))
            (news,) = ledger.take([request])
            for name in ("first", "all") if news.failure else ("all",):
                counts[name][0] += request.canary
                counts[name][1] += 1
                over[name] |= log_evidence([Segment(0.1, *counts[name])]) >= math.log(100)
        for name in raised:
            raised[name] += over[name]

    assert raised["first"] <= 4  # 1 % of 60 are 0.6
    assert raised["all"] > 6
