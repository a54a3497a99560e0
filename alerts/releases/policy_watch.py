"""The file of release policies as it is now: read again when it changes, the old policies kept when it is wrong."""

from __future__ import annotations

import logging
from pathlib import Path

from alerts.releases.policy_file import ReleasePolicies, ReleasePolicyError, load_release_policies

log = logging.getLogger(__name__)


class PolicyWatch:
    """`look` reads the file again if it has changed. The first reading raises ReleasePolicyError."""

    def __init__(self, path: str | Path) -> None:
        self.error = ""
        self._path = Path(path) if path else None
        self._mark = self._stamp()
        self.policies = load_release_policies(path) if path else ReleasePolicies()

    @staticmethod
    def of(policies: ReleasePolicies) -> PolicyWatch:
        """Policies that do not change."""
        watch = PolicyWatch("")
        watch.policies = policies
        return watch

    def look(self) -> None:
        """Take the file as it is now, if it can be used."""
        mark = self._stamp()
        if self._path is None or mark == self._mark:
            return
        self._mark = mark
        try:
            self.policies, self.error = load_release_policies(self._path), ""
            log.info("release policies of %d models are in force", len(self.policies.policies))
        except ReleasePolicyError as error:
            self.error = str(error)
            log.error("the old release policies stay in force: %s", error)

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat() if self._path is not None else None
        except OSError:
            return None
        return None if found is None else (found.st_mtime_ns, found.st_size)
