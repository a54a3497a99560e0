"""What a front or a replica runs as: it gets its orders from the supervisor over an inherited socket."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys

import uvloop

from observability.logs import log_exporter, setup_logging
from serving.fleet.front import run_front
from serving.fleet.orders import Orders, read_orders
from serving.fleet.replica import CannotJoin, run_replica


async def _run(orders: Orders, sock: socket.socket) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    if orders.kind == "replica":
        await run_replica(orders.config, orders.number, orders.path, sock, stop)
    else:
        listeners = [socket.socket(fileno=number) for number in orders.listeners]
        await run_front(orders.config, orders.number, listeners, sock, stop)


def main(descriptor: int) -> None:
    """Reads the orders from the socket with this file number, and carries them out."""
    # The terminal's Ctrl-C and its end go to all processes; in which order these end is the supervisor's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sock = socket.socket(fileno=descriptor)
    try:
        orders = read_orders(sock)
    except EOFError as error:
        sys.exit(str(error))
    sock.setblocking(False)
    collector = orders.config.collector_url
    exporter = None if collector is None else log_exporter("serving", collector)
    setup_logging("serving", orders.log_level, stream=sys.stderr, exporter=exporter)
    try:
        uvloop.run(_run(orders, sock))
    except CannotJoin as error:
        sys.exit(str(error))
    finally:
        if exporter is not None:
            exporter.close(timeout=1.0)
