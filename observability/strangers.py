"""A bounded sample of texts with exact counts that merges exactly: those with the smallest hashes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

CAPACITY = 64
# A longer text is kept as its beginning and its hash.
_KEPT_BYTES, _KEPT_CHARACTERS = 128, 64
_HASHED_WORDS = 64

Hashes = NDArray[np.uint64]


class Sample:
    """The texts of the smallest hashes among all that were added, with their exact counts.

    A text that is in the final sample was in every partial one, so its count is exact, in whatever order and
    partition the texts came (bottom-k: Cohen and Kaplan 2007, "Summarizing data using bottom-k sketches").
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._hashes: dict[str, int] = {}

    def add(self, texts: pa.Array, counts: NDArray[np.int64] | None = None) -> Hashes:
        """Adds non-null texts, each as often as `counts` says, else once; their hashes."""
        hashes = hashed(texts)
        if not len(texts):
            return hashes
        if len(self._counts) >= CAPACITY:
            limit = np.uint64(max(self._hashes.values()))
        else:
            different = np.unique(hashes)
            limit = different[min(CAPACITY, len(different)) - 1]
        near = np.flatnonzero(hashes <= limit)
        kept = texts.take(pa.array(near))
        times = np.ones(len(near), np.int64) if counts is None else counts[near]
        for text, value, count in zip(kept.to_pylist(), hashes[near].tolist(), times.tolist(), strict=True):
            key = _key(text, value)
            self._counts[key] = self._counts.get(key, 0) + count
            self._hashes[key] = value
        if len(self._counts) > CAPACITY:
            nearest = sorted(self._hashes, key=lambda key: (self._hashes[key], key))[:CAPACITY]
            self._counts = {key: self._counts[key] for key in nearest}
            self._hashes = {key: self._hashes[key] for key in nearest}
        return hashes

    def result(self) -> dict[str, int]:
        """The sample in the order of its hashes."""
        return {key: self._counts[key] for key in sorted(self._hashes, key=lambda key: (self._hashes[key], key))}


def merged(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    """The sample of both samples' texts, in the order of their hashes."""
    if not left or not right:
        return dict(left or right)
    total = dict(left)
    for text, count in right.items():
        total[text] = total.get(text, 0) + count
    return ordered(total)


def hashes_of(sample: Mapping[str, int]) -> Hashes:
    """The hashes of a sample's texts, also of shortened ones."""
    return _key_hashes(list(sample))


def ordered(sample: Mapping[str, int]) -> dict[str, int]:
    """The sample in the order of its hashes, at most `CAPACITY` of them."""
    keys = list(sample)
    found = sorted(zip(_key_hashes(keys).tolist(), keys, strict=True))
    return {key: sample[key] for _, key in found[:CAPACITY]}


def hashed(texts: pa.Array) -> Hashes:
    """A 64-bit hash of each text (no nulls), from the first 512 bytes and the length; the same on every machine."""
    array = texts.cast(pa.large_utf8())
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
    buffer = array.buffers()[2]
    size = offsets[-1] if len(offsets) else 0
    # Eight bytes more, so that every byte begins a word.
    data = np.zeros(int(size) + 8, np.uint8)
    if buffer is not None:
        data[:size] = np.frombuffer(buffer, np.uint8)[:size]
    words = np.ndarray((int(size) + 1,), "<u8", data, strides=(1,))
    lengths = np.diff(offsets)
    hashes = _mixed(lengths.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    for word in range(min(_HASHED_WORDS, int(-(-lengths.max(initial=0) // 8)))):
        active = np.flatnonzero(lengths > 8 * word)
        rest = np.minimum(lengths[active] - 8 * word, 8).astype(np.uint64)
        mask = np.uint64(0xFFFF_FFFF_FFFF_FFFF) >> (np.uint64(64) - np.uint64(8) * rest)
        hashes[active] = _mixed(hashes[active] ^ (words[offsets[:-1][active] + 8 * word] & mask))
    return hashes


def _mixed(values: Hashes) -> Hashes:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _key(text: str, value: int) -> str:
    return text if len(text.encode()) <= _KEPT_BYTES else f"{text[:_KEPT_CHARACTERS]}…#{value:016x}"


def _key_hashes(keys: list[str]) -> Hashes:
    hashes = hashed(pa.array(keys, pa.large_utf8()))
    for place, key in enumerate(keys):
        head, mark, digits = key.rpartition("…#")
        # A shortened key carries the hash of its whole text.
        if mark and len(head) == _KEPT_CHARACTERS and len(digits) == 16:
            try:
                hashes[place] = int(digits, 16)
            except ValueError:
                continue
    return hashes
