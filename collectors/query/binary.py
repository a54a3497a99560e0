"""Binary operators: arithmetic, comparison and sets, between numbers and vectors."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np

from collectors.query.context import Semantics
from collectors.query.errors import QueryError
from collectors.query.frame import NAME, Bools, Floats, Frame, Ints, LabelSets, Naming, only_labels, without_labels
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


def _named(op: str, return_bool: bool, semantics: Semantics) -> bool:
    """Whether the result is still the quantity of the left side."""
    if op in COMPARISON:
        return not return_bool
    return op == "atan2" and semantics.arctangent_keeps_name


def vector_and_scalar(
    op: str, frame: Frame, scalar: Floats, swapped: bool, return_bool: bool, semantics: Semantics
) -> Frame:
    """Every element with the number [steps]; `swapped` when the number is on the left."""
    left, right = (scalar[None, :], frame.values) if swapped else (frame.values, scalar[None, :])
    if op in COMPARISON:
        held = np.broadcast_to(COMPARISON[op](left, right), frame.values.shape)
        if not return_bool:
            return frame.with_values(frame.values, frame.present & held).without_empty()
        result = frame.with_values(held.astype(np.float64))
    else:
        result = frame.with_values(np.broadcast_to(_function(op)(left, right), frame.values.shape))
    return result if _named(op, return_bool, semantics) else result.nameless(semantics.naming)


# --- matching ---------------------------------------------------------------------------------------------------------
def _signatures(labels: LabelSets, matching: Matching) -> list[Hashable]:
    """What must be equal for elements to match, a row each."""

    def compute() -> list[Hashable]:
        if matching.on:
            names = matching.labels
            return [tuple([own.get(name, "") for name in names]) for own in labels]
        removed = {*matching.labels, NAME}
        return [frozenset(pair for pair in own.items() if pair[0] not in removed) for own in labels]

    return labels.kept(("signatures", matching.on, matching.labels), compute)


@dataclass(frozen=True, slots=True)
class _Codes:
    """The signatures of both sides as numbers below `size`."""

    left: Ints
    right: Ints
    size: int


def _codes(left: LabelSets, right: LabelSets, matching: Matching) -> _Codes:
    def compute() -> tuple[LabelSets, _Codes]:
        numbers: dict[Hashable, int] = {}
        sides = [
            np.array([numbers.setdefault(key, len(numbers)) for key in _signatures(side, matching)], dtype=np.int64)
            for side in (left, right)
        ]
        return right, _Codes(sides[0], sides[1], len(numbers))

    # The right side is held as well, so that its address is not given to another.
    return left.kept(("codes", id(right), matching.on, matching.labels), compute)[1]


def _any_present(codes: Ints, present: Bools, size: int) -> Bools:
    """For each signature [size, steps]: whether some row with it is present."""
    found = np.zeros((size, present.shape[1]), dtype=np.bool_)
    if len(codes):
        order = np.argsort(codes, kind="stable")
        distinct, starts = np.unique(codes[order], return_index=True)
        found[distinct] = np.logical_or.reduceat(present[order], starts, axis=0)
    return found


def _at_most_one(codes: Ints, present: Bools, size: int) -> int | None:
    """A signature that two rows present at one step share; None when there is none."""
    counts = np.bincount(codes, minlength=size)
    if len(codes) == 0 or counts.max() < 2:
        return None
    shared = np.flatnonzero(counts[codes] > 1)
    order = shared[np.argsort(codes[shared], kind="stable")]
    distinct, starts = np.unique(codes[order], return_index=True)
    crowded = (np.add.reduceat(present[order].astype(np.int64), starts, axis=0) > 1).any(axis=1)
    return int(distinct[np.argmax(crowded)]) if crowded.any() else None


# --- operators between vectors ----------------------------------------------------------------------------------------
def sets(op: str, left: Frame, right: Frame, matching: Matching) -> Frame:
    """and, or, unless."""
    codes = _codes(left.labels, right.labels, matching)
    if op == "or":
        there = _any_present(codes.left, left.present, codes.size)[codes.right]
        added = Frame(right.labels, right.values, right.present & ~there, right.drop_name)
        return Frame.concatenated([left, added.without_empty()], left.values.shape[1]).merged()
    there = _any_present(codes.right, right.present, codes.size)[codes.left]
    kept = left.present & (there if op == "and" else ~there)
    return left.with_values(left.values, kept).without_empty()


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Rows that match, in the order of the `many` side, with the signature of each pair and the labels it gets."""

    many: Ints
    one: Ints
    code: Ints
    labels: LabelSets


