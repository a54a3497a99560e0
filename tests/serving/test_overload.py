"""What a lane does with more than it can do: margins, limits that adapt, refusals before anything is read."""

from __future__ import annotations

import asyncio
import json
import random
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serving import Input, Output, Registry, Signature, save_artifact
from serving.batching.concurrency import AdaptiveLimit
from serving.batching.margin import Margin
from serving.errors import Expired, Refused, ServingError
from serving.express import Express
from serving.models import WarmUp
from tests.serving.conftest import Start
from tests.serving.lane_fakes import FakeLoop, Recorded
from tests.serving.test_lanes import CURVE, offer, seconds, timed_lane

# Eight rows take 24 ms, so capacity is 333 rows a second, and a deadline of 50 ms leaves room for two batches.
SLOW = {rows: 0.020 + 0.0005 * rows for rows in (1, 2, 4, 8)}
CAPACITY = 8 / SLOW[8]


def good_share(load: float, noise: float, seed: int) -> tuple[float, float]:
    """Answers in time and requests that expired, of capacity, when batches take up to so much more or less."""
    loop, draw = FakeLoop(), random.Random(seed)
    lane, _ = timed_lane(
        loop, takes=lambda rows: (0.020 + 0.0005 * rows) * (1 + draw.uniform(-noise, noise)), max_rows=8,
        warm_up=WarmUp(SLOW),
    )  # fmt: skip
    requests = offer(loop, lane, rate=load * CAPACITY, duration=6.0, deadline=0.05, seed=seed)
    loop.advance(8.0)
    steady = [request for request in requests if 1.0 <= request.arrived < 6.0]
    in_time = sum(request.good and request.latency <= 0.049 for request in steady)
    expired = sum(isinstance(request.only, Expired) for request in steady)
    return in_time / 5.0 / CAPACITY, expired / 5.0 / CAPACITY


@pytest.mark.parametrize(("load", "noise"), [(3.0, 0.0), (3.0, 0.15), (8.0, 0.15)])
def test_batches_that_take_more_or_less_do_not_make_those_late_that_were_let_in(load: float, noise: float) -> None:
    in_time, expired = good_share(load, noise, seed=1)

    # Without a margin 0.79 to 0.92, and a tenth of capacity expires.
    assert in_time >= 0.95
    assert expired <= 0.01


def test_without_overload_nobody_is_refused_for_a_margin() -> None:
    # What is refused here would not fit between two batches; 0.53 without a margin, 0.37 with one that always counts.
    assert good_share(0.7, 0.4, seed=1)[0] >= 0.5


@given(st.lists(st.tuples(st.floats(-1, 1) | st.none(), st.floats(0, 1)), max_size=200))
def test_a_margin_is_never_negative_nor_more_than_a_batch(seen: list[tuple[float | None, float]]) -> None:
    margin = Margin()
    for late, fill in seen:
        margin.observe(late, 0.02, fill)
        assert 0.0 <= margin.seconds <= 0.02


def test_the_margin_comes_to_rest_at_what_one_batch_in_twenty_exceeds() -> None:
    draw, margin = random.Random(2), Margin()
    seen = []
    for _ in range(4000):
        margin.observe(draw.uniform(-0.01, 0.01), 0.02, 1.0)
        seen.append(margin.seconds)
    # A step up is a tenth of a batch: that far it wanders.
    assert sum(seen[1000:]) / 3000 == pytest.approx(0.009, abs=0.001)


@pytest.mark.parametrize("tolerance", [1.0, 1.5, 2.0])
def test_the_limit_settles_where_it_says(tolerance: float) -> None:
    """A closed loop of as many rows as may be: each takes as long as all before it."""
    limit = AdaptiveLimit(tolerance, 16, 4096)
    for _ in range(400):
        limit.observe(limit.rows / 16 * seconds(16), 2 * seconds(16), limit.rows)
    assert limit.rows == pytest.approx((2 * tolerance + 1) * 16, rel=0.05)


def test_the_limit_keeps_the_device_busy_whatever_it_sees_and_rests_while_it_is_not_needed() -> None:
    limit = AdaptiveLimit(1.0, 16, 4096)
    for _ in range(400):
        limit.observe(10.0, 0.016, limit.rows)
    assert limit.rows in (32, 33)
    before = limit.rows
    for _ in range(400):
        limit.observe(0.016, 0.016, 3)
    assert limit.rows == before
    for _ in range(4000):
        limit.observe(0.016, 0.016, limit.rows)
    assert limit.rows == 4096


def test_an_adaptive_limit_bounds_what_requests_take_and_costs_no_throughput() -> None:
    found = {}
    for tolerance in (0.0, 1.0):
        loop = FakeLoop()
        lane, _ = timed_lane(loop, adaptive_concurrency=tolerance)
        requests = offer(loop, lane, rate=6000.0, duration=2.0)
        loop.advance(2.0)
        answered = [request for request in requests if request.results and request.good and request.arrived > 0.5]
        found[tolerance] = len(answered), float(np.quantile([request.latency for request in answered], 0.99))
        if tolerance:
            refused = [r.only for r in requests if r.results and isinstance(r.only, Refused)]
            assert {error.reason for error in refused} == {"concurrency"}
            assert "may now" in str(refused[-1])
    # 2,000 rows a second is what the device does; four batches are what is allowed, and the wait for their company.
    assert found[1.0][0] >= 0.95 * 2000 * 1.5
    assert found[1.0][1] <= 5 * seconds(16) < found[0.0][1] / 4


