"""A process that has imported everything and forks ranks on demand, so that an attempt begins in milliseconds.

    python -m training.zygote FD

FD is one end of a Unix socket of JSON lines. First comes {"target", "prepare", "arguments", "path"}; the answer is
{"ready": true} or {"failed": text}. Then every {"fork": {"environment", "rank", "log"}} is answered by
{"forked": rank, "pid"}, and every end of a rank is told as {"ended": pid, "status"} (`os.waitstatus_to_exitcode`). It
ends, and its ranks with it, when the other end closes.

The process starts no thread, opens no process group and touches no device before it forks; that is checked.
"""

from __future__ import annotations

import ctypes
import faulthandler
import inspect
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from training.callables import resolve
from training.ranks import Rank

_PR_SET_PDEATHSIG = 1
FAILED = 1


class ForkError(RuntimeError):
    """The warm process cannot be forked safely; the message says what was started in it too early."""


def check_forkable() -> None:
    """Raises ForkError where a fork would carry half of something: threads, a device's context, a process group."""
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if others:
        raise ForkError(f"threads run before the ranks are forked: {', '.join(others)}; start them in the rank")
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise ForkError("CUDA was used before the ranks were forked; use it first in the rank")
    if dist.is_initialized():
        raise ForkError("a process group was opened before the ranks were forked; open it in the rank")


class Zygote:
    """The serving end of the socket."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._read = b""
        self._target: Callable[..., Any] | None = None
        self._arguments: dict[str, Any] = {}

    def serve(self) -> None:
        """Prepares, then forks and tells of ends, until the other end closes."""
        if not self._prepare():
            return
        woken, wake = os.pipe()
        for end in (woken, wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # Ctrl-C goes to the whole terminal group; the supervisor decides what becomes of the ranks.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while True:
            ready, _, _ = select.select([self._line.fileno(), woken], [], [])
            if woken in ready:
                os.read(woken, 4096)
                self._reap()
            if self._line.fileno() in ready:
                received = self._line.recv(65_536)
                if not received:
                    return
                *lines, self._read = (self._read + received).split(b"\n")
                for line in lines:
                    self._fork(json.loads(line)["fork"])

    def _prepare(self) -> bool:
        while b"\n" not in self._read:
            received = self._line.recv(65_536)
            if not received:
                return False
            self._read += received
        line, _, self._read = self._read.partition(b"\n")
        said = json.loads(line)
        sys.path[:0] = [path for path in said["path"] if path not in sys.path]
        torch.set_num_threads(1)  # a pool of threads does not survive a fork
        try:
            self._target = resolve(said["target"])
            self._arguments = dict(said["arguments"])
            if said["prepare"]:
                self._arguments |= resolve(said["prepare"])(**self._arguments)
            inspect.signature(self._target).bind(Rank(), **self._arguments)
            check_forkable()
            # The first optimizer of a process imports some eight hundred modules: here once, not in every rank.
            torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        except Exception as error:  # whatever the user's code raises is told to whoever started us
            self._tell(failed=f"{type(error).__name__}: {error}", trace=traceback.format_exc())
            return False
        self._tell(ready=True)
        return True

    def _fork(self, asked: Mapping[str, Any]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        parent, child = os.getpid(), os.fork()
        if child:
            self._tell(forked=asked["rank"]["rank"], pid=child)
        else:
            self._line.close()
            self._run(asked, parent)

    def _run(self, asked: Mapping[str, Any], parent: int) -> NoReturn:
        """The life of a rank; it never returns into the zygote's loop."""
        status = FAILED
        rank = Rank(**{**asked["rank"], "folder": Path(asked["rank"]["folder"])})
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it was killed before it could take this process along
                os._exit(FAILED)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            for name, value in asked["environment"].items():
                os.environ[name] = value
            rank.attempt_folder.mkdir(parents=True, exist_ok=True)
            if asked["log"]:
                _write_to(rank.attempt_folder / f"rank-{rank.rank}.log")
            # Held open for the life of the process: the handler writes to it when it is asked to.
            stacks = (rank.attempt_folder / f"rank-{rank.rank}.stacks").open("w")
            faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
            assert self._target is not None
            self._target(rank, **self._arguments)
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else FAILED
        except BaseException as error:
            traceback.print_exc()
            said = {"type": type(error).__name__, "message": str(error), "trace": traceback.format_exc()}
            partial = rank.attempt_folder / f"rank-{rank.rank}.error.partial"
            partial.write_text(json.dumps(said))
            partial.replace(partial.with_suffix(".json"))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _reap(self) -> None:
        while True:
            try:
                child, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not child:
                return
            self._tell(ended=child, status=os.waitstatus_to_exitcode(status))

    def _tell(self, **said: Any) -> None:
        self._line.sendall(json.dumps(said).encode() + b"\n")


def _write_to(path: Path) -> None:
    """Sends what the process prints to a file."""
    with path.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def main(number: str) -> None:
    """Serves on the socket with this file number."""
    # Whoever started us may be killed: then nobody is left to watch the ranks.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with socket.socket(fileno=int(number)) as line:
        # It may have been killed while this process still imported.
        closed = select.poll()
        closed.register(line, 0)
        if not closed.poll(0):
            Zygote(line).serve()
    # Ranks that still run are told by the kernel: our end is theirs.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
