"""Links over gloo: each a process group of two, so that the end of one process ends no other's connection.

The ends meet in a store (a TCPStore that the launcher serves): a server that starts takes the next generation, a worker
asks for the next link of the generation that it sees. A group cannot be mended; a new link is a new group.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from training.parameter_server.links import Handler, LinkLost

_SERVER, _WORKER = 0, 1
_POLL_SECONDS = 0.01
_ACCEPT_SECONDS = 5.0


class GlooLink:
    """A process group of two in which requests and answers go from point to point."""

    def __init__(self, group: Any, peer: int) -> None:
        self._group, self._peer = group, peer

    def send(self, body: bytes) -> None:
        if self._group is None:
            raise LinkLost("the link is closed")
        try:
            self._group.send([torch.tensor([len(body)])], self._peer, 0).wait()
            self._group.send([torch.frombuffer(bytearray(body), dtype=torch.uint8)], self._peer, 0).wait()
        except RuntimeError as error:
            self.close()
            raise LinkLost(f"the other end is gone: {str(error)[:200]}") from error

    def receive(self) -> bytes:
        if self._group is None:
            raise LinkLost("the link is closed")
        try:
            size = torch.zeros(1, dtype=torch.int64)
            self._group.recv([size], self._peer, 0).wait()
            body = torch.empty(int(size), dtype=torch.uint8)
            self._group.recv([body], self._peer, 0).wait()
        except RuntimeError as error:
            self.close()
            raise LinkLost(f"the other end is gone: {str(error)[:200]}") from error
        return body.numpy().tobytes()

    def close(self) -> None:
        self._group = None


class GlooServer:
    """Accepts links of one server and answers each in a thread; `lost` is told of a worker whose link has ended."""

    def __init__(
        self,
        store: Any,
        server: int,
        handle: Handler,
        lost: Callable[[str], None],
        *,
        host: str = "127.0.0.1",
        silence_seconds: float = 60.0,
    ) -> None:
        self._store, self._handle, self._lost, self._host = store, handle, lost, host
        self._silence = silence_seconds
        generation = store.add(_generation(server), 1)
        self._prefix = f"server/{server}/{generation}"
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._accept, name=f"accept-{server}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Accepts no more links; those that are open end with their workers."""
        self._closed.set()
        self._thread.join()

    def _accept(self) -> None:
        taken = 0
        while not self._closed.wait(_POLL_SECONDS):
            for number in range(taken + 1, self._store.add(f"{self._prefix}/links", 0) + 1):
                taken = number
                threading.Thread(target=self._serve, args=(number,), name=f"link-{number}", daemon=True).start()

    def _serve(self, number: int) -> None:
        prefix = f"{self._prefix}/{number}"
        self._store.add(f"{prefix}/accepted", 1)
        try:
            worker = self._store.get(f"{prefix}/worker").decode()
            link = GlooLink(_group(self._store, prefix, _SERVER, self._host, self._silence), _WORKER)
        except RuntimeError:
            return  # the worker went away before it was connected
        try:
            while not self._closed.is_set():
                link.send(self._handle(link.receive()))
        except LinkLost:
            pass
        finally:
            self._lost(worker)


class GlooConnect:
    """Opens links to servers that meet in `store`: see `Connect`."""

    def __init__(self, store: Any, *, host: str = "127.0.0.1", silence_seconds: float = 60.0) -> None:
        self._store, self._host, self._silence = store, host, silence_seconds

    def __call__(self, server: int, worker: str) -> GlooLink:
        try:
            generation = self._store.add(_generation(server), 0)
            if not generation:
                raise LinkLost(f"server {server} has not started")
            prefix = f"server/{server}/{generation}"
            number = self._store.add(f"{prefix}/links", 1)
            prefix = f"{prefix}/{number}"
            self._store.set(f"{prefix}/worker", worker)
            self._await(server, generation, f"{prefix}/accepted")
            return GlooLink(_group(self._store, prefix, _WORKER, self._host, self._silence), _SERVER)
        except RuntimeError as error:
            raise LinkLost(f"server {server} cannot be reached: {str(error)[:200]}") from error

    def _await(self, server: int, generation: int, key: str) -> None:
        until = time.monotonic() + _ACCEPT_SECONDS
        while not self._store.add(key, 0):
            if self._store.add(_generation(server), 0) != generation:
                raise LinkLost(f"server {server} was started anew")
            if time.monotonic() > until:
                raise LinkLost(f"server {server} takes no links")
            time.sleep(_POLL_SECONDS)


def _generation(server: int) -> str:
    return f"server/{server}/generation"


def _group(store: Any, prefix: str, rank: int, host: str, silence: float) -> Any:
    # A client of its own: one that waits for the other end's address would keep all others of the process waiting.
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = timedelta(seconds=silence)
    with contextlib.suppress(AttributeError):
        store = store.clone()
    return dist.ProcessGroupGloo(dist.PrefixStore(prefix, store), rank, 2, options)  # type: ignore[attr-defined]
