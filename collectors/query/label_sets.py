"""Label sets in the order of a frame's rows, with what was worked out from them kept for the next query."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from collectors.store import Labels

Ints = NDArray[np.int64]
Kept = TypeVar("Kept")

NAME = "__name__"
# What names a quantity where series carry their type and unit; a function that makes another quantity drops all three.
IDENTITY = (NAME, "__type__", "__unit__")
_KEPT_ANSWERS = 48
_KNOWN_SELECTIONS = 64


class LabelSets(list[Labels]):
    """A list of label sets that is never changed, and therefore remembers what was computed from it.

    The store gives the same list for the same selection, so grouping thousands of series, dropping their names or
    writing them as JSON is done once, not in every query.
    """

    __slots__ = ("_kept",)

    def __init__(self, items: Iterable[Labels] = ()) -> None:
        super().__init__(items)
        self._kept: dict[Hashable, object] = {}

    def kept(self, key: Hashable, compute: Callable[[], Kept]) -> Kept:
        """The answer to `key`, computed the first time."""
        found = self._kept.get(key, self)
        if found is self:
            found = compute()
            if len(self._kept) >= _KEPT_ANSWERS:
                self._kept.clear()
            self._kept[key] = found
        return cast(Kept, found)

    def rows(self, chosen: Ints) -> LabelSets:
        """Some label sets, in the given order."""
        return self.kept(("rows", chosen.tobytes()), lambda: LabelSets([self[row] for row in chosen.tolist()]))

    def without(self, names: tuple[str, ...]) -> LabelSets:
        """Copies that lack some labels."""
        return self.kept(("without", names), lambda: LabelSets([without_labels(labels, names) for labels in self]))

    def owners(self) -> Ints | None:
        """For each row the first row with the same labels; None when all differ."""

        def search() -> Ints | None:
            first: dict[frozenset[tuple[str, str]], int] = {}
            owner = [first.setdefault(frozenset(labels.items()), row) for row, labels in enumerate(self)]
            return None if len(first) == len(owner) else np.array(owner, dtype=np.int64)

        return self.kept("owners", search)

    def order(self) -> Ints:
        """The rows sorted by labels."""

        def search() -> Ints:
            keys = [sorted(labels.items()) for labels in self]
            return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)

        return self.kept("order", search)


def label_sets(labels: Sequence[Labels]) -> LabelSets:
    """The list as LabelSets; itself if it is one."""
    return labels if isinstance(labels, LabelSets) else LabelSets(labels)


class _Known:
    """LabelSets of lists seen before, found by the lists' identity."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # The lists are held too, so that none of their addresses is given to another list.
        self._found: OrderedDict[tuple[int, ...], tuple[list[list[Labels]], LabelSets]] = OrderedDict()

    def joined(self, parts: list[list[Labels]]) -> LabelSets:
        """The label sets of all lists, one after the other; the same object for the same lists."""
        if len(parts) == 1 and isinstance(parts[0], LabelSets):
            return parts[0]
        key = tuple([id(part) for part in parts])
        with self._lock:
            found = self._found.get(key)
            if found is None:
                found = parts, LabelSets([labels for part in parts for labels in part])
                self._found[key] = found
                if len(self._found) > _KNOWN_SELECTIONS:
                    self._found.popitem(last=False)
            else:
                self._found.move_to_end(key)
            return found[1]


joined = _Known().joined


def without_labels(labels: Labels, names: Iterable[str]) -> dict[str, str]:
    """A copy that lacks some labels."""
    kept = dict(labels)
    for name in names:
        kept.pop(name, None)
    return kept


def only_labels(labels: Labels, names: Iterable[str]) -> dict[str, str]:
    """A copy that has only some labels."""
    return {name: labels[name] for name in names if name in labels}
