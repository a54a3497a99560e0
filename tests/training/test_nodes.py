"""Ranks of two nodes: killed ranks, a dead node and a dead leading node cost steps, not the run."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest
import torch.distributed as dist

from observability.names import PHASES
from observability.rank_agent import Followed
from observability.step_ring import RingOwner, StepRing
from tests.training.forks import forked
from tests.training.test_supervisor import undisturbed, weights
from tests.training.toy_line import Line, end_own
from tests.training.toy_node import NEVER, other_node, supervisor_of
from training.faults import Fault, Faults
from training.guards import read_record
from training.ledger import End
from training.neighbours import Neighbours, packed
from training.node_store import StoreLost
from training.nodes import Alone, Follower, Leader, Nodes, NodesError, Over, Place
from training.ranks import Rank
from training.supervisor import _agreed
from training.watch import HangLimits
from trimtab.ports import free_port

LIMIT_SECONDS = 240.0
Result = TypeVar("Result")


class Node:
    """The supervisor of node 1 in a process of its own, which says in a file how it ended."""

    def __init__(self, folder: Path, port: int, arguments: dict[str, object], hang: HangLimits = NEVER) -> None:
        self.said = folder / "1.out"
        self.process = forked(other_node, folder, port, arguments, self.said, hang)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def until(there: Callable[[Path], bool], path: Path) -> None:
    """Waits until it is true of the path."""
    limit = time.monotonic() + LIMIT_SECONDS
    while not there(path):
        assert time.monotonic() < limit, path
        time.sleep(0.05)


@pytest.fixture
def port() -> int:
    """Where the nodes meet; nodes that are killed must find it free again."""
    return free_port()


class Told(Alone):
    """A meeting with another node, which ends the attempt at its `hears`-th look, or never."""

    others = 1

    def __init__(self, hears: int) -> None:
        self.looks, self.hears = 0, hears

    def ended(self, attempt: int) -> End | None:
        self.looks += 1
        return End("killed", 1, "rank 1 was killed") if self.looks == self.hears else None


def test_an_error_is_not_the_cause_where_another_node_tells_of_a_death_right_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("training.supervisor._CAUSE_SECONDS", 0.2)
    error, killed = End("error", 0, "connection closed by peer"), End("killed", 0, "rank 0 was killed")

    assert _agreed(Told(hears=3), 1, error).rank == 1
    assert _agreed(Told(hears=0), 1, error) == error
    # Nothing else waits, nor does whoever is alone.
    assert _agreed(waits_not := Told(hears=1), 1, killed) == killed
    assert not waits_not.looks
    assert _agreed(Alone(), 1, error) == error


@pytest.mark.slow
def test_a_run_over_two_nodes_survives_the_death_of_ranks_on_either_and_of_a_node(
    tmp_path: Path, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    faults = Faults((Fault("kill", 1, 15, 0), Fault("kill", 0, 25, 1), Fault("slow", 1, 35, 2, 3600.0)))
    arguments = {"steps": 60, "every": 10, "faults": faults.to_json()}
    other = Node(tmp_path, port, arguments)
    result = _in_thread(supervisor_of(0, tmp_path, port, arguments).run)
    try:
        until(Path.is_file, tmp_path / "checkpoints" / "step-000000000030.ckpt")
        other.kill()
        until(lambda _: "node 1 of 2 not there" in caplog.text, tmp_path)
        other = Node(tmp_path, port, arguments)
        ended = result()
        other.process.join(LIMIT_SECONDS)
        assert other.process.exitcode == 0
    finally:
        other.kill()
    assert weights(tmp_path) == pytest.approx(undisturbed(60), rel=1e-6)
    assert json.loads(other.said.read_text()) == {"outcome": "completed"}
    assert ended.outcome == "completed"
    causes = [(one.cause, one.rank) for one in ended.attempts]
    assert causes[:2] == [("killed", 1), ("killed", 0)]
    # A node is missed, or its ranks are missed by others before that.
    assert causes[2][0] in ("node", "error")
    assert causes[-1] == ("completed", -1)


def _in_thread(call: Callable[[], Result]) -> Callable[[], Result]:
    """Calls in a thread; what is given back waits for the result."""
    pool = ThreadPoolExecutor(1)
    return pool.submit(call).result


def of(port: int, index: int, silence: float = 10.0, patience: float = 60.0) -> Nodes:
    return Nodes(count=2, index=index, host="127.0.0.1", port=port, silence=silence, patience=patience)


def test_the_end_that_is_told_first_is_that_of_both_nodes_and_the_last_word_is_heard(tmp_path: Path, port: int) -> None:
    leader, follower = Leader(of(port, 0), tmp_path, {"run": "r"}), Follower(of(port, 1), tmp_path)
    assert follower.told() == {"run": "r"}
    answers = _in_thread(lambda: [follower.begin(-1), follower.begin(-1)])
    assert leader.begin(7) == Place(7, "127.0.0.1", port)
    first, second = End("killed", 1, "rank 1 was killed"), End("error", 0, "rank 0: its fellow is gone")
    assert leader.ended(7) is None
    assert (leader.tell(7, first), leader.tell(7, second), leader.ended(7)) == (first, first, first)
    assert leader.ended(8) is None
    assert not leader.completed(8)
    leader.close(Over("failed", "no more"))
    assert answers() == [Place(7, "127.0.0.1", port), Over("failed", "no more")]


def test_nodes_show_each_other_the_latest_steps_of_their_ranks_and_no_earlier_attempts(
    tmp_path: Path, port: int
) -> None:
    leader, follower = Leader(of(port, 0), tmp_path), Follower(of(port, 1), tmp_path)
    rings = {rank: StepRing.in_memory(RingOwner(rank=rank)) for rank in (0, 1)}
    for rank, ring in rings.items():
        for step in range(7):
            ring.write(step, step * 1000, 10 + rank, 4, [rank] * len(PHASES))
    here, there = ({rank: Followed(tmp_path, rings[rank].view(), rings[rank].view().now())} for rank in rings)

    assert follower.shared(packed({1: rings[1].view().records()}, attempt=2)) == []
    assert list(Neighbours(3, 5).records(here, leader)) == [0]
    shown = Neighbours(2, 5)
    found = shown.records(here, leader)
    seen = Neighbours(2, 5).records(there, follower)

    assert shown.records(here, leader) is None  # too soon
    assert [one.tolist() for one in found.values()] == [rings[rank].view().records().tolist() for rank in rings]
    assert {rank: one.tolist() for rank, one in seen.items()} == {rank: one.tolist() for rank, one in found.items()}
    assert list(Neighbours(2, 5).records(here, Alone())) == [0]


def test_nodes_show_each_other_how_far_their_ranks_are_until_they_fall_silent(tmp_path: Path, port: int) -> None:
    leader, follower = Leader(of(port, 0), tmp_path), Follower(of(port, 1), tmp_path)
    now = [0.0]
    here, there = (Neighbours(2, 5, lambda: now[0], node=node) for node in range(2))
    there.records({}, follower, {2: (60, 59), 3: (61, 60)})
    here.records({}, leader, {0: (61, 60)})

    assert (here.far(), there.far()) == ({2: (60, 59), 3: (61, 60)}, {})
    for _ in range(3):
        now[0] += 1.0
        there.records({}, follower, {2: (70, 69)})
        here.records({}, leader, {0: (71, 70)})
    assert (here.far(), there.far()) == ({2: (70, 69)}, {0: (71, 70)})
    # The other's supervisor stands still: its ranks may be anywhere.
    for _ in range(4):
        now[0] += 1.0
        here.records({}, leader, {0: (71, 70)})
    assert here.far() == {}


@pytest.mark.slow
def test_a_slow_rank_is_named_by_its_node_though_it_is_the_only_one_there(tmp_path: Path, port: int) -> None:
    slow = Faults((Fault("slow", rank=1, step=0, attempt=-1, seconds=0.03, steps=1000),))
    arguments = {"steps": 150, "every": 150, "faults": slow.to_json()}
    other = Node(tmp_path, port, arguments)
    try:
        ended = supervisor_of(0, tmp_path, port, arguments).run()
        other.process.join(LIMIT_SECONDS)
        assert other.process.exitcode == 0
    finally:
        other.kill()

    found, _ = read_record(tmp_path / "guards.jsonl")
    assert ended.outcome == "completed"
    assert {(one["guard"], one["rank"]) for one in found} == {("straggler", 1)}


@pytest.mark.slow
def test_of_ranks_on_two_nodes_the_one_that_did_not_come_is_named_and_all_stacks_are_kept(
    tmp_path: Path, port: int
) -> None:
    """Both nodes' ranks are idle for as long, and the node of the one that waits looks as often."""
    faults = Faults((Fault("hang", rank=1, step=35, attempt=0),))
    arguments = {"steps": 50, "every": 10, "faults": faults.to_json()}
    hang = HangLimits(step=2.0, first=300.0)
    other = Node(tmp_path, port, arguments, hang)
    try:
        ended = supervisor_of(0, tmp_path, port, arguments, hang).run()
        other.process.join(LIMIT_SECONDS)
        assert other.process.exitcode == 0
    finally:
        other.kill()

    first = ended.attempts[0]
    assert [one.cause for one in ended.attempts] == ["hang", "completed"]
    assert first.rank == 1
    assert first.reason.startswith("rank 1 shows no life for ")
    assert "rank 0 waits in number " in first.reason
    stacks = [(tmp_path / "attempt-0000" / f"rank-{rank}.stacks").read_text() for rank in range(2)]
    assert "faults.py" in stacks[1]
    assert "toy_run.py" in stacks[0]
    assert "faults.py" not in stacks[0]


