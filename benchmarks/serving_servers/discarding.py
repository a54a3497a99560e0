"""A collector that discards what it is sent, for as little processor time as can be: `discarding.py PORT`.

The kernel throws a body away (MSG_TRUNC, Linux): it is neither copied nor read. What a server pays to send is measured
beside it, not what somebody pays to receive on the same cores.
"""

import re
import socket
import sys
import threading
import time

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
MOST, MOST_HEAD = 1 << 20, 1 << 14


def answer(client: socket.socket) -> None:
    """Requests of one connection, one after the other."""
    room = bytearray(MOST)
    with client:
        while True:
            seen = client.recv(MOST_HEAD, socket.MSG_PEEK)
            if not seen:
                return
            end = seen.find(b"\r\n\r\n") + 4
            if end < 4:  # the rest of the header is on its way
                time.sleep(0.0005)
                continue
            length = re.search(rb"\r\ncontent-length:\s*(\d+)", client.recv(end), re.IGNORECASE)
            left = int(length[1]) if length else 0
            while left:
                taken = client.recv_into(room, min(left, MOST), socket.MSG_TRUNC | socket.MSG_WAITALL)
                if not taken:
                    return
                left -= taken
            client.sendall(ANSWER)


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=128) as listening:
        while True:
            accepted, _ = listening.accept()
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=answer, args=(accepted,), daemon=True).start()
