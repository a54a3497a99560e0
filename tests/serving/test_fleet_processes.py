"""A server of several real processes: what is killed, stopped or changed under load, and what callers see of it."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from observability import names
from serving import Registry
from tests.serving.fleet_processes import CONNECTIONS, PATIENCE, ROW, Fleet, Load, running, until, with_versions

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared_fleet(tmp_path_factory: pytest.TempPathFactory, artifacts: list[Path]) -> Iterator[Callable[[], Fleet]]:
    """Two fronts and two replicas, for one test after another; none counts as hanging that a busy machine holds up.

    After a test that ended it there is another.
    """
    folder = tmp_path_factory.mktemp("fleet")
    url, limits = with_versions(folder, artifacts), {"ping_interval": 0.25, "ping_limit": 10.0, "hang_limit": 600.0}
    fleets: list[Fleet] = []
    with ExitStack() as stack:

        def living() -> Fleet:
            if not fleets or fleets[-1].process.poll() is not None:
                given = running(url, folder, {"drain_notice": 0.5}, replicas=2, fronts=2, **limits)
                fleets.append(stack.enter_context(given))
            return fleets[-1]

        yield living


@pytest.fixture
async def fleet(shared_fleet: Callable[[], Fleet]) -> AsyncIterator[Fleet]:
    """The shared fleet with everybody up, and a client for this test."""
    living = shared_fleet()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{living.port}", trust_env=False, timeout=60) as client:
        living.http = client
        await living.all_up()
        yield living


async def test_killed_processes_cost_no_more_than_their_connections_and_no_counter_goes_backwards(
    fleet: Fleet,
) -> None:
    load = Load(fleet.port)
    await load.answered(200)
    before = await fleet.samples()
    os.kill(fleet.pids("replica")[1], signal.SIGKILL)
    await load.answered(200)
    during = await fleet.samples()
    await fleet.all_up()
    assert set(load.seen) == {200}, load.seen

    os.kill(fleet.pids("front")[0], signal.SIGKILL)
    await load.answered(200)
    await fleet.all_up()
    seen = await load.stop()
    after = await fleet.samples()

    assert set(seen) <= {200, "broken", "late"}, seen
    assert seen["broken"] <= CONNECTIONS
    counters = [key for key in before if key[0].endswith(("_total", "_count", "_bucket", "_sum"))]
    assert len(counters) > 50
    for earlier, later in ((before, during), (during, after)):
        assert [key for key in counters if later[key] < earlier[key]] == []
    for metric, label in ((names.REPLICA_RESTARTS, ("replica", "1")), (names.FRONT_RESTARTS, ("front", "0"))):
        assert after[metric.name, (label,)] == before[metric.name, (label,)] + 1
    assert after[names.REPLICA_EJECTIONS.name, (("reason", "closed"), ("replica", "1"))] >= 1
    ok = (names.INFERENCE_REQUESTS.name, (("model", "fares"), ("outcome", "ok"), ("version", "1")))
    assert after[ok] > before[ok] > 0


async def test_long_packed_bodies_are_read_by_the_replicas(fleet: Fleet) -> None:
    body = gzip.compress(json.dumps(ROW).encode() + b" " * 1_000_000)
    bomb = gzip.compress(b" " * 50_000_000)
    headers = {"content-encoding": "gzip"}
    bodies = [body, bomb] * 10

    answers = await asyncio.gather(
        *(fleet.http.post("/v2/models/fares/infer", content=one, headers=headers) for one in bodies)
    )
    assert [found.status_code for found in answers] == [200, 413] * 10


async def test_a_change_is_in_force_on_every_replica_when_it_is_answered(fleet: Fleet) -> None:
    load = Load(fleet.port)
    before = (await fleet.described())["generation"]
    switches: list[tuple[float, float, str]] = []
    for turn in range(12):
        began = time.monotonic()
        answer = await fleet.control("promote", {"version": 2 + turn % 2})
        assert answer.status_code == 200, answer.text
        switches.append((began, time.monotonic(), str(2 + turn % 2)))
        await load.answered(50)
    seen = await load.stop()

    assert set(seen) == {200}, seen
    assert (await fleet.described())["generation"] == before + 12
    assert await fleet.value(names.TRAFFIC_GENERATION, model="fares") == before + 12
    checked = 0
    for start, end, version in load.versions:
        # A request that lies whole between two changes sees the one generation that was in force everywhere.
        for (_, done, name), following in zip(switches, [*switches[1:], None], strict=True):
            if start >= done and (following is None or end <= following[0]):
                assert version == name
                checked += 1
    assert checked > 200


async def test_a_rollback_is_in_force_on_every_replica_when_it_is_answered(fleet: Fleet) -> None:
    assert (await fleet.control("promote", {"version": 1})).status_code == 200
    assert (await fleet.control("canary", {"version": 3, "weight": 0.5})).status_code == 200
    load = Load(fleet.port)
    await load.answered(100)
    before = await fleet.described()
    began = time.monotonic()
    answer = await fleet.control("rollback", {"reason": "too slow"})
    done = time.monotonic()
    await load.answered(100)
    seen = await load.stop()
    again = await fleet.control("rollback", {"release": before["canary"]["release"]})

    assert answer.status_code == 200, answer.text
    assert set(seen) == {200}, seen
    assert {version for _, end, version in load.versions if end <= began} == {"1", "3"}
    assert {version for start, _, version in load.versions if start >= done} == {"1"}
    after = await fleet.described()
    assert (after["stable"], after["canary"], after["generation"]) == (1, None, before["generation"] + 1)
    assert await fleet.value(names.TRAFFIC_GENERATION, model="fares") == after["generation"]
    assert again.json()["already"]


async def test_a_new_leader_takes_over_and_has_what_was_stored(fleet: Fleet) -> None:
    assert (await fleet.control("promote", {"version": 1})).status_code == 200
    before = await fleet.described()
    leader = fleet.leader()
    os.kill(fleet.pids("replica")[leader], signal.SIGKILL)

    async def led() -> bool:
        answer = await fleet.control("promote", {"version": 2}, **{"Idempotency-Key": "once"})
        return answer.status_code == 200

    await until(led, "a new leader")
    assert fleet.leader() != leader
    await fleet.all_up()
    after = await fleet.described()

    assert (after["stable"], after["previous"], after["generation"]) == (2, 1, before["generation"] + 1)
    assert {(await fleet.infer()).headers["x-trimtab-version"] for _ in range(30)} == {"2"}


async def test_a_hanging_replica_gets_nothing_until_it_answers_again(fleet: Fleet) -> None:
    load = Load(fleet.port)
    await load.answered(50)
    hung = fleet.pids("replica")[1]
    before = await fleet.value(names.REPLICA_EJECTIONS, replica="1", reason="silent")
    os.kill(hung, signal.SIGSTOP)

    async def ejected() -> bool:
        return await fleet.value(names.REPLICA_EJECTIONS, replica="1", reason="silent") >= before + 2

    try:
        await until(ejected, "the ejection by both fronts")
        await load.answered(200)
    finally:
        os.kill(hung, signal.SIGCONT)

    async def returned() -> bool:
        return fleet.log.read_text().count("replica 1 is back") >= 2

    await until(returned, "the replica")
    seen = await load.stop()

    assert set(seen) == {200}, seen
    assert fleet.pids("replica")[1] == hung


async def test_no_request_fails_when_processes_or_the_whole_server_are_told_to_end(fleet: Fleet) -> None:
    load = Load(fleet.port)
    await load.answered(100)
    for kind in ("replica", "front"):
        old = fleet.pids(kind)[0]
        os.kill(old, signal.SIGTERM)

        async def replaced(kind: str = kind, old: int = old) -> bool:
            return fleet.pids(kind).get(0, old) != old

        await until(replaced, f"another {kind}")
        await fleet.all_up()
        await load.answered(100)
    fleet.process.terminate()
    assert await asyncio.to_thread(fleet.process.wait, PATIENCE) == 0
    seen = await load.stop()

    # A refused connection is no lost request: the listener is closed, and nothing was sent. Nor is one sent too late.
    assert set(seen) - {"refused", "late"} == {200}, seen


async def test_without_retries_only_what_a_killed_replica_held_fails_and_it_comes_back_to_where_the_others_are(
    registry: Registry, registry_url: str, tmp_path: Path, gate: tuple[str, Path]
) -> None:
    architecture, gate_file = gate
    with running(
        registry_url, tmp_path, {"architectures": [architecture], "drain_notice": 0.0}, replicas=2, fronts=1,
        retry_lost=False, ping_limit=20.0,
    ) as fleet:  # fmt: skip
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{fleet.port}", trust_env=False, timeout=PATIENCE
        ) as fleet.http:
            await fleet.all_up(fronts=1)
            assert (await fleet.control("promote", {"version": 2})).status_code == 200
            gate_file.unlink()
            held = [asyncio.create_task(fleet.infer("gate")) for _ in range(8)]

            async def spread() -> bool:
                flights = [await fleet.value(names.REPLICA_IN_FLIGHT, replica=n) for n in "01"]
                return flights == [4.0, 4.0]

            await until(spread, "four requests in each replica")
            folder = registry.artifact(registry.get("fares", 2))
            shutil.move(folder, folder.with_name("away"))
            os.kill(fleet.pids("replica")[1], signal.SIGKILL)
            await asyncio.wait(held, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
            other = await fleet.infer("fares")
            gate_file.touch()
            answers = [await task for task in held]
            lost = [answer for answer in answers if answer.status_code != 200]
            assert other.status_code == 200
            assert len(lost) == 4
            for answer in lost:
                assert answer.status_code == 503
                assert int(answer.headers["retry-after"]) >= 1
                assert "retry it" in answer.json()["error"]

            async def given_up() -> bool:
                return "which others serve" in fleet.log.read_text()

            await until(given_up, "the complaint of a replica that cannot load what is stored")
            assert await fleet.value(names.REPLICA_UP, replica="1") == 0.0
            assert (await fleet.http.get("/v2/health/ready")).status_code == 200
            shutil.move(folder.with_name("away"), folder)
            await fleet.all_up(fronts=1)
            assert {(await fleet.infer()).headers["x-trimtab-version"] for _ in range(20)} == {"2"}
