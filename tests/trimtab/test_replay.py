from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.clients.quick import Answer, QuickClient
from trimtab.demo.flights import CATEGORICAL, NUMERIC
from trimtab.demo.replay import Replay, Sample, Tally

HOUR = 3_600_000_000_000
START = 1_362_100_000_000_000_000


def flights(rows: int, flying_hours: float = 0.0) -> Sample:
    """One flight an hour, every second one late, all landing so many hours after they were due to leave."""
    return Sample(
        columns={name: ["JFK"] * rows for name in CATEGORICAL} | {name: [1.0] * rows for name in NUMERIC},
        scheduled=[START + row * HOUR for row in range(rows)],
        known_at=[START + row * HOUR + int(flying_hours * HOUR) for row in range(rows)],
        labels=[float(row % 2) for row in range(rows)],
        days=[f"2013-03-{1 + row // 24:02d}" for row in range(rows)],
        ids=[f"f{row}" for row in range(rows)],
    )


@dataclass
class Server:
    """A model server and a collector's label intake in one; `refuse` are the statuses of the next label posts.

    Answers come `delay` seconds late.
    """

    requests: list[dict[str, Any]] = field(default_factory=list)
    traced: list[str] = field(default_factory=list)
    labels: list[dict[str, Any]] = field(default_factory=list)
    refuse: list[int] = field(default_factory=list)
    status: Callable[[int], int] = lambda number: 200
    delay: float = 0.0

    async def infer(self, request: Request) -> Response:
        number = len(self.requests)
        self.requests.append(await request.json())
        self.traced += [value for name, value in request.headers.items() if name == "traceparent"]
        await asyncio.sleep(self.delay)
        body = {"outputs": [{"name": "p", "datatype": "FP32", "shape": [1], "data": [0.5]}], "error": "broken"}
        headers = {"x-trimtab-version": "1", "x-trimtab-arm": "stable"}
        return JSONResponse(body, self.status(number), headers=headers)

    async def take(self, request: Request) -> Response:
        if self.refuse:
            return JSONResponse({"error": "no"}, self.refuse.pop(0))
        self.labels += await request.json()
        return JSONResponse({})

    @property
    def app(self) -> Starlette:
        infer = Route("/v2/models/{model}/infer", self.infer, methods=["POST"])
        return Starlette(routes=[infer, Route("/v1/labels", self.take, methods=["POST"])])


async def replayed(url: str, sample: Sample, *, rate: float = 1000.0, trace_share: float = 0.0) -> Replay:
    async with QuickClient(url) as client:
        replay = Replay(sample, client, model="m", rate=rate, intake_url=url, trace_share=trace_share, seed=1)
        await replay.run(asyncio.Event())
    return replay


async def test_every_flight_is_asked_once_in_order_with_its_day(served: Any) -> None:
    server = Server()

    replay = await replayed(served(server.app), flights(30))

    assert sorted(int(body["id"].split("-")[1]) for body in server.requests) == list(range(30))
    assert {str(body["parameters"]["attributes"]).count("2013-03-0") for body in server.requests} == {1}
    assert replay.finished
    assert replay.tally.answered == {("1", "ok"): 30}
    assert (replay.summary()["sent"], replay.summary()["failed"]) == (30, 0)


async def test_a_label_comes_only_once_the_replay_is_past_the_arrival(served: Any) -> None:
    server = Server()

    # Each flight lands four hours after it was to leave: the last four are in the air when the sample ends.
    await replayed(served(server.app), flights(30, flying_hours=4.5))

    due = {int(label["id"].split("-")[1]): label["label"] for label in server.labels}
    assert due == {row: float(row % 2) for row in due}
    assert due
    assert max(due) < 26


