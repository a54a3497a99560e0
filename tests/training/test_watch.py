"""Who hangs and who lags, judged from histories that are made up."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability.names import PHASES
from observability.step_ring import DURATION, RECORD, Records, RingNow
from training.watch import HangLimits, Watch, straggler

IDLE = RingNow(0, 0, "running", "", 0, 0, 0, -1, -1, 0, math.nan, math.nan, math.nan)


def steps(seconds: float, count: int = 30) -> Records:
    records = np.zeros((count, RECORD.size // 8), np.int64)
    records[:, DURATION] = round(seconds * 1e9)
    return records


def watch(**limits: float) -> Watch:
    return Watch(2, 0.0, HangLimits(**limits))


def test_a_rank_that_never_shows_up_is_named_after_the_first_limit() -> None:
    found = watch(first=60)
    found.look(0, replace(IDLE, step=3, num_steps=3), steps(0.01), 1.0)
    assert found.hang(59.0) is None
    hang = found.hang(61.0)
    assert hang is not None
    assert hang.rank == 1
    assert "has shown nothing for 61.0 s since it was started" in hang.reason


def test_of_two_idle_ranks_the_one_that_began_fewer_collectives_is_named() -> None:
    found = watch(step=3)
    found.look(0, replace(IDLE, step=7, num_steps=7, enqueued=15, phase="backward"), steps(0.01), 1.0)
    found.look(1, replace(IDLE, step=7, num_steps=7, enqueued=14, phase="data_wait"), steps(0.01), 1.2)
    assert found.hang(4.1) is None
    hang = found.hang(4.3)
    assert hang is not None
    assert hang.rank == 1
    assert "in data_wait of step 7" in hang.reason
    assert "begun 14 collectives, rank 0 waits in number 15" in hang.reason


def test_ranks_that_wait_for_one_that_saves_do_not_hang() -> None:
    found = watch(step=3, pause=100)
    found.look(0, replace(IDLE, step=9, num_steps=9, enqueued=20, phase="checkpoint"), steps(0.01), 1.0)
    found.look(1, replace(IDLE, step=9, num_steps=9, enqueued=21, phase="after backward"), steps(0.01), 1.0)
    assert found.hang(90.0) is None
    hang = found.hang(102.0)
    assert hang is not None
    assert hang.rank == 0


def test_ranks_that_wait_for_one_of_another_node_leave_it_to_that_node_to_tell() -> None:
    found = watch(step=3)
    for rank in range(2):
        found.look(rank, replace(IDLE, step=7, num_steps=7, enqueued=15), steps(0.01), 1.0)

    assert found.far() == {0: (15, 7), 1: (15, 7)}
    assert found.hang(5.0, {2: (14, 7), 3: (16, 8)}) is None
    hang = found.hang(5.0, {2: (15, 7), 3: (16, 8)})
    assert hang is not None
    assert hang.rank == 0
    assert "begun 15 collectives, rank 3 waits in number 16" in hang.reason


def test_slow_steps_get_more_time_and_ended_ranks_are_left_alone() -> None:
    found = watch(step=3, factor=5)
    for rank in range(2):
        found.look(rank, replace(IDLE, step=30, num_steps=30), steps(2.0), 1.0)
    assert found.hang(10.9) is None
    assert found.hang(11.1) is not None
    for rank in range(2):
        found.look(rank, replace(IDLE, step=31, num_steps=31, state="completed"), steps(2.0), 11.2)
    assert found.hang(1e6) is None


@pytest.mark.parametrize("name", ["step", "factor", "first", "pause"])
def test_limits_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        HangLimits(**{name: 0})


def test_the_rank_that_waits_least_is_the_straggler_and_its_longest_excess_the_cause() -> None:
    names = ("data_wait", "forward", "communication")
    typical = {0: (0.001, 0.010, 0.005), 1: (0.001, 0.010, 0.005), 2: (0.001, 0.0145, 0.0001)}
    found = straggler(typical, names)
    assert found is not None
    assert (found.rank, found.phase) == (2, "forward")
    assert found.ratio == pytest.approx(0.0155 / 0.011)
    assert straggler({0: typical[0]}, names) is None


@given(st.integers(2, 16), st.integers(0, 2**32 - 1))
def test_equal_ranks_with_noise_of_a_few_percent_give_no_straggler(ranks: int, seed: int) -> None:
    noise = np.random.default_rng(seed).uniform(0.97, 1.03, (ranks, len(PHASES)))
    assert straggler({rank: (0.01 * noise[rank]).tolist() for rank in range(ranks)}, PHASES) is None
