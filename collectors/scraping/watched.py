"""A Prometheus configuration file that is read again when it, or a file that it names, has changed."""

from __future__ import annotations

import glob
from pathlib import Path

from collectors.scraping.config_file import ScrapeFile, read_scrape_file

Stamp = tuple[tuple[str, int, int], ...]


class WatchedFile:
    """The file at a path; `changed` says whether it is worth reading again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._patterns: tuple[str, ...] = ()
        self._stamp: Stamp = ()

    def read(self) -> ScrapeFile:
        """What it says now. BadConfig; it then counts as read until it changes."""
        self._stamp = self._stamped()
        found = read_scrape_file(self.path)
        if found.patterns != self._patterns:
            self._patterns = found.patterns
            self._stamp = self._stamped()
        return found

    def changed(self) -> bool:
        """Whether times or sizes are others than when it was last read."""
        return self._stamped() != self._stamp

    def _stamped(self) -> Stamp:
        paths = sorted({str(self.path), *(path for pattern in self._patterns for path in glob.glob(pattern))})
        return tuple((path, *_times(path)) for path in paths)


def _times(path: str) -> tuple[int, int]:
    try:
        status = Path(path).stat()
    except OSError:
        return -1, -1
    return status.st_mtime_ns, status.st_size
