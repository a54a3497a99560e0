"""The rule files that a service runs on: found by patterns, watched, and taken only when all of them are right."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from alerts.rules import DEFAULT_INTERVAL_SECONDS, RuleGroup, load

_Stamp = tuple[tuple[str, int, int, int], ...]


class RuleFiles:
    """Files and patterns such as `rules/*.yml`; `interval_seconds` is for groups that name none."""

    def __init__(self, patterns: Iterable[str | Path], *, interval_seconds: float = DEFAULT_INTERVAL_SECONDS) -> None:
        self._patterns = [str(pattern) for pattern in patterns]
        self._interval_seconds = interval_seconds
        self._taken: _Stamp = ()
        self._seen: _Stamp = ()

    def load(self) -> list[RuleGroup]:
        """All groups; raises RuleError with everything that is wrong. Either way the files count as seen."""
        self._taken = self._seen = self._stamp()
        return load(self._paths(), interval_seconds=self._interval_seconds)

    def changed(self) -> bool:
        """Whether the files are others than those last loaded, and the same as at the last call.

        The second keeps a file from being read while it is being written.
        """
        now = self._stamp()
        settled, self._seen = now == self._seen, now
        return settled and now != self._taken

    def _paths(self) -> list[str]:
        paths: list[str] = []
        for pattern in self._patterns:
            matched = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
            paths += [path for path in matched if path not in paths]
        return paths

    def _stamp(self) -> _Stamp:
        return tuple((path, *_stat(path)) for path in self._paths())


def _stat(path: str) -> tuple[int, int, int]:
    try:
        found = Path(path).stat()
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_size, found.st_ino
