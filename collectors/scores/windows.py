"""LabelledWindows: the scores of each window of event time, amended whenever a label comes, comes again or changes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from collectors.scores.regression import scorable
from collectors.scores.scored import Scored

NANOSECONDS = 1_000_000_000
# Changes wait until this many are there, or somebody asks: one pass costs about the same for 1 and 1,000 rows.
_FOLD_ROWS = 4_096


@dataclass(frozen=True, slots=True, order=True)
class LabelledWindow:
    """Names a window of a version's event time, [start, start + window_seconds), unix seconds."""

    model: str
    version: str
    start: float


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """A prediction with its label; times in unix nanoseconds."""

    time: int
    prediction: float
    label: float
    label_time: int

    def merged(self, other: LabelledRow) -> LabelledRow:
        """The row of an id that came twice: its earliest prediction and its latest label, whichever came first.

        Of two predictions at one time it is the smaller, and one that failed only where both did.
        """
        first = min((self.time, self.prediction), (other.time, other.prediction))
        last = max((self.label_time, self.label), (other.label_time, other.label))
        return LabelledRow(*first, last[1], last[0])


@dataclass(slots=True)
class _Version:
    """One version's windows by number, the rows of those that can be amended in place, and what waits to be added."""

    scored: dict[int, Scored] = field(default_factory=dict)
    rows: dict[str, LabelledRow] = field(default_factory=dict)
    added: dict[int, list[LabelledRow]] = field(default_factory=dict)
    removed: dict[int, list[LabelledRow]] = field(default_factory=dict)
    waiting: int = 0
    sealed: float = -math.inf
    """Rows of windows with a smaller number are not kept: such a window is read again from the lake."""


