"""One change at a time for all replicas, in two phases, whoever dies in between: the hub with scripted processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from observability import names
from observability.metrics import Metrics
from serving.errors import ServingError
from serving.fleet import FleetOptions
from serving.fleet.channel import ChannelClosed, RemoteError
from serving.fleet.exposition import dump
from serving.fleet.hub import Hub
from serving.fleet.members import Gate, Member

POLICY = {"model": "fares", "generation": 2}


class Scripted:
    """The channel of a process that does what it is told: keeps what it was asked, fails where `fails` says."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.said: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.generation = 1
        self.metrics = Metrics()
        self.blocked: dict[str, asyncio.Event] = {}

    async def call(self, op: str, timeout: float | None = None, **args: Any) -> Any:
        self.said.append(op)
        if self.closed.is_set():
            raise ChannelClosed("gone")
        if op in self.blocked:
            await self.blocked[op].wait()
        if op in self.fails:
            raise self.fails[op]
        if op == "commit":
            self.generation = args["policy"]["generation"]
        if op == "status":
            return {"generations": {"fares": self.generation}, "unready": None}
        if op == "snapshot":
            return {"families": dump(self.metrics.registry), "rows": 3}
        if op == "replicas":
            return [int(number) for number in args["paths"]]
        return None

    def notify(self, op: str, **args: Any) -> None:
        self.said.append(op)


class Stage:
    """A hub with members and a gate whose channels are scripted."""

    def __init__(self, replicas: int) -> None:
        self.killed: list[int] = []
        self.hub = Hub(FleetOptions(replicas=replicas), Metrics(), self.killed.append)
        self.gate_channel = Scripted()
        self.gate = Gate(0, self.gate_channel)  # type: ignore[arg-type]
        self.hub.fronts[0] = self.gate
        self.members: list[Member] = []
        self.channels: list[Scripted] = []

    async def join(self, number: int) -> tuple[Member, Scripted]:
        channel = Scripted()
        member = Member(number, Path(f"/{number}"), channel)  # type: ignore[arg-type]
        self.hub.replicas[number] = member
        self.members.append(member)
        self.channels.append(channel)
        await self.hub.from_replica(member, "enter", {})
        await self.hub.from_replica(member, "joined", {})
        channel.said.clear()
        return member, channel

    async def leave(self, member: Member) -> None:
        member.channel.closed.set()
        await self.hub.replica_gone(member)

    async def ask(self, member: Member, op: str, **args: Any) -> Any:
        return await self.hub.from_replica(member, op, args)


@pytest.fixture
async def stage() -> Stage:
    """Three replicas; 0 leads."""
    made = Stage(3)
    await made.hub.from_front(made.gate, "listening", {})
    for number in range(3):
        await made.join(number)
    assert made.hub.roster.leader == 0
    return made


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_change_is_prepared_by_all_others_before_any_of_them_switches(stage: Stage) -> None:
    stage.channels[2].blocked["prepare"] = asyncio.Event()
    preparing = asyncio.create_task(stage.ask(stage.members[0], "prepare", policy=POLICY))
    await settled()
    assert not preparing.done()
    stage.channels[2].blocked["prepare"].set()
    await preparing
    await stage.ask(stage.members[0], "commit", policy=POLICY, move=False)

    assert stage.channels[0].said == []
    assert [channel.said for channel in stage.channels[1:]] == [["prepare", "commit"]] * 2
    assert [member.generations for member in stage.members] == [{"fares": 2}] * 3


async def test_one_that_cannot_prepare_stops_the_change_and_is_named(stage: Stage) -> None:
    stage.channels[1].fails["prepare"] = RemoteError("the file is altered", 409)
    with pytest.raises(RemoteError, match=r"replica 1 cannot take the change.*nothing was changed.*altered") as caught:
        await stage.ask(stage.members[0], "prepare", policy=POLICY)

    assert caught.value.status == 409
    assert [channel.said for channel in stage.channels[1:]] == [["prepare", "abort"]] * 2
    del stage.channels[1].fails["prepare"]
    await asyncio.wait_for(stage.ask(stage.members[0], "prepare", policy=POLICY), 60)


