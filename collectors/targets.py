"""Scrape targets: a fixed list, and `file_sd` JSON files that are read again when they change."""

from __future__ import annotations

import glob
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrapeTarget:
    """One page to scrape. `labels` are put on every series, besides `job` and `instance` (host:port of the URL)."""

    url: str
    job: str
    labels: Mapping[str, str] = field(default_factory=dict)
    honor_labels: bool = False

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"a scrape target's url begins with http:// or https://, not {self.url!r}")

    @property
    def instance(self) -> str:
        return self.url.split("://", 1)[1].split("/", 1)[0]

    @property
    def series_labels(self) -> dict[str, str]:
        return {"job": self.job, "instance": self.instance, **self.labels}

    @property
    def name(self) -> str:
        """What tells this target from others in the store."""
        return f"scrape:{self.job}:{self.url}:{sorted(self.labels.items())}"


class _Group(msgspec.Struct):
    targets: list[str]
    labels: dict[str, str] = {}


class FileTargets:
    """Targets from `file_sd` JSON files: `[{"targets": ["host:port"], "labels": {…}}]`.

    `job`, `__scheme__` and `__metrics_path__` are read from the labels. A file that cannot be read keeps its last
    targets: half a written file must not take the monitoring down.
    """

    def __init__(self, patterns: Sequence[str], job: str = "file_sd") -> None:
        self._patterns = tuple(patterns)
        self._job = job
        self._read: dict[str, tuple[tuple[int, int], list[ScrapeTarget]]] = {}

    def targets(self) -> list[ScrapeTarget]:
        """The targets of all files as they are now; only changed files are read."""
        paths = sorted({path for pattern in self._patterns for path in glob.glob(pattern, recursive=True)})
        self._read = {path: known for path in paths if (known := self._current(path)) is not None}
        return [target for _, targets in self._read.values() for target in targets]

    def _current(self, path: str) -> tuple[tuple[int, int], list[ScrapeTarget]] | None:
        known = self._read.get(path)
        try:
            status = Path(path).stat()
            stamp = (status.st_mtime_ns, status.st_size)
            if known is not None and known[0] == stamp:
                return known
            return stamp, self._parsed(Path(path).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, ValueError) as error:
            logger.warning("the targets of %s stay as they were: %s", path, error)
            return known

    def _parsed(self, body: bytes) -> list[ScrapeTarget]:
        found = []
        for group in msgspec.json.decode(body, type=list[_Group]):
            scheme = group.labels.get("__scheme__", "http")
            path = group.labels.get("__metrics_path__", "/metrics")
            labels = {name: text for name, text in group.labels.items() if not name.startswith("__") and name != "job"}
            job = group.labels.get("job", self._job)
            found += [ScrapeTarget(url=f"{scheme}://{host}{path}", job=job, labels=labels) for host in group.targets]
        return found
