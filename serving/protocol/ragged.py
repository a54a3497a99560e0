"""Inputs whose lengths vary: what shares a batch, how it is padded, and where the padding is cut off again."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from serving.protocol.tensors import Array

LENGTH_SUFFIX = ".length"


def bucket(length: int, sizes: Sequence[int]) -> int:
    """The padded length: the next of `sizes` (ascending), or of the powers of two where that list ends."""
    place = bisect_left(sizes, length)
    return sizes[place] if place < len(sizes) else 1 << (length - 1).bit_length()


def varying(dimensions: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """The lengths of a row's `dimensions` at the places where the declared `shape` has -1."""
    return tuple(length for length, declared in zip(dimensions, shape, strict=True) if declared == -1)


def padded(parts: Sequence[Array], shape: Sequence[int], sizes: Sequence[int]) -> Array:
    """Arrays [rows, *dimensions] one behind the other, zeros behind what varies, up to the bucket of the longest."""
    dimensions = [
        bucket(max(part.shape[1 + place] for part in parts), sizes) if declared == -1 else declared
        for place, declared in enumerate(shape)
    ]
    whole = np.zeros((sum(map(len, parts)), *dimensions), parts[0].dtype)
    start = 0
    for part in parts:
        whole[(slice(start, start + len(part)), *(slice(length) for length in part.shape[1:]))] = part
        start += len(part)
    return whole


def cut(output: Array, shape: Sequence[int], lengths: Sequence[int]) -> Array:
    """The output without the padding: its k-th dimension declared -1 is as long as the k-th of `lengths`."""
    following = iter(lengths)
    ends = [next(following, None) if declared == -1 else None for declared in shape]
    return output[(slice(None), *(slice(end) for end in ends))] if any(end is not None for end in ends) else output
