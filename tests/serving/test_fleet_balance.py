"""Who gets the next request, who is taken out, and who comes back: time and chance are parameters."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.fleet import FleetOptions
from serving.fleet.balance import FIRST_BACK_OFF_SECONDS, MAX_BACK_OFF_SECONDS, MIN_ANSWERS, Backend, Balancer


def balancer(count: int, *, alone: bool = True, seed: int = 0, **options: float) -> Balancer:
    made = Balancer(
        FleetOptions(replicas=count, **options), alone=alone, choose=random.Random(seed).randrange  # type: ignore[arg-type]
    )  # fmt: skip
    for number in range(count):
        made.add(number).connected = True
    return made


def answers(made: Balancer, number: int, count: int, faults: int, now: float = 100.0) -> None:
    for index in range(count):
        made.answered(made.backends[number], index < faults, now)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.integers(0, 1000))
def test_a_lone_front_takes_the_least_loaded(loads: list[int], seed: int) -> None:
    made = balancer(len(loads), seed=seed)
    for backend, load in zip(made.backends.values(), loads, strict=True):
        for _ in range(load):
            made.sent(backend, 1)

    picked = made.pick(1)

    assert picked is not None
    assert picked.load == min(loads)


def test_one_of_several_fronts_takes_the_better_of_two_and_never_the_worst_of_all() -> None:
    made = balancer(4, alone=False)
    for number, load in enumerate((9, 0, 5, 3)):
        for _ in range(load):
            made.sent(made.backends[number], 1)

    picks = [made.pick(1) for _ in range(600)]
    shares = [sum(pick is backend for pick in picks) / 600 for backend in made.backends.values()]

    # Of the six pairs of four, the least loaded wins three, the second two, the third one.
    assert shares == pytest.approx([0.0, 3 / 6, 1 / 6, 2 / 6], abs=0.07)


def test_what_a_replica_says_of_itself_counts_requests_of_other_fronts() -> None:
    made = balancer(2, alone=False)
    first, second = made.backends.values()
    made.sent(second, 1)
    made.reported(first, 40)
    made.reported(second, 1)

    assert made.pick(1) is second
    for _ in range(45):
        made.sent(second, 1)
    assert made.pick(1) is first


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2000), st.booleans()), max_size=200))
def test_credit_bounds_what_a_replica_holds(steps: list[tuple[int, int, bool]]) -> None:
    made = balancer(3, credit_requests=5, credit_bytes=3000)
    held: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for number, size, give_back in steps:
        if give_back and held[number]:
            made.settled(made.backends[number], held[number].pop())
        else:
            picked = made.pick(size)
            if picked is not None:
                made.sent(picked, size)
                held[picked.number].append(size)
        for backend in made.backends.values():
            sizes = held[backend.number]
            assert backend.in_flight == len(sizes) <= 5
            assert backend.bytes_in_flight == sum(sizes)
            assert sum(sizes) <= 3000 or len(sizes) == 1


def test_nobody_is_picked_who_is_away_leaving_ejected_or_was_just_lost() -> None:
    made = balancer(4)
    made.backends[0].connected = False
    made.backends[1].leaving = True
    made.eject(made.backends[2], "outlier", 0.0)

    assert made.pick(1) is made.backends[3]
    assert made.pick(1, other_than=3) is None


def test_a_replica_whose_answers_fail_far_more_often_is_named() -> None:
    made = balancer(3)
    answers(made, 0, 100, 1)
    answers(made, 1, 100, 40)
    answers(made, 2, 100, 2)

    assert made.outliers(100.0) == [made.backends[1]]


@pytest.mark.parametrize(
    "tallies",
    [
        ((100, 50), (100, 50), (100, 48)),  # the requests are bad, not a replica
        ((100, 0), (MIN_ANSWERS - 1, MIN_ANSWERS - 1), (100, 0)),  # too few to say
        ((1000, 0), (1000, 60), (1000, 0)),  # significant, but not far above
        ((0, 0), (100, 100), (0, 0)),  # nobody to compare with
    ],
)
def test_chance_bad_requests_and_small_numbers_eject_nobody(tallies: tuple[tuple[int, int], ...]) -> None:
    made = balancer(3)
    for number, (count, faults) in enumerate(tallies):
        answers(made, number, count, faults)

    assert made.outliers(100.0) == []


def test_no_more_than_the_allowed_share_is_out_and_the_worst_goes_first() -> None:
    made = balancer(5, max_ejected=0.4)
    for number, faults in enumerate((0, 0, 60, 99, 80)):
        answers(made, number, 100, faults)

    named = made.outliers(100.0)
    assert [backend.number for backend in named] == [3, 4]
    for backend in named:
        made.eject(backend, "outlier", 100.0)
    assert made.outliers(100.0) == []


def test_old_answers_are_forgotten() -> None:
    made = balancer(2)
    answers(made, 0, 100, 0, now=100.0)
    answers(made, 1, 100, 90, now=100.0)

    assert made.outliers(105.0) == [made.backends[1]]
    assert made.outliers(120.0) == []


def test_healthy_replicas_are_not_ejected_by_chance() -> None:
    draw = random.Random(3)
    ejected = 0
    for _ in range(2000):
        made = balancer(4)
        for number in range(4):
            answers(made, number, 60, sum(draw.random() < 0.1 for _ in range(60)))
        ejected += len(made.outliers(100.0))

    assert ejected <= 2


def test_the_back_off_grows_while_probes_fail_and_starts_anew_after_a_good_time() -> None:
    made = balancer(2)
    backend = made.backends[0]
    now, waits = 0.0, []
    made.eject(backend, "outlier", now)
    for _ in range(8):
        waits.append(backend.probe_at - now)
        assert list(made.due(backend.probe_at - 1e-6)) == []
        now = backend.probe_at
        assert list(made.due(now)) == [backend]
        made.probed(backend, False, now)
    assert waits == [FIRST_BACK_OFF_SECONDS * 2**power for power in range(6)] + [MAX_BACK_OFF_SECONDS] * 2

    made.probed(backend, True, now)
    assert backend.routable
    made.eject(backend, "outlier", now + 1.0)
    assert backend.probe_at - (now + 1.0) == MAX_BACK_OFF_SECONDS
    made.probed(backend, True, now + 100.0)
    made.eject(backend, "outlier", now + 100.0 + 3 * MAX_BACK_OFF_SECONDS)
    assert backend.probe_at - (now + 100.0 + 3 * MAX_BACK_OFF_SECONDS) == FIRST_BACK_OFF_SECONDS


@pytest.mark.parametrize(
    "wrong",
    [{"replicas": 0}, {"fronts": -1}, {"replicas": 2, "min_ready": 3}, {"ping_limit": 0.5}, {"max_ejected": 1.0}],
)
def test_options_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)) if "min_ready" not in wrong else "min_ready"):
        FleetOptions(**wrong)  # type: ignore[arg-type]


def test_loads_follow_requests_through_any_order_of_reports() -> None:
    backend = Backend(0)
    made = balancer(1)
    for sent, reported in itertools.product(range(4), range(4)):
        backend.in_flight = backend.reported_at_flight = sent
        backend.reported = reported
        made.sent(backend, 0)
        assert backend.load == max(sent + 1, reported + 1)
        made.settled(backend, 0)
