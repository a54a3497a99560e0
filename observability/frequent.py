"""The most frequent texts of a column in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable

CAPACITY = 65_536


class FrequentTexts:
    """Counts of texts: exact up to `capacity` different ones, beyond that each too low by at most rows / capacity.

    Misra and Gries 1982, "Finding repeated elements", as merged by Agarwal et al. 2012, "Mergeable summaries".
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._counts: dict[str, int] = {}
        self.complete = True
        """Whether no text was dropped, so that all counts are exact."""

    def add(self, counted: Iterable[tuple[str, int]]) -> None:
        """Adds texts with the number of times that each occurs."""
        counts = self._counts
        for text, count in counted:
            counts[text] = counts.get(text, 0) + count
        if len(counts) > self._capacity:
            self.complete = False
            floor = sorted(counts.values(), reverse=True)[self._capacity]
            self._counts = {text: count - floor for text, count in counts.items() if count > floor}

    def most(self, number: int) -> tuple[tuple[str, ...], bool]:
        """The `number` most frequent texts, most frequent first, and whether there are others."""
        ordered = sorted(self._counts, key=lambda text: (-self._counts[text], text))
        return tuple(ordered[:number]), len(ordered) > number or not self.complete
