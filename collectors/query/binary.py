"""Binary operators: arithmetic, comparison and sets, between numbers and vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from collectors.query.errors import QueryError
from collectors.query.frame import IDENTITY, NAME, Bools, Floats, Frame, only_labels, without_labels
from collectors.query.syntax import Matching
from collectors.store import Labels

MULTIPLE_MATCHES = "multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)"
NOT_UNIQUE = "multiple matches for labels: grouping labels must ensure unique matches"

ARITHMETIC: dict[str, Callable[[Floats, Floats], Floats]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "%": np.fmod,
    "^": np.power,
    "atan2": np.arctan2,
}
COMPARISON: dict[str, Callable[[Floats, Floats], Bools]] = {
    "==": np.equal,
    "!=": np.not_equal,
    ">": np.greater,
    "<": np.less,
    ">=": np.greater_equal,
    "<=": np.less_equal,
}
SETS = ("and", "or", "unless")


def _function(op: str) -> Callable[[Floats, Floats], Floats]:
    found = ARITHMETIC.get(op)
    if found is None:
        raise QueryError(f"unsupported operator {op!r}", "bad_data")
    return found


def scalars(op: str, left: Floats, right: Floats) -> Floats:
    """Two numbers at each step; a comparison gives 0 or 1."""
    if op in COMPARISON:
        return COMPARISON[op](left, right).astype(np.float64)
    return _function(op)(left, right)


def vector_and_scalar(op: str, frame: Frame, scalar: Floats, swapped: bool, return_bool: bool, delayed: bool) -> Frame:
    """Every element with the number [steps]; `swapped` when the number is on the left."""
    left, right = (scalar[None, :], frame.values) if swapped else (frame.values, scalar[None, :])
    if op in ARITHMETIC:
        return frame.with_values(np.broadcast_to(_function(op)(left, right), frame.values.shape)).nameless(delayed)
    if op not in COMPARISON:
        raise QueryError(f"unsupported operator {op!r}", "bad_data")
    held = np.broadcast_to(COMPARISON[op](left, right), frame.values.shape)
    if return_bool:
        return frame.with_values(held.astype(np.float64)).nameless(delayed)
    return frame.with_values(frame.values, frame.present & held).without_empty()


def _signatures(frame: Frame, matching: Matching) -> list[object]:
    if matching.on:
        names = matching.labels
        return [tuple([labels.get(name, "") for name in names]) for labels in frame.labels]
    removed = {*matching.labels, NAME}
    return [frozenset(pair for pair in labels.items() if pair[0] not in removed) for labels in frame.labels]


def sets(op: str, left: Frame, right: Frame, matching: Matching) -> Frame:
    """and, or, unless."""
    left_keys, right_keys = _signatures(left, matching), _signatures(right, matching)
    if op == "or":
        missing = ~_presence(right_keys, left_keys, left.present, right.values.shape)
        added = Frame(right.labels, right.values, right.present & missing, right.drop_name)
        return Frame.concatenated([left, added.without_empty()], left.values.shape[1]).merged()
    there = _presence(left_keys, right_keys, right.present, left.values.shape)
    kept = left.present & (there if op == "and" else ~there)
    return left.with_values(left.values, kept).without_empty()


def _presence(keys: Sequence[object], others: Sequence[object], present: Bools, shape: tuple[int, ...]) -> Bools:
    """For each key [len(keys), steps]: whether some row of the others with that key is present."""
    by_key: dict[object, Bools] = {}
    for row, key in enumerate(others):
        by_key[key] = by_key[key] | present[row] if key in by_key else present[row]
    nothing = np.zeros(shape[1], dtype=np.bool_)
    return np.array([by_key.get(key, nothing) for key in keys], dtype=np.bool_).reshape(len(keys), shape[1])


def vectors(op: str, left: Frame, right: Frame, matching: Matching, return_bool: bool, delayed: bool) -> Frame:
    """Arithmetic or comparison of the elements that match. Raises QueryError where a match is not unique."""
    swapped = matching.cardinality == "one-to-many"
    many, one = (right, left) if swapped else (left, right)
    pairs = _pairs(many, one, matching, "left" if swapped else "right")
    many_rows = np.array([pair[0] for pair in pairs], dtype=np.int64)
    one_rows = np.array([pair[1] for pair in pairs], dtype=np.int64)
    many_values, one_values = many.values[many_rows], one.values[one_rows]
    present = many.present[many_rows] & one.present[one_rows]
    first, second = (one_values, many_values) if swapped else (many_values, one_values)
    keep_name = op in COMPARISON and not return_bool
    if op in COMPARISON:
        held = COMPARISON[op](first, second)
        values = held.astype(np.float64) if return_bool else first
    else:
        values, held = _function(op)(first, second), None
    if matching.cardinality == "one-to-one":
        _check_unique(many, pairs, present)
    if held is not None and not return_bool:
        present = present & held
    labels = [_result_labels(many.labels[m], one.labels[o], matching, keep_name or delayed) for m, o in pairs]
    drop = np.full(len(labels), delayed and not keep_name)
    if keep_name:
        drop = many.drop_name[many_rows]
    message = MULTIPLE_MATCHES if matching.cardinality == "one-to-one" else NOT_UNIQUE
    return Frame(labels, values, present, drop).without_empty().merged(message)


def _pairs(many: Frame, one: Frame, matching: Matching, one_side: str) -> list[tuple[int, int]]:
    """Rows that match, for every row of the `many` side in order."""
    by_key: dict[object, list[int]] = {}
    for row, key in enumerate(_signatures(one, matching)):
        by_key.setdefault(key, []).append(row)
    for rows in by_key.values():
        if len(rows) > 1 and (one.present[rows].sum(axis=0) > 1).any():
            examples = ", ".join(_text(one.labels[row]) for row in rows[:2])
            raise QueryError(
                f"found duplicate series for the match group {_text(_group(one.labels[rows[0]], matching))} on the "
                f"{one_side} hand-side of the operation: [{examples}];many-to-many matching not allowed: "
                "matching labels must be unique on one side"
            )
    return [(row, other) for row, key in enumerate(_signatures(many, matching)) for other in by_key.get(key, ())]


def _check_unique(many: Frame, pairs: Sequence[tuple[int, int]], present: Bools) -> None:
    """One-to-one: no two elements of the left side may meet the same one of the right at a step."""
    by_other: dict[int, list[int]] = {}
    for position, (_, other) in enumerate(pairs):
        by_other.setdefault(other, []).append(position)
    for positions in by_other.values():
        if len(positions) > 1 and (present[positions].sum(axis=0) > 1).any():
            raise QueryError(MULTIPLE_MATCHES)


def _group(labels: Labels, matching: Matching) -> Labels:
    if matching.on:
        return only_labels(labels, matching.labels)
    return without_labels(labels, (*matching.labels, NAME))


def _text(labels: Labels) -> str:
    return "{" + ", ".join(f'{name}="{value}"' for name, value in sorted(labels.items())) + "}"


def _result_labels(many: Labels, one: Labels, matching: Matching, keep_name: bool) -> Labels:
    labels = dict(many)
    if not keep_name:
        labels = without_labels(labels, IDENTITY)
    if matching.cardinality == "one-to-one":
        labels = only_labels(labels, matching.labels) if matching.on else without_labels(labels, matching.labels)
    for name in matching.include:
        if one.get(name):
            labels[name] = one[name]
        else:
            labels.pop(name, None)
    return labels