def test_a_leading_node_that_is_gone_is_named_and_found_again_when_it_is_back(tmp_path: Path, port: int) -> None:
    leader, follower = Leader(of(port, 0), tmp_path), Follower(of(port, 1, silence=0.5), tmp_path)
    begun = _in_thread(lambda: follower.begin(-1))
    assert (leader.begin(3), begun()) == (Place(3, "127.0.0.1", port),) * 2
    del leader  # and with it the store that it serves
    until(lambda _: follower.ended(3) is not None, tmp_path)
    gone = follower.tell(3, End("error"))
    assert gone.cause == "node"
    assert gone.reason.startswith(f"node 0 at 127.0.0.1:{port} is gone")
    begun = _in_thread(lambda: follower.begin(-1))
    leader = Leader(of(port, 0), tmp_path)
    assert (leader.begin(4), begun()) == (Place(4, "127.0.0.1", port),) * 2


def _hear(leader: Leader, times: int, path: Path) -> None:
    """Waits for so many signs of life of node 1."""
    for _ in range(times):
        last = leader._read("beat/1")
        until(lambda _, last=last: leader._read("beat/1") != last, path)  # type: ignore[misc]


def test_a_lost_connection_is_opened_again_and_ends_no_attempt(tmp_path: Path, port: int) -> None:
    with Line(port) as line:
        leader, follower = Leader(of(port, 0), tmp_path), Follower(of(line.port, 1), tmp_path)
        begun = _in_thread(lambda: follower.begin(-1))
        assert (leader.begin(3).attempt, begun().attempt) == (3, 3)
        for _ in range(3):
            line.cut()
            assert follower.ended(3) is None
            line.cut()
            assert follower.shared(b"shown") == []
            line.cut()
            assert not follower.completed(3)
        assert leader.shared(b"also shown") == [b"shown"]
        assert leader.ended(3) is None
        first = End("killed", 1, "rank 1 was killed")
        line.cut()
        assert follower.tell(3, first) == first
        # Its own connections, too, may be lost to the node that serves the store.
        assert end_own(port) >= 1
        assert leader.ended(3) == first


