"""Running promtool's unit tests: rules evaluated over loaded series, alerts and expressions compared. Pure of time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alerts.durations import format_duration
from alerts.engine import RuleEngine
from alerts.labels import Labels
from alerts.querier import EngineQuerier, StoreWriter
from alerts.rule_status import GroupStatus
from alerts.rule_tests.comparison import alerts_text, difference, same_alerts, same_samples, samples_text
from alerts.rule_tests.document import (
    AlertCase,
    ExpectedAlert,
    QueryCase,
    RuleTest,
    RuleTestFile,
    TestFileError,
    read_test_file,
)
from alerts.rules import RuleGroup, read
from alerts.samples import QueryError, Sample
from alerts.state_store import NoStateStore
from alerts.states import Alert
from alerts.templates.printing import quoted
from collectors.query import PROMETHEUS_2, PROMETHEUS_3, Engine, Semantics
from collectors.store import Store

Version = Literal["2", "3"]

_SEMANTICS: dict[Version, Semantics] = {"2": PROMETHEUS_2, "3": PROMETHEUS_3}
_OTHER: dict[Version, Version] = {"2": "3", "3": "2"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one test; no failures is success. `holds_in` is the other version, if it would hold there."""

    name: str
    failures: tuple[str, ...]
    holds_in: Version | None = None


@dataclass(frozen=True, slots=True)
class FileVerdict:
    """What became of a file; `error` says why it could not be used at all."""

    path: str
    tests: tuple[Verdict, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str = ""

    @property
    def failures(self) -> tuple[str, ...]:
        """Everything that failed."""
        return (self.error,) if self.error else tuple(text for test in self.tests for text in test.failures)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`run` picks tests by a regular expression on their names; `diff` shows failures as differences.

    `version` is the Prometheus to evaluate like: ranges are closed in 2, open on the left in 3. What holds in the other
    one only fails. Without `strict`, unknown fields of rule files pass.
    """

    run: str = ""
    diff: bool = False
    version: Version = "3"
    strict: bool = True


def run_file(path: Path, options: Options | None = None) -> FileVerdict:
    """Run the tests of one file; never raises for what is in it."""
    chosen = options or Options()
    try:
        file = read_test_file(path)
    except TestFileError as error:
        return FileVerdict(str(path), error=str(error))
    warnings = tuple(f"no file match pattern {pattern}" for pattern in file.missing)
    groups, problems = read(file.rule_files, interval_seconds=file.interval, strict=chosen.strict)
    errors = [str(problem) for problem in problems if problem.severity == "error"]
    if errors and file.tests:
        return FileVerdict(str(path), warnings=warnings, error="\n".join(errors))
    pattern = re.compile(chosen.run)
    tests = [
        _verdict(file, groups, test, test.name or f"unnamed#{number}", chosen)
        for number, test in enumerate(file.tests)
        if pattern.search(test.name)
    ]
    return FileVerdict(str(path), tuple(tests), warnings)


def _verdict(file: RuleTestFile, groups: Sequence[RuleGroup], test: RuleTest, name: str, options: Options) -> Verdict:
    failures = tuple(_Run(file, groups, test, options, _SEMANTICS[options.version]).failures())
    other = _OTHER[options.version]
    holds = bool(failures) and not any(_Run(file, groups, test, options, _SEMANTICS[other]).failures())
    return Verdict(name, failures, other if holds else None)


class _Run:
    """One test: series are loaded and groups evaluated step by step."""

    def __init__(
        self,
        file: RuleTestFile,
        groups: Sequence[RuleGroup],
        test: RuleTest,
        options: Options,
        semantics: Semantics,
    ) -> None:
        self._file, self._test, self._options = file, test, options
        self._store = Store("sqlite://", clock=lambda: test.start)
        self._querier = EngineQuerier(
            Engine(self._store, semantics=semantics, subquery_step_ms=round(file.interval * 1000))
        )
        self._writer = StoreWriter(self._store)
        order = {name: place for place, name in enumerate(file.order)}
        self._rules = RuleEngine(
            # Once each: a file that is named twice is read twice.
            {group.key: group for group in sorted(groups, key=lambda group: order.get(group.name, 0))}.values(),
            self._querier,
            self._writer,
            NoStateStore(),
            external_url=test.external_url,
            external_labels=test.external_labels,
            server_url=None,
        )
        self._loaded = 0

    def failures(self) -> Iterator[str]:
        """What is not as expected; evaluation ends at a rule's first error."""
        try:
            yield from self._steps()
        finally:
            self._store.close()

    def _steps(self) -> Iterator[str]:
        test, interval = self._test, self._file.interval
        for number in range(int(round(test.last / interval, 9)) + 1):
            after = number * interval
            self._load(after)
            errors = list(self._evaluate(test.start + after))
            if errors:
                yield from errors
                return
            for case in test.alerts:
                if after <= case.at < after + interval:
                    yield from self._check_alerts(case)
        for query in test.queries:
            yield from self._check_query(query)

    def _load(self, until: float) -> None:
        """Append the series' points up to a time; later ones must not be seen yet."""
        points = {series.labels: series.values for series in self._test.series}
        length = max(map(len, points.values()), default=0)
        while self._loaded < length and self._loaded * self._test.interval <= until + 1e-9:
            place = self._loaded
            present = [
                Sample(labels, value)
                for labels, values in points.items()
                if place < len(values) and (value := values[place]) is not None
            ]
            if present:
                self._writer.write(present, self._test.start + place * self._test.interval)
            self._loaded += 1

    def _evaluate(self, ts: float) -> Iterator[str]:
        for status in self._rules.groups:
            self._rules.evaluate(status, ts)
            yield from (
                f"    rule: {rule.rule.name}, time: {format_duration(ts)}, err: {rule.last_error}"
                for rule in status.rules
                if rule.last_error
            )

    def _check_alerts(self, case: AlertCase) -> Iterator[str]:
        got = [
            ExpectedAlert(alert.labels, tuple(sorted(alert.annotations)))
            for status in self._rules.groups
            for alert in _alerts(status, case.name)
            if alert.state == "firing"
        ]
        if not same_alerts(case.expected, got):
            title = f"    alertname: {case.name}, time: {format_duration(case.at)},"
            yield self._named() + self._shown(title, alerts_text(case.expected), alerts_text(got))

    def _check_query(self, case: QueryCase) -> Iterator[str]:
        title = f"    expr: {quoted(case.expr)}, time: {format_duration(case.at)},"
        try:
            found = self._querier.instant(case.expr, self._test.start + case.at)
        except QueryError as error:
            yield f"{title} err: {error}"
            return
        got: list[tuple[Labels, float]] = [(sample.labels, sample.value) for sample in found]
        if not same_samples(case.expected, got, fuzzy=self._file.fuzzy):
            yield self._shown(title, samples_text(case.expected), samples_text(got))

    def _named(self) -> str:
        return f"    name: {self._test.name},\n" if self._test.name else ""

    def _shown(self, title: str, expected: str, got: str) -> str:
        if self._options.diff:
            return f"{title}\n        diff:\n{_indented(difference(expected, got), 12)}"
        return f"{title}\n        exp:{_indented(expected, 12).lstrip()},\n        got:{_indented(got, 12).lstrip()}"


def _alerts(status: GroupStatus, name: str) -> Iterator[Alert]:
    """The alerts of a group's rules of a name."""
    for rule in status.rules:
        if rule.rule.kind == "alert" and rule.rule.name == name:
            yield from rule.state.values()


def _indented(text: str, width: int) -> str:
    return "\n".join(" " * width + line for line in text.splitlines())