def test_an_idle_lane_takes_a_burst_whatever_the_limit() -> None:
    loop = FakeLoop()
    lane, _ = timed_lane(loop, adaptive_concurrency=1.0)
    burst = [Recorded([1.0]) for _ in range(64)]
    for request in burst:
        lane.submit(request)
    loop.advance(1.0)
    assert all(len(request.results) == 1 for request in burst)
    assert lane.state().limit_rows >= 2 * lane.policy.max_rows, "what the gauge shows"
    assert timed_lane(FakeLoop())[0].state().limit_rows == 0


DEADLINES = st.none() | st.floats(0.001, 0.2)


@given(
    st.lists(st.tuples(st.integers(1, 20), DEADLINES, st.floats(0, 0.01)), max_size=60), st.integers(1, 40), DEADLINES
)
def test_what_is_refused_unread_would_have_been_refused_whatever_it_holds(
    before: list[tuple[int, float | None, float]], rows: int, deadline: float | None
) -> None:
    loop = FakeLoop()
    lane, _ = timed_lane(loop, limit_rows=48, warm_up=CURVE, delay_target=0.01, delay_interval=0.01)
    for count, left, pause in before:
        request = Recorded([1.0] * count, loop.now, None if left is None else loop.now + left)
        try:
            lane.submit(request)
        except (Refused, Expired):
            pass
        loop.advance(pause)
    at = None if deadline is None else loop.now + deadline
    if not lane.pressed(at):
        return
    early: ServingError | None = None
    try:
        lane.refuse_early(loop.now, at)
    except ServingError as error:
        early = error
    if early is not None:
        with pytest.raises(type(early)):
            lane.submit(Recorded([1.0] * rows, loop.now, at))