class LabelledWindows:
    """Scores by (model, version, window): a function of the rows alone, whatever the order and repetition of arrival.

    The latest `kept_rows` rows of a version are kept by id, so that a label that comes again changes nothing and one
    that is corrected replaces the old. A row for an older window cannot be told from a repeated one; its window is
    then given out by `take_stale`, to be computed from stored rows and set by `replace`. Not thread-safe.
    """

    def __init__(self, window_seconds: float = 60.0, kept_windows: int = 500, kept_rows: int = 200_000) -> None:
        if not window_seconds > 0 or min(kept_windows, kept_rows) < 1:
            raise ValueError(
                f"window_seconds ({window_seconds}) must be positive, "
                f"kept_windows ({kept_windows}) and kept_rows ({kept_rows}) at least 1"
            )
        self.window_seconds = window_seconds
        self._nanoseconds = round(window_seconds * NANOSECONDS)
        self._kept_windows = kept_windows
        self._kept_rows = kept_rows
        self._versions: dict[tuple[str, str], _Version] = {}
        self._changed: set[LabelledWindow] = set()
        self._stale: set[LabelledWindow] = set()
        self._sealed: dict[str, int] = {}

    def put(self, model: str, version: str, ids: Iterable[str], rows: Iterable[LabelledRow]) -> None:
        """Adds labelled predictions of a version; those that are not finite, or beyond 1e75, take part in no score."""
        state = self._version(model, version)
        for id_, row in zip(ids, rows, strict=True):
            if not scorable(row.prediction):
                row = replace(row, prediction=math.inf)
            self._put(model, version, state, id_, row)
        if state.waiting >= _FOLD_ROWS:
            self._fold(state)
        if len(state.rows) > self._kept_rows:
            self._seal(state)

    def seal(self, model: str, before: float) -> None:
        """Says that not all rows of a model before a time (unix seconds) will come: what does come makes its window
        stale, and no window is scored by a part of its rows."""
        self._sealed[model] = math.ceil(before / self.window_seconds)
        for (name, _), state in self._versions.items():
            if name == model:
                self._forget(state, self._sealed[model])

    def keys(self) -> list[tuple[str, str]]:
        """The (model, version) pairs that have windows."""
        return sorted(self._versions)

    def windows(self, model: str, version: str) -> list[LabelledWindow]:
        """The windows that are kept of a version, in order of time."""
        state = self._versions.get((model, version))
        return [self._window(model, version, number) for number in sorted(self._folded(state))] if state else []

    def scored(self, window: LabelledWindow) -> Scored:
        """What the window's labels say so far; empty when there is none."""
        state = self._versions.get((window.model, window.version))
        return self._folded(state).get(self._number(window), Scored()) if state else Scored()

    def merged(self, windows: Sequence[LabelledWindow]) -> Scored:
        """The sum over windows: a sliding window, a day, all versions."""
        return sum((self.scored(window) for window in windows), Scored())

    def take_changed(self) -> list[LabelledWindow]:
        """The windows whose scores changed since the last call, in order."""
        taken, self._changed = self._changed, set()
        return sorted(taken)

    def take_stale(self) -> list[LabelledWindow]:
        """The windows, in order, that a row came too late for to be amended here: compute them anew, then `replace`."""
        taken, self._stale = self._stale, set()
        return sorted(taken)

    def replace(self, window: LabelledWindow, scored: Scored) -> None:
        """Sets a window to what was computed from all its rows, or read back by `Scored.from_json` after a restart.

        From here on its rows are not known: a further one makes it stale.
        """
        state = self._version(window.model, window.version)
        number = self._number(window)
        if number >= state.sealed:
            self._fold(state)
            self._forget(state, number + 1)
        self._set(state, number, scored)
        self._changed.add(self._window(window.model, window.version, number))

    def _version(self, model: str, version: str) -> _Version:
        state = self._versions.get((model, version))
        if state is None:
            state = self._versions[model, version] = _Version(sealed=self._sealed.get(model, -math.inf))
        return state

    def _put(self, model: str, version: str, state: _Version, id_: str, row: LabelledRow) -> None:
        old = state.rows.get(id_)
        new = row if old is None else old.merged(row)
        if new == old:
            return
        if old is not None:
            self._wait(model, version, state, state.removed, old)
        if new.time // self._nanoseconds < state.sealed:
            state.rows.pop(id_, None)
            self._stale.add(self._window(model, version, new.time // self._nanoseconds))
            return
        state.rows[id_] = new
        self._wait(model, version, state, state.added, new)

    def _wait(
        self, model: str, version: str, state: _Version, into: dict[int, list[LabelledRow]], row: LabelledRow
    ) -> None:
        if not scorable(row.prediction, row.label):
            return
        number = row.time // self._nanoseconds
        into.setdefault(number, []).append(row)
        state.waiting += 1
        self._changed.add(self._window(model, version, number))

    def _folded(self, state: _Version) -> dict[int, Scored]:
        self._fold(state)
        return state.scored

    def _fold(self, state: _Version) -> None:
        """Brings the rows that wait into their windows. Those to be removed may be among those to be added."""
        for number in state.added.keys() | state.removed.keys():
            total = state.scored.get(number, Scored()) + _scored(state.added.get(number, []))
            self._set(state, number, total - _scored(state.removed.get(number, [])))
        state.added, state.removed, state.waiting = {}, {}, 0

    def _set(self, state: _Version, number: int, scored: Scored) -> None:
        if scored.rows:
            state.scored[number] = scored
        else:
            state.scored.pop(number, None)
        for oldest in sorted(state.scored)[: max(0, len(state.scored) - self._kept_windows)]:
            del state.scored[oldest]
            self._forget(state, oldest + 1)

    def _seal(self, state: _Version) -> None:
        """Forgets the rows of the oldest windows, never of the last, until nine tenths of what is allowed are left."""
        self._fold(state)
        numbers, counts = np.unique([row.time // self._nanoseconds for row in state.rows.values()], return_counts=True)
        left = np.cumsum(counts[::-1])[::-1]
        kept = numbers[left <= 0.9 * self._kept_rows]
        self._forget(state, int(kept[0]) if len(kept) else int(numbers[-1]))

    def _forget(self, state: _Version, before: int) -> None:
        state.sealed = max(state.sealed, before)
        state.rows = {id_: row for id_, row in state.rows.items() if row.time // self._nanoseconds >= state.sealed}

    def _window(self, model: str, version: str, number: int) -> LabelledWindow:
        return LabelledWindow(model, version, number * self.window_seconds)

    def _number(self, window: LabelledWindow) -> int:
        return round(window.start / self.window_seconds)


def _scored(rows: list[LabelledRow]) -> Scored:
    if not rows:
        return Scored()
    return Scored.of(np.array([row.prediction for row in rows]), np.array([row.label for row in rows]))
