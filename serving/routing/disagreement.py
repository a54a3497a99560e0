"""How much a shadow's outputs differ from the answers: a pure function of two batches of outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serving.protocol.tensors import Array

Floats = npt.NDArray[np.float64]


class Pair(NamedTuple):
    """One request's outputs by both versions: `names` and arrays [rows] or [rows, k], in the same order.

    A tuple, since there is one for each request of a shadow, made while callers may wait for the interpreter.
    """

    names: Sequence[str]
    answer: Sequence[Array]
    shadow_names: Sequence[str]
    shadow: Sequence[Array]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Of the pairs that can be compared: largest differences by request, and rows whose largest output is another.

    `absolute` is max |a - b|, `relative` is max |a - b| / max(|a|, |b|) (0 for 0 beside 0, at most 2). `ranked_rows`
    are those that have an output of at least two values; `other_rows` of them have another first choice. A place where
    either value is NaN or infinite, which only outputs that nobody asked for may hold, counts as no difference.
    """

    absolute: Floats
    relative: Floats
    incomparable: int
    ranked_rows: int
    other_rows: int


def compare(pairs: Sequence[Pair]) -> Disagreement:
    """Compares outputs of the same name and shape; a pair without any, or with one of another shape, is incomparable.

    Requests of the usual kind (same outputs, same widths) are compared in one pass over all their rows.
    """
    groups: dict[tuple[tuple[str, ...], tuple[tuple[int, ...], ...]], list[tuple[list[Array], list[Array]]]] = {}
    incomparable = 0
    for pair in pairs:
        matched = _matched(pair)
        if matched is None:
            incomparable += 1
            continue
        shared, answers, shadows = matched
        groups.setdefault((shared, tuple([a.shape[1:] for a in answers])), []).append((answers, shadows))
    parts = [_compare(group) for group in groups.values()]
    return Disagreement(
        np.concatenate([part.absolute for part in parts]) if parts else np.empty(0),
        np.concatenate([part.relative for part in parts]) if parts else np.empty(0),
        incomparable,
        sum(part.ranked_rows for part in parts),
        sum(part.other_rows for part in parts),
    )


def compare_rows(pair: Pair, rows: Sequence[int]) -> Disagreement:
    """Compares requests whose rows stand one behind the other in the pair's arrays: so many rows of each."""
    matched = _matched(pair)
    if matched is None:
        return Disagreement(np.empty(0), np.empty(0), len(rows), 0, 0)
    _, answers, shadows = matched
    return _compare_all(answers, shadows, rows)


def _matched(pair: Pair) -> tuple[tuple[str, ...], list[Array], list[Array]] | None:
    names, answer, shadow_names, shadow = pair
    if names == shadow_names:
        shared, answers, shadows = tuple(names), list(answer), list(shadow)
    else:
        shared = tuple(name for name in names if name in shadow_names)
        answers = [answer[names.index(name)] for name in shared]
        shadows = [shadow[shadow_names.index(name)] for name in shared]
    if not shared or [a.shape for a in answers] != [b.shape for b in shadows]:
        return None
    return shared, answers, shadows


def _compare(group: Sequence[tuple[list[Array], list[Array]]]) -> Disagreement:
    rows = [len(answers[0]) for answers, _ in group]
    outputs = range(len(group[0][0]))
    answers = [np.concatenate([answers[place] for answers, _ in group]) for place in outputs]
    shadows = [np.concatenate([shadows[place] for _, shadows in group]) for place in outputs]
    return _compare_all(answers, shadows, rows)


def _compare_all(answers: Sequence[Array], shadows: Sequence[Array], rows: Sequence[int]) -> Disagreement:
    """Arrays of all requests' rows by output, and how many rows each request has."""
    total = len(answers[0])
    absolute, relative = np.zeros(total), np.zeros(total)
    ranked, other = False, np.zeros(total, np.bool_)
    for answer, shadow in zip(answers, shadows, strict=True):
        # Doubles: the difference of two float32 may be infinite.
        a, b = answer.reshape(total, -1).astype(np.float64), shadow.reshape(total, -1).astype(np.float64)
        if a.shape[1] == 0:
            continue
        known = np.isfinite(a) & np.isfinite(b)
        if not known.all():
            a, b = np.where(known, a, 0.0), np.where(known, b, 0.0)
        gap = np.abs(a - b)
        size = np.maximum(np.abs(a), np.abs(b))
        absolute = np.maximum(absolute, gap.max(axis=1))
        relative = np.maximum(relative, np.divide(gap, size, out=np.zeros_like(gap), where=size > 0).max(axis=1))
        if a.shape[1] > 1:
            ranked = True
            other |= a.argmax(axis=1) != b.argmax(axis=1)
    if total != len(rows):
        starts = np.cumsum([0, *rows[:-1]])
        absolute, relative = np.maximum.reduceat(absolute, starts), np.maximum.reduceat(relative, starts)
    return Disagreement(absolute, relative, 0, total if ranked else 0, int(other.sum()))
