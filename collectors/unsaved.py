"""What is measured but not durable yet: closed panes and states of versions, with the log position they stand for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future

from collectors.references import Standing, StateKey
from collectors.windows import Key, ModelTime, Pane

Keep = Callable[[Standing], "Future[None]"]


class Unsaved:
    """Hands to `keep` what is not durable yet; what it could not keep is handed to it again. Thread-safe."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._lock = threading.Lock()
        self._panes: dict[tuple[Key, float], Pane] = {}
        self._states: dict[StateKey, bytes] = {}
        self._settled = -1

    def add(self, panes: Iterable[Pane], states: Mapping[StateKey, bytes]) -> None:
        """Takes in panes that closed or were amended, and states that changed."""
        with self._lock:
            self._panes.update({((pane.model, pane.version), pane.start): pane for pane in panes})
            self._states.update(states)

    def settle(self, position: int, times: Mapping[str, ModelTime]) -> Future[None]:
        """Keeps all of it, measured up to a log position; nothing to do gives a future that is done."""
        with self._lock:
            if position == self._settled and not self._panes and not self._states:
                done: Future[None] = Future()
                done.set_result(None)
                return done
            panes, states = dict(self._panes), dict(self._states)
        committed = self._keep(Standing(position, times, tuple(panes.values()), states))
        committed.add_done_callback(lambda future: self._saved(future, position, panes, states))
        return committed

    def _saved(
        self,
        committed: Future[None],
        position: int,
        panes: Mapping[tuple[Key, float], Pane],
        states: Mapping[StateKey, bytes],
    ) -> None:
        if committed.cancelled() or committed.exception() is not None:
            return
        with self._lock:
            self._settled = max(self._settled, position)
            for key, pane in panes.items():
                if self._panes.get(key) is pane:
                    del self._panes[key]
            for name, body in states.items():
                if self._states.get(name) is body:
                    del self._states[name]
