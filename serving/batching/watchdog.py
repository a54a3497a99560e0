"""Notices batches that do not come back: the version is not ready until they do, and the log says where they are."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Iterable

from serving.engine import Lane
from serving.telemetry.signals import Signals

_log = logging.getLogger(__name__)


class Watchdog:
    """`look` is called about once a second with every lane."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self._stalled: dict[tuple[str, int], Lane] = {}

    def look(self, lanes: Iterable[tuple[str, int, Lane]]) -> None:
        """Checks (model, version, lane) by (model, version, lane)."""
        for model, number, lane in lanes:
            reason = lane.check()
            if reason is not None:
                self._stalled[model, number] = lane
                self._signals.stalled(model, number, True)
                _log.error(
                    "version %d of %s is stuck and not ready: %s\n%s", number, model, reason, stacks(),
                    extra={"model": model, "version": number},
                )  # fmt: skip
        for (model, number), lane in list(self._stalled.items()):
            if lane.stalled is None:
                del self._stalled[model, number]
                self._signals.stalled(model, number, False)
                _log.warning("version %d of %s moves again", number, model)


def stacks() -> str:
    """Where every thread of the process is."""
    named = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {named.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )
