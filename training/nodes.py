"""Supervisors of several nodes that agree on attempts: who begins when, which number it has, and that it has ended.

They meet in one store, which the supervisor of node 0 serves at the rendezvous. Everything that is said of an attempt
carries its number, and everything that is asked carries a token of its own: no one hears the ghost of an earlier one.
A connection to the store that is lost is opened again; a node is gone when it is silent for longer than `silence`.
The run's folder must be the same on all nodes.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol, Self, TypeVar

import torch.distributed as dist

from training.ledger import End
from training.node_store import NodeStore, StoreLost, serve, short

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 0.05
_BEAT_SECONDS = 0.5
_AGAIN_SECONDS = 30.0
_STORE_SECONDS = 10.0
_FOLDER_SECONDS = 15.0
_MEETING = "meeting"
_ANSWER_SHARE = 0.6
_Answer = TypeVar("_Answer")
_RENDEZVOUS = "give HOST:PORT, of a port that is free on node 0"


class NodesError(RuntimeError):
    """The nodes did not come together; the message says which one is missing and how it is started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """This machine as one of several, all with as many ranks. The store listens on `port` of node 0."""

    count: int
    index: int
    host: str
    port: int
    silence: float = 10.0
    """Seconds without a sign of life after which a node counts as dead."""
    patience: float = 600.0
    """Seconds that the others wait for a node that is not there."""

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise ValueError(f"node {self.index} of {self.count}: nodes are numbered from 0")
        if not self.host or not 0 < self.port < 65536:
            raise ValueError(f"the rendezvous is {self.host}:{self.port}: {_RENDEZVOUS}")
        if self.silence <= 0 or self.patience <= 0:
            raise ValueError(f"silence is {self.silence} s and patience {self.patience} s: both must be above 0")

    @classmethod
    def at(cls, rendezvous: str, count: int, index: int) -> Self:
        """The node with this place at `HOST:PORT`. ValueError names what is wrong."""
        host, _, port = rendezvous.rpartition(":")
        if not port.isdigit():
            raise ValueError(f"the rendezvous is {rendezvous!r}: {_RENDEZVOUS}")
        return cls(count=count, index=index, host=host.strip("[]"), port=int(port))

    def __str__(self) -> str:
        return f"node {self.index} of {self.count}"


@dataclass(frozen=True, slots=True)
class Place:
    """An attempt that all nodes begin, and the store in which its ranks meet."""

    attempt: int
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Over:
    """There is no further attempt."""

    outcome: Literal["completed", "failed", "stopped"]
    reason: str


class Meeting(Protocol):
    """How a supervisor agrees with the others; all calls come from one thread."""

    def begin(self, number: int) -> Place | Over:
        """Waits until all nodes are ready and gives what follows; the leading node proposes the attempt's number."""

    def tell(self, attempt: int, end: End) -> End:
        """Ends the attempt on all nodes; gives the end that was told first."""

    def ended(self, attempt: int) -> End | None:
        """How another node ended the attempt, or which node is gone."""

    def completed(self, attempt: int) -> bool:
        """Tells that this node's ranks got to their end; whether those of all did."""

    def shared(self, body: bytes) -> list[bytes]:
        """Shows the other nodes what this one has to show; gives what they showed last, as far as can be heard."""

    @property
    def others(self) -> int:
        """Nodes besides this one."""

    def close(self, over: Over) -> None:
        """Tells the others that nothing follows."""


