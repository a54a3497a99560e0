"""A front's relay against replicas that are a few lines of a script: choice, loss, retries, cancellation, ejection."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from observability import names
from observability.metrics import Metrics
from serving.fleet import FleetOptions, frames
from serving.fleet.frames import FrameReader, Request
from serving.fleet.relay import Relay
from serving.transport.exchange import Exchange


class Scripted:
    """A replica that answers as it is told: `status`, or nothing while it is None."""

    def __init__(self, number: int, path: Path) -> None:
        self.number = number
        self.path = path
        self.status: int | None = 200
        self.passes = True
        self.requests: list[tuple[int, Request]] = []
        self.cancelled: list[int] = []
        self.probes = 0
        self.mute = False
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._connected, str(self.path))

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        frame_reader = FrameReader()
        while data := await reader.read(65536):
            for kind, sequence, payload in frame_reader.feed(data):
                self._take(kind, sequence, payload, writer)

    def _take(self, kind: int, sequence: int, payload: bytes, writer: asyncio.StreamWriter) -> None:
        if self.mute:
            return
        if kind == frames.REQUEST:
            self.requests.append((sequence, frames.parse_request(payload)))
            if self.status is not None:
                writer.write(frames.answer_frame(sequence, self.status, b"x-by: %d\r\n" % self.number, b"{}"))
        elif kind == frames.CANCEL:
            self.cancelled.append(sequence)
            writer.write(frames.answer_frame(sequence, 499, b"", b""))
        elif kind == frames.PING:
            writer.write(frames.frame(frames.PONG, 0))
        elif kind == frames.PROBE:
            self.probes += 1
            writer.write(frames.frame(frames.PROBED, 0, b"\1" if self.passes else b"\0"))

    def put(self, content: bytes) -> None:
        self._writers[-1].write(content)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        self._writers.clear()


class Front:
    """A relay with its replicas; `ask` sends a request and gives where its answer will be."""

    def __init__(self, relay: Relay, metrics: Metrics, replicas: list[Scripted]) -> None:
        self.relay = relay
        self.metrics = metrics
        self.replicas = replicas

    def ask(self, body: bytes = b"{}") -> Asked:
        asked = Asked(body)
        self.relay.infer(asked, "fares", None)
        return asked

    def call(self) -> asyncio.Future[tuple[int, bytes, bytes]]:
        answered: asyncio.Future[tuple[int, bytes, bytes]] = asyncio.get_running_loop().create_future()
        head = frames.pack_head(b"POST", b"/api/v1/models/fares/promote", b"", [])
        self.relay.call(Request(0.0, head, b"{}"), lambda *answer: answered.set_result(answer))
        return answered

    def value(self, metric: names.Metric, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(metric.name, labels) or 0.0


class Asked(Exchange):
    """An exchange whose answer can be awaited."""

    __slots__ = ("answered",)

    def __init__(self, body: bytes) -> None:
        super().__init__(self)  # type: ignore[arg-type]
        self.method, self.target = b"POST", b"/v2/models/fares/infer"
        self.headers = {b"content-type": b"application/json"}
        self.body = body
        self.answered: asyncio.Future[tuple[int, bytes, bytes]] = asyncio.get_running_loop().create_future()

    def respond(self, status: int, head: bytes, body: bytes) -> None:
        self.answered.set_result((status, head, body))

    async def status(self) -> int:
        return (await asyncio.wait_for(self.answered, 60))[0]


async def until(condition: Callable[[], Any], what: str) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit, f"{what} did not come"
        await asyncio.sleep(0.01)


Start = Callable[..., Awaitable[Front]]


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def begin(count: int = 2, **options: Any) -> Front:
            replicas = [Scripted(number, tmp_path / f"{number}.sock") for number in range(count)]
            for replica in replicas:
                await replica.start()
                stack.push_async_callback(replica.stop)
            metrics = Metrics()
            given = {"ping_interval": 0.05, "ping_limit": 5.0, "hang_limit": 60.0, **options}
            relay = Relay(FleetOptions(replicas=count, **given), metrics)
            reached = await relay.update({r.number: str(r.path) for r in replicas}, 0, ["fares"])
            assert sorted(reached) == list(range(count))
            stack.callback(relay.close)
            ticking = asyncio.create_task(tick(relay))
            stack.callback(ticking.cancel)
            return Front(relay, metrics, replicas)

        yield begin


async def tick(relay: Relay) -> None:
    while True:
        await asyncio.sleep(0.02)
        relay.tick()


async def test_requests_go_to_the_least_loaded_and_come_as_they_were_sent(front: Start) -> None:
    made = await front()
    for replica in made.replicas:
        replica.status = None
    asked = [made.ask(b"body %d" % index) for index in range(6)]
    await until(lambda: sum(len(replica.requests) for replica in made.replicas) == 6, "six requests")

    assert [len(replica.requests) for replica in made.replicas] == [3, 3]
    bodies = {request.body for replica in made.replicas for _, request in replica.requests}
    assert bodies == {b"body %d" % index for index in range(6)}
    head = frames.parse_head(made.replicas[0].requests[0][1].head)
    assert head == (b"POST", b"/v2/models/fares/infer", b"", [(b"content-type", b"application/json")])
    for replica in made.replicas:
        for sequence, _ in replica.requests:
            replica.put(frames.answer_frame(sequence, 200, b"", b"%d" % sequence))
    assert [await one.status() for one in asked] == [200] * 6


async def test_a_lost_replicas_requests_are_asked_once_of_another_and_calls_never(front: Start) -> None:
    made = await front()
    made.replicas[0].status = made.replicas[1].status = None
    asked = [made.ask() for _ in range(4)]
    call = made.call()
    await until(lambda: [len(r.requests) for r in made.replicas] == [3, 2], "the requests")
    made.replicas[1].status = 200
    await made.replicas[0].stop()
    status, head, body = await asyncio.wait_for(call, 60)

    assert status == 503
    assert b"retry-after: " in head
    assert "Idempotency-Key" in json.loads(body)["error"]
    await until(lambda: len(made.replicas[1].requests) == 4, "two requests again")
    assert made.value(names.RELAY_LOST, fate="retried") == 2
    assert made.value(names.RELAY_LOST, fate="refused") == 1
    await made.replicas[1].stop()
    results = [await one.status() for one in asked]
    assert sorted(results) == [200, 200, 503, 503]
    assert made.ask().answered.result()[0] == 503


async def test_without_retries_a_lost_request_says_that_it_may_be_repeated(front: Start) -> None:
    made = await front(retry_lost=False)
    made.replicas[0].status = made.replicas[1].status = None
    asked = [made.ask() for _ in range(2)]
    await until(lambda: all(r.requests for r in made.replicas), "a request each")
    await made.replicas[0].stop()
    done, _ = await asyncio.wait([one.answered for one in asked], timeout=60, return_when=asyncio.FIRST_COMPLETED)

    ((status, head, body),) = [future.result() for future in done]
    assert (status, b"retry-after: " in head) == (503, True)
    assert "retry it" in json.loads(body)["error"]


async def test_a_client_that_leaves_is_told_to_the_replica_and_its_credit_comes_back(front: Start) -> None:
    made = await front(count=1, credit_requests=1)
    made.replicas[0].status = None
    asked = made.ask()
    await until(lambda: made.replicas[0].requests, "the request")
    full = made.ask()
    assert full.answered.result()[0] == 429
    made.relay.cancel(asked)
    await until(lambda: made.replicas[0].cancelled == [made.replicas[0].requests[0][0]], "the cancellation")
    await until(lambda: made.relay.balancer.backends[0].in_flight == 0, "the credit")
    made.replicas[0].status = 200

    assert await made.ask().status() == 200
    assert not asked.answered.done()
    assert made.value(names.RELAY_REFUSED, reason="full") == 1
    assert made.value(names.INFERENCE_REQUESTS, model="fares", version="none", outcome="rejected") == 1


async def test_a_replica_whose_answers_fail_is_out_until_it_passes_a_probe(front: Start) -> None:
    made = await front(count=3)
    bad = made.replicas[2]
    bad.status, bad.passes = 500, False
    backend = made.relay.balancer.backends[2]
    limit = time.monotonic() + 60
    while backend.ejected is None:
        assert time.monotonic() < limit, "the replica was not ejected"
        await asyncio.gather(*(made.ask().status() for _ in range(30)))
        await asyncio.sleep(0.02)
    got = len(bad.requests)
    assert {await made.ask().status() for _ in range(50)} == {200}
    assert len(bad.requests) == got
    assert made.value(names.REPLICA_EJECTIONS, replica="2", reason="outlier") == 1

    await until(lambda: bad.probes >= 1, "a probe")
    assert backend.ejected is not None
    bad.status, bad.passes = 200, True
    await until(lambda: backend.ejected is None, "the return")
    await asyncio.gather(*(made.ask().status() for _ in range(30)))
    assert len(bad.requests) > got


async def test_a_silent_replica_is_left_and_its_requests_are_asked_of_another(front: Start) -> None:
    made = await front(ping_limit=0.3)
    made.replicas[0].status = made.replicas[1].status = None
    asked = [made.ask() for _ in range(2)]
    await until(lambda: all(r.requests for r in made.replicas), "a request each")
    made.replicas[1].status = 200
    made.replicas[1].put(frames.answer_frame(made.replicas[1].requests[0][0], 200, b"", b"{}"))
    made.replicas[0].mute = True

    assert [await one.status() for one in asked] == [200, 200]
    assert made.value(names.REPLICA_EJECTIONS, replica="0", reason="silent") == 1
    made.replicas[0].mute, made.replicas[0].status = False, 200
    await until(lambda: made.relay.balancer.backends[0].routable, "the return")


async def test_one_that_leaves_gets_nothing_more_answers_what_it_has_and_is_let_go(front: Start) -> None:
    made = await front()
    leaving = made.replicas[0]
    leaving.status = None
    asked = [made.ask() for _ in range(2)]
    await until(lambda: leaving.requests, "the request")
    leaving.put(frames.frame(frames.LEAVING, 0))
    await until(lambda: made.relay.balancer.backends[0].leaving, "the notice")
    assert {await made.ask().status() for _ in range(10)} == {200}
    assert len(leaving.requests) == 1
    assert 0 in made.relay.links
    leaving.put(frames.answer_frame(leaving.requests[0][0], 200, b"", b"{}"))

    assert [await one.status() for one in asked] == [200, 200]
    await until(lambda: 0 not in made.relay.links, "the end of the connection")
    assert made.value(names.REPLICA_EJECTIONS, replica="0", reason="closed") == 0


async def test_a_stream_without_sense_ends_the_connection_and_its_requests_go_elsewhere(front: Start) -> None:
    made = await front()
    made.replicas[0].status = None
    asked = [made.ask() for _ in range(2)]
    await until(lambda: made.replicas[0].requests, "the request")
    made.replicas[0].put(b"\xff" * 64)

    assert [await one.status() for one in asked] == [200, 200]
