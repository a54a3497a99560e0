"""Where the wall time of one process went: the parts add up, and what was given up is no progress."""

from __future__ import annotations

import math

import numpy as np
import pytest

from observability import names
from observability.names import PHASES
from observability.step_ring import Records
from observability.training import TrainingMonitor
from observability.wall_time import CAUSES, WallTime, goodput

SECOND = 1_000_000_000


def steps(first: int, number: int, at: float) -> Records:
    """Steps of 10 s, of which 1 s waits for data and 2 s save, one second apart, from `at` seconds on."""
    rows = []
    for index in range(number):
        phases = dict.fromkeys(PHASES, 0) | {"data_wait": SECOND, "checkpoint": 2 * SECOND, "forward": 3 * SECOND}
        rows.append([first + index, round((at + 11 * index) * SECOND), 10 * SECOND, 32, *phases.values()])
    return np.array(rows, np.int64)


def test_the_parts_add_up_to_the_time_since_the_start() -> None:
    wall = WallTime(5 * SECOND)
    assert wall.by_cause(8 * SECOND) is None
    wall.add(steps(0, 3, at=15))
    wall.add(steps(3, 1, at=48))

    found = wall.by_cause(60 * SECOND)
    assert found is not None
    assert found == dict.fromkeys(CAUSES, 0.0) | {
        "starting": 10.0, "data_wait": 4.0, "checkpoint": 8.0, "productive": 28.0, "between_steps": 3.0, "ending": 2.0,
    }  # fmt: skip
    assert math.fsum(found.values()) == 55.0
    assert goodput(found) == pytest.approx(28 / 55)


@pytest.mark.parametrize("at_once", [True, False])
def test_steps_that_a_rewind_gave_up_are_no_progress(at_once: bool) -> None:
    wall = WallTime(0)
    parts = [steps(0, 5, at=0), steps(3, 1, at=55), steps(2, 2, at=66)]
    for part in [np.concatenate(parts)] if at_once else parts:
        wall.add(part)

    found = wall.by_cause(87 * SECOND)
    assert found is not None
    # Of 0 1 2 3 4, 3, 2 3 the steps 2, 3, 4 and the first 3 again were for nothing.
    assert (found["repeated"], found["productive"]) == (40.0, 28.0)
    assert math.fsum(found.values()) == 87.0


def test_a_monitor_shows_goodput_once_it_has_steps() -> None:
    times = iter(range(0, 10_000 * SECOND, SECOND))
    monitor = TrainingMonitor("m", run="r", drain_seconds=0, clock=lambda: next(times))
    value = monitor.metrics.registry.get_sample_value
    monitor.drain()
    assert value(names.TRAINING_GOODPUT.name, {"model": "m", "run": "r"}) is None
    for _ in range(3):
        with monitor.step(samples=1):
            with monitor.phase("data_wait"):
                pass
            with monitor.phase("forward"):
                pass
    monitor.drain()

    wall = {cause: value(names.TRAINING_WALL_TIME.name, {"model": "m", "run": "r", "cause": cause}) for cause in CAUSES}
    assert wall["data_wait"] == 3.0
    assert value(names.TRAINING_GOODPUT.name, {"model": "m", "run": "r"}) == pytest.approx(
        (wall["productive"] or 0) / sum(one or 0 for one in wall.values())
    )