def test_a_connection_that_went_dead_without_a_word_ends_no_attempt(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a firewall forgets a connection: torch would wait for the answer for a quarter of an hour."""
    monkeypatch.setattr("training.nodes._ANSWER_SHARE", 0.1)
    with Line(port) as line:
        leader, follower = Leader(of(port, 0), tmp_path), Follower(of(line.port, 1), tmp_path)
        begun = _in_thread(lambda: follower.begin(-1))
        assert (leader.begin(3).attempt, begun().attempt) == (3, 3)
        _hear(leader, 1, tmp_path)  # its signs of life have a connection of their own
        line.go_dead()
        assert follower.ended(3) is None
        _hear(leader, 2, tmp_path)  # the first may have been on its way
        assert follower.ended(3) is None
        assert leader.ended(3) is None


def test_an_answer_that_a_lost_connection_took_along_is_heard_by_the_next(tmp_path: Path, port: int) -> None:
    with Line(port) as line:
        leader, follower = Leader(of(port, 0), tmp_path), Follower(of(line.port, 1), tmp_path)
        ask, lost = follower._store.ask, list[str]()

        def asks(question: Callable[[object], Result]) -> Result:
            if not lost and leader._heard[1].answered:
                lost.append("the answer")
                line.cut()
                raise StoreLost("Connection reset by peer")
            return ask(question)

        follower._store.ask = asks  # type: ignore[method-assign, assignment]
        begun = _in_thread(lambda: follower.begin(-1))
        assert leader.begin(3).attempt == 3
        assert begun() == Place(3, "127.0.0.1", line.port)
        assert lost


def test_a_leading_node_that_began_anew_ends_the_attempt_of_before(tmp_path: Path, port: int) -> None:
    with Line(port) as line:
        leader, follower = Leader(of(port, 0), tmp_path), Follower(of(line.port, 1), tmp_path)
        begun = _in_thread(lambda: follower.begin(-1))
        assert (leader.begin(3).attempt, begun().attempt) == (3, 3)
        del leader
        leader = Leader(of(port, 0), tmp_path)
        line.cut()
        told = End("node", reason=f"node 0 at 127.0.0.1:{line.port} began anew")
        assert (follower.ended(3), follower.tell(3, End("error"))) == (told, told)
        assert leader.ended(3) is None


@pytest.mark.slow
def test_a_run_over_two_nodes_goes_on_in_one_attempt_while_connections_are_lost(tmp_path: Path, port: int) -> None:
    slow = Faults((Fault("slow", rank=0, step=0, attempt=-1, seconds=0.1, steps=1000),))
    arguments = {"steps": 60, "every": 10, "faults": slow.to_json()}
    with Line(port) as line:
        other = Node(tmp_path, line.port, arguments)
        result = _in_thread(supervisor_of(0, tmp_path, port, arguments).run)
        try:
            for step in (10, 20, 30):
                until(Path.is_file, tmp_path / "checkpoints" / f"step-{step:012d}.ckpt")
                line.cut() if step < 30 else line.go_dead()
            ended = result()
            other.process.join(LIMIT_SECONDS)
            assert other.process.exitcode == 0
        finally:
            other.kill()

    assert [one.cause for one in ended.attempts] == ["completed"]
    assert weights(tmp_path) == pytest.approx(undisturbed(60), rel=1e-6)


def test_a_leading_node_says_who_does_not_come(tmp_path: Path, port: int) -> None:
    with pytest.raises(NodesError, match=r"node 1 of 2 not there .*start node 1 again"):
        Leader(of(port, 0, patience=0.2), tmp_path).begin(0)


def test_a_leading_node_that_is_not_there_and_another_folder_are_named(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.nodes._FOLDER_SECONDS", 0.1)
    with pytest.raises(NodesError, match=r"node 0 was not there at 127.0.0.1:\d+ .*start it again"):
        Follower(of(port, 1, patience=0.2), tmp_path).begin(-1)
    leader = Leader(of(port, 0), tmp_path / "here")
    with pytest.raises(NodesError, match=f"no store can be served on port {port}"):
        Leader(of(port, 0), tmp_path)
    elsewhere = _in_thread(lambda: Follower(of(port, 1), tmp_path / "there").begin(-1))
    leader.begin(0)
    with pytest.raises(NodesError, match="not the folder in which node 0 works"):
        elsewhere()


@pytest.mark.parametrize(
    ("rendezvous", "count", "index", "message"),
    [
        ("here", 2, 0, "the rendezvous is 'here': give HOST:PORT"),
        ("here:0", 2, 0, "the rendezvous is here:0: give HOST:PORT"),
        ("here:29400", 2, 2, "node 2 of 2: nodes are numbered from 0"),
    ],
)
def test_a_place_that_cannot_be_says_why(rendezvous: str, count: int, index: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Nodes.at(rendezvous, count, index)


def test_the_store_of_one_machine_is_there_at_once_and_heard_on_it_alone() -> None:
    alone = Alone()
    place = alone.begin(3)

    assert isinstance(place, Place)
    store = dist.TCPStore(place.host, place.port, is_master=False, timeout=timedelta(seconds=60))  # type: ignore[attr-defined]
    store.set("a", "b")
    assert store.get("a") == b"b"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", place.port), 10.0)


def test_ranks_of_one_machine_meet_without_a_socket_that_waits_for_a_name_server(tmp_path: Path) -> None:
    rank = Rank(world_size=1, port=1, folder=tmp_path, meeting="meeting-1")
    rank.attempt_folder.mkdir()

    # Nobody listens there.
    with rank.group(timeout=60.0):
        assert (rank.attempt_folder / "meeting-1").stat().st_size > 0
        dist.barrier()
