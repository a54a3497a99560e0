"""Training–serving skew: what the first window of a version that could be judged says of how its data are made.

It is kept with its reference for as long as that stays: windows of later seasons say nothing of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from collectors.computed import Value, differs
from collectors.drift import ColumnDrift
from collectors.history import Against, JudgedWindow
from collectors.windows import Key
from observability import names
from observability.profile import Profile

logger = logging.getLogger(__name__)


class ColumnSkew(msgspec.Struct, frozen=True):
    """One column of that window. `score` and `threshold` are the calibrated rule's; None where it has no values."""

    differs: bool
    score: float | None
    threshold: float | None
    missing_ratio: float
    reference_missing_ratio: float


class FirstWindow(msgspec.Struct, frozen=True):
    """The window, `start` to `end` in unix seconds, and each of its columns that says anything."""

    reference: str
    """The digest of what it was compared with."""
    start: float
    end: float
    rows: int
    columns: dict[str, ColumnSkew]

    @property
    def ratio(self) -> float:
        """The share of the columns that differ."""
        return sum(column.differs for column in self.columns.values()) / len(self.columns)

    def to_json(self, version: str) -> dict[str, Any]:
        """As `/api/drift` has it; the columns that differ come first."""
        columns = sorted(self.columns.items(), key=lambda item: not item[1].differs)
        body = {"version": version, "start": self.start, "end": self.end, "rows": self.rows, "ratio": self.ratio}
        return {**body, "columns": {name: msgspec.to_builtins(column) for name, column in columns}}


class Skew:
    """The first windows of all versions. Not thread-safe."""

    def __init__(self) -> None:
        self._digests: dict[Key, str] = {}
        self._found: dict[Key, FirstWindow] = {}
        self._changed: set[Key] = set()

    def set_reference(self, key: Key, profile: Profile) -> None:
        """Says what a version is compared with; what was found against another is forgotten."""
        self._digests[key] = blake2b(profile.to_json(), digest_size=16).hexdigest()
        found = self._found.get(key)
        if found is not None and found.reference != self._digests[key]:
            del self._found[key]

    def restore(self, stored: Mapping[Key, bytes]) -> None:
        """Takes over what `take_changed` gave before a restart; what cannot be read is looked for again."""
        for key, body in stored.items():
            try:
                found = msgspec.json.decode(body, type=FirstWindow)
            except msgspec.DecodeError as error:
                logger.warning("the first window of %s version %s is looked for again: %s", *key, error)
                continue
            if found.reference == self._digests.get(key) and found.columns:
                self._found[key] = found

    def look(self, key: Key, windows: Iterable[JudgedWindow], against: Against | None) -> None:
        """Looks at windows that are new or were amended, oldest first: the earliest that can be judged is the one."""
        if against is None:
            return
        for window in windows:
            known = self._found.get(key)
            if known is not None and window.last.end > known.end:
                return
            if window.pane.seen < against.thresholds.min_rows:
                continue  # no column of it can be judged, and a version may have hundreds of such windows
            columns = _judged(window.verdicts(against))
            if columns:
                pane, digest = window.pane, self._digests[key]
                self._found[key] = FirstWindow(digest, pane.start, pane.end, pane.seen, columns)
                self._changed.add(key)

    def first_window(self, key: Key) -> FirstWindow | None:
        """The first window of a version that could be judged; None while there is none."""
        return self._found.get(key)

    def values(self, key: Key) -> list[Value]:
        """How much of it differs, and which columns."""
        found = self._found.get(key)
        if found is None:
            return []
        version = {"model": key[0], "version": key[1]}
        return [Value(names.TRAINING_SERVING_SKEW, version, found.ratio)] + [
            Value(names.TRAINING_SERVING_SKEWED, {**version, "column": name}, float(column.differs))
            for name, column in found.columns.items()
        ]

    def take_changed(self) -> dict[Key, bytes]:
        """What was found since the last call."""
        changed, self._changed = self._changed, set()
        return {key: msgspec.json.encode(self._found[key]) for key in changed if key in self._found}


def _judged(verdicts: Mapping[str, ColumnDrift]) -> dict[str, ColumnSkew]:
    """The columns that say anything: a column that serving never has is too few values, and still skewed."""
    return {
        name: ColumnSkew(
            differs(verdict),
            verdict.score,
            verdict.threshold,
            verdict.missing_ratio,
            verdict.reference_missing_ratio,
        )
        for name, verdict in verdicts.items()
        if verdict.reason in ("drifted", "within_threshold") or verdict.missing_changed
    }
