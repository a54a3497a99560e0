"""The act path once more, on PostgreSQL: its locks, claims, journal, episodes and index of open ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from alerts.schema import ACTION_CLAIMS, open_database
from tests.alerts.actions.test_act_path import (
    test_a_crash_at_any_point_leaves_one_effect_and_one_result,
    test_a_living_engines_claim_is_respected_and_a_lost_one_refuses_its_result,
    test_a_persons_decision_at_the_server_holds_the_machine_back_until_a_person_approves,
    test_two_engines_that_see_one_alert_act_once,
)
from tests.alerts.retraining.test_retraining_loop import (
    loop,
    test_a_refusal_waits_for_labels_and_a_crash_is_tried_again_soon,
    test_alerts_that_come_and_go_are_one_episode_and_one_retraining,
)

__all__ = [
    "loop",
    "test_a_crash_at_any_point_leaves_one_effect_and_one_result",
    "test_a_living_engines_claim_is_respected_and_a_lost_one_refuses_its_result",
    "test_a_persons_decision_at_the_server_holds_the_machine_back_until_a_person_approves",
    "test_a_refusal_waits_for_labels_and_a_crash_is_tried_again_soon",
    "test_alerts_that_come_and_go_are_one_episode_and_one_retraining",
    "test_two_engines_that_see_one_alert_act_once",
]

pytestmark = pytest.mark.slow


@pytest.fixture
def database_url(postgresql_url: str) -> str:
    return postgresql_url


class ServerClock:
    """Time moved by hand; that of claims is the server's own, so they grow old with it."""

    def __init__(self, database: sa.Engine) -> None:
        self.now = 1_700_000_000.0
        self.database = database

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        self.now += seconds
        older = ACTION_CLAIMS.c.expires_at - seconds
        with self.database.begin() as connection:
            connection.execute(ACTION_CLAIMS.update().values(expires_at=older))
        return self.now


@pytest.fixture
def clock(database_url: str) -> Iterator[Any]:
    database = open_database(database_url)
    yield ServerClock(database)
    database.dispose()
