"""A do-nothing protocol on uvloop and httptools: `bare.py PORT` answers every request with one constant."""

import asyncio
import sys

import httptools
import uvloop
from constants import BODY, HEAD

ANSWER = HEAD % len(BODY) + BODY


class Nothing(asyncio.Protocol):
    """Gathers the body, as anybody has to, and answers."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """One parser a connection."""
        self.transport, self.parser, self.parts = transport, httptools.HttpRequestParser(self), []

    def data_received(self, data: bytes) -> None:
        """Whatever came."""
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Headers are read and left."""

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self.parts.append(body)

    def on_message_complete(self) -> None:
        """The answer."""
        b"".join(self.parts)
        self.parts = []
        self.transport.write(ANSWER)


async def main() -> None:
    """Listens until it is ended."""
    server = await asyncio.get_running_loop().create_server(Nothing, "127.0.0.1", int(sys.argv[1]), backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
