"""The server's end of its shadows' process: started when a shadow needs it, ended when none does, all by the loop."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from serving.shadows.batches import Held, Key, fits, text_of
from serving.shadows.messages import (
    Batch,
    Drop,
    Frames,
    Load,
    Loaded,
    Ran,
    framed,
    from_worker,
)

_log = logging.getLogger(__name__)
# Seconds until a process that ended, or a version that it could not load, is tried again; doubled each time in a row.
_RETRY_SECONDS = 30.0
_MAX_RETRY_SECONDS = 3600.0
# A process that nobody gave a batch for so long gives its memory back.
_IDLE_SECONDS = 300.0
# It runs when others do not; one that says nothing for so long stands still.
_SILENT_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where an artifact lies, and its digest."""

    folder: Path
    digest: str


class _Version:
    """A version that the process has, gets, or could not load: when it may be asked again."""

    __slots__ = ("nbytes", "ready", "retry_at", "used_at")

    def __init__(self, nbytes: int, now: float) -> None:
        self.nbytes = nbytes
        self.used_at = now
        self.ready = False
        self.retry_at: float | None = None


class ShadowProcess:
    """Runs shadows' batches in one process beside this one. All methods run on the event loop.

    `find` says where a version's artifact lies; it may block, and runs on a thread. `max_bytes` of weights are held at
    most; what is not used for `idle_seconds` gives way, at last the process. A version of more, and one that is not a
    plain exported program with inputs of fixed shapes, is not taken.
    """

    def __init__(
        self,
        find: Callable[[str, int], Place],
        max_bytes: int,
        step_rows: int,
        *,
        idle_seconds: float = _IDLE_SECONDS,
    ) -> None:
        self._find = find
        self._max_bytes = max_bytes
        self._step_rows = step_rows
        self._idle_seconds = idle_seconds
        self._versions: dict[Key, _Version] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting = asyncio.Lock()
        self._link: _Link | None = None
        self._retry_at = 0.0
        self._retry_seconds = _RETRY_SECONDS
        self._used_at = 0.0
        self._closed = False
        self._watch: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        """The process, while there is one."""
        return None if self._link is None else self._link.process.pid

    def takes(self, key: Key, model: Held) -> bool:
        """Whether a batch of the version may be given now; where it could be later, that is seen to."""
        now = asyncio.get_running_loop().time()
        version = self._versions.get(key)
        if version is not None and version.ready:
            version.used_at = now
            return True
        if self._closed or now < self._retry_at or not fits(model, self._max_bytes):
            return False
        if version is None or (version.retry_at is not None and version.retry_at <= now):
            version = self._versions[key] = _Version(model.nbytes, now)
            self._used_at = now
            task = asyncio.get_running_loop().create_task(self._load(key, version))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return False

    def run(self, key: Key, batch: Batch, then: Callable[[Ran | None], None]) -> None:
        """Gives a batch of a version that `takes` agreed to; `then` gets what it came to, None if the process ends."""
        assert self._link is not None
        self._used_at = asyncio.get_running_loop().time()
        self._link.ask(batch, then)

    def close(self) -> None:
        """Ends the process; what it runs is told as ended."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._watch is not None:
            self._watch.cancel()
        if self._link is not None:
            self._link.end()

    async def _load(self, key: Key, version: _Version) -> None:
        try:
            place = await asyncio.to_thread(self._find, *key)
            async with self._starting:
                if self._link is None and not self._closed:
                    await self._start()
            link = self._link
            if link is None or self._versions.get(key) is not version:
                return
            self._make_room(key)
            link.send(Load(text_of(key), str(place.folder), place.digest, self._step_rows))
        except Exception as error:
            self._refused(key, f"{type(error).__name__}: {error}")

    def _make_room(self, wanted: Key) -> None:
        """Drops versions that are no longer used. Raises MemoryError where the weights still are too many."""
        unused = asyncio.get_running_loop().time() - self._idle_seconds
        for key, version in list(self._versions.items()):
            if key != wanted and version.used_at <= unused and self._link is not None:
                del self._versions[key]
                self._link.send(Drop(text_of(key)))
        held = sum(version.nbytes for version in self._versions.values() if version.retry_at is None)
        if held > self._max_bytes:
            raise MemoryError(f"with it there would be {held} bytes of weights, the limit is {self._max_bytes}")

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # About a millisecond, on the loop: a start that is cancelled would leave a process behind.
            process = _process(theirs.fileno())
        link = self._link = _Link(process, self._loaded, self._ended)
        try:
            await asyncio.get_running_loop().create_connection(lambda: link, sock=ours)
        except BaseException:
            self._link = None
            ours.close()
            link.end()
            raise
        if self._closed:
            link.end()
            return
        self._watch = asyncio.get_running_loop().call_later(self._idle_seconds, self._look)

    def _look(self) -> None:
        """Ends a process that is not used; looks again later at one that is."""
        if self._link is None:
            return
        left = self._used_at + self._idle_seconds - asyncio.get_running_loop().time()
        loading = any(not version.ready and version.retry_at is None for version in self._versions.values())
        if left > 0 or loading or self._link.busy:
            self._watch = asyncio.get_running_loop().call_later(max(0.1, left), self._look)
        else:
            self._link.end()

    def _loaded(self, told: Loaded) -> None:
        model, _, number = told.key.rpartition(":")
        if told.error:
            self._refused((model, int(number)), told.error)
        elif (version := self._versions.get((model, int(number)))) is not None:
            version.ready = True
            version.used_at = self._used_at = asyncio.get_running_loop().time()
            self._retry_seconds = _RETRY_SECONDS

    def _refused(self, key: Key, error: str) -> None:
        _log.warning("the shadows' process does not run version %d of %s, a thread does: %s", key[1], key[0], error)
        version = self._versions.get(key)
        if version is not None:
            version.retry_at = self._later()

    def _ended(self, expected: bool) -> None:
        self._link = None
        self._versions.clear()
        if not expected:
            _log.warning("the shadows' process ended; a thread runs them for %.0f s", self._retry_seconds)
            self._retry_at = self._later()

    def _later(self) -> float:
        """When to try again."""
        seconds, self._retry_seconds = self._retry_seconds, min(2.0 * self._retry_seconds, _MAX_RETRY_SECONDS)
        return asyncio.get_running_loop().time() + seconds


class _Link(asyncio.Protocol):
    """The process and the connection to it: whatever ends one ends the other."""

    def __init__(
        self, process: subprocess.Popen[bytes], loaded: Callable[[Loaded], None], ended: Callable[[bool], None]
    ) -> None:
        self.process = process
        self._told_loaded = loaded
        self._told_ended = ended
        self._frames = Frames()
        self._transport: asyncio.Transport | None = None
        self._asked: Callable[[Ran | None], None] | None = None
        self._silence: asyncio.TimerHandle | None = None
        self._expected = False
        self._killed = False

    @property
    def busy(self) -> bool:
        """Whether a batch is with the process."""
        return self._asked is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def send(self, message: Load | Drop | Batch) -> None:
        """Writes it, or keeps it until it can be written."""
        if self._transport is not None:
            self._transport.write(framed(message))

    def ask(self, batch: Batch, then: Callable[[Ran | None], None]) -> None:
        """Sends a batch; one at a time."""
        assert self._asked is None
        self._asked = then
        self._silence = asyncio.get_running_loop().call_later(_SILENT_SECONDS, self.process.kill)
        self.send(batch)

    def data_received(self, data: bytes) -> None:
        try:
            messages = [from_worker(frame) for frame in self._frames.feed(data)]
        except (ValueError, msgspec.MsgspecError) as error:
            _log.error("the shadows' process says what nobody understands: %s", error)
            self.process.kill()
            return
        for message in messages:
            if isinstance(message, Loaded):
                self._told_loaded(message)
            else:
                self._answered(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._kill()
        self._told_ended(self._expected)
        self._answered(None)

    def end(self) -> None:
        """Kills the process, which holds nothing that is not here too."""
        self._expected = True
        self._kill()
        if self._transport is not None:
            self._transport.abort()

    def _kill(self) -> None:
        if not self._killed:
            self._killed = True
            self.process.kill()
            # Who waits for its end is not the loop.
            threading.Thread(target=self.process.wait, name="trimtab-shadow-end", daemon=True).start()

    def _answered(self, ran: Ran | None) -> None:
        then, self._asked = self._asked, None
        if self._silence is not None:
            self._silence.cancel()
        if then is not None:
            then(ran)


def _process(descriptor: int) -> subprocess.Popen[bytes]:
    """A new one that reads its messages from the descriptor; it imports what this process can."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "serving.shadows", str(descriptor)],
        pass_fds=(descriptor,), stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
