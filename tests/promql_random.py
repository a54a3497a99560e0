"""Random PromQL, and samples to ask it of: what a differential test sends to two engines."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Unix ms. The first series lie on multiples of 15 s, so that queries meet the edges of ranges.
START = 1_700_000_100_000
STEP = 15_000
SAMPLES = 240
END = START + SAMPLES * STEP

Labels = dict[str, str]
Points = list[tuple[int, float]]
Text = Callable[[int], str]

_FAMILIES = {
    "requests_total": ("model", "instance", "outcome"),
    "temperature": ("room", "model"),
    "balance": ("room", "model"),
    "latency_seconds_bucket": ("model", "instance", "le"),
    "build_info": ("instance", "revision"),
}
_TYPES = {"requests": "counter", "temperature": "gauge", "balance": "gauge", "latency_seconds": "histogram",
          "build_info": "gauge"}  # fmt: skip


def random_series(seed: int) -> list[tuple[Labels, Points]]:
    """Counters that fall back to zero, gauges with gaps and of both signs, histograms, and one that never changes."""
    chance = random.Random(seed)
    found: list[tuple[Labels, Points]] = []
    for model in "abc":
        for instance in "12":
            for outcome in ("ok", "error"):
                labels = {"__name__": "requests_total", "model": model, "instance": instance, "outcome": outcome}
                found.append((labels, _counter(chance)))
            rows = [[0.0] * 4]
            for _ in range(SAMPLES):
                rows.append([before + chance.randrange(9) for before in rows[-1]])
            for index, bound in enumerate(("0.1", "0.5", "2.5", "+Inf")):
                labels = {"__name__": "latency_seconds_bucket", "model": model, "instance": instance, "le": bound}
                shift = chance.choice((0, 0, 3_200))
                points = [(_time(step, shift), sum(row[: index + 1])) for step, row in enumerate(rows[1:])]
                found.append((labels, points))
    for room in range(5):
        shift = chance.randrange(STEP)
        for name, middle in (("temperature", 20.0), ("balance", 0.0)):
            labels = {"__name__": name, "room": f"r{room}", "model": "abc"[room % 3]}
            values = [(_time(step, shift), round(chance.gauss(middle, 8), 3)) for step in range(SAMPLES)]
            found.append((labels, [point for point in values if chance.random() > 0.12 * room]))
    for instance in "12":
        labels = {"__name__": "build_info", "instance": instance, "revision": f"v{instance}"}
        found.append((labels, [(_time(step, 0), 1.0) for step in range(SAMPLES)]))
    return found


def _time(step: int, shift: int) -> int:
    return START + step * STEP + shift


def _counter(chance: random.Random) -> Points:
    value, shift, points = float(chance.randrange(50)), chance.choice((0, 0, 700, 9_100)), []
    for step in range(SAMPLES):
        value = float(chance.randrange(5)) if chance.random() < 0.01 else value + chance.randrange(20)
        if chance.random() > 0.03:
            points.append((_time(step, shift), value))
    return points


def open_metrics(series: Sequence[tuple[Labels, Points]]) -> str:
    """The samples as text that promtool makes blocks of."""
    lines: list[str] = []
    for family, kind in _TYPES.items():
        lines.append(f"# TYPE {family} {kind}")
        for labels, points in series:
            name = labels["__name__"]
            if name.startswith(family):
                inside = ",".join(f'{key}="{value}"' for key, value in labels.items() if key != "__name__")
                lines += [f"{name}{{{inside}}} {value!r} {t_ms / 1000:.3f}" for t_ms, value in points]
    return "\n".join([*lines, "# EOF", ""])


@dataclass(frozen=True, slots=True)
class Query:
    """An expression, and when to ask it: at `start_ms` alone, or with a step up to `end_ms`."""

    expr: str
    start_ms: int
    end_ms: int
    step_ms: int | None


class Grammar:
    """Makes expressions that type-check, of every function, operator and modifier of Prometheus 2.42 but for those of
    native histograms. The same seed makes the same expressions."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def query(self) -> Query:
        """The next query."""
        chance = self._chance
        expr = self.vector(chance.choice((1, 2, 2, 3, 3))) if chance.random() < 0.94 else self.scalar(2)
        at = chance.choice((START + chance.randrange(40, SAMPLES) * STEP, chance.randrange(START, END + 600_000)))
        if chance.random() < 0.6:
            return Query(expr, at, at, None)
        step = chance.choice((15_000, 30_000, 60_000, 47_000, 300_000))
        return Query(expr, at - step * chance.randrange(1, 12), at, step)

    # --- pieces -------------------------------------------------------------------------------------------------------
    def _of(self, *options: str) -> str:
        return self._chance.choice(options)

    def _duration(self) -> str:
        return self._of("15s", "30s", "1m", "90s", "2m", "5m", "7m30s", "10m", "30m")

    def _modifiers(self) -> str:
        roll = self._chance.random()
        at = self._of("start()", "end()", str((START + self._chance.randrange(SAMPLES) * STEP) // 1000), "1700001234.5")
        if roll < 0.72:
            return ""
        if roll < 0.86:
            return f" offset {self._of('', '-')}{self._of('15s', '1m', '3m', '1m7s')}"
        return f" @ {at}" if roll < 0.95 else f" @ {at} offset {self._of('30s', '2m')}"

    def _matchers(self, family: str) -> str:
        known = {
            "model": ('model="a"', 'model!="a"', 'model=~"a|b"', 'model!~"b"', 'model=~".+"', 'model="z"'),
            "instance": ('instance="1"', 'instance=~"1|2"', 'instance!=""'),
            "outcome": ('outcome="ok"', 'outcome!="ok"', 'outcome=~"err.*"'),
            "room": ('room="r1"', 'room!~"r[13]"', 'room=~"r.*"'),
            "revision": ('revision="v1"',),
            "le": ('le="0.5"', 'le!="+Inf"'),
        }
        chosen = [self._of(*known[name]) for name in _FAMILIES[family] if self._chance.random() < 0.25]
        if self._chance.random() < 0.05:
            chosen.append('nothing=""')
        return f"{{{','.join(chosen)}}}" if chosen else ""

    def _family(self) -> str:
        return self._chance.choices(list(_FAMILIES), weights=(5, 5, 3, 3, 1))[0]

    def selector(self, modifiers: bool = True) -> str:
        """A selector of one family."""
        family = self._family()
        if self._chance.random() < 0.03:
            return f'{{__name__=~"{family}|build_info"}}{self._modifiers() if modifiers else ""}'
        return f"{family}{self._matchers(family)}{self._modifiers() if modifiers else ''}"

    def range(self, depth: int) -> str:
        """A range selector or a subquery."""
        if depth > 0 and self._chance.random() < 0.25:
            step = self._of("", "15s", "30s", "1m", "40s")
            inner = self.vector(depth - 1)
            return f"({inner})[{self._of('1m', '3m', '5m', '10m')}:{step}]{self._modifiers()}"
        return f"{self.selector(modifiers=False)}[{self._duration()}]{self._modifiers()}"

    def scalar(self, depth: int) -> str:
        """A number, or an expression that gives one."""
        if depth <= 0 or self._chance.random() < 0.5:
            return self._of("0", "1", "2", "0.5", "-3", "1e3", "7.25", "100", "0x1f", "time()", "pi()")
        kind = self._chance.randrange(4)
        if kind == 0:
            return f"scalar({self.vector(depth - 1)})"
        if kind == 1:
            return (
                f"({self.scalar(depth - 1)} {self._of('+', '-', '*', '/', '%', '^', 'atan2')} {self.scalar(depth - 1)})"
            )
        if kind == 2:
            return (
                f"({self.scalar(depth - 1)} {self._of('<', '>', '==', '!=', '<=', '>=')} bool {self.scalar(depth - 1)})"
            )
        return f"-{self.scalar(depth - 1)}"

    def vector(self, depth: int) -> str:
        """An instant vector."""
        if depth <= 0:
            return self.selector()
        makers: tuple[tuple[Text, int], ...] = (
            (lambda _: self.selector(), 2),
            (self._over_time, 8),
            (self._elementwise, 4),
            (self._aggregate, 6),
            (self._with_scalar, 4),
            (self._between, 6),
            (self._labels, 2),
            (self._histogram, 2),
            (self._absence, 1),
            (lambda d: f"vector({self.scalar(d - 1)})", 1),
            (lambda d: f"-({self.vector(d - 1)})", 1),
            (lambda d: f"({self.vector(d - 1)})", 1),
        )
        maker = self._chance.choices([maker for maker, _ in makers], weights=[weight for _, weight in makers])[0]
        return maker(depth)

    # --- functions ----------------------------------------------------------------------------------------------------
    def _over_time(self, depth: int) -> str:
        name = self._of(
            "rate", "rate", "increase", "irate", "delta", "idelta", "deriv", "changes", "resets", "avg_over_time",
            "min_over_time", "max_over_time", "sum_over_time", "count_over_time", "last_over_time",
            "present_over_time", "stddev_over_time", "stdvar_over_time", "quantile_over_time", "predict_linear",
            "holt_winters",
        )  # fmt: skip
        if name == "quantile_over_time":
            return f"{name}({self._of('0', '0.3', '0.9', '1', '-1', '2')}, {self.range(depth)})"
        if name == "predict_linear":
            return f"{name}({self.range(depth)}, {self._of('0', '60', '3600', '-30')})"
        if name == "holt_winters":
            return f"{name}({self.range(depth)}, {self._of('0.3', '0.9')}, {self._of('0.1', '0.6')})"
        return f"{name}({self.range(depth)})"

    def _elementwise(self, depth: int) -> str:
        name = self._of(
            "abs", "ceil", "floor", "exp", "ln", "log2", "log10", "sqrt", "sgn", "sin", "cos", "tan", "asin", "acos",
            "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "deg", "rad", "minute", "hour", "day_of_month",
            "day_of_week", "day_of_year", "days_in_month", "month", "year", "timestamp", "round", "clamp",
            "clamp_min", "clamp_max", "sort", "sort_desc",
        )  # fmt: skip
        inner = self.vector(depth - 1)
        if name in ("exp", "sinh", "cosh"):
            inner = f"{inner} / 1000"
        if name == "round" and self._chance.random() < 0.5:
            return f"round({inner}, {self._of('0.5', '10', '3')})"
        if name == "clamp":
            return f"clamp({inner}, {self._of('-5', '0', '30')}, {self._of('10', '25', '1e6')})"
        if name in ("clamp_min", "clamp_max"):
            return f"{name}({inner}, {self.scalar(1)})"
        if name in ("minute", "hour") and self._chance.random() < 0.3:
            return f"{name}()"
        return f"{name}({inner})"

    def _labels(self, depth: int) -> str:
        inner = self.vector(depth - 1)
        if self._chance.random() < 0.3:
            return f'label_join({inner}, "both", "-", "model", "room", "instance")'
        target = self._of("model", "place", "place")
        source, pattern, replacement = self._of("model", "room", "instance", "__name__"), self._of("(.*)", "(a|r.)(.*)", "[^b]", "x.*"), self._of("$1", "x-$1", "", "${1}y$2", "fix")  # noqa: E501  # fmt: skip
        return f'label_replace({inner}, "{target}", "{replacement}", "{source}", "{pattern}")'

    def _histogram(self, depth: int) -> str:
        quantile = self._of("0.5", "0.9", "0.99", "0", "1", "-0.1", "1.5")
        buckets = f"latency_seconds_bucket{self._matchers('latency_seconds_bucket')}"
        inner = self._of(
            buckets,
            f"rate({buckets}[{self._duration()}])",
            f"sum by (le) (rate({buckets}[{self._duration()}]))",
            f"sum by (le, model) (increase({buckets}[{self._duration()}]))",
            f"sum without (instance) ({buckets})",
        )
        return f"histogram_quantile({quantile}, {inner})"

    def _absence(self, depth: int) -> str:
        if self._chance.random() < 0.5:
            return f"absent({self.vector(depth - 1)})"
        return f"absent_over_time({self.range(depth - 1)})"

    # --- operators ----------------------------------------------------------------------------------------------------
    def _grouping(self) -> str:
        names = ("model", "instance", "outcome", "room", "le", "nothing")
        chosen = ", ".join(name for name in names if self._chance.random() < 0.35)
        return self._of("", f"by ({chosen}) ", f"without ({chosen}) ")

    def _aggregate(self, depth: int) -> str:
        name = self._of(
            "sum", "sum", "avg", "min", "max", "count", "group", "stddev", "stdvar", "topk", "bottomk", "quantile",
            "count_values",
        )  # fmt: skip
        grouping = self._grouping()
        if name in ("topk", "bottomk"):
            # Of equal values, which are kept is not defined: these seldom are.
            inner = self._of("temperature", "balance", "rate(temperature[5m])", "deriv(balance[10m])")
            return f"{name} {grouping}({self._of('0', '1', '2', '3', '10')}, {inner})"
        if name == "quantile":
            return f"quantile {grouping}({self._of('0', '0.4', '0.9', '1', '1.2')}, {self.vector(depth - 1)})"
        if name == "count_values":
            # With three labels, 2.42 loses one of them in range queries: it sorts its own list of them in place.
            grouping = self._of("", "by (model) ", "by (room, le) ", "without (room) ", "without (model, room) ")
            inner = self._of("build_info", "floor(temperature / 10)", "sgn(balance)", "changes(balance[1m])")
            return f'count_values {grouping}("{self._of("value", "model")}", {inner})'
        return f"{name} {grouping}({self.vector(depth - 1)})"

    def _with_scalar(self, depth: int) -> str:
        operator = self._of(
            "+", "-", "*", "/", "%", "^", "atan2", "==", "!=", "<", ">", "<=", ">=", "== bool", "< bool", ">= bool"
        )
        sides = [self.vector(depth - 1), self.scalar(1)]
        self._chance.shuffle(sides)
        return f"({sides[0]} {operator} {sides[1]})"

    def _between(self, depth: int) -> str:
        operator = self._of("+", "-", "*", "/", "%", "^", "atan2", "==", "!=", "<", ">", "> bool", "<= bool",
                            "and", "or", "unless")  # fmt: skip
        left, right = self.vector(depth - 1), self.vector(depth - 1)
        roll = self._chance.random()
        if roll < 0.3:
            right = left if self._chance.random() < 0.3 else right
            return f"({left} {operator} {right})"
        names = ", ".join(name for name in ("model", "instance", "room") if self._chance.random() < 0.4)
        if operator in ("and", "or", "unless") or roll < 0.5:
            return f"({left} {operator} {self._of('on', 'ignoring')} ({names}) {right})"
        name = self._of("model", "instance")
        group = self._of("group_left", "group_right")
        include = self._of("", "", "outcome", "revision", "room")
        one = self._of(
            f"max by ({name}) ({self.vector(depth - 1)})", f"sum by ({name}, room) ({self.vector(depth - 1)})"
        )
        many, single = (left, one) if group == "group_left" else (one, left)
        return f"({many} {operator} on ({name}) {group} ({include}) {single})"
