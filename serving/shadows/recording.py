"""Copies of the shortcut's requests until they are recorded: together, and once they have their ids."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from serving.calls import Call
from serving.shadows.blocks import BlockCopy

# Making events of one block costs as much as of several: after so many seconds, or rows.
_SECONDS = 1.0
_ROWS = 1024


class Recording:
    """Keeps what shadows gave for blocks; `record` gets it a choice of the router at a time. All on the event loop."""

    def __init__(self, record: Callable[[Sequence[Call]], None]) -> None:
        self._record = record
        # By the identity of the choice, which the copies keep.
        self._kept: dict[int, list[BlockCopy]] = {}
        self._rows = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def keep(self, copy: BlockCopy) -> None:
        """Records it with others."""
        self._kept.setdefault(id(copy.choice), []).append(copy)
        self._rows += copy.rows
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SECONDS, self._due)
        elif self._rows >= _ROWS:
            self._due()

    def close(self) -> None:
        """What is kept is recorded by `settled`; no more comes."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def settled(self) -> None:
        """All requests that were answered have their ids."""
        if self._closed:
            self._tell()

    def _due(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._tell()
        if self._kept:
            self._timer = asyncio.get_running_loop().call_later(_SECONDS, self._due)

    def _tell(self) -> None:
        """Records what has its ids; the rest stays."""
        kept, self._kept, self._rows = self._kept, {}, 0
        for choice, copies in kept.items():
            if known := [copy for copy in copies if copy.block.numbered]:
                self._record(known)
            if left := [copy for copy in copies if not copy.block.numbered]:
                self._kept[choice] = left
                self._rows += sum(copy.rows for copy in left)