async def test_one_that_dies_while_it_prepares_does_not_stop_the_change(stage: Stage) -> None:
    stage.channels[1].fails["prepare"] = ChannelClosed("gone")
    await stage.ask(stage.members[0], "prepare", policy=POLICY)
    await stage.ask(stage.members[0], "commit", policy=POLICY, move=False)

    assert stage.channels[2].generation == 2


@pytest.mark.parametrize("error", [RemoteError("no memory", 500), TimeoutError()])
async def test_one_that_cannot_switch_is_taken_out_before_the_change_is_answered(
    stage: Stage, error: Exception
) -> None:
    stage.channels[2].fails["commit"] = error
    await stage.ask(stage.members[0], "prepare", policy=POLICY)
    await stage.ask(stage.members[0], "commit", policy=POLICY, move=False)

    assert stage.killed == [2]
    assert not stage.members[2].up
    assert stage.gate.reaches == {0, 1}


async def test_only_the_leader_changes_policies(stage: Stage) -> None:
    with pytest.raises(RemoteError, match="does not lead") as caught:
        await stage.ask(stage.members[1], "prepare", policy=POLICY)
    with pytest.raises(RemoteError, match="does not lead"):
        await stage.ask(stage.members[1], "commit", policy=POLICY, move=False)

    assert caught.value.status == 503
    assert [channel.said for channel in stage.channels] == [[], [], []]


async def test_when_the_leader_dies_between_the_phases_the_next_brings_all_to_what_is_stored(stage: Stage) -> None:
    await stage.ask(stage.members[0], "prepare", policy=POLICY)
    await stage.leave(stage.members[0])
    await settled()

    assert stage.hub.roster.leader == 1
    for channel in stage.channels[1:]:
        assert channel.said[:2] == ["prepare", "sync"]
    assert stage.channels[1].said[-1] == "lead"
    await asyncio.wait_for(stage.ask(stage.members[1], "prepare", policy=POLICY), 60)


async def test_a_replica_joins_between_changes_and_comes_to_what_is_stored(stage: Stage) -> None:
    await stage.leave(stage.members[2])
    await stage.ask(stage.members[0], "prepare", policy=POLICY)
    joining = asyncio.create_task(stage.join(2))
    await settled()
    assert not joining.done()
    await stage.ask(stage.members[0], "commit", policy=POLICY, move=False)
    member, _ = await asyncio.wait_for(joining, 60)

    assert member.up
    assert stage.hub.unready() is None


async def test_the_first_replica_decides_alone_and_the_others_wait_for_it() -> None:
    stage = Stage(2)
    first, second = (Member(number, Path("/"), Scripted()) for number in range(2))  # type: ignore[arg-type]
    stage.hub.replicas |= {0: first, 1: second}
    assert await stage.ask(first, "enter") is None
    waiting = asyncio.create_task(stage.ask(second, "enter"))
    await settled()
    assert not waiting.done()
    await stage.ask(first, "joined")
    assert await asyncio.wait_for(waiting, 60) == {"fares": 1}

    # The first one's turn passes on when it dies before it has joined.
    stage = Stage(2)
    first, second = (Member(number, Path("/"), Scripted()) for number in range(2))  # type: ignore[arg-type]
    assert await stage.ask(first, "enter") is None
    waiting = asyncio.create_task(stage.ask(second, "enter"))
    await settled()
    await stage.leave(first)
    assert await asyncio.wait_for(waiting, 60) is None


async def test_ready_needs_every_front_and_enough_replicas() -> None:
    stage = Stage(2)
    stage.hub._options = FleetOptions(replicas=2, min_ready=2)
    assert "0 replicas of at least 2" in (stage.hub.unready() or "")
    await stage.join(0)
    await stage.join(1)
    assert "fronts 0 do not listen" in (stage.hub.unready() or "")
    await stage.hub.from_front(stage.gate, "listening", {})
    assert stage.hub.unready() is None
    stage.members[1].generations = {}
    assert "'fares' is ready in 1 replicas of at least 2" in (stage.hub.unready() or "")
    stage.hub.draining = True
    assert "draining" in (stage.hub.unready() or "")


