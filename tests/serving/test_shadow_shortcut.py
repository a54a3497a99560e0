"""Shadows of what the shortcut answers: each request with its own answer, its id, and the version that gave it."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from observability import names
from serving import Input, Output, Registry, Service, Signature, save_artifact
from serving.express import Express
from serving.router import Choice
from serving.routing.traffic import Shadow
from serving.shadow import Mirror, ShadowLimits
from serving.shadows.blocks import Answered, Block
from serving.shadows.messages import Batch, Ran, for_worker, framed, from_worker
from serving.shadows.waiting import Waiting
from serving.shadows.worker import Worker
from serving.telemetry.columns import Anchor
from serving.telemetry.event_maker import events_of
from serving.telemetry.runs import Numbers
from tests.serving.test_serving_service import Collector, Start, collector, until, value  # noqa: F401 (a fixture)

SIGNATURE = Signature((Input.of("x", "FP32", shape=(3,)),), (Output("y"),))
CHOICE = Choice(1, "stable", 1.0)
# An input that the fourth version has no finite output for.
ODD = 5.0


class Times(torch.nn.Module):
    """`scale` times the first value of a row; with `odd` nothing finite where that is 5."""

    def __init__(self, scale: float, odd: bool = False) -> None:
        super().__init__()
        self.scale, self.odd = scale, odd

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = x[:, 0]
        return self.scale * first * (first - ODD) / (first - ODD) if self.odd else self.scale * first


@pytest.fixture
def fives(registry: Registry, tmp_path: Path) -> None:
    """Versions of `five`: 1 answers x, 2 and 3 twice and three times it, 4 knows no 5, and 5 takes another input."""
    for number, scale in enumerate((1.0, 2.0, 3.0, 4.0, 5.0), 1):
        column = Input("z" if number == 5 else "x", "FP32", shape=(3,))
        folder = tmp_path / f"five-{number}"
        signature = Signature((column,), (Output("y"),))
        save_artifact(folder, Times(scale, number == 4), signature, {column.name: [[0.1] * 3]})
        registry.register("five", folder, lineage={}, profile=None, metrics={})
    registry.set_alias("five", "stable", 1)


# --- what waits -----------------------------------------------------------------------------------------------------
def batch_of(first_value: int, counts: list[int], numbers: Numbers, first: int) -> Answered:
    """A batch whose rows hold their request's number, answered ten times it."""
    told = np.repeat(np.arange(first_value, first_value + len(counts)), counts).astype(np.float32)
    column = np.stack([told, told, told], 1)
    requests = np.array(counts, np.int64).tobytes()
    return Answered("five", CHOICE, SIGNATURE, "i", column, 10 * told, requests, numbers, first)


@given(
    st.lists(
        st.lists(st.one_of(st.just(1), st.integers(1, 9)), min_size=1, max_size=12).flatmap(
            lambda counts: st.tuples(
                st.just(counts), st.none() | st.lists(st.sampled_from(range(len(counts))), unique=True).map(sorted)
            )
        ),
        max_size=8,
    ),
    st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), st.integers(16, 400),
)  # fmt: skip
@settings(deadline=None)
def test_what_is_kept_are_whole_requests_with_their_own_answers_and_ids_and_the_rest_is_counted(
    batches: list[tuple[list[int], list[int] | None]],
    limit_rows: int,
    block_rows: int,
    taken_rows: int,
    limit_bytes: int,
) -> None:
    lane = Waiting(SimpleNamespace(), Choice(2, "shadow", 1.0), limit_rows, limit_bytes, block_rows)  # type: ignore[arg-type]
    numbers, offered, value = Numbers(), {}, 0
    for counts, chosen in batches:
        batch = batch_of(value, counts, numbers, value)
        lane.keep_of(batch, chosen, 1.0)
        # Whoever gave it may use its memory again.
        batch.column[:], batch.output[:] = -1, -1
        offered |= {value + place: counts[place] for place in (range(len(counts)) if chosen is None else chosen)}
        value += len(counts)
    assert lane.rows <= limit_rows
    assert lane.bytes <= limit_bytes
    kept, waited = lane.requests, lane.rows
    blocks: list[Block] = []
    while lane.requests:
        taken = lane.take(1, taken_rows, 2.0)
        assert isinstance(taken, Block)
        assert not taken.numbered
        assert taken.rows <= taken_rows or taken.requests == 1
        blocks.append(taken)
    numbers.first = 100

    calls = [call for block in blocks for call in block.calls()]
    assert (lane.rows, lane.bytes) == (0, 0)
    assert kept + lane.dropped == len(offered)
    assert [len(calls), sum(call.rows for call in calls)] == [kept, waited]
    for block in blocks:
        assert block.rows <= max(block_rows, *block.counts)
        assert block.numbered
    for call in calls:
        assert call.outputs is not None
        request = int(call.values[0][0, 0])
        assert call.id == f"i-{100 + request}"
        assert call.rows == offered.pop(request)
        assert (call.values[0] == request).all()
        assert (call.outputs[0] == 10 * request).all()
        assert call.request.values(SIGNATURE)[0] == call.values[0].tobytes()


