"""The label index: from label sets and matchers to series ids, in memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from sys import intern

import numpy as np
from numpy.typing import NDArray

from collectors.store.matchers import Matcher
from collectors.store.values import Labels, label_key

Ids = NDArray[np.int64]
_CACHED_SELECTIONS = 512
_NONE: Ids = np.empty(0, dtype=np.int64)


class _Posting:
    """The ids of the series that have one value of a label, rising; and the one copy of that value's text."""

    __slots__ = ("ids", "value")

    def __init__(self, value: str) -> None:
        self.value = value
        self.ids = array("i")

    def sorted_ids(self) -> Ids:
        return np.array(self.ids, dtype=np.int64)


class LabelIndex:
    """Series ids by label. Ids are dense integers given out in order. Not thread-safe: the store holds its lock."""

    def __init__(self) -> None:
        self.next_id = 0
        self._labels: list[Labels | None] = []
        # Ids by the hash of the label set; the few that share one are in `_others`.
        self._by_hash: dict[int, int] = {}
        self._others: dict[int, list[int]] = {}
        self._postings: dict[str, dict[str, _Posting]] = {}
        self._selections: dict[tuple[Matcher, ...], Ids] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, series_id: int) -> bool:
        return 0 <= series_id < len(self._labels) and self._labels[series_id] is not None

    def labels(self, series_id: int) -> Labels:
        """The label set of a series; KeyError if it is not there."""
        found = self._labels[series_id] if series_id < len(self._labels) else None
        if found is None:
            raise KeyError(series_id)
        return found

    def labels_of(self, series_ids: Iterable[int]) -> list[Labels]:
        """The label sets of series that are there."""
        known = self._labels
        return [known[i] for i in series_ids]  # type: ignore[misc]

    def find(self, labels: Labels) -> int | None:
        """The id of a label set, in which an empty value is the same as an absent label; or None."""
        key = _hash(labels)
        found = self._by_hash.get(key)
        if found is None:
            return self._find_canonical(labels) if "" in labels.values() else None
        if self._labels[found] == labels:
            return found
        for other in self._others.get(key, ()):
            if self._labels[other] == labels:
                return other
        return self._find_canonical(labels) if "" in labels.values() else None

    def _find_canonical(self, labels: Labels) -> int | None:
        return self.find({name: value for name, value in labels.items() if value != ""})

    def add(self, labels: Labels, series_id: int | None = None) -> int:
        """Adds a label set that is not there yet and gives its id."""
        chosen = self.next_id if series_id is None else series_id
        self.next_id = max(self.next_id, chosen + 1)
        own: dict[str, str] = {}
        for name, value in label_key(labels):
            values = self._postings.setdefault(intern(name), {})
            posting = values.get(value)
            if posting is None:
                posting = values[value] = _Posting(value)
            if posting.ids and posting.ids[-1] > chosen:
                posting.ids = array("i", sorted([*posting.ids, chosen]))
            else:
                posting.ids.append(chosen)
            own[intern(name)] = posting.value
        if chosen >= len(self._labels):
            self._labels.extend([None] * (chosen + 1 - len(self._labels)))
        self._labels[chosen] = own
        key = _hash(own)
        if key in self._by_hash:
            self._others.setdefault(key, []).append(chosen)
        else:
            self._by_hash[key] = chosen
        self._count += 1
        self._selections.clear()
        return chosen

    def remove(self, series_ids: Iterable[int]) -> None:
        """Forgets series."""
        touched: dict[tuple[str, str], set[int]] = {}
        for series_id in series_ids:
            labels = self.labels(series_id)
            self._labels[series_id] = None
            self._count -= 1
            self._unhash(labels, series_id)
            for pair in labels.items():
                touched.setdefault(pair, set()).add(series_id)
        for (name, value), gone in touched.items():
            values = self._postings[name]
            posting = values[value]
            posting.ids = array("i", [i for i in posting.ids if i not in gone])
            if not posting.ids:
                del values[value]
            if not values:
                del self._postings[name]
        self._selections.clear()

    def _unhash(self, labels: Labels, series_id: int) -> None:
        key = _hash(labels)
        others = self._others.get(key, [])
        if series_id in others:
            others.remove(series_id)
        elif others:
            self._by_hash[key] = others.pop(0)
        else:
            del self._by_hash[key]
        if not others:
            self._others.pop(key, None)

    def select(self, matchers: Sequence[Matcher]) -> Ids:
        """Sorted ids of the series that meet all matchers; all series when there are none."""
        key = tuple(matchers)
        found = self._selections.get(key)
        if found is None:
            if len(self._selections) >= _CACHED_SELECTIONS:
                self._selections.clear()
            found = self._selections[key] = self._search(key)
        return found

    def _search(self, matchers: tuple[Matcher, ...]) -> Ids:
        required = [self._having(m) for m in matchers if not m.matches("")]
        if required:
            required.sort(key=len)
            ids = required[0]
            for other in required[1:]:
                ids = np.intersect1d(ids, other, assume_unique=True)
        else:
            ids = np.array([i for i, labels in enumerate(self._labels) if labels is not None], dtype=np.int64)
        # A matcher that accepts the empty string accepts series without the label: take away those that it refuses.
        for matcher in matchers:
            if matcher.matches("") and len(ids):
                refused = [
                    posting.sorted_ids()
                    for value, posting in self._postings.get(matcher.name, {}).items()
                    if not matcher.matches(value)
                ]
                if refused:
                    ids = np.setdiff1d(ids, np.concatenate(refused), assume_unique=True)
        return ids

    def _having(self, matcher: Matcher) -> Ids:
        values: Mapping[str, _Posting] = self._postings.get(matcher.name, {})
        if matcher.op == "=":
            found = values.get(matcher.value)
            return _NONE if found is None else found.sorted_ids()
        some = [posting.sorted_ids() for value, posting in values.items() if matcher.matches(value)]
        return np.sort(np.concatenate(some)) if some else _NONE

    def names(self) -> list[str]:
        """All label names, sorted."""
        return sorted(self._postings)

    def values(self, name: str) -> list[str]:
        """All values of a label, sorted."""
        return sorted(self._postings.get(name, {}))


def _hash(labels: Labels) -> int:
    return hash(frozenset(labels.items()))