# --- a server ------------------------------------------------------------------------------------------------------
class Wide(torch.nn.Module):
    """A sum over 8 values."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(1) * self.scale


BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 8], "data": [float(i) for i in range(8)]}]}


async def test_a_request_without_a_chance_is_refused_unread_and_one_that_goes_first_is_not(
    start: Start, gate: tuple[str, object]
) -> None:
    architecture, gate_file = gate
    service = await start(architectures=(architecture,), max_batch_rows=1, max_queue_rows=4, max_concurrent_requests=0)
    row = {
        "inputs": [
            {"name": "amount", "datatype": "FP32", "shape": [1, 1], "data": [2.0]},
            {"name": "carrier", "datatype": "BYTES", "shape": [1, 1], "data": ["AA"]},
        ]
    }
    gate_file.unlink()  # type: ignore[attr-defined]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", trust_env=False, timeout=60) as client:
        lane = service.deployments["gate"].versions[1].lane
        held = [asyncio.create_task(client.post("/v2/models/gate/infer", json=row))]
        while not lane.busy:
            await asyncio.sleep(0.005)
        held += [asyncio.create_task(client.post("/v2/models/gate/infer", json=row)) for _ in range(4)]
        while lane.queue.rows < 4:
            await asyncio.sleep(0.005)
        # Not even JSON: nobody has looked.
        unread = await client.post("/v2/models/gate/infer", content=b"{", headers={"x-deadline-ms": "10000"})
        first = asyncio.create_task(client.post("/v2/models/gate/infer", json=row | {"parameters": {"priority": 1}}))
        while lane.urgency() > 1:
            await asyncio.sleep(0.005)
        gate_file.touch()  # type: ignore[attr-defined]
        answers = await asyncio.gather(*held, first)

    assert unread.status_code == 429
    assert unread.json()["reason"] == "queue_rows"
    assert (unread.json()["queue_rows"], unread.json()["limit_rows"]) == (4, 4)
    assert (unread.headers["x-trimtab-version"], unread.headers["x-trimtab-arm"]) == ("1", "stable")
    assert int(unread.headers["retry-after"]) >= 1
    assert answers[-1].status_code == 200
    statuses = sorted(answer.status_code for answer in answers[:-1])
    assert statuses == [200, 200, 200, 200, 429]
    page = await _metrics(service.port)
    assert 'inference_requests_total{model="gate",outcome="rejected",version="1"} 2.0' in page
    assert 'inference_requests_shed_total{model="gate",reason="queue_rows",version="1"} 1.0' in page


async def test_the_shortcut_holds_the_queues_limit_and_leaves_others_a_turn_of_the_loop(
    start: Start, registry: Registry, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_artifact(
        tmp_path / "wide",
        Wide(),
        Signature((Input.of("x", "FP32", shape=[8]),), (Output("y"),)),
        {"x": [[1.0] * 8]},  # type: ignore[operator]
    )
    registry.register("wide", tmp_path / "wide", lineage={}, profile=None, metrics={})  # type: ignore[operator]
    registry.set_alias("wide", "stable", 1)
    service = await start(max_batch_rows=4, max_queue_rows=24)
    turns: list[int] = []
    run = Express.run

    def counted(self: Express) -> None:
        turns.append(len(self.waiting))
        run(self)

    monkeypatch.setattr("serving.express._TURN_SECONDS", 0.0)
    monkeypatch.setattr(Express, "run", counted)
    body = json.dumps(BODY).encode()
    request = b"POST /v2/models/wide/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    connections = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(40)]
    try:
        for _ in range(3):
            # The header is known from the third time on, and then the shortcut is taken.
            await _asked(*connections[0], request)
        turns.clear()
        # All in one turn of the loop, in which nothing else of it runs.
        for _, writer in connections:
            writer.write(request)
        statuses = await asyncio.gather(*(_status(reader) for reader, _ in connections))
    finally:
        for _, writer in connections:
            writer.close()

    assert set(statuses) <= {200, 429}
    assert statuses.count(200) >= 24
    # No turn had more than may wait, and with no time for a turn each ended behind its first batch.
    assert max(turns) <= 24
    assert len(turns) >= 24 / 4


def test_a_traced_request_waits_for_those_that_came_before_it_and_no_longer() -> None:
    left: list[float] = []

    class Busy(Express):
        """Has time for one request a turn, and gets another one in each."""

        def __init__(self) -> None:
            self.waiting = [_arrived(1.0), _arrived(2.0), _arrived(4.0)]
            self.traced = [_arrived(3.0)]
            self.intake = None
            self._general = lambda exchange, _trace: left.append(exchange.received)

        def _run(self, waiting: list[Any]) -> None:
            self.waiting = [*waiting[1:], _arrived(waiting[-1].received + 1.0)]

    express = Busy()
    express.run()
    assert not left
    express.run()
    assert left == [3.0]
    assert not express.traced


async def test_requests_are_held_for_a_queue_that_is_about_to_be_empty_and_not_for_long() -> None:
    now, short, left = [0.0], [True], []
    express = Express.__new__(Express)
    express.waiting, express.traced, express._held_since = [], [], None
    express._general = lambda exchange, _trace: left.append(exchange.received)
    express._clock = lambda: now[0]
    lane = SimpleNamespace(
        queue=SimpleNamespace(max_rows=8), free=lambda rows, now: False, clears=lambda rows, now: short[0]
    )
    express._version = SimpleNamespace(lane=lane, responder=SimpleNamespace(row_values=0))
    express._deployment = SimpleNamespace(router=None, versions={1: express._version}, cache=None, closing=False)
    express.router, express._choice = None, SimpleNamespace(version=1)

    express._run([_arrived(1.0), _arrived(2.0)])
    now[0] = 0.004
    express._run(express.waiting[:2])
    assert not left
    now[0] = 0.006
    express._run(express.waiting[:2])
    assert left == [1.0, 2.0]
    short[0] = False
    express._run([_arrived(3.0)])
    assert left == [1.0, 2.0, 3.0]
    express.waiting = []


async def test_what_the_compiled_way_took_is_held_unread_and_drawn_for_traces_once() -> None:
    now, free, drawn, served = [0.0], [False], [], []
    express = Express.__new__(Express)
    express._held_since, express.traced = None, []
    express._clock, express._open = (lambda: now[0]), (lambda: True)
    lane = SimpleNamespace(
        queue=SimpleNamespace(max_rows=8), free=lambda rows, now: free[0], clears=lambda rows, now: True
    )
    express._version = SimpleNamespace(lane=lane, responder=SimpleNamespace(row_values=0))
    express._deployment = SimpleNamespace(router=None, versions={1: express._version}, cache=None, closing=False)
    express.router, express._choice = None, SimpleNamespace(version=1)
    express._traced = lambda count: drawn.append(count) or []
    express.intake = SimpleNamespace(
        count=2, rows=40, batch=lambda limit: (2, 40, []) if limit else (0, 0, [])
    )  # fmt: skip

    def serve(count: int, rows: int, tags: Any) -> None:
        served.append(count)
        express.intake.count = 0

    express._serve_taken = serve
    express.run = lambda: None

    express.intake.rows = 2
    assert not express._run_taken(), "a few rows are read by Python"
    assert drawn == [2]
    drawn.clear()
    express.intake.rows = 40
    assert express._run_taken()
    now[0] = 0.004
    assert express._run_taken()
    assert not drawn
    now[0] = 0.006
    assert not express._run_taken()
    free[0] = True
    assert express._run_taken()
    assert served == [2]
    # Not while they were held, but as they left; and those that are served, batch by batch.
    assert drawn == [2]


def _arrived(moment: float) -> Any:
    return SimpleNamespace(received=moment, answer=None)


async def _asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    writer.write(request)
    return await _status(reader)


async def _status(reader: asyncio.StreamReader) -> int:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
    await reader.readexactly(length)
    return int(head.split()[1])


async def _metrics(port: int) -> str:
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(f"http://127.0.0.1:{port}/metrics")).text