class Alone:
    """A meeting of one, with a new store for each attempt, for ranks that open their group themselves.

    It is heard on this machine alone, and nobody waits until torch has asked a name server for its own address.
    """

    def begin(self, number: int) -> Place | Over:
        listening = socket.create_server(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        threading.Thread(target=self._serve, args=(listening.detach(), port), name="store", daemon=True).start()
        return Place(number, "127.0.0.1", port)

    def _serve(self, listening: int, port: int) -> None:
        self._store = dist.TCPStore(  # type: ignore[attr-defined]
            "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listening
        )

    def tell(self, attempt: int, end: End) -> End:
        return end

    def ended(self, attempt: int) -> End | None:
        return None

    def completed(self, attempt: int) -> bool:
        return True

    def shared(self, body: bytes) -> list[bytes]:
        return []

    @property
    def others(self) -> int:
        return 0

    def close(self, over: Over) -> None:
        pass


@dataclass(slots=True)
class _Heard:
    """A node's last sign of life, and when it was new, and the request of it that was answered last."""

    beat: bytes = b""
    since: float = field(default_factory=time.monotonic)
    answered: bytes = b""


class Leader:
    """The meeting as node 0 has it: it serves the store and says what comes next."""

    def __init__(self, nodes: Nodes, folder: Path, said: Mapping[str, Any] | None = None) -> None:
        """`said` is what the others are told before anything else (`told`). NodesError where the port is taken."""
        self._nodes, self._folder = nodes, folder
        try:
            self._served = serve(nodes.host, nodes.port)
        except RuntimeError as error:
            raise NodesError(f"no store can be served on port {nodes.port}: {short(error)}") from error
        self._heard = {index: _Heard() for index in range(1, nodes.count)}
        self._token = uuid.uuid4().hex
        self._store = _reached(nodes)
        self._served.set(f"meeting/{self._token}", "1")
        self._served.set("said", json.dumps(dict(said or {})))

    def begin(self, number: int) -> Place | Over:
        """See `Meeting.begin`. NodesError when a node is missing for longer than the patience."""
        began, complained = time.monotonic(), 0.0
        while missing := [index for index in self._heard if not self._arrived(index)]:
            waited = time.monotonic() - began
            said = f"{_listed(missing)} of {self._nodes.count} not there ({waited:.0f} s)"
            if waited > self._nodes.patience:
                raise NodesError(f"{said}; start {_listed(missing)} again, and this one, and the run goes on")
            if waited - complained > (_AGAIN_SECONDS if complained else self._nodes.silence):
                complained = waited
                _log.warning("%s: the run goes on as soon as it is; the rendezvous is %s:%d", said, *self._at)
            time.sleep(_LOOK_SECONDS)
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / _MEETING).write_text(self._token)
        for index in self._heard:
            self._answer(index, {"attempt": number, "meeting": self._token})
        return Place(number, *self._at)

    def tell(self, attempt: int, end: End) -> End:
        return self._asked(lambda store: _told(store, attempt, end))

    def ended(self, attempt: int) -> End | None:
        if end := self._asked(lambda store: _read_end(store, attempt)):
            return end
        silent = [index for index in self._heard if self._silence(index) > self._nodes.silence]
        if not silent:
            return None
        reason = f"nothing was heard of {_listed(silent)} for {self._nodes.silence:g} s"
        return self.tell(attempt, End("node", reason=reason))

    def completed(self, attempt: int) -> bool:
        return self._asked(lambda store: _done(store, attempt, self._nodes))

    def shared(self, body: bytes) -> list[bytes]:
        return self._asked(lambda store: _shared(store, self._nodes, body))

    @property
    def others(self) -> int:
        return self._nodes.count - 1

    def close(self, over: Over) -> None:
        """Answers whoever still asks, for some seconds: the store ends with this process."""
        waiting, until = set(self._heard), time.monotonic() + _STORE_SECONDS
        read: dict[int, str] = {}
        while time.monotonic() < until and (waiting or read):
            for index in list(waiting):
                if self._arrived(index):
                    read[index] = f"read/{self._answer(index, {'over': over.outcome, 'reason': over.reason})}"
                    waiting.discard(index)
                elif self._silence(index) > self._nodes.silence:
                    waiting.discard(index)
            read = {index: key for index, key in read.items() if self._read(key) is None}
            time.sleep(_LOOK_SECONDS)

    @property
    def _at(self) -> tuple[str, int]:
        return self._nodes.host, self._nodes.port

    def _silence(self, index: int) -> float:
        """Seconds since the node's last sign of life."""
        heard, beat = self._heard[index], self._read(f"beat/{index}") or b""
        if beat != heard.beat:
            heard.beat, heard.since = beat, time.monotonic()
        return time.monotonic() - heard.since

    def _arrived(self, index: int) -> bool:
        """Whether the node lives and asks for what was not answered yet."""
        if self._silence(index) > self._nodes.silence:
            return False
        return self._read(f"here/{index}") not in (None, self._heard[index].answered)

    def _answer(self, index: int, said: Mapping[str, Any]) -> str:
        token = self._read(f"here/{index}") or b""
        self._heard[index].answered = token
        self._asked(lambda store: store.set(f"go/{token.decode()}", json.dumps(said)))
        return token.decode()

    def _read(self, key: str) -> bytes | None:
        """What the store has of this name, if anything."""
        return self._asked(lambda store: _held(store, key))

    def _asked(self, question: Callable[[Any], _Answer]) -> _Answer:
        """What the store says. NodesError where this node does not reach its own for as long as `silence`."""
        since = time.monotonic()
        while True:
            try:
                return self._store.ask(question)
            except StoreLost as error:
                if time.monotonic() - since > self._nodes.silence:
                    at = f"{self._nodes.host}:{self._nodes.port}"
                    raise NodesError(f"this node does not reach the store that it serves at {at}: {error}") from error
            time.sleep(_LOOK_SECONDS)


