"""Which series share their times, and the blocks that matrices of samples make when they are put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collectors.store.values import Block, Floats, Labels, Times

Ids = NDArray[np.int64]
LabelsOf = Callable[[Sequence[int]], list[Labels]]


@dataclass(frozen=True, slots=True)
class Piece:
    """Samples of series (rising ids) that share their times: `t` [n], rising, and `v` [n, series]."""

    ids: Ids
    t: Times
    v: Floats


@dataclass(frozen=True, slots=True)
class Group:
    """Series that are in the same parts, hence share their times; for each part, their columns in it."""

    labels: list[Labels]
    columns: tuple[tuple[int, slice | Ids], ...]


def partition(members: Sequence[Ids]) -> list[tuple[Ids, list[int]]]:
    """Splits the union of some sets of ids by the sets that an id is in: (rising ids, positions of these sets).

    Each set is rising. The work is in proportion to the sets' sizes, not to how many sets there are.
    """
    if len(members) == 1:
        return [(members[0], [0])] if len(members[0]) else []
    everything = np.unique(np.concatenate(members)) if members else np.empty(0, dtype=np.int64)
    group = np.zeros(len(everything), dtype=np.int64)
    sizes, owners = [len(everything)], [list[int]()]
    for position, ids in enumerate(members):
        places = np.searchsorted(everything, ids)
        touched, inverse, counts = np.unique(group[places], return_inverse=True, return_counts=True)
        renamed = touched.copy()
        for k, (number, count) in enumerate(zip(touched.tolist(), counts.tolist(), strict=True)):
            if count == sizes[number]:
                owners[number].append(position)
                continue
            sizes[number] -= count
            renamed[k] = len(sizes)
            sizes.append(count)
            owners.append([*owners[number], position])
        group[places] = renamed[inverse]
    order = np.argsort(group, kind="stable")
    ends = np.cumsum(np.bincount(group, minlength=len(sizes)))
    return [
        (everything[order[end - size : end]], owner)
        for size, end, owner in zip(sizes, ends.tolist(), owners, strict=True)
        if size and owner
    ]


def group_parts(parts: Mapping[int, tuple[Ids, Callable[[Ids], Ids]]], labels_of: LabelsOf) -> list[Group]:
    """Groups of series by the parts that they are in; a part is its wanted series and their columns in it."""
    keys = list(parts)
    return [
        Group(
            labels_of(ids.tolist()),
            tuple((keys[k], compact(parts[keys[k]][1](ids))) for k in positions),
        )
        for ids, positions in partition([parts[key][0] for key in keys])
    ]


def compact(columns: Ids) -> slice | Ids:
    """Neighbouring columns as a slice, which reads them without a copy."""
    if len(columns) and np.array_equal(columns, np.arange(columns[0], columns[0] + len(columns))):
        return slice(int(columns[0]), int(columns[0]) + len(columns))
    return columns


def gather(groups: Sequence[Group], parts: Mapping[int, tuple[Times, Floats]]) -> list[Block]:
    """Blocks of the groups from row ranges; read-only, as they may be views of the head."""
    return [
        _block(group.labels, [(parts[key][0], parts[key][1][:, columns]) for key, columns in group.columns])
        for group in groups
    ]


def join(pieces: Sequence[Piece], labels_of: LabelsOf) -> list[Block]:
    """Blocks of pieces that may overlap: a sample that two of them have is taken once."""
    same: dict[bytes, list[Piece]] = {}
    for piece in pieces:
        if len(piece.ids) and len(piece.t):
            same.setdefault(piece.ids.tobytes(), []).append(piece)
    merged = [_merged(some) for some in same.values()]
    blocks = []
    for ids, positions in partition([piece.ids for piece in merged]):
        some = []
        for position in positions:
            piece = merged[position]
            columns = compact(np.searchsorted(piece.ids, ids))
            some.append((piece.t, piece.v[:, columns]))
        blocks.append(_block(labels_of(ids.tolist()), some))
    return blocks


def _merged(pieces: list[Piece]) -> Piece:
    if len(pieces) == 1:
        return pieces[0]
    t, v = _sorted_once([(piece.t, piece.v) for piece in pieces])
    return Piece(pieces[0].ids, t, v)


def _block(labels: list[Labels], pieces: list[tuple[Times, Floats]]) -> Block:
    t, v = (pieces[0][0][:], pieces[0][1]) if len(pieces) == 1 else _sorted_once(pieces)
    t.flags.writeable = v.flags.writeable = False
    return Block(labels, t, v)


def _sorted_once(pieces: list[tuple[Times, Floats]]) -> tuple[Times, Floats]:
    """The rows of all in time order; of rows with the same time, the first."""
    t, v = np.concatenate([piece[0] for piece in pieces]), np.concatenate([piece[1] for piece in pieces])
    if not (t[1:] > t[:-1]).all():
        t, first = np.unique(t, return_index=True)
        v = v[first]
    return t, v