class Inline:
    """A process that runs what it is given at once: twice the answers' input."""

    def __init__(self, model: Any) -> None:
        self.worker = Worker()
        self.worker._models["five:2"] = model, 64
        self.asked: list[int] = []

    def takes(self, key: tuple[str, int], model: Any) -> bool:
        return True

    def run(self, key: tuple[str, int], batch: Batch, then: Callable[[Ran | None], None]) -> None:
        self.asked.append(len(batch.columns[0].array()))
        ran = self.worker.answer(for_worker(bytes(framed(batch)[4:])))
        assert isinstance(ran, Ran)
        asyncio.get_running_loop().call_soon(then, from_worker(bytes(framed(ran)[4:])))

    def close(self) -> None:
        pass


class Twice:
    """A shadow's model."""

    signature = SIGNATURE

    def run(self, columns: list[np.ndarray]) -> list[np.ndarray]:
        return [2 * columns[0][:, 0]]


async def test_blocks_go_to_the_process_whole_and_their_copies_are_recorded_together_once_they_have_ids() -> None:
    model, recorded, found = Twice(), [], Counter[str]()
    process = Inline(model)
    signals: Any = SimpleNamespace(
        shadowed=lambda _model, _shadow, outcome, count: found.update({outcome: count}), disagreement=lambda *_: None
    )
    mirror = Mirror(
        signals, recorded.append, lambda: False, ShadowLimits(gather=0.001, retry=0.001, step_rows=8),
        process=process,  # type: ignore[arg-type]
    )  # fmt: skip
    deployment: Any = SimpleNamespace(
        model="five", router=SimpleNamespace(policy=SimpleNamespace(shadows=(Shadow(2, 1.0),))),
        versions={2: SimpleNamespace(loaded=SimpleNamespace(model=model))},
    )  # fmt: skip
    numbers, later = Numbers(), Numbers()
    mirror.offer_batch(batch_of(0, [1] * 100, numbers, 0), deployment)
    mirror.offer_batch(batch_of(100, [3] * 60, numbers, 100), deployment)
    await until(lambda: mirror.idle, "what the shadow gave")
    mirror.offer_batch(batch_of(160, [1] * 5, later, 0), deployment)
    await until(lambda: mirror.idle, "what the shadow gave of the next")
    numbers.first = 1000
    mirror.close()
    assert recorded == []
    mirror.settled()

    # 100 and 52 requests fill a block; those that have no ids yet are never recorded.
    assert process.asked == [256, 24, 5]
    assert found["compared"] == 165
    copies = recorded[0]
    assert (len(recorded), [copy.rows for copy in copies]) == (1, [256, 24])
    table = events_of(copies, Anchor(0.0, 0)).arrow()
    expected = [f"i-{1000 + n}" for n in range(100)] + [f"i-{1100 + n}/{row}" for n in range(60) for row in range(3)]
    assert table["id"].to_pylist() == expected
    assert table["feature.x"].to_pylist() == [[n] * 3 for n in range(100)] + [
        [100 + n] * 3 for n in range(60) for _ in range(3)
    ]
    assert table["prediction.y"].to_pylist() == [2 * row[0] for row in table["feature.x"].to_pylist()]
    assert set(table["arm"].to_pylist()) == {"shadow"}


# --- the service ----------------------------------------------------------------------------------------------------
async def connected(service: Service, clients: int) -> list[Any]:
    return [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(clients)]


def body_of(first: float, rows: int = 1) -> bytes:
    data = [part for row in range(rows) for part in (first + row, 0.5, 0.25)]
    return json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [rows, 3], "data": data}]}).encode()


async def ask(stream: Any, body: bytes) -> tuple[int, int, list[float]]:
    """Status, version and data of an answer."""
    reader, writer = stream
    writer.write(b"POST /v2/models/five/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    head = await reader.readuntil(b"\r\n\r\n")
    content = await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))  # type: ignore[index]
    version = re.search(rb"x-trimtab-version: (\d+)", head)
    return int(head.split()[1]), int(version[1]) if version else 0, json.loads(content)["outputs"][0]["data"]


