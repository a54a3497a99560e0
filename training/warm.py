"""The supervisor's end of the warm process that forks ranks: start it, ask for ranks, hear of their ends."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from training.ranks import Rank

# A warm process that is killed while it prepares is started anew so often: nothing is lost with it yet.
_STARTS = 3
_FORK_SECONDS = 60.0
# In place of the handle of a process that was gone before it could be had.
_GONE = -1


class WarmError(RuntimeError):
    """The warm process could not prepare, or has gone; the message carries what it said."""


class _Killed(WarmError):
    """It ended by SIGKILL."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A rank's process that has ended: its exit status, or the negative number of the signal that killed it."""

    rank: int
    status: int


class WarmProcess:
    """One process with everything imported and prepared; ranks are forked from it in some ten milliseconds."""

    def __init__(
        self,
        target: str,
        arguments: Mapping[str, Any],
        *,
        prepare: str | None = None,
        environment: Mapping[str, str] | None = None,
        patience: float = 300.0,
    ) -> None:
        said = {"target": target, "prepare": prepare, "arguments": dict(arguments), "path": sys.path}
        self._ranks: dict[int, tuple[int, int]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        for left in reversed(range(_STARTS)):
            try:
                self._start(said, environment or {}, patience)
                return
            except _Killed:
                self.close()
                if not left:
                    raise
            except BaseException:
                self.close()
                raise

    def _start(self, said: Mapping[str, Any], environment: Mapping[str, str], patience: float) -> None:
        ours, theirs = socket.socketpair()
        self._line, self._read = ours, b""
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "training.zygote", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                stdin=subprocess.DEVNULL,
            )
        self._send(said)
        self._await_ready(said["target"], patience)

    def _await_ready(self, target: str, patience: float) -> None:
        for answer in self._heard(patience):
            if answer.get("ready"):
                return
            raise WarmError(f"{target} cannot be prepared: {answer['failed']}\n{answer['trace']}")
        raise WarmError(f"{target} was not prepared within {patience:g} s")

    def fork(self, ranks: Sequence[Rank], environments: Sequence[Mapping[str, str]], *, echo: int | None = 0) -> None:
        """Starts the ranks. What `echo` prints goes where this process prints, the others' prints to log files."""
        for rank, environment in zip(ranks, environments, strict=True):
            told = {**asdict(rank), "folder": str(rank.folder.absolute())}
            asked = {"fork": {"rank": told, "environment": dict(environment), "log": rank.rank != echo}}
            self._send(asked)
        waiting = {rank.rank for rank in ranks}
        if not waiting:
            return
        for answer in self._heard(_FORK_SECONDS):
            if "forked" in answer:
                # A handle of the process, so that no signal ever reaches another one with the same number.
                self._ranks[answer["forked"]] = answer["pid"], _handle(answer["pid"])
                waiting.discard(answer["forked"])
            else:
                self._early = [*self._early, answer]
            if not waiting:
                return
        raise WarmError(f"ranks {sorted(waiting)} were not forked within {_FORK_SECONDS:g} s")

    _early: Sequence[Mapping[str, Any]] = ()

    def ends(self, patience: float) -> Iterator[Ended]:
        """The ranks that have ended, as they do; returns when nothing more is heard for `patience` seconds."""
        early, self._early = self._early, ()
        for answer in (*early, *self._heard(patience, once=True)):
            for rank, (process, handle) in list(self._ranks.items()):
                if process == answer.get("ended"):
                    _closed(handle)
                    del self._ranks[rank]
                    yield Ended(rank, answer["status"])

    @property
    def alive(self) -> dict[int, int]:
        """Process numbers of the ranks that run, by rank."""
        return {rank: process for rank, (process, _) in self._ranks.items()}

    def signal(self, number: int, ranks: Sequence[int] | None = None) -> None:
        """Sends a signal to these ranks, or to all."""
        for rank, (_, handle) in self._ranks.items():
            if handle != _GONE and (ranks is None or rank in ranks):
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, number)

    def close(self) -> None:
        """Kills what still runs and ends the warm process."""
        self.signal(signal.SIGKILL)
        self._line.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for _, handle in self._ranks.values():
            _closed(handle)
        self._ranks = {}

    def _send(self, said: Mapping[str, Any]) -> None:
        try:
            self._line.sendall(json.dumps(said).encode() + b"\n")
        except ConnectionError:
            self._gone()

    def _gone(self) -> NoReturn:
        assert self._process is not None
        status = self._process.wait()
        kind = _Killed if status == -signal.SIGKILL else WarmError
        raise kind(f"the warm process has gone (exit status {status})") from None

    def _heard(self, patience: float, *, once: bool = False) -> Iterator[dict[str, Any]]:
        """What the process tells. With `once`, ends after what had come when something came."""
        limit = time.monotonic() + patience
        while True:
            *lines, self._read = self._read.split(b"\n")
            yield from map(json.loads, lines)
            if once and lines:
                return
            ready, _, _ = select.select([self._line], [], [], max(0.0, limit - time.monotonic()))
            if not ready:
                return
            try:
                received = self._line.recv(65_536)
            except ConnectionError:  # it had not read all that it was sent
                received = b""
            if not received:
                self._gone()
            self._read += received


def _handle(process: int) -> int:
    try:
        return os.pidfd_open(process)
    except ProcessLookupError:  # it died at once, and was taken leave of; that is heard next
        return _GONE


def _closed(handle: int) -> None:
    if handle != _GONE:
        os.close(handle)
