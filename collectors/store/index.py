"""The label index: from matchers to series ids, in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from collectors.store.matchers import Matcher
from collectors.store.values import LabelKey, Labels, label_key

_CACHED_SELECTIONS = 512


class LabelIndex:
    """Series ids by label. Ids are dense integers given out in order. Not thread-safe: the store holds its lock."""

    def __init__(self) -> None:
        self.labels: dict[int, Labels] = {}
        self.next_id = 0
        self._ids: dict[LabelKey, int] = {}
        self._postings: dict[str, dict[str, set[int]]] = {}
        self._selections: dict[tuple[Matcher, ...], NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def find(self, key: LabelKey) -> int | None:
        """The id of a label set, or None."""
        return self._ids.get(key)

    def add(self, key: LabelKey, series_id: int | None = None) -> int:
        """Adds a label set that is not there yet and gives its id."""
        chosen = self.next_id if series_id is None else series_id
        self.next_id = max(self.next_id, chosen + 1)
        self._ids[key] = chosen
        self.labels[chosen] = dict(key)
        for name, value in key:
            self._postings.setdefault(name, {}).setdefault(value, set()).add(chosen)
        self._selections.clear()
        return chosen

    def remove(self, series_ids: Iterable[int]) -> None:
        """Forgets series."""
        for series_id in series_ids:
            labels = self.labels.pop(series_id)
            del self._ids[label_key(labels)]
            for name, value in labels.items():
                self._discard(name, value, series_id)
        self._selections.clear()

    def _discard(self, name: str, value: str, series_id: int) -> None:
        values = self._postings[name]
        values[value].discard(series_id)
        if not values[value]:
            del values[value]
        if not values:
            del self._postings[name]

    def select(self, matchers: Sequence[Matcher]) -> NDArray[np.int64]:
        """Sorted ids of the series that meet all matchers; all series when there are none."""
        key = tuple(matchers)
        found = self._selections.get(key)
        if found is None:
            if len(self._selections) >= _CACHED_SELECTIONS:
                self._selections.clear()
            found = np.array(sorted(self._search(key)), dtype=np.int64)
            self._selections[key] = found
        return found

    def _search(self, matchers: tuple[Matcher, ...]) -> set[int]:
        required = [self._having(m) for m in matchers if not m.matches("")]
        if required:
            required.sort(key=len)
            ids = set.intersection(*required)
        else:
            ids = set(self.labels)
        # A matcher that accepts the empty string accepts series without the label: take away those that it refuses.
        for matcher in matchers:
            if matcher.matches(""):
                for value, having in self._postings.get(matcher.name, {}).items():
                    if not matcher.matches(value):
                        ids = ids - having
        return ids

    def _having(self, matcher: Matcher) -> set[int]:
        values = self._postings.get(matcher.name, {})
        if matcher.op == "=":
            return values.get(matcher.value, set())
        return set().union(*(ids for value, ids in values.items() if matcher.matches(value)))

    def names(self) -> list[str]:
        """All label names, sorted."""
        return sorted(self._postings)

    def values(self, name: str) -> list[str]:
        """All values of a label, sorted."""
        return sorted(self._postings.get(name, {}))