async def change(service: Service, verb: str, **body: Any) -> None:
    policy = service._control
    if verb == "shadow":
        await policy.shadow("five", body["version"], body["fraction"], "", "test")
    else:
        await policy.promote("five", body["version"], None, "", "test")


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Requests that the shortcut answered, by which part of it."""
    found: Counter[str] = Counter()
    compiled, plain = Express._serve_taken, Express._serve

    def serve_taken(self: Express, count: int, *others: Any) -> None:
        found["compiled"] += count
        compiled(self, count, *others)

    def serve(self: Express, taken: Any, *others: Any) -> None:
        found["python"] += len(taken)
        plain(self, taken, *others)

    monkeypatch.setattr(Express, "_serve_taken", serve_taken)
    monkeypatch.setattr(Express, "_serve", serve)
    return found


WITHOUT_COMPILER = (
    "serving.express.native", "serving.transport.connection.native", "serving.telemetry.served.native",
)  # fmt: skip


@pytest.mark.usefixtures("fives")
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("process", [True, False])
async def test_what_the_shortcut_answers_is_paired_with_its_shadows_as_on_the_general_way(
    collector: Collector,  # noqa: F811
    start: Start,
    hurried: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
    compiled: bool,
    process: bool,
) -> None:
    if not compiled:
        for place in WITHOUT_COMPILER:
            monkeypatch.setattr(place, lambda: None)
    limits = ShadowLimits(gather=0.01, step_rows=8, queue_rows=100_000, process_bytes=1 << 20 if process else 0)
    service = await start(collector_url=collector.url, trace_sample_ratio=0.05, shadow=limits)
    await change(service, "shadow", version=2, fraction=1.0)
    await change(service, "shadow", version=3, fraction=1.0)
    streams = await connected(service, 6)
    if process:
        await ask(streams[0], body_of(1000.0))
        await until(lambda: len(ready(service)) == 2 and told(service, 3) == 1, "the shadows' process")
    await change(service, "shadow", version=3, fraction=0.25)
    sent = 0
    try:
        for turn in range(40):
            rows = (1, 1, 3)[turn % 3]
            bodies = [body_of(float(sent + client * rows), rows) for client in range(6)]
            for place, (status, version, data) in enumerate(
                await asyncio.gather(*(ask(*pair) for pair in zip(streams, bodies, strict=True)))
            ):
                assert (status, version) == (200, 1)
                assert data == [float(sent + place * rows + row) for row in range(rows)]
            sent += 6 * rows
    finally:
        for _, writer in streams:
            writer.close()
    of_arm = lambda arm: [event for event in collector.events if event["arm"] == arm]  # noqa: E731
    warm = int(process)
    await until(lambda: len(of_arm("stable")) == sent + warm, "an event a row")
    assert value(service, names.INFERENCE_REQUESTS, model="five", version="1", outcome="ok") == 240 + warm
    await until(lambda: told(service, 2) >= 240 + warm and service._mirror.idle, "what the shadows gave")
    third = told(service, 3) - warm
    await until(lambda: len([e for e in of_arm("shadow") if e["version"] == "2"]) == sent + warm, "copies' events")

    assert hurried["compiled" if compiled else "python"] >= 200
    assert told(service, 2) == 240 + warm
    assert 20 <= third <= 110
    answers = {event["id"]: event for event in of_arm("stable")}
    copies: dict[str, dict[str, Any]] = defaultdict(dict)
    for event in of_arm("shadow"):
        if event["feature.x"][0] == 1000.0 and event["version"] == "3":
            continue
        assert event["id"] not in copies[event["version"]]
        copies[event["version"]][event["id"]] = event
    assert copies["2"].keys() == answers.keys()
    assert len({id.partition("/")[0] for id in copies["3"]}) == third
    for version, propensity in (("2", 1.0), ("3", 0.25)):
        for id, event in copies[version].items():
            answer = answers[id]
            assert event["feature.x"] == answer["feature.x"]
            assert event["prediction.y"] == int(version) * answer["prediction.y"]
            assert (event["propensity"], event["outcome"], event["model"]) == (propensity, "ok", "five")
            assert (event["trace_id"], event["attributes"], event["release"]) == (None, None, None)
            assert 0 < event["latency_seconds"] < 60
            assert event["time"] >= answer["time"]
    gap = service.metrics.registry.get_sample_value(
        "shadow_output_difference_sum", {"model": "five", "version": "1", "shadow": "2"}
    )
    rows_of: dict[str, list[float]] = defaultdict(list)
    for id, event in answers.items():
        rows_of[id.partition("/")[0]].append(event["prediction.y"])
    assert gap == pytest.approx(sum(max(found) for found in rows_of.values()))


def told(service: Service, shadow: int, outcome: str = "compared") -> float:
    return value(service, names.SHADOW_REQUESTS, model="five", shadow=str(shadow), outcome=outcome)


def ready(service: Service) -> list[Any]:
    process = service._mirror._steps.process
    assert process is not None
    return [key for key, version in process._versions.items() if version.ready]


@pytest.mark.usefixtures("fives")
@pytest.mark.parametrize("process", [True, False])
async def test_a_request_that_a_shadow_fails_at_or_does_not_take_is_counted_alone(
    collector: Collector,  # noqa: F811
    start: Start,
    process: bool,
) -> None:
    limits = ShadowLimits(gather=0.01, step_rows=8, process_bytes=1 << 20 if process else 0)
    service = await start(collector_url=collector.url, shadow=limits)
    await change(service, "shadow", version=4, fraction=1.0)
    streams = await connected(service, 1)
    if process:
        await ask(streams[0], body_of(1000.0))
        await until(lambda: len(ready(service)) == 1, "the shadows' process")
    await change(service, "shadow", version=5, fraction=1.0)
    before = told(service, 4)
    for number in range(12):
        assert (await ask(streams[0], body_of(float(number))))[:2] == (200, 1)
    streams[0][1].close()
    await until(lambda: told(service, 4) - before >= 11 and service._mirror.idle, "what the shadows gave")
    await until(lambda: told(service, 5, "incomparable") == 12, "what a shadow does not take")
    await until(lambda: any(e["outcome"] != "ok" for e in collector.events), "the failure's event")

    assert (told(service, 4) - before, told(service, 4, "failed")) == (11, 1)
    failed = [event for event in collector.events if event["outcome"] != "ok"]
    answer = next(e for e in collector.events if e["arm"] == "stable" and e["feature.x"][0] == ODD)
    assert [(e["id"], e["version"], e["arm"], e["prediction.y"]) for e in failed] == [
        (answer["id"], "4", "shadow", None)
    ]


async def switch_under_load(
    service: Service, change: Callable[[random.Random, int], Awaitable[int]], switches: int, clients: int
) -> tuple[Counter[int], list[str]]:
    """Answers by status while the policy changes, and those of a version that did not answer then."""
    statuses: Counter[int] = Counter()
    wrong: list[str] = []
    # The versions that may answer: the one in force, and while a change is under way the next, too.
    stable, epochs, over = {1}, [0], [False]
    history: list[set[int]] = [{1}]
    streams = await connected(service, clients)

    async def client(stream: Any, number: int) -> None:
        asked = 0
        while not over[0]:
            asked += 1
            first, rows = float(number * 1000 + asked % 900), 1 if asked % 5 else 3
            begun = epochs[0]
            status, version, data = await ask(stream, body_of(first, rows))
            statuses[status] += 1
            possible = set().union(*history[begun : epochs[0] + 1])
            if version not in possible or data != [version * (first + row) for row in range(rows)]:
                wrong.append(f"{first} got {data} of version {version}, possible were {possible}")
        stream[1].close()

    tasks = [asyncio.create_task(client(stream, number)) for number, stream in enumerate(streams)]
    draw = random.Random(7)
    for _ in range(switches):
        wanted = draw.choice([1, 2, 3])
        history.append(stable | {wanted})
        epochs[0] += 1
        stable = {await change(draw, wanted)}
        history.append(stable)
        epochs[0] += 1
    over[0] = True
    await asyncio.gather(*tasks)
    return statuses, wrong


@pytest.mark.usefixtures("fives")
@pytest.mark.parametrize(
    ("switches", "accounts"), [(150, 1024), (150, 1), pytest.param(3000, 1024, marks=pytest.mark.slow)]
)
async def test_no_request_is_lost_or_goes_astray_while_shadows_come_and_go(
    collector: Collector,  # noqa: F811
    start: Start,
    hurried: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
    switches: int,
    accounts: int,
) -> None:
    # What is kept of so many policies; others' counts are written, and must not be missed.
    monkeypatch.setattr("serving.front._MAX_ACCOUNTS", accounts)
    limits = ShadowLimits(gather=0.01, retry=0.001, process_bytes=0)
    service = await start(collector_url=collector.url, shadow=limits)
    await change(service, "shadow", version=2, fraction=0.0)
    stable = [1]
    events: Counter[str] = Counter()

    async def one(draw: random.Random, wanted: int) -> int:
        others = [number for number in (1, 2, 3) if number != stable[0]]
        if draw.random() < 0.25 and wanted != stable[0]:
            await change(service, "promote", version=wanted)
            stable[0] = wanted
            events["promote"] += 1
        else:
            await change(service, "shadow", version=draw.choice(others), fraction=draw.choice([0.0, 0.3, 1.0]))
            events["shadow"] += 1
        return stable[0]

    statuses, wrong = await switch_under_load(service, one, switches, 12)

    assert wrong == []
    assert statuses.keys() == {200}
    assert events["promote"] > 0.1 * switches
    assert hurried.total() > 0.5 * statuses[200]
    requests = sum(
        value(service, names.INFERENCE_REQUESTS, model="five", version=str(number), outcome="ok")
        for number in (1, 2, 3)
    )
    assert requests == statuses[200]
