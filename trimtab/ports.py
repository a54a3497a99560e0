"""Ports for servers that may end and start again: none from the range that the system gives to clients."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection
from pathlib import Path

FIRST = 10_000
# Where clients' ports begin, if the system does not say: those of Linux; other systems begin higher.
CLIENTS = 32_768


def is_free(host: str, port: int) -> bool:
    """Whether a server may listen on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def free_port(host: str = "127.0.0.1", besides: Collection[int] = ()) -> int:
    """A port that is free and none of `besides`.

    A port that the system chose (port 0) may go to a client of anybody's as long as its server is away, and who tries
    to reach that server meanwhile may be connected to itself: the server cannot have its port again.

    Raises `OSError` if there is none.
    """
    end = _clients_begin()
    tried = random.SystemRandom().sample(range(FIRST, end), 200) if end - FIRST > 200 else []
    for port in tried:
        if port not in besides and is_free(host, port):
            return port
    for _ in range(200):
        with socket.socket() as probe:
            probe.bind((host, 0))
            port = int(probe.getsockname()[1])
        if port not in besides:
            return port
    raise OSError(f"no free port was found on {host}")


def _clients_begin() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return CLIENTS
