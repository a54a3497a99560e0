"""`info()`: the data labels of info metrics, such as `target_info`, on the series of the same instance and job."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from collectors.query.binary import label_text
from collectors.query.context import Context, instant
from collectors.query.errors import QueryError
from collectors.query.frame import NAME, Bools, Frame, Ints, LabelSets
from collectors.query.selectors import children_of
from collectors.query.syntax import At, Node, Selector, Subquery
from collectors.store import Labels, Matcher

# What identifies the target of a series (promql/info.go).
_IDENTIFYING = ("instance", "job")
_Signature = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which info metrics, and which of their labels (`data`; none: all)."""

    names: tuple[Matcher, ...]
    data: dict[str, list[Matcher]]

    @property
    def may_be_missing(self) -> bool:
        """Whether a series without any info metric stays."""
        return all(matcher.matches("") for matchers in self.data.values() for matcher in matchers)


def with_info(base: Frame, argument: Node, selector: Selector | None, context: Context) -> Frame:
    """The frame with labels of the info metrics; they are read as of the times that the argument looks at."""
    wanted = _wanted(selector)
    own = np.array([all(m.matches(labels.get(NAME, "")) for m in wanted.names) for labels in base.labels], dtype=bool)
    info, stamps = _info_series(base, own, wanted, argument, context)
    newest = _newest(info, stamps)
    rows: list[tuple[int, Bools, Labels]] = []
    for row, labels in enumerate(base.labels):
        if own[row]:
            rows.append((row, base.present[row], labels))
            continue
        for steps, extra in _combinations(labels, newest, info, wanted, base.present[row]):
            there = base.present[row] & steps
            if there.any():
                rows.append((row, there, {**labels, **extra}))
    index = np.array([row for row, _, _ in rows], dtype=np.int64)
    present = np.array([there for _, there, _ in rows], dtype=np.bool_).reshape(len(rows), base.values.shape[1])
    found = LabelSets(labels for _, _, labels in rows)
    return Frame(found, base.values[index], present, base.drop_name[index]).merged()


def _wanted(selector: Selector | None) -> _Wanted:
    names: list[Matcher] = []
    data: dict[str, list[Matcher]] = {}
    for matcher in selector.matchers if selector else ():
        if matcher.name == NAME:
            names.append(matcher)
        else:
            data.setdefault(matcher.name, []).append(matcher)
    if not names:
        names = [Matcher(NAME, "=", "target_info")]
    elif not any(matcher.op in ("=", "=~") for matcher in names):
        names.insert(0, Matcher(NAME, "=~", ".+_info"))
    return _Wanted(tuple(names), data)


def _info_series(base: Frame, own: Bools, wanted: _Wanted, argument: Node, context: Context) -> tuple[Frame, Frame]:
    """The info metrics of the same targets, and when their samples were taken."""
    values: dict[str, set[str]] = defaultdict(set)
    for row, labels in enumerate(base.labels):
        for name in _IDENTIFYING:
            if not own[row] and labels.get(name):
                values[name].add(labels[name])
    if not values:
        empty = Frame.empty(len(context.times))
        return empty, empty
    targets = [
        Matcher(name, "=~", "|".join(re.escape(value) for value in sorted(some))) for name, some in values.items()
    ]
    data = [matcher for matchers in wanted.data.values() for matcher in matchers]
    at, offset_ms = next(_references(argument, None, 0), (None, 0))
    return instant(Selector((*targets, *data, *wanted.names), offset_ms, at), context)


def _references(node: Node, at: At | None, offset_ms: int) -> Iterator[tuple[At | None, int]]:
    """The time that each selector looks at: the innermost `@`, and the offsets up to there."""
    if isinstance(node, Selector):
        yield (at, offset_ms + node.offset_ms) if node.at is None else (node.at, node.offset_ms)
        return
    if isinstance(node, Subquery):
        at, offset_ms = (at, offset_ms + node.offset_ms) if node.at is None else (node.at, node.offset_ms)
    for child in children_of(node):
        yield from _references(child, at, offset_ms)


def _signature(labels: Labels) -> _Signature:
    return tuple(labels.get(name, "") for name in _IDENTIFYING)


def _newest(info: Frame, stamps: Frame) -> dict[_Signature, list[Ints]]:
    """For each target, and each info metric of it, the row that is current at each step, or -1."""
    by_metric: dict[tuple[_Signature, str], list[int]] = defaultdict(list)
    for row, labels in enumerate(info.labels):
        by_metric[_signature(labels), labels.get(NAME, "")].append(row)
    found: dict[_Signature, list[Ints]] = defaultdict(list)
    for (signature, _), rows in by_metric.items():
        times = np.where(info.present[rows], stamps.values[rows], -np.inf)
        best = times.max(axis=0)
        if ((times == best) & np.isfinite(best)).sum(axis=0).max() > 1:
            clash = sorted(label_text(info.labels[row]) for row in rows)
            raise QueryError(f"found duplicate series for info metric: {', '.join(clash)}")
        found[signature].append(np.where(np.isfinite(best), np.array(rows)[times.argmax(axis=0)], -1))
    return found


def _combinations(
    labels: Labels, newest: dict[_Signature, list[Ints]], info: Frame, wanted: _Wanted, present: Bools
) -> Iterator[tuple[Bools, Labels]]:
    """Steps with the same info rows, and the labels that those add to a series."""
    metrics = newest.get(_signature(labels), [])
    chosen = np.stack(metrics) if metrics else np.full((1, len(present)), -1)
    for rows in np.unique(chosen[:, present], axis=1).T:
        steps = (chosen == rows[:, None]).all(axis=0)
        current = [int(row) for row in rows if row >= 0]
        if current or wanted.may_be_missing:
            yield steps, _added(labels, [info.labels[row] for row in current], wanted)


def _added(labels: Labels, sources: list[Labels], wanted: _Wanted) -> Labels:
    added: dict[str, str] = {}
    for source in sources:
        for name, value in source.items():
            if name == NAME or (wanted.data and name not in wanted.data):
                continue
            if added.get(name, value) != value:
                raise QueryError(f"conflicting label: {name}")
            if name not in labels:
                added[name] = value
    return added