async def test_what_is_answered_after_the_last_request_was_sent_has_its_label(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trimtab.demo.replay.LABEL_INTERVAL_SECONDS", 0.01)
    server = Server(delay=0.3)

    replay = await replayed(served(server.app), flights(20))

    assert sorted(int(label["id"].split("-")[1]) for label in server.labels) == list(range(20))
    assert replay.labels_sent == 20


async def test_labels_that_a_busy_collector_turned_away_are_sent_again(served: Any) -> None:
    server, stop = Server(refuse=[503]), asyncio.Event()
    url = served(server.app)
    async with QuickClient(url) as client:
        replay = Replay(flights(10_000), client, model="m", rate=100.0, intake_url=url, trace_share=0, seed=1)
        running = asyncio.create_task(replay.run(stop))
        while not server.labels:
            await asyncio.sleep(0.01)
        stop.set()
        await running

    assert server.refuse == []
    assert [label["id"].split("-")[1] for label in server.labels[:3]] == ["0", "1", "2"]
    assert replay.labels_sent == len(server.labels)


async def test_a_collector_that_refuses_labels_for_good_ends_the_replay_with_its_reason(served: Any) -> None:
    server = Server(refuse=[400])

    with pytest.raises(RuntimeError, match="refused labels: 400"):
        await replayed(served(server.app), flights(60), rate=60.0)


async def test_failed_answers_are_counted_and_get_no_label(served: Any) -> None:
    server = Server(status=lambda number: 500 if number % 3 == 0 else 200)

    replay = await replayed(served(server.app), flights(30))

    assert replay.tally.answered == {("1", "500"): 10, ("1", "ok"): 20}
    assert replay.tally.failures[0][1:] == ("1", "500 broken")
    assert replay.summary()["answered"] == {"v1 500": 10, "v1 ok": 20}


async def test_the_loop_is_open_it_does_not_wait_for_a_server_that_is_away() -> None:
    replay = await replayed("http://127.0.0.1:9", flights(20))

    assert replay.tally.sent == 20
    assert replay.tally.answered == {("-", "0"): 20}


async def test_a_share_of_the_requests_is_traced(served: Any) -> None:
    server = Server()

    await replayed(served(server.app), flights(40), trace_share=1.0)

    assert len(set(server.traced)) == 40
    assert all(text.startswith("00-") and text.endswith("-01") and len(text) == 55 for text in server.traced)


async def test_stop_ends_it_early(served: Any) -> None:
    server, stop, nobody = Server(), asyncio.Event(), "http://127.0.0.1:9"
    async with QuickClient(served(server.app)) as client:
        replay = Replay(flights(10_000), client, model="m", rate=200.0, intake_url=nobody, trace_share=0, seed=1)
        running = asyncio.create_task(replay.run(stop))
        while not server.requests:
            await asyncio.sleep(0.01)
        stop.set()
        await running

    assert not replay.finished
    assert replay.tally.sent == len(server.requests)


def test_a_tally_tells_versions_and_times_apart() -> None:
    tally = Tally()
    tally.note(10.0, Answer(200, version="1", seconds=0.5), 10.5)
    tally.note(11.0, Answer(500, version="2", seconds=0.1, error="NaN"), 11.1)
    tally.note(12.0, Answer(0, error="refused"), 12.0)

    assert (tally.failed(), tally.failed(version="2"), tally.failed(other_than="2")) == (2, 1, 1)
    assert (tally.failed(since=11.5), tally.failed(other_than="2", since=12.5)) == (1, 0)
    assert (tally.served_since("1", 9.0), tally.served_since("1", 10.0)) == (1, 0)
    assert json.loads(json.dumps(tally.summary()))["answered"] == {"v- 0": 1, "v1 ok": 1, "v2 500": 1}


def test_the_slow_tail_counts_from_when_a_request_was_due() -> None:
    tally = Tally()
    for _ in range(99):
        tally.note(0.0, Answer(200, version="1", seconds=0.01), 0.01)
    tally.note(0.0, Answer(200, version="1", seconds=0.01), 3.0)

    assert tally.summary()["p50_seconds"] == 0.01
    assert tally.summary()["p99_seconds"] == 3.0


def test_nothing_sent_is_a_summary_of_nothing() -> None:
    assert Tally().summary() == {
        "sent": 0,
        "answered": {},
        "failed": 0,
        "p50_seconds": 0.0,
        "p99_seconds": 0.0,
    }
