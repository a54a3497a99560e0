"""A line between two nodes that can be cut, or go dead without a word."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from typing import Self


class Line:
    """Listens on `port` and carries what comes to another port of this machine, and back."""

    def __init__(self, to: int) -> None:
        self._to, self._ends = to, list[socket.socket]()
        self._dead = set[socket.socket]()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._take, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _end(self._listening)
        self._listening.close()
        self.cut()

    def cut(self) -> None:
        """Ends all connections; new ones are taken."""
        ends, self._ends = self._ends, []
        for end in ends:
            _end(end)

    def go_dead(self) -> None:
        """What is connected now carries nothing any more, and nobody is told; new connections work."""
        self._dead |= set(self._ends)

    def _take(self) -> None:
        with suppress(OSError):
            while True:
                ours, _ = self._listening.accept()
                try:
                    theirs = socket.create_connection(("127.0.0.1", self._to))
                except OSError:
                    ours.close()
                    continue
                self._ends += [ours, theirs]
                for one, other in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with one, suppress(OSError):
            while said := one.recv(65_536):
                if one not in self._dead:
                    other.sendall(said)
        _end(other)


def end_own(port: int) -> int:
    """Ends this process's own connections to a port; says how many they were."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # it was closed meanwhile, or is connected to nobody
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as one:
                if one.family not in (socket.AF_INET, socket.AF_INET6) or one.getpeername()[1] != port:
                    continue
                _end(one)
                found += 1
    return found


def _end(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
