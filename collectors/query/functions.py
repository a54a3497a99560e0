"""Functions of an instant vector that work element by element, and those of labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from collectors.query.errors import QueryError
from collectors.query.frame import Floats, Frame, LabelSets, Naming
from collectors.store import Labels
from collectors.store.regex import compile_go

_REFERENCE = re.compile(r"\$(?:\$|(\w+)|\{(\w+)\})")
# datetime64[s] in, whole numbers out.
Moments = np.ndarray[Any, Any]

_RUNS = re.compile(r"[0-9]+|[^0-9]+")
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


def _round_half_up(values: Floats, to_nearest: Floats) -> Floats:
    inverse = 1.0 / to_nearest
    return np.floor(values * inverse + 0.5) / inverse


MATHS: dict[str, Callable[[Floats], Floats]] = {
    "abs": np.abs,
    "ceil": np.ceil,
    "floor": np.floor,
    "exp": np.exp,
    "ln": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "sqrt": np.sqrt,
    "sgn": np.sign,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "deg": np.degrees,
    "rad": np.radians,
}


_LAST = np.iinfo(np.int64).max


# --- calendar (UTC; values are unix seconds) --------------------------------------------------------------------------
def _calendar(read: Callable[[Moments], Moments]) -> Callable[[Floats], Floats]:
    def apply(values: Floats) -> Floats:
        # What is no 64-bit number of seconds, NaN too, is one second after the last, as in Go on most machines.
        fits = np.abs(values) < 2.0**63
        whole = np.where(fits, values, 0).astype(np.int64)
        return read(np.where(fits, whole, _LAST).astype("datetime64[s]")).astype(np.float64)

    return apply


def _since(unit: str, within: str) -> Callable[[Moments], Moments]:
    return lambda t: (
        t.astype(f"datetime64[{unit}]") - t.astype(f"datetime64[{within}]").astype(f"datetime64[{unit}]")
    ).astype(np.int64)


def _days_in_month(t: Moments) -> Moments:
    month = t.astype("datetime64[M]")
    days: Moments = ((month + 1).astype("datetime64[D]") - month.astype("datetime64[D]")).astype(np.int64)
    return days


CALENDAR: dict[str, Callable[[Floats], Floats]] = {
    "minute": _calendar(_since("m", "h")),
    "hour": _calendar(_since("h", "D")),
    "day_of_month": _calendar(lambda t: _since("D", "M")(t) + 1),
    "day_of_year": _calendar(lambda t: _since("D", "Y")(t) + 1),
    # 1970-01-01 was a Thursday; Sunday is 0.
    "day_of_week": _calendar(lambda t: (t.astype("datetime64[D]").astype(np.int64) + 4) % 7),
    "days_in_month": _calendar(_days_in_month),
    "month": _calendar(lambda t: _since("M", "Y")(t) + 1),
    "year": _calendar(lambda t: t.astype("datetime64[Y]").astype(np.int64) + 1970),
}


def larger(first: Floats, second: Floats) -> Floats:
    """The larger of two: +Inf even beside NaN, as Go's math.Max."""
    return np.where(np.isposinf(first) | np.isposinf(second), np.inf, np.maximum(first, second))


def smaller(first: Floats, second: Floats) -> Floats:
    """The smaller of two: -Inf even beside NaN, as Go's math.Min."""
    return np.where(np.isneginf(first) | np.isneginf(second), -np.inf, np.minimum(first, second))


def clamp(frame: Frame, low: Floats, high: Floats, naming: Naming) -> Frame:
    """Values held within [low, high] ([steps] each); nothing at the steps where low > high."""
    values = larger(smaller(frame.values, high), low)
    return frame.with_values(values, frame.present & ~(low > high)).without_empty().nameless(naming)


def rounded(frame: Frame, to_nearest: Floats, naming: Naming) -> Frame:
    """Rounded to the nearest multiple; ties go up."""
    return frame.with_values(_round_half_up(frame.values, to_nearest)).nameless(naming)


def ordered(frame: Frame, descending: bool) -> Frame:
    """Sorted by value, NaN last; only when there is one step, as order means nothing over a range."""
    if frame.values.shape[1] != 1:
        return frame
    values = frame.values[:, 0]
    return frame.rows(np.lexsort((-values if descending else values, np.isnan(values))))


def ordered_by_labels(frame: Frame, names: Sequence[str], descending: bool) -> Frame:
    """Sorted by the values of the labels, numbers in them as numbers, then by all labels; as `ordered`."""
    if frame.values.shape[1] != 1:
        return frame
    keys = [
        ([_natural(labels.get(name, "")) for name in names], sorted(labels.items()), row)
        for row, labels in enumerate(frame.labels)
    ]
    return frame.rows([row for *_, row in sorted(keys, reverse=descending)])


def _natural(text: str) -> list[tuple[int, int | str, str]]:
    """Runs of digits compare as numbers and come before other text."""
    return [(0, int(run), run) if run.isdigit() else (1, run, "") for run in _RUNS.findall(text)]


def label_replace(frame: Frame, target: str, replacement: str, source: str, pattern: str) -> Frame:
    """`target` set to `replacement` (with $1, ${name}) where the whole value of `source` matches."""
    try:
        regex = compile_go(pattern)
    except ValueError as error:
        raise QueryError(f"invalid regular expression in label_replace(): {pattern}") from error
    if not _LABEL_NAME.fullmatch(target):
        raise QueryError(f"invalid destination label name in label_replace(): {target}")

    def replaced() -> tuple[LabelSets, list[int]]:
        changed: list[Labels] = []
        matched: list[int] = []
        for row, labels in enumerate(frame.labels):
            match = regex.fullmatch(labels.get(source, ""))
            if match is None:
                changed.append(labels)
            else:
                changed.append(_with_label(labels, target, _expanded(replacement, match)))
                matched.append(row)
        return LabelSets(changed), matched

    changed, matched = frame.labels.kept(("replace", target, replacement, source, pattern), replaced)
    drop = frame.drop_name
    if target == "__name__":
        drop = drop.copy()
        drop[matched] = False
    return frame.with_labels(changed, drop)


def _expanded(template: str, match: re.Match[str]) -> str:
    def value(reference: re.Match[str]) -> str:
        name = reference[1] or reference[2]
        if name is None:
            return "$"
        if name.isdigit():
            return (match[int(name)] or "") if int(name) <= (match.re.groups) else ""
        return (match[name] or "") if name in match.re.groupindex else ""

    return _REFERENCE.sub(value, template)


def label_join(frame: Frame, target: str, separator: str, sources: list[str]) -> Frame:
    """`target` set to the values of the sources, joined."""
    for name in (target, *sources):
        if not _LABEL_NAME.fullmatch(name):
            kind = "destination" if name == target else "source"
            raise QueryError(f"invalid {kind} label name in label_join(): {name}")

    def joined() -> LabelSets:
        texts = [separator.join(labels.get(name, "") for name in sources) for labels in frame.labels]
        return LabelSets(_with_label(labels, target, text) for labels, text in zip(frame.labels, texts, strict=True))

    changed = frame.labels.kept(("join", target, separator, *sources), joined)
    drop = np.zeros_like(frame.drop_name) if target == "__name__" else frame.drop_name
    return frame.with_labels(changed, drop)


def _with_label(labels: Labels, name: str, value: str) -> Labels:
    changed = dict(labels)
    if value:
        changed[name] = value
    else:
        changed.pop(name, None)
    return changed
