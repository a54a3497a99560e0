"""An HTTP connection that sends a body in pieces by as few calls as the kernel takes, without putting it together.

A thread that sends shares the interpreter with its host. Over a connection that has been used, one compiled call does
it all, and reads the usual answer; what is not usual, or without a compiler, Python's own client does.
"""

from __future__ import annotations

import http.client
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from observability.native import extension

# Pieces that one call may take: IOV_MAX of Linux.
_MOST_PIECES = 1024


@cache
def native() -> ModuleType | None:
    """The compiled `post`; None where there is no compiler."""
    return extension(Path(__file__).with_name("gathering.c"))


class GatheringConnection(http.client.HTTPConnection):
    """`request` with the body `[(piece, piece, …)]` sends those pieces behind each other."""

    def connect(self) -> None:
        """Connects, and tells the kernel the time limit of a call that sends."""
        super().connect()
        seconds = self.sock.gettimeout()
        self._waits = sys.platform == "linux" and bool(seconds)
        if self._waits and seconds:
            limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def send(self, data: Any) -> None:
        """As `HTTPConnection.send`, and tuples of pieces. Raises TimeoutError when none could be sent in time."""
        if not isinstance(data, tuple):
            super().send(data)
            return
        seconds = self.sock.gettimeout()
        if self._waits:
            # The kernel waits: a large body takes one call, not one a bufferful with a wait for the interpreter's lock.
            self.sock.settimeout(None)
        try:
            self._send_pieces([piece.cast("B") for piece in data if piece.nbytes])
        except BlockingIOError as error:
            raise TimeoutError(f"the receiver took nothing for {seconds} s") from error
        finally:
            self.sock.settimeout(seconds)

    def posted(self, target: str, headers: Mapping[str, str], pieces: Sequence[memoryview]) -> bool:
        """Whether the pieces were sent and the answer was plainly a success; if not, it is still to be read: `answer`.

        Over an open connection that `request` has used with such headers before: they are not looked at again. Raises
        OSError, TimeoutError when nothing moves for as long as the connection waits.
        """
        library = native()
        assert library is not None
        host = f"[{self.host}]" if ":" in self.host else self.host
        where = host if self.port == self.default_port else f"{host}:{self.port}"
        lines = [f"POST {target} HTTP/1.1", f"Host: {where}", "Accept-Encoding: identity"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join([*lines, "\r\n"]).encode("latin-1")
        seconds = self.sock.gettimeout()
        return bool(library.post(self.sock.fileno(), -1.0 if seconds is None else seconds, (head, *pieces)))

    def answer(self) -> http.client.HTTPResponse:
        """The answer to what was `posted`."""
        response = self.response_class(self.sock, method="POST")
        try:
            response.begin()
        except BaseException:
            response.close()
            raise
        if response.will_close:
            self.close()
        return response

    def _send_pieces(self, pieces: Sequence[memoryview]) -> None:
        while pieces:
            pieces = _behind(pieces, self.sock.sendmsg(pieces[:_MOST_PIECES]))


def _behind(pieces: Sequence[memoryview], sent: int) -> Sequence[memoryview]:
    """What is left of the pieces after so many bytes."""
    for place, piece in enumerate(pieces):
        if sent < piece.nbytes:
            return [piece[sent:], *pieces[place + 1 :]]
        sent -= piece.nbytes
    return []