class Follower:
    """The meeting as every other node has it."""

    def __init__(self, nodes: Nodes, folder: Path | None = None) -> None:
        """`folder` is the run's, which `told` may tell where it is not known before."""
        self.folder, self._nodes = folder, nodes
        self._store = _reached(nodes)
        self._meeting, self._away = "", _Away()
        self._over = threading.Event()
        threading.Thread(target=self._beat, name="node", daemon=True).start()

    def told(self) -> dict[str, Any]:
        """What the leading node said of the run. NodesError where it cannot be reached."""
        lost = _Patience(self._nodes)
        while True:
            try:
                said: dict[str, Any] = json.loads(self._store.ask(lambda store: store.get("said")))
                return said
            except StoreLost as error:
                lost.wait(str(error))

    def begin(self, number: int) -> Place | Over:
        """See `Meeting.begin`. NodesError when node 0 is away for longer than the patience, or has another folder."""
        lost, token = _Patience(self._nodes), uuid.uuid4().hex
        while True:
            try:
                answer = self._asked(lost, token)
            except StoreLost as error:
                lost.wait(str(error))
                continue
            if "over" in answer:
                self._over.set()
                return Over(answer["over"], answer["reason"])
            self._check_folder(answer["meeting"])
            self._meeting, self._away = answer["meeting"], _Away()
            return Place(answer["attempt"], self._nodes.host, self._nodes.port)

    def _asked(self, lost: _Patience, token: str) -> dict[str, Any]:
        """The answer to this token. It is the same one after a lost connection: the answer may have been given."""
        self._store.ask(lambda store: _set(store, f"here/{self._nodes.index}", token))
        while (said := self._store.ask(lambda store: _held(store, f"go/{token}"))) is None:
            lost.found()
            time.sleep(_LOOK_SECONDS)
        self._store.ask(lambda store: _set(store, f"read/{token}", "1"))
        answer: dict[str, Any] = json.loads(said)
        return answer

    def tell(self, attempt: int, end: End) -> End:
        while True:
            found = self._heard(lambda store: _told(store, attempt, end), None)
            if found is not None:
                return found
            time.sleep(_LOOK_SECONDS)

    def ended(self, attempt: int) -> End | None:
        return self._heard(lambda store: _read_end(store, attempt), None)

    def _heard(self, question: Callable[[Any], End | None], otherwise: None) -> End | None:
        """What the store says; None while it cannot be reached, and the end when that lasts or another one answers."""
        at = f"node 0 at {self._nodes.host}:{self._nodes.port}"
        anew = End("node", reason=f"{at} began anew")
        meeting = f"meeting/{self._meeting}"
        try:
            found = self._store.ask(lambda store: question(store) if store.check([meeting]) else anew)
        except StoreLost as error:
            self._away.lost(at, error)
            if self._away.seconds() < self._nodes.silence:
                return None
            return End("node", reason=f"{at} is gone: {error}")
        self._away.back(at)
        return found

    def completed(self, attempt: int) -> bool:
        try:
            return self._store.ask(lambda store: _done(store, attempt, self._nodes))
        except StoreLost:
            return False  # `ended` tells it

    def shared(self, body: bytes) -> list[bytes]:
        try:
            return self._store.ask(lambda store: _shared(store, self._nodes, body))
        except StoreLost:
            return []  # `ended` tells it

    @property
    def others(self) -> int:
        return self._nodes.count - 1

    def close(self, over: Over) -> None:
        self._over.set()

    def _beat(self) -> None:
        """Gives signs of life until the end, by a connection of its own."""
        store, key = _reached(self._nodes), f"beat/{self._nodes.index}"
        while not self._over.wait(_BEAT_SECONDS):
            with suppress(StoreLost):
                store.ask(lambda store: _set(store, key, uuid.uuid4().hex))

    def _check_folder(self, token: str) -> None:
        """NodesError unless the folder holds what node 0 wrote into it."""
        assert self.folder is not None
        until = time.monotonic() + _FOLDER_SECONDS  # network file systems show new files late
        while True:
            with suppress(OSError):
                if (self.folder / _MEETING).read_text() == token:
                    return
            if time.monotonic() > until:
                raise NodesError(
                    f"{self.folder} is not the folder in which node 0 works: the nodes of a run share one, for its "
                    "checkpoints; mount the same place on all"
                )
            time.sleep(_LOOK_SECONDS)