async def test_counts_of_replicas_that_died_or_hang_stay_on_the_page(stage: Stage) -> None:
    async def total() -> float:
        body, _ = await stage.hub.overview.page(None)
        line = next(row for row in body.decode().splitlines() if row.startswith(f"{names.INFERENCE_ROWS.name}{{"))
        return float(line.rsplit(" ", 1)[1])

    for channel in stage.channels:
        channel.metrics[names.INFERENCE_ROWS].labels("fares", "1").inc(10)
    assert await total() == 30
    stage.channels[1].fails["snapshot"] = TimeoutError()
    assert await total() == 30
    await stage.leave(stage.members[2])
    assert await total() == 30


async def test_an_unknown_question_is_refused(stage: Stage) -> None:
    questions: list[Callable[[], Any]] = [
        lambda: stage.ask(stage.members[0], "dance"),
        lambda: stage.hub.from_front(stage.gate, "dance", {}),
    ]
    for ask in questions:
        with pytest.raises(ServingError, match="does not know 'dance'"):
            await ask()


async def test_what_the_leader_loads_and_unloads_all_others_do_and_who_cannot_is_named(stage: Stage) -> None:
    await stage.ask(stage.members[0], "repeat", deed="load", model="fares", versions=[3])
    assert [channel.said for channel in stage.channels] == [[], ["load"], ["load"]]
    stage.channels[2].fails["unload"] = RemoteError("requests do not end", 409)

    with pytest.raises(RemoteError, match="replica 2 cannot unload 'fares': requests do not end"):
        await stage.ask(stage.members[0], "repeat", deed="unload", model="fares", versions=None)


@pytest.mark.parametrize("model", ["fares", "other"])
async def test_a_rollback_does_not_wait_for_a_change_that_is_being_prepared(stage: Stage, model: str) -> None:
    for channel in stage.channels[1:]:
        channel.blocked["prepare"] = asyncio.Event()
    loading = asyncio.create_task(stage.ask(stage.members[0], "prepare", policy=POLICY, change=1))
    await settled()
    for channel in stage.channels[1:]:
        del channel.blocked["prepare"]
    rollback = POLICY | {"model": model, "generation": 3}
    await asyncio.wait_for(stage.ask(stage.members[0], "prepare", policy=rollback, change=2, urgent=True), 60)
    with pytest.raises(RemoteError, match="a rollback came before the change of 'fares' was prepared") as caught:
        await loading
    # What was called off is called off once, and takes nothing from the change that came after it.
    await stage.ask(stage.members[0], "abort", policy=POLICY, change=1)
    await stage.ask(stage.members[0], "commit", policy=rollback, move=True)

    assert caught.value.status == 409
    assert [channel.said for channel in stage.channels[1:]] == [["prepare", "abort", "prepare", "commit"]] * 2


async def test_one_rollback_does_not_end_another(stage: Stage) -> None:
    stage.channels[1].blocked["prepare"] = asyncio.Event()
    first = asyncio.create_task(stage.ask(stage.members[0], "prepare", policy=POLICY, change=1, urgent=True))
    await settled()
    other = POLICY | {"model": "other"}
    second = asyncio.create_task(stage.ask(stage.members[0], "prepare", policy=other, change=2, urgent=True))
    await settled()
    assert not first.done()
    assert not second.done()
    stage.channels[1].blocked["prepare"].set()
    await first
    await stage.ask(stage.members[0], "commit", policy=POLICY, move=True)
    await asyncio.wait_for(second, 60)


async def test_a_change_that_is_called_off_while_it_waits_never_begins(stage: Stage) -> None:
    await stage.ask(stage.members[0], "prepare", policy=POLICY, change=1)
    other = POLICY | {"model": "other"}
    waiting = asyncio.create_task(stage.ask(stage.members[0], "prepare", policy=other, change=2))
    await settled()
    await stage.ask(stage.members[0], "abort", policy=other, change=2)
    await stage.ask(stage.members[0], "commit", policy=POLICY, move=False)
    with pytest.raises(RemoteError, match="called off"):
        await asyncio.wait_for(waiting, 60)

    assert stage.channels[1].said == ["prepare", "commit"]
    await asyncio.wait_for(stage.ask(stage.members[0], "prepare", policy=POLICY, change=3), 60)
