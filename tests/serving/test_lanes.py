"""Lanes under load, in simulated time: who goes first, who is refused, and that nothing stalls."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.batcher import Batch, BatchQueue, Budget, State, Wait
from serving.batching.device import Device
from serving.batching.execution import execute
from serving.batching.lane_policy import LanePolicy
from serving.batching.padding import Padded
from serving.engine import Lane
from serving.errors import Cancelled, Expired, ModelFailed, NonFinite, Overloaded, Refused, ServingError, Unavailable
from serving.models import WarmUp
from serving.protocol.signature import Input, Output, Signature
from serving.protocol.tensors import Array
from tests.serving.lane_fakes import (
    NOT_FINITE,
    RAISES,
    Doubling,
    FakeExecutor,
    FakeLoop,
    Recorded,
    TimedExecutor,
    lane_of,
)


def seconds(rows: int) -> float:
    """4 ms a batch and 0.25 ms a row: 16 rows take 8 ms, so capacity is 2,000 rows a second."""
    return 0.004 + 0.00025 * rows


CURVE = WarmUp({rows: seconds(rows) for rows in (1, 2, 4, 8, 16)})


def timed_lane(loop: FakeLoop, **options: Any) -> tuple[Lane, TimedExecutor]:
    executor = TimedExecutor(loop, options.pop("takes", seconds))
    options = {"max_rows": 16, "limit_rows": 4096, "warm_up": CURVE} | options
    return lane_of(Doubling(), loop, executor, **options), executor  # type: ignore[arg-type]


def offer(
    loop: FakeLoop,
    lane: Lane,
    rate: float,
    duration: float,
    *,
    deadline: float | None = None,
    seed: int = 0,
    **more: Any,
) -> list[Timed]:
    """Poisson arrivals; the list fills as time goes."""
    draw = random.Random(seed)
    answered: list[Timed] = []
    end = loop.now + duration

    def arrive() -> None:
        if loop.now >= end:
            return
        request = Timed([1.0], loop.now, None if deadline is None else loop.now + deadline, loop=loop, **more)
        answered.append(request)
        try:
            lane.submit(request)
        except ServingError as error:
            request.state = State.DONE
            request.finish(error)
        loop.call_later(draw.expovariate(rate), arrive)

    loop.call_later(0.0, arrive)
    return answered


class Timed(Recorded):
    """Knows when it was answered."""

    def __init__(self, values: list[float], arrived: float, deadline: float | None, *, loop: FakeLoop, **more: Any):
        super().__init__(values, arrived, deadline, **more)
        self._loop = loop
        self.latency = float("inf")

    def finish(self, result: Any) -> None:
        super().finish(result)
        self.latency = self._loop.now - self.arrived

    @property
    def good(self) -> bool:
        return not isinstance(self.only, ServingError)


ACTIONS = st.one_of(
    st.tuples(
        st.just("submit"),
        st.lists(st.sampled_from([1.0, 2.0, 3.0, RAISES, NOT_FINITE]), min_size=1, max_size=11),
        st.tuples(st.one_of(st.none(), st.floats(-0.5, 3.0)), st.integers(1, 4), st.sampled_from([None, 1, 2])),
    ),
    st.tuples(st.just("cancel"), st.integers(0, 40), st.none()),
    st.tuples(st.just("advance"), st.floats(0.0, 1.0), st.none()),
    st.tuples(st.just("finish"), st.integers(0, 1), st.none()),
    st.tuples(st.just("move"), st.booleans(), st.none()),
)
POLICIES = st.fixed_dictionaries(
    {
        "max_delay": st.sampled_from([0.0, 0.4]),
        "latency_target": st.sampled_from([0.0, 0.3]),
        "preferred_rows": st.sampled_from([(), (4, 8)]),
        "newest_first": st.booleans(),
        "delay_target": st.sampled_from([0.0, 0.05]),
        "inline_seconds": st.sampled_from([0.0, 0.01]),
        "limit_bytes": st.sampled_from([0, 150]),
        "limit_requests": st.sampled_from([0, 6]),
        "stall_seconds": st.sampled_from([0.0, 0.5]),
    }
)


@settings(max_examples=250, deadline=None)
@given(st.lists(ACTIONS, max_size=40), POLICIES, st.booleans())
def test_whatever_comes_no_lane_stalls_and_every_request_ends_once_with_its_own_rows(
    actions: list[tuple[str, Any, Any]], policy: dict[str, Any], shared: bool
) -> None:
    loop = FakeLoop()
    device = Device(loop, clock=lambda: loop.now) if shared else None
    total = Budget(30, 500)
    executors, model = [FakeExecutor(), FakeExecutor()], Doubling()
    warm_up = WarmUp({rows: 0.001 * rows for rows in (1, 2, 4, 8)})
    late: list[int] = []
    lanes = [
        lane_of(model, loop, executor, device=device, total=total, warm_up=warm_up, on_late=late.append, **policy)
        for executor in executors
    ]
    admitted: list[Recorded] = []
    for name, value, more in actions:
        if name == "submit":
            deadline, priority, bucket = more
            # Tag each row with its request, so that a row that lands elsewhere shows.
            rows = [row if row in (RAISES, NOT_FINITE) else row + 10 * len(admitted) for row in value]
            at = None if deadline is None else loop.now + deadline
            request = Recorded(rows, loop.now, at, priority=priority, bucket=bucket, bytes=10 * len(rows))
            try:
                lanes[len(admitted) % 2].submit(request)
            except (Refused, Expired, Unavailable):
                assert request.results == []
            else:
                admitted.append(request)
        elif name == "cancel" and admitted:
            request = admitted[value % len(admitted)]
            request.lane.cancel(request)
        elif name == "advance":
            loop.advance(value)
            for lane in lanes:
                lane.check()
        elif name == "finish":
            loop.spin()
            executors[value].finish()
        elif name == "move":
            for pending in lanes[0].withdraw() + (lanes[0].abandon() if value else []):
                try:
                    lanes[1].submit(pending, admitted=True)
                except Expired as error:
                    pending.state = State.DONE
                    pending.finish(error)
        assert all(lane.queue.rows == lane.queue.ahead(8) >= 0 and lane.queue.bytes >= 0 for lane in lanes)
        assert total.rows == sum(lane.queue.rows for lane in lanes) <= 30 + 11 * 40
    for _ in range(400):
        loop.advance(1.0)
        finished = [executor.finish() for executor in executors]
        if not any(finished) and all(lane.idle for lane in lanes):
            break

    assert all(lane.idle for lane in lanes)
    assert (total.rows, total.bytes) == (0, 0)
    assert late == []
    for request in admitted:
        result = request.only
        values = request.values[0]
        if isinstance(result, ServingError):
            if isinstance(result, ModelFailed):
                assert RAISES in values
            elif isinstance(result, NonFinite):
                assert NOT_FINITE in values
            else:
                assert isinstance(result, (Cancelled, Expired, Refused))
        else:
            assert result[0].tolist() == [2 * value for value in values]


def test_at_three_times_capacity_goodput_stays_at_capacity_and_refusals_are_immediate() -> None:
    loop, late = FakeLoop(), []
    lane, _ = timed_lane(loop, on_late=late.append)
    requests = offer(loop, lane, rate=6000.0, duration=1.5, deadline=0.05)
    loop.advance(2.0)

    steady = [request for request in requests if 0.25 <= request.arrived < 1.5]
    good = sum(request.good and request.latency <= 0.05 for request in steady)
    assert good / 1.25 >= 0.9 * 2000
    refused = [request for request in steady if isinstance(request.only, Refused)]
    assert max(request.latency for request in refused) == 0.0
    # What was let in and then expired is a few: the estimate is one of a random load.
    assert sum(isinstance(request.only, Expired) for request in steady) <= 0.02 * len(steady)
    assert late == []
    lone = offer(loop, lane, rate=10.0, duration=0.5, deadline=0.05, seed=1)
    loop.advance(2.0)
    assert all(request.good and request.latency <= 2 * seconds(1) for request in lone)


def test_a_refusal_says_why_and_when_to_come_back() -> None:
    loop = FakeLoop()
    lane, _ = timed_lane(loop, limit_rows=64)
    for _ in range(64):
        lane.submit(Recorded([1.0]))

    with pytest.raises(Refused) as refusal:
        lane.submit(Recorded([1.0]))
    details = refusal.value.details
    assert details is not None
    assert (details["reason"], details["queue_rows"], details["limit_rows"]) == ("queue_rows", 64, 64)
    assert refusal.value.retry_after_seconds == pytest.approx(4 * seconds(16))
    assert details["expected_wait_seconds"] == pytest.approx(4 * seconds(16))


def test_an_estimate_that_is_far_too_high_is_corrected_and_locks_nobody_out() -> None:
    loop = FakeLoop()
    curve = WarmUp(dict.fromkeys((1, 2, 4, 8, 16), 10.0))
    lane, _ = timed_lane(loop, warm_up=curve)
    requests = offer(loop, lane, rate=500.0, duration=5.0, deadline=0.05)
    loop.advance(6.0)

    last = [request for request in requests if request.arrived > 4.0]
    assert sum(request.good for request in last) > 0.95 * len(last)


def test_a_standing_queue_is_held_at_the_target_and_a_burst_is_not_shed() -> None:
    loop = FakeLoop()
    lane, _ = timed_lane(loop, delay_target=0.1, delay_interval=0.1)
    burst = [Timed([1.0], loop.now, None, loop=loop) for _ in range(300)]  # 150 ms of work
    for request in burst:
        lane.submit(request)
    loop.advance(1.0)
    assert all(request.good for request in burst)

    requests = offer(loop, lane, rate=4000.0, duration=2.0)
    loop.advance(4.0)
    late = [request for request in requests if request.arrived > 2.0]
    answered = [request for request in late if request.good]
    assert len(answered) / 1.0 >= 0.9 * 2000
    # The target, the batch that runs, its own, and one more for what came together with it.
    assert max(request.latency for request in answered) <= 0.1 + 4 * seconds(16)
    assert {request.only.reason for request in late if not request.good} == {"delay"}  # type: ignore[union-attr]
    calm = offer(loop, lane, rate=100.0, duration=1.0, seed=2)
    loop.advance(2.0)
    assert all(request.good for request in calm)


def test_the_newest_go_first_while_the_queue_stands_if_told_so() -> None:
    results = {}
    for newest_first in (False, True):
        loop = FakeLoop()
        lane, _ = timed_lane(loop, delay_target=0.1, delay_interval=0.05, newest_first=newest_first)
        requests = offer(loop, lane, rate=4000.0, duration=1.5)
        loop.advance(5.0)
        answered = sorted(request.latency for request in requests if request.good and request.arrived > 0.75)
        results[newest_first] = answered[len(answered) // 2]
        assert all(len(request.results) == 1 for request in requests)
    assert results[True] < 0.5 * results[False]


def test_a_heavy_model_does_not_starve_a_light_one() -> None:
    loop = FakeLoop()
    device = Device(loop, clock=lambda: loop.now)
    heavy, heavy_work = timed_lane(
        loop, device=device, takes=lambda rows: 0.1, warm_up=WarmUp({16: 0.1}), stall_seconds=0.0
    )
    light, light_work = timed_lane(loop, device=device, takes=lambda rows: 0.002, warm_up=WarmUp({16: 0.002}))
    offer(loop, heavy, rate=500.0, duration=5.0)  # more than it can do
    requests = offer(loop, light, rate=100.0, duration=5.0, seed=1)
    loop.advance(4.9)

    waited = [request.latency for request in requests if request.arrived < 4.0]
    assert max(waited) <= 0.1 + 3 * 0.002
    # The heavy one gets all that the light one leaves.
    assert heavy_work.busy_seconds + light_work.busy_seconds >= 0.97 * 4.9


def test_lanes_that_both_have_more_than_they_can_do_get_the_same_time_of_the_device() -> None:
    loop = FakeLoop()
    device = Device(loop, clock=lambda: loop.now)
    lanes = [
        timed_lane(loop, device=device, takes=lambda rows, t=t: t, warm_up=WarmUp({16: t}), stall_seconds=0.0)
        for t in (0.05, 0.005)
    ]
    for seed, (lane, _) in enumerate(lanes):
        offer(loop, lane, rate=2500.0, duration=3.0, seed=seed)
    loop.advance(3.0)

    first, second = (work.busy_seconds for _, work in lanes)
    assert first == pytest.approx(second, rel=0.05)
    assert first + second == pytest.approx(3.0, rel=0.02)


def test_a_batch_that_hangs_keeps_the_device_from_nobody_for_long() -> None:
    loop = FakeLoop()
    device = Device(loop, clock=lambda: loop.now)
    stuck = FakeExecutor()
    hanging = lane_of(Doubling(), loop, stuck, device=device, warm_up=CURVE, max_rows=16)
    other, _ = timed_lane(loop, device=device)
    hanging.submit(Recorded([1.0]))
    loop.spin()
    request = Timed([1.0], loop.now, None, loop=loop)
    other.submit(request)
    loop.advance(1.0)
    assert request.good

    later = Timed([1.0], loop.now, None, loop=loop)
    other.submit(later)
    loop.advance(0.1)
    assert later.latency <= 2 * seconds(1)
    stuck.finish()
    loop.advance(1.0)
    assert hanging.idle


def test_the_first_class_goes_first_and_the_last_one_goes_in_the_end() -> None:
    loop = FakeLoop()
    lane, executor = timed_lane(loop, ageing=0.5)
    high = offer(loop, lane, rate=1900.0, duration=4.0, priority=1)
    low = offer(loop, lane, rate=300.0, duration=2.0, priority=3, seed=1)
    loop.advance(2.0)

    assert max(request.latency for request in high if request.arrived < 1.5) < 0.25
    loop.advance(6.0)
    # Over capacity the last class waits, and two periods of ageing make it the first.
    assert all(request.good for request in low)
    assert 0.2 < max(request.latency for request in low) < 2 * 0.5 + 0.5
    assert sum(executor.batches) == len(high) + len(low)


def test_inside_a_class_the_earliest_deadline_goes_first_and_none_waits_for_ever() -> None:
    queue = BatchQueue(max_rows=1, max_delay=0.0, limit_rows=64, patience=1.0)
    patient = Recorded([0.0], arrived=0.0)
    queue.offer(patient)
    queue.offer(Recorded([1.0], arrived=0.0, deadline=0.9))
    queue.offer(Recorded([2.0], arrived=0.0, deadline=0.3))
    order = []
    for moment in range(3):
        batch = queue.take(0.1)
        assert isinstance(batch, Batch)
        order.append(batch.requests[0].values[0][0])  # type: ignore[index]
        queue.offer(Recorded([3.0 + moment], arrived=0.6 + moment, deadline=1.1 + moment))
    assert order == [2.0, 1.0, 0.0]


def test_a_request_of_a_higher_class_takes_the_place_of_the_last_in_line() -> None:
    loop, shed = FakeLoop(), []
    lane, _ = timed_lane(loop, limit_rows=16, on_shed=shed.append)
    low = [Timed([1.0], 0.0, None, loop=loop, priority=3) for _ in range(16)]
    for request in low:
        lane.submit(request)
    urgent = Timed([1.0, 2.0], 0.0, None, loop=loop, priority=1)
    lane.submit(urgent)

    assert [isinstance(request.only, Refused) for request in low[-2:]] == [True, True]
    assert shed == ["evicted", "evicted"]
    loop.advance(1.0)
    assert urgent.good
    assert all(request.good for request in low[:-2])
    for _ in range(16):
        lane.submit(Timed([1.0], loop.now, None, loop=loop, priority=3))
    with pytest.raises(Refused):
        lane.submit(Timed([1.0], loop.now, None, loop=loop, priority=3))


@pytest.mark.parametrize(
    ("options", "budget", "reason", "kind"),
    [
        ({"limit_bytes": 1000}, Budget(), "queue_bytes", Refused),
        ({"limit_requests": 4}, Budget(), "concurrency", Refused),
        ({}, Budget(limit_rows=4), "total_rows", Overloaded),
        ({}, Budget(limit_bytes=1000), "total_bytes", Overloaded),
    ],
)
def test_what_may_wait_is_bounded(options: dict[str, Any], budget: Budget, reason: str, kind: type[Refused]) -> None:
    loop, shed = FakeLoop(), []
    lane, _ = timed_lane(loop, total=budget, on_shed=shed.append, **options)
    for _ in range(4):
        lane.submit(Recorded([1.0], bytes=250))

    with pytest.raises(Refused) as refusal:
        lane.submit(Recorded([1.0], bytes=250))
    assert type(refusal.value) is kind
    assert refusal.value.reason == reason
    assert refusal.value.status == (429 if kind is Refused else 503)
    assert shed == [reason]
    loop.advance(1.0)
    lane.submit(Recorded([1.0], bytes=250))


def test_under_a_latency_target_batches_grow_with_the_load_and_requests_keep_it() -> None:
    loop = FakeLoop()
    takes: Callable[[int], float] = lambda rows: 0.004 + 0.0001 * rows  # noqa: E731
    curve = WarmUp({rows: takes(rows) for rows in (1, 2, 4, 8, 16, 32, 64, 128, 256)})
    lane, executor = timed_lane(loop, takes=takes, warm_up=curve, max_rows=256, latency_target=0.02)
    requests = offer(loop, lane, rate=4000.0, duration=3.0)
    loop.advance(4.0)

    steady = sorted(request.latency for request in requests if request.arrived > 0.5)
    assert steady[int(0.99 * len(steady))] <= 0.02
    assert np.mean(executor.batches[50:]) > 8
    before = len(executor.batches)
    loop.advance(5.0)
    lone = Timed([1.0], loop.now, None, loop=loop)
    lane.submit(lone)
    loop.advance(1.0)
    # What it learnt under load is forgotten: a lone request waits for nobody.
    assert lone.latency == pytest.approx(takes(1))
    assert len(executor.batches) == before + 1


def test_a_target_that_large_batches_break_makes_them_small() -> None:
    loop = FakeLoop()
    takes: Callable[[int], float] = lambda rows: 0.001 * rows  # noqa: E731
    curve = WarmUp({rows: takes(rows) for rows in (1, 2, 4, 8, 16, 32, 64)})
    lane, executor = timed_lane(loop, takes=takes, warm_up=curve, max_rows=64, latency_target=0.02)
    for request in [Timed([1.0], 0.0, None, loop=loop) for _ in range(100)]:
        lane.submit(request)
    loop.advance(1.0)

    assert max(executor.batches) <= 10
    assert sum(executor.batches) == 100


@pytest.mark.parametrize("late", [False, True])
def test_a_target_that_cannot_be_kept_does_not_make_batches_small_while_more_wait(late: bool) -> None:
    """A model that takes longer than the target whatever its rows, and one whose batches are often held up."""
    loop = FakeLoop()
    draw = random.Random(1)
    takes: Callable[[int], float] = lambda rows: 0.02 + 0.0001 * rows  # noqa: E731
    curve = WarmUp({rows: takes(rows) for rows in (1, 2, 4, 8, 16, 32, 64)})
    target = 0.06 if late else 0.01
    held_up: Callable[[int], float] = lambda rows: takes(rows) * (3.0 if late and draw.random() < 0.1 else 1.0)  # noqa: E731
    lane, executor = timed_lane(loop, takes=held_up, warm_up=curve, max_rows=64, latency_target=target)

    requests = offer(loop, lane, rate=500.0, duration=5.0)
    loop.advance(60.0)

    # One row at a time would be 50 a second: the last would wait for most of a minute.
    steady = sorted(request.latency for request in requests if request.arrived > 2.5)
    assert steady[int(0.99 * len(steady))] <= 0.2
    assert np.mean(executor.batches[50:]) > 4


def test_waiting_that_brings_no_company_ends() -> None:
    """64 clients that each wait for their answer: once all are in the queue nobody else can come."""
    loop = FakeLoop()
    takes: Callable[[int], float] = lambda rows: 0.004 + 0.00001 * rows  # noqa: E731
    curve = WarmUp({rows: takes(rows) for rows in (1, 2, 4, 8, 16, 32, 64, 128)})
    lane, _ = timed_lane(loop, takes=takes, warm_up=curve, max_rows=128, latency_target=0.1)
    done = itertools.count()

    class Client(Timed):
        def finish(self, result: Any) -> None:
            next(done)
            if self._loop.now < 1.5:
                lane.submit(Client([1.0], self._loop.now, None, loop=self._loop))

    for _ in range(64):
        lane.submit(Client([1.0], 0.0, None, loop=loop))
    loop.advance(2.0)

    # All 64 go at once every time: at least 0.8 of the rate without any waiting.
    assert next(done) >= 0.8 * 64 * 1.5 / takes(64)


def test_a_batch_of_a_preferred_size_goes_at_once_and_the_rest_waits() -> None:
    queue = BatchQueue(max_rows=16, max_delay=1.0, limit_rows=64, preferred_rows=(4, 8))
    for _ in range(3):
        queue.offer(Recorded([1.0], arrived=10.0))
    assert queue.take(10.1) == Wait(11.0)
    for _ in range(3):
        queue.offer(Recorded([1.0], arrived=10.1))

    batch = queue.take(10.1)
    assert isinstance(batch, Batch)
    assert (batch.rows, batch.reason) == (4, "preferred")
    assert queue.take(10.2) == Wait(11.1)


def test_batches_are_filled_up_to_allowed_sizes_and_the_filling_is_cut_off() -> None:
    sizes: list[int] = []
    model = Padded(Doubling(sizes.append), (4, 16))
    results = execute(model, [Recorded([1.0, 2.0]), Recorded([3.0])], 16, lambda: 0.0).results

    assert [result[0].tolist() for result in results] == [[2.0, 4.0], [6.0]]  # type: ignore[index]
    assert sizes == [4]
    assert model.added() == 1
    execute(model, [Recorded([1.0] * 17)], 32, lambda: 0.0)
    assert sizes[-1] == 17
    assert model.added() == 0


def test_a_batch_that_memory_does_not_hold_is_halved_and_the_next_ones_are_smaller() -> None:
    loop = FakeLoop()

    def allocate(rows: int) -> None:
        if rows > 5:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory")

    model, executor = Doubling(allocate), FakeExecutor()
    lane = lane_of(model, loop, executor, max_rows=16, limit_rows=64)
    requests = [Recorded([float(value)]) for value in range(16)]
    for request in requests:
        lane.submit(request)
    loop.spin()
    executor.finish()
    assert [request.only[0].tolist() for request in requests] == [[2.0 * value] for value in range(16)]  # type: ignore[index]

    assert lane.queue.max_rows == 4
    whole = Recorded([1.0] * 8)
    lane.submit(whole)
    loop.advance(31.0)
    executor.finish()
    lane.submit(Recorded([1.0]))
    loop.advance(0.1)
    assert lane.queue.max_rows == 8


def test_short_batches_run_on_the_loop_and_go_to_the_thread_when_they_get_long() -> None:
    loop = FakeLoop()
    cost = [0.0002]

    def work(rows: int) -> None:
        loop.now += cost[0]

    executor = FakeExecutor()
    curve = WarmUp(dict.fromkeys((1, 2, 4, 8), 0.0002))
    lane = lane_of(Doubling(work), loop, executor, warm_up=curve, inline_seconds=0.0005)

    def handed_over() -> bool:
        request = Recorded([1.0], loop.now)
        lane.submit(request)
        loop.spin()
        threaded = executor.finish()
        assert len(request.results) == 1
        return threaded

    assert not any(handed_over() for _ in range(20))
    cost[0] = 0.003
    assert [handed_over() for _ in range(20)][-10:] == [True] * 10
    # It is tried again after a pause, and stays when it is short again.
    cost[0] = 0.0002
    for _ in range(200):
        handed_over()
        loop.advance(0.05)
    assert not any(handed_over() for _ in range(20))


def test_a_model_that_was_never_measured_does_not_run_on_the_loop() -> None:
    loop, executor = FakeLoop(), FakeExecutor()
    lane = lane_of(Doubling(), loop, executor, inline_seconds=0.0005)
    lane.submit(Recorded([1.0]))
    loop.spin()

    assert lane.busy
    assert executor.finish()


def test_a_batch_that_does_not_come_back_makes_the_lane_unready_until_it_does() -> None:
    loop, executor = FakeLoop(), FakeExecutor()
    lane = lane_of(Doubling(), loop, executor, warm_up=CURVE, stall_seconds=5.0, max_rows=16)
    first = Recorded([1.0])
    lane.submit(first)
    loop.advance(4.0)
    assert lane.check() is None
    loop.advance(2.0)

    reason = lane.check()
    assert reason is not None
    assert "1 rows has been with the model for 6.0 s" in reason
    assert lane.check() is None
    with pytest.raises(Unavailable, match="does not answer"):
        lane.submit(Recorded([1.0]))
    executor.finish()
    assert lane.stalled is None
    lane.submit(Recorded([1.0]))
    loop.spin()
    assert executor.finish()


def test_a_deadline_costs_no_timer_of_its_own() -> None:
    class Counting(FakeLoop):
        timers = 0

        def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Any:
            self.timers += 1
            return super().call_later(delay, callback, *args)

    loop, executor = Counting(), FakeExecutor()
    lane = lane_of(Doubling(), loop, executor, limit_rows=4096, max_rows=16)
    requests = []
    lane.submit(Recorded([1.0]))
    loop.spin()
    for place in range(1000):
        requests.append(Timed([1.0], 0.0, 1.0 + 0.0001 * place, loop=loop))
        lane.submit(requests[-1])
    assert loop.timers == 1
    loop.advance(2.0)

    assert all(isinstance(request.only, Expired) for request in requests)
    assert max(request.latency - 0.0001 * place for place, request in enumerate(requests)) < 1.0 + 0.0021
    assert loop.timers < 200


class Summing:
    """y = sum of the first `length` values of x; z = x doubled, as long as x."""

    def __init__(self, lengths: bool) -> None:
        inputs = [Input.of("x", "FP32", shape=[-1])] + ([Input.of("x.length", "INT64")] if lengths else [])
        self.signature = Signature(tuple(inputs), (Output("y"), Output("z", shape=(-1,))), buckets=(4,))
        self.shapes: list[tuple[int, ...]] = []

    def run(self, columns: Sequence[Array]) -> list[Array]:
        x = columns[0]
        self.shapes.append(x.shape)
        if len(columns) == 1:
            return [x.sum(1), 2 * x]
        mask = np.arange(x.shape[1])[None, :] < columns[1][:, None]
        return [np.where(mask, x, 0).sum(1), np.where(mask, 2 * x, -1)]


@pytest.mark.parametrize("lengths", [False, True])
def test_ragged_requests_share_a_batch_by_bucket_and_answer_as_if_alone(lengths: bool) -> None:
    loop, executor, model = FakeLoop(), FakeExecutor(), Summing(lengths)
    lane = Lane(model, executor, loop, LanePolicy(max_rows=16), clock=lambda: loop.now)
    requests = []
    for length in (3, 2, 4, 6, 3, 7, 9):
        x = np.arange(1, 2 * length + 1, dtype=np.float32).reshape(2, length)
        bound = model.signature.filled([x, None], 2) if lengths else [x]
        request = Recorded([0.0, 0.0], bucket=model.signature.key(bound))
        request.values = bound
        requests.append((request, x))
        lane.submit(request)
    loop.spin()
    while executor.finish():
        loop.spin()

    for request, x in requests:
        y, z = request.only  # type: ignore[misc]
        assert y.tolist() == x.sum(1).tolist()
        assert z.tolist() == (2 * x).tolist()
    if lengths:
        # Up to 4 the configured bucket, beyond it powers of two.
        assert sorted(model.shapes) == [(2, 16), (4, 8), (8, 4)]
    else:
        assert sorted(model.shapes) == [(2, 2), (2, 4), (2, 6), (2, 7), (2, 9), (4, 3)]
