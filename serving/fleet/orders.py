"""What the supervisor tells a new process to be, over a socket that only the two of them hold."""

from __future__ import annotations

import pickle
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from serving.server import ServingConfig

_LENGTH = struct.Struct("<I")
Kind = Literal["front", "replica"]


@dataclass(frozen=True, slots=True)
class Orders:
    """What a process is to be. `path` is a replica's socket, `listeners` are the file numbers of a front's sockets."""

    kind: Kind
    number: int
    config: ServingConfig
    log_level: str
    path: Path
    listeners: tuple[int, ...] = ()


def send_orders(sock: socket.socket, orders: Orders) -> None:
    """Writes the orders for the process at the other end."""
    content = pickle.dumps(orders)
    sock.sendall(_LENGTH.pack(len(content)) + content)


def read_orders(sock: socket.socket) -> Orders:
    """The orders for this process. Raises EOFError when the supervisor ended first.

    They are a pickle: our own parent wrote it, on a socket pair that nobody else has.
    """
    (length,) = _LENGTH.unpack(_read(sock, _LENGTH.size))
    orders: Orders = pickle.loads(_read(sock, length))
    return orders


def _read(sock: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        part = sock.recv(size - len(content))
        if not part:
            raise EOFError("the supervisor ended before it gave orders")
        content += part
    return content