def _pairs(many: LabelSets, one: LabelSets, matching: Matching, naming: Naming | None) -> _Pairs:
    def compute() -> tuple[LabelSets, _Pairs]:
        codes = _codes(many, one, matching)
        by_code: dict[int, list[int]] = {}
        for row, code in enumerate(codes.right.tolist()):
            by_code.setdefault(code, []).append(row)
        found = [(row, other) for row, code in enumerate(codes.left.tolist()) for other in by_code.get(code, ())]
        labels = [_result_labels(many[row], one[other], matching, naming) for row, other in found]
        index = np.array(found, dtype=np.int64).reshape(len(found), 2)
        return one, _Pairs(index[:, 0], index[:, 1], codes.left[index[:, 0]], LabelSets(labels))

    return many.kept(("pairs", id(one), matching, naming), compute)[1]


def vectors(op: str, left: Frame, right: Frame, matching: Matching, return_bool: bool, semantics: Semantics) -> Frame:
    """Arithmetic or comparison of the elements that match. Raises QueryError where a match is not unique."""
    swapped = matching.cardinality == "one-to-many"
    many, one = (right, left) if swapped else (left, right)
    codes = _codes(many.labels, one.labels, matching)
    if len(many) and len(one):
        _check_one_side(many, one, codes, matching, "left" if swapped else "right")
    named, naming = _named(op, return_bool, semantics), semantics.naming
    # The name of a comparison with `bool` goes at the end if names do; that of arithmetic at once.
    later = naming.delayed and op in COMPARISON
    pairs = _pairs(many.labels, one.labels, matching, None if named or later else naming)
    many_values, one_values = many.values[pairs.many], one.values[pairs.one]
    present = many.present[pairs.many] & one.present[pairs.one]
    first, second = (one_values, many_values) if swapped else (many_values, one_values)
    held = COMPARISON[op](first, second) if op in COMPARISON else None
    kept = present if held is None or return_bool else present & held
    one_to_one = matching.cardinality == "one-to-one"
    counted = kept if semantics.filter_first else present
    if one_to_one and _at_most_one(pairs.code, counted, codes.size) is not None:
        raise QueryError(MULTIPLE_MATCHES)
    message = MULTIPLE_MATCHES if one_to_one else NOT_UNIQUE
    drop = many.drop_name[pairs.many] if named else np.full(len(pairs.labels), naming.delayed)
    if counted is not kept:
        Frame(pairs.labels, present.astype(np.float64), present, drop).merged(message)
    values = first
    if held is None:
        values = _function(op)(first, second)
    elif return_bool:
        values = held.astype(np.float64)
    return Frame(pairs.labels, values, kept, drop).without_empty().merged(message)


def _check_one_side(many: Frame, one: Frame, codes: _Codes, matching: Matching, side: str) -> None:
    shared = _at_most_one(codes.right, one.present, codes.size)
    if shared is None:
        return
    rows = np.flatnonzero(codes.right == shared)
    step = int(np.argmax(one.present[rows].sum(axis=0) > 1))
    if not many.present[:, step].any() and not (many.present.any(axis=0) & (one.present[rows].sum(axis=0) > 1)).any():
        return  # nothing is on the other side then, and nothing is looked for
    rows = rows[one.present[rows, step]]
    examples = sorted(label_text(one.labels[row]) for row in rows[:2])
    group = only_labels(one.labels[rows[0]], matching.labels) if matching.on else without_labels(
        one.labels[rows[0]], (*matching.labels, NAME)
    )  # fmt: skip
    raise QueryError(
        f"found duplicate series for the match group {label_text(group)} on the {side} hand-side of the operation: "
        f"[{', '.join(examples)}];many-to-many matching not allowed: matching labels must be unique on one side"
    )


def label_text(labels: Labels) -> str:
    """A label set as Prometheus writes it: the metric name in front."""
    rest = sorted((name, value) for name, value in labels.items() if name != NAME)
    inside = ", ".join(f'{name}="{_escaped(value)}"' for name, value in rest)
    name = labels.get(NAME, "")
    return f"{name}{{{inside}}}" if inside or not name else name


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _result_labels(many: Labels, one: Labels, matching: Matching, naming: Naming | None) -> Labels:
    labels = dict(many) if naming is None else without_labels(many, naming.labels)
    if matching.cardinality == "one-to-one":
        labels = only_labels(labels, matching.labels) if matching.on else without_labels(labels, matching.labels)
    for name in matching.include:
        if one.get(name):
            labels[name] = one[name]
        else:
            labels.pop(name, None)
    return labels
