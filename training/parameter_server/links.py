"""How a worker reaches a server: an interface, and the one within a process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Handler = Callable[[bytes], bytes]
"""A server's answer to a request. It may take as long as a server lets a worker wait."""


class LinkLost(ConnectionError):
    """The other end is gone, or the connection to it; whether the last request was carried out is not known."""


class Link(Protocol):
    """One worker's connection to one server: requests and answers in turn."""

    def send(self, body: bytes) -> None:
        """Hands a request over. LinkLost when it cannot."""

    def receive(self) -> bytes:
        """The answer to the request before. LinkLost when none will come."""

    def close(self) -> None:
        """Ends the connection."""


Connect = Callable[[int, str], Link]
"""Opens a link to a server (by number) for a worker (by name). LinkLost where nobody is there now."""


class LocalLink:
    """A server in the same process: the worker's thread does the server's work."""

    def __init__(self, handle: Handler) -> None:
        self._handle = handle
        self._answer = b""

    def send(self, body: bytes) -> None:
        self._answer = self._handle(body)

    def receive(self) -> bytes:
        return self._answer

    def close(self) -> None:
        """Nothing is held."""