class _Away:
    """Since when the store is not reached, within an attempt."""

    def __init__(self) -> None:
        self._since: float | None = None

    def lost(self, at: str, error: Exception) -> None:
        if self._since is None:
            self._since = time.monotonic()
            _log.warning("%s is not reached (%s): the ranks train on while it is tried again", at, error)

    def back(self, at: str) -> None:
        if self._since is not None:
            _log.warning("%s is reached again after %.1f s", at, self.seconds())
        self._since = None

    def seconds(self) -> float:
        return 0.0 if self._since is None else time.monotonic() - self._since


class _Patience:
    """How long node 0 may still be away."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._since, self._complained = time.monotonic(), -_AGAIN_SECONDS

    def found(self) -> None:
        self._since = time.monotonic()

    def wait(self, why: str) -> None:
        """Pauses before the next try; NodesError when there is none."""
        waited, at = time.monotonic() - self._since, f"{self._nodes.host}:{self._nodes.port}"
        if waited > self._nodes.patience:
            self._give_up(at, waited)
        if time.monotonic() - self._complained > _AGAIN_SECONDS:
            self._complained = time.monotonic()
            _log.warning("node 0 is not there at %s (%s): the run goes on as soon as it is", at, why)
        time.sleep(10 * _LOOK_SECONDS)

    def _give_up(self, at: str, waited: float) -> NoReturn:
        raise NodesError(
            f"node 0 was not there at {at} for {waited:.0f} s; start it again, and this one, and the run goes on"
        )


def meeting_of(nodes: Nodes, folder: Path, said: Mapping[str, Any] | None = None) -> Meeting:
    """The meeting of a supervisor that is the only one, leads (and tells what is `said`) or follows.

    NodesError where it cannot lead.
    """
    if nodes.count == 1:
        return Alone()
    return Leader(nodes, folder, said) if nodes.index == 0 else Follower(nodes, folder)


def _reached(nodes: Nodes) -> NodeStore:
    # A connection that is dead without a word must be given up, and another be tried, before the node counts as dead.
    # Not sooner: torch's store asks for the names of addresses, and a resolver that fails keeps everybody for 5 s.
    return NodeStore(nodes.host, nodes.port, _ANSWER_SHARE * nodes.silence)


def _held(store: Any, key: str) -> bytes | None:
    found: bytes | None = store.get(key) if store.check([key]) else None
    return found


def _set(store: Any, key: str, value: str) -> None:
    """Sets it, and hears that it was: torch's `set` has no answer, so a dead connection would take it, too."""
    store.set(key, value)
    store.check([key])


def _told(store: Any, attempt: int, end: End) -> End:
    first = store.compare_set(f"end/{attempt}", "", json.dumps([end.cause, end.rank, end.reason]))
    return End(*json.loads(first))


def _read_end(store: Any, attempt: int) -> End | None:
    said = _held(store, f"end/{attempt}")
    return None if said is None else End(*json.loads(said))


def _done(store: Any, attempt: int, nodes: Nodes) -> bool:
    store.set(f"done/{attempt}/{nodes.index}", "1")
    return bool(store.check([f"done/{attempt}/{index}" for index in range(nodes.count)]))


def _shared(store: Any, nodes: Nodes, body: bytes) -> list[bytes]:
    store.set(f"shown/{nodes.index}", body)
    keys = [f"shown/{index}" for index in range(nodes.count) if index != nodes.index]
    return [store.get(key) for key in keys if store.check([key])]


def _listed(indices: list[int]) -> str:
    return f"node{'s' if len(indices) > 1 else ''} {', '.join(map(str, indices))}"
