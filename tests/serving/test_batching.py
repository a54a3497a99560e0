"""The queue, the lane and the batch run: every request ends once, with its own rows, whatever happens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.batcher import Batch, BatchQueue, State, Wait
from serving.batching.execution import execute
from serving.errors import Cancelled, Expired, InvalidRequest, ModelFailed, NonFinite, Refused, ServingError
from serving.protocol.signature import Input, Output, Signature
from serving.protocol.tensors import Array
from tests.serving.lane_fakes import NOT_FINITE, RAISES, Doubling, FakeExecutor, FakeLoop, Recorded, lane_of

ACTIONS = st.one_of(
    st.tuples(
        st.just("submit"),
        st.lists(st.sampled_from([1.0, 2.0, 3.0, RAISES, NOT_FINITE]), min_size=1, max_size=5),
        st.one_of(st.none(), st.floats(-0.5, 3.0)),
    ),
    st.tuples(st.just("cancel"), st.integers(0, 40), st.none()),
    st.tuples(st.just("advance"), st.floats(0.0, 1.0), st.none()),
    st.tuples(st.just("finish"), st.none(), st.none()),
    st.tuples(st.just("move"), st.booleans(), st.none()),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(ACTIONS, max_size=40), st.sampled_from([0.0, 0.4]))
def test_any_mix_of_cancels_exceptions_and_deadlines_ends_every_request_once_with_its_own_rows(
    actions: list[tuple[str, Any, Any]], max_delay: float
) -> None:
    loop = FakeLoop()
    executors, model = [FakeExecutor(), FakeExecutor()], Doubling()
    lanes = [lane_of(model, loop, executor, max_delay=max_delay) for executor in executors]
    admitted: list[Recorded] = []
    for name, value, deadline in actions:
        if name == "submit":
            # Tag each row with its request, so that a row that lands elsewhere shows.
            rows = [row if row in (RAISES, NOT_FINITE) else row + 10 * len(admitted) for row in value]
            request = Recorded(rows, loop.now, None if deadline is None else loop.now + deadline)
            try:
                lanes[0].submit(request)
            except (Refused, Expired):
                assert request.results == []
            else:
                admitted.append(request)
        elif name == "cancel" and admitted:
            request = admitted[value % len(admitted)]
            request.lane.cancel(request)
        elif name == "advance":
            loop.advance(value)
        elif name == "finish":
            loop.spin()
            executors[0].finish()
        elif name == "move":
            moved = lanes[0].withdraw() + (lanes[0].abandon() if value else [])
            for pending in moved:
                try:
                    lanes[1].submit(pending, admitted=True)
                except Expired as error:
                    pending.state = State.DONE
                    pending.finish(error)
        assert all(lane.queue.rows >= 0 for lane in lanes)
    for _ in range(200):
        loop.advance(1.0)
        finished = [executor.finish() for executor in executors]
        if not any(finished):
            break

    assert all(lane.idle for lane in lanes)
    for request in admitted:
        result = request.only
        values = request.values[0]
        if isinstance(result, ServingError):
            if isinstance(result, ModelFailed):
                assert RAISES in values
            elif isinstance(result, NonFinite):
                assert NOT_FINITE in values
            else:
                assert isinstance(result, (Cancelled, Expired))
        else:
            assert result[0].tolist() == [2 * value for value in values]


def test_rows_of_expired_and_cancelled_requests_never_reach_the_model() -> None:
    loop, executor, model = FakeLoop(), FakeExecutor(), Doubling()
    lane = lane_of(model, loop, executor)
    first, late, gone = Recorded([1.0]), Recorded([2.0], deadline=0.5), Recorded([3.0])
    lane.submit(first)
    loop.spin()  # `first` is with the model now, the others must wait
    lane.submit(late)
    lane.submit(gone)
    lane.cancel(gone)
    loop.advance(1.0)

    assert isinstance(late.only, Expired)  # answered while the model was still busy
    assert isinstance(gone.only, Cancelled)
    executor.finish()
    loop.advance(1.0)
    assert model.seen == [1.0]
    assert lane.idle


def test_a_deadline_that_has_passed_is_refused_at_once() -> None:
    loop = FakeLoop()
    loop.now = 5.0
    lane = lane_of(Doubling(), loop, FakeExecutor())

    with pytest.raises(Expired):
        lane.submit(Recorded([1.0], deadline=4.0))


def test_an_idle_lane_takes_what_is_there_and_a_busy_one_gathers_a_batch() -> None:
    loop, executor = FakeLoop(), FakeExecutor()
    batches: list[tuple[int, str]] = []
    lane = lane_of(Doubling(), loop, executor, on_batch=lambda batch, _: batches.append((batch.rows, batch.reason)))
    lane.submit(Recorded([1.0]))
    loop.spin()
    for _ in range(9):
        lane.submit(Recorded([1.0]))
    while executor.finish():
        loop.spin()

    assert batches == [(1, "idle"), (8, "full"), (1, "idle")]


def test_the_delay_counts_from_the_arrival_of_the_oldest_and_ends_early_for_a_deadline() -> None:
    queue = BatchQueue(max_rows=8, max_delay=1.0, limit_rows=64)
    queue.offer(Recorded([1.0], arrived=10.0))
    queue.offer(Recorded([1.0], arrived=10.9))

    assert queue.take(10.95) == Wait(11.0)
    queue.offer(Recorded([1.0], arrived=10.95, deadline=11.0))
    assert queue.take(10.95, seconds=0.02) == Wait(10.98)
    batch = queue.take(10.98, seconds=0.02)
    assert isinstance(batch, Batch)
    assert (batch.rows, batch.reason) == (3, "deadline")


def test_a_full_queue_refuses_with_the_time_it_needs_to_drain() -> None:
    loop = FakeLoop()
    lane = lane_of(Doubling(), loop, FakeExecutor(), limit_rows=8)
    for _ in range(8):
        lane.submit(Recorded([1.0]))

    with pytest.raises(Refused, match="8 of 8 rows wait") as refusal:
        lane.submit(Recorded([1.0]))
    assert refusal.value.retry_after_seconds is not None
    assert refusal.value.retry_after_seconds > 0


def test_only_the_bad_requests_of_a_batch_fail() -> None:
    requests = [Recorded([value]) for value in (1.0, RAISES, 2.0, NOT_FINITE, 3.0)]
    results = execute(Doubling(), requests, 8, lambda: 0.0).results

    kinds = [type(result).__name__ if isinstance(result, ServingError) else result[0].tolist() for result in results]
    assert kinds == [[2.0], "ModelFailed", [4.0], "NonFinite", [6.0]]
    assert "y of row 0" in str(results[3])


def test_a_value_outside_the_datatype_is_the_clients_fault_and_only_its_own() -> None:
    signature = Signature((Input.of("n", "INT64"),), (Output("y"),))

    class Same:
        def __init__(self) -> None:
            self.signature = signature

        def run(self, columns: Sequence[Array]) -> list[Array]:
            return [columns[0].astype(np.float32)]

    requests = [Recorded([1]), Recorded([2**70])]  # type: ignore[list-item]
    good, bad = execute(Same(), requests, 8, lambda: 0.0).results

    assert isinstance(bad, InvalidRequest)
    assert not isinstance(good, ServingError)
    assert good[0].tolist() == [1.0]


def test_a_request_larger_than_a_batch_runs_alone_in_chunks() -> None:
    sizes: list[int] = []

    class Counting(Doubling):
        def run(self, columns: Sequence[Array]) -> list[Array]:
            sizes.append(len(columns[0]))
            return super().run(columns)

    values = [float(value) for value in range(10)]
    (result,) = execute(Counting(), [Recorded(values)], 4, lambda: 0.0).results

    assert sizes == [4, 4, 2]
    assert not isinstance(result, ServingError)
    assert result[0].tolist() == [2 * value for value in values]
