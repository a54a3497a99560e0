"""What each source sent last, which is what ends when it no longer sends it."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


def source_key(name: str) -> str:
    """The key of a source in the database: names have any length, keys have 64 characters."""
    return sha256(name.encode(errors="surrogatepass")).hexdigest()


class Sources:
    """The series of each source's last append, by name. Not thread-safe: the store holds its lock."""

    def __init__(self) -> None:
        self._ids: dict[str, Ids] = {}

    def restore(self, key: str, ids: Ids) -> None:
        """Adds what the database has."""
        self._ids[key] = ids

    def ids(self, name: str) -> Ids | None:
        """The series that a source sends, or None."""
        return self._ids.get(source_key(name))

    def set(self, name: str, ids: Ids | None) -> None:
        """Records what a source sends; None: it is gone."""
        if ids is None:
            self._ids.pop(source_key(name), None)
        else:
            self._ids[source_key(name)] = ids

    def items(self) -> list[tuple[str, Ids]]:
        """The series by key."""
        return list(self._ids.items())

    def drop(self, keys: list[str]) -> None:
        """Forgets sources by key."""
        for key in keys:
            self._ids.pop(key, None)
