"""The end of a listener that loses nobody: who had connected is taken over, who comes later is turned away.

A listener that closes resets the connections that the kernel has completed and nobody has accepted, and there is no
moment at which there are none: between the last look and the close another may come. So a filter in the kernel drops
the packets that open connections first. Their senders repeat them after a second, and find whoever listens by then.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import ssl
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress

# A classic BPF program on what follows the IP header: "load the byte of flags; drop if SYN is set; else keep all".
_STEPS = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
_PROGRAM = b"".join(struct.pack("HBBI", *step) for step in _STEPS)
_SO_ATTACH_FILTER = 26
# Seconds for connections whose opening is half done, at most.
_HALF_OPEN_SECONDS = 0.1
# Turns of the event loop in which it makes what it accepted last into connections.
_TURNS = 3


def turn_away(listener: socket.socket) -> bool:
    """Lets no further connection begin, on this socket and its duplicates; False where the system cannot do that."""
    program = ctypes.create_string_buffer(_PROGRAM, len(_PROGRAM))
    option = struct.pack("HP", len(_STEPS), ctypes.addressof(program))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)
    except OSError:
        return False
    return True


async def stop_accepting(*servers: asyncio.Server) -> None:
    """Closes servers' listeners; what they have accepted they keep.

    asyncio gives a connection its transport a turn after it was accepted, and forgets it, open, if its server was
    closed between.
    """
    loop = asyncio.get_running_loop()
    for listener in (listener for server in servers for listener in server.sockets):
        loop.remove_reader(listener.fileno())
    for _ in range(_TURNS):
        await asyncio.sleep(0)
    for server in servers:
        server.close()


async def stop_listening(
    servers: Iterable[asyncio.Server],
    listeners: Iterable[socket.socket],
    protocol: Callable[[], asyncio.Protocol],
    notice: float,
    *,
    everywhere: bool,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Closes `servers` and the `listeners` below them; a `protocol` serves whoever had connected and was not accepted.

    `notice` and `everywhere` as in `last_connections`.
    """
    await stop_accepting(*servers)
    loop = asyncio.get_running_loop()
    for connection in await last_connections(listeners, notice, everywhere=everywhere):
        with suppress(OSError):
            await loop.connect_accepted_socket(protocol, connection, ssl=tls)


async def last_connections(
    listeners: Iterable[socket.socket], notice: float, *, everywhere: bool
) -> list[socket.socket]:
    """Closes the listeners; the connections that were made and that nobody had accepted.

    Those half open have a tenth of a second, at most `notice` seconds. `everywhere` says that nobody goes on listening
    on these sockets, in other processes neither.
    """
    ending = list(listeners)
    turned_away = [everywhere and turn_away(listener) for listener in ending]
    if any(turned_away):
        await asyncio.sleep(min(_HALF_OPEN_SECONDS, notice))
    taken: list[socket.socket] = []
    for listener in ending:
        # Nothing may come between the last look and the close, for systems without the filter.
        listener.setblocking(False)
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.setblocking(False)
                taken.append(connection)
        listener.close()
    return taken
