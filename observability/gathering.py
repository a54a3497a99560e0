"""An HTTP connection that sends a body in pieces by as few calls as the kernel takes, without putting it together."""

from __future__ import annotations

import http.client
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any

# Pieces that one call may take: IOV_MAX of Linux.
_MOST_PIECES = 1024


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
