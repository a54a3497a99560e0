"""The signals that end a server: the first one drains it, Ctrl-C during that ends it without waiting any longer."""

from __future__ import annotations

import asyncio
import signal


class Stopping:
    """`asked` is set by SIGTERM, SIGINT (Ctrl-C) and SIGHUP (its terminal has gone), `hurried` by a SIGINT after that.

    A SIGHUP that whoever started the process has it ignore, as nohup does, stays ignored.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurried = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.asked.set)
        loop.add_signal_handler(signal.SIGINT, self._interrupted)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, self.asked.set)

    def _interrupted(self) -> None:
        (self.hurried if self.asked.is_set() else self.asked).set()


async def pause(seconds: float, hurried: asyncio.Event) -> None:
    """Sleeps for so long, or until there is a hurry."""
    try:
        async with asyncio.timeout(seconds):
            await hurried.wait()
    except TimeoutError:
        pass
