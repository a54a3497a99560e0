"""Scripts of samples, expressions and what they must give: a runner of the part of Prometheus' test format used here.

`load STEP` with series and points (`1 2`, `0+5x10`, `1x3`, `_`, `_x4`, `stale`), `clear`, `eval[_fail|_ordered] instant
at T EXPR`, `eval range from A to B step S EXPR`, each followed by the expected series or, for a scalar, one number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from collectors.query import parse_selector
from collectors.store import STALE_NAN
from observability.durations import duration_ms

Labels = dict[str, str]
Points = list[tuple[int, float]]
Value = float | str | list[tuple[Labels, object]]

# Of Prometheus' own runner: relative to the sum of both values.
EPSILON = 1e-6
_INSTANT = re.compile(r"eval(?P<kind>_fail|_ordered)? instant at (?P<at>\S+) (?P<expr>.+)")
_RANGE = re.compile(r"eval range from (?P<start>\S+) to (?P<end>\S+) step (?P<step>\S+) (?P<expr>.+)")
_POINT = re.compile(r"(?P<first>_|stale|[+-]?(?:[\d.]+(?:e[+-]?\d+)?|Inf|NaN))(?P<by>[+-][\d.]+)?(?:x(?P<times>\d+))?")


class Engine(Protocol):
    """What a script is run on."""

    def clear(self) -> None: ...

    def load(self, series: list[tuple[Labels, Points]]) -> None: ...

    def instant(self, expr: str, t_ms: int) -> Value: ...

    def range(self, expr: str, start_ms: int, end_ms: int, step_ms: int) -> list[tuple[Labels, object]]: ...


@dataclass(slots=True)
class Statement:
    """One expression of a script, and what it must give: series with a value a step (None: no point), or a number."""

    file: str
    line: int
    expr: str
    start_ms: int
    end_ms: int
    step_ms: int
    kind: str = ""
    series: list[tuple[Labels, list[float | None]]] = field(default_factory=list)
    scalar: float | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.expr}"


def run(path: Path, engine: Engine) -> Iterator[tuple[Statement, str]]:
    """Runs a script; gives each statement with what was wrong, or an empty text."""
    engine.clear()
    statement: Statement | None = None
    loading: list[tuple[Labels, Points]] | None = None
    step_ms = 0
    for number, raw in enumerate([*path.read_text().splitlines(), ""], start=1):
        line = raw.strip()
        if line.startswith("#"):
            line = ""
        if not line:
            if statement is not None:
                yield statement, _checked(statement, engine)
            if loading is not None:
                engine.load(loading)
            statement = loading = None
        elif line == "clear":
            engine.clear()
        elif line.startswith("load "):
            loading, step_ms = [], duration_ms(line.split()[1])
        elif line.startswith("eval"):
            statement = _statement(path.name, number, line)
        elif loading is not None:
            labels, values = _series(line)
            loading.append((labels, [(i * step_ms, v) for i, v in enumerate(values) if v is not None]))
        elif statement is not None:
            _expect(statement, line)
        else:
            raise ValueError(f"{path.name}:{number}: {line!r} belongs to nothing")


def _statement(file: str, number: int, line: str) -> Statement:
    if match := _INSTANT.fullmatch(line):
        at = duration_ms(match["at"])
        return Statement(file, number, match["expr"], at, at, 0, match["kind"] or "")
    match = _RANGE.fullmatch(line)
    if match is None:
        raise ValueError(f"{file}:{number}: {line!r} is no statement")
    start_ms, end_ms, step_ms = (duration_ms(match[name]) for name in ("start", "end", "step"))
    return Statement(file, number, match["expr"], start_ms, end_ms, step_ms, "_range")


def _expect(statement: Statement, line: str) -> None:
    if re.fullmatch(r"[+-]?(?:[\d.]+(?:e[+-]?\d+)?|Inf|NaN)", line):
        statement.scalar = float(line)
    else:
        statement.series.append(_series(line))


def _series(line: str) -> tuple[Labels, list[float | None]]:
    """The labels, and a value or nothing for each step."""
    match = re.match(r"[^\s{]*(?:\{(?:[^}\"]|\"[^\"]*\")*\})?", line)
    assert match is not None
    text, values = match[0], line[match.end() :]
    matchers = () if text == "{}" else parse_selector(text)
    points: list[float | None] = []
    for piece in values.split():
        point = _POINT.fullmatch(piece)
        if point is None:
            raise ValueError(f"{piece!r} is no point")
        times = int(point["times"] or 0)
        if point["first"] == "_":
            points += [None] * max(times, 1)
            continue
        value = STALE_NAN if point["first"] == "stale" else float(point["first"])
        points += [value + i * float(point["by"] or 0) if point["by"] else value for i in range(times + 1)]
    return {matcher.name: matcher.value for matcher in matchers}, points


def _checked(statement: Statement, engine: Engine) -> str:
    try:
        if statement.kind == "_range":
            steps = range(statement.start_ms, statement.end_ms + 1, statement.step_ms)
            found: Value = engine.range(statement.expr, statement.start_ms, statement.end_ms, statement.step_ms)
        else:
            steps = range(statement.start_ms, statement.start_ms + 1)
            found = engine.instant(statement.expr, statement.start_ms)
    except Exception as error:
        return "" if statement.kind == "_fail" else f"failed: {error}"
    if statement.kind == "_fail":
        return f"gave {found!r} and should have failed"
    if statement.scalar is not None:
        return "" if isinstance(found, float) and close(found, statement.scalar) else f"gave {found!r}"
    if not isinstance(found, list):
        return f"gave {found!r}"
    return _compared(statement, found, list(steps))


def _compared(statement: Statement, found: list[tuple[Labels, object]], steps: list[int]) -> str:
    expected = [(labels, values) for labels, values in statement.series if any(v is not None for v in values)]
    given = [(labels, _by_step(value, steps)) for labels, value in found]
    if statement.kind != "_ordered":
        expected.sort(key=lambda item: sorted(item[0].items()))
        given.sort(key=lambda item: sorted(item[0].items()))
    if [labels for labels, _ in expected] != [labels for labels, _ in given]:
        return f"gave the series {[labels for labels, _ in given]}"
    for (labels, wanted), (_, values) in zip(expected, given, strict=True):
        wanted = wanted + [None] * (len(steps) - len(wanted))
        if not all(close(one, other) for one, other in zip(wanted, values, strict=True)):
            return f"gave {labels} {values}"
    return ""


def _by_step(value: object, steps: list[int]) -> list[float | None]:
    if isinstance(value, float):
        return [value]
    assert isinstance(value, list)
    points = dict(value)
    assert points.keys() <= set(steps)
    return [points.get(t_ms) for t_ms in steps]


def close(one: float | None, other: float | None) -> bool:
    """Whether two values are the same as far as the format asks."""
    if one is None or other is None:
        return one is other
    if math.isnan(one) or math.isnan(other) or math.isinf(one) or math.isinf(other):
        return one == other or (math.isnan(one) and math.isnan(other))
    return one == other or abs(one - other) <= EPSILON * (abs(one) + abs(other))
