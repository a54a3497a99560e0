"""`trimtab rules check|lint|test`: rule files, before they run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from alerts.durations import parse_duration
from alerts.rule_lint import TARGETS, LintPolicy, Target
from alerts.rule_lint import lint as lint_files
from alerts.rule_tests import FileVerdict, Options, Version, junit, run_file
from alerts.rules import check as check_files
from alerts.yaml_nodes import Problem
from trimtab.commands.options import echo_json, fail, with_json

_FILES = click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))


@click.group()
def rules() -> None:
    """Check, lint and test Prometheus rule files.

    \b
    Example:
      trimtab rules check alerts/*.yml
    """


@rules.command(epilog="Example: trimtab rules check my-rules.yml")
@_FILES
@with_json
def check(files: tuple[Path, ...], as_json: bool) -> None:
    """Say what is wrong in the files, with line and column; exit status 1 if something is."""
    problems = check_files(files)
    wrong = any(problem.severity == "error" for problem in problems)
    _show(problems, as_json, "" if wrong else f"{_count(files)} without errors")
    sys.exit(1 if wrong else 0)


@rules.command(epilog="Example: trimtab rules lint my-rules.yml --scrape-interval 15s --target prometheus-2.42")
@_FILES
@click.option(
    "--scrape-interval",
    metavar="DURATION",
    default="15s",
    show_default=True,
    help="How often the targets are scraped: rates need four scrapes.",
)
@click.option(
    "--target", type=click.Choice(TARGETS), default="trimtab", show_default=True, help="What the rules must run on too."
)
@click.option("--strict", is_flag=True, help="Exit status 1 for warnings, too.")
@with_json
def lint(files: tuple[Path, ...], scrape_interval: str, target: Target, strict: bool, as_json: bool) -> None:
    """Say what is wrong or unwise in the files; exit status 1 if something is wrong."""
    try:
        seconds = parse_duration(scrape_interval)
    except ValueError as error:
        fail(f"--scrape-interval: {error}")
    problems = lint_files(files, LintPolicy(scrape_interval_seconds=seconds, target=target))
    _show(problems, as_json, "" if problems else f"{_count(files)} with nothing to say against")
    sys.exit(1 if any(strict or problem.severity == "error" for problem in problems) else 0)


@rules.command(epilog="Example: trimtab rules test alerts/tests/*.yml --junit results.xml")
@_FILES
@click.option("--run", "patterns", multiple=True, metavar="REGEX", help="Only tests whose name matches; repeatable.")
@click.option("--junit", "junit_file", metavar="FILE", type=click.Path(path_type=Path), help="Write JUnit XML.")
@click.option("--diff", is_flag=True, help="Show failures as the lines that differ.")
@click.option(
    "--prometheus",
    "version",
    type=click.Choice(["2", "3"]),
    help="Whose verdict: 3, as the alerts service evaluates (ranges open on the left), or 2 (closed). "
    "Default: that of the promtool on the PATH; 3 without one.",
)
@click.option("--ignore-unknown-fields", is_flag=True, help="Let unknown fields of rule files pass.")
@with_json
def test(
    files: tuple[Path, ...],
    patterns: tuple[str, ...],
    junit_file: Path | None,
    diff: bool,
    version: Version | None,
    ignore_unknown_fields: bool,
    as_json: bool,
) -> None:
    """Run unit tests in promtool's format; exit status 1 if one fails."""
    pattern = "|".join(patterns)
    try:
        re.compile(pattern)
    except re.error as error:
        fail(f"--run {pattern!r} is not a regular expression: {error}")
    options = Options(
        run=pattern,
        diff=diff,
        version=version or _installed_version(),
        strict=not ignore_unknown_fields,
    )
    verdicts = []
    for file in files:
        verdict = run_file(file, options)
        verdicts.append(verdict)
        if not as_json:
            _tell(verdict)
    if as_json:
        echo_json([asdict(verdict) for verdict in verdicts])
    if junit_file is not None:
        junit_file.write_bytes(junit(verdicts, now=time.time()))
    sys.exit(1 if any(verdict.failures for verdict in verdicts) else 0)


def _installed_version() -> Version:
    """Of the promtool on the PATH: whoever has one expects its verdict. 3 where there is none that answers."""
    promtool = shutil.which("promtool")
    if promtool is None:
        return "3"
    try:
        said = subprocess.run([promtool, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "3"
    return "2" if re.search(r"version 2\.", said.stdout + said.stderr) else "3"


def _tell(verdict: FileVerdict) -> None:
    click.echo(f"Unit Testing:  {verdict.path}")
    for warning in verdict.warnings:
        click.echo(f"  WARNING: {warning}")
    if verdict.failures:
        click.echo("  FAILED:")
        for failure in verdict.failures:
            click.echo(f"{failure}\n")
    else:
        click.echo("  SUCCESS")
    for test in verdict.tests:
        if test.holds_in is not None:
            here = f"{test.name} holds as Prometheus {test.holds_in} evaluates"
            click.echo(
                f"  NOTE: {here}; if that is the one that runs the rules, test with --prometheus {test.holds_in}"
            )
    click.echo("")


def _show(problems: Sequence[Problem], as_json: bool, good: str) -> None:
    if as_json:
        keys = ("line", "column", "severity", "message")
        echo_json([{"file": p.path, **{key: getattr(p, key) for key in keys}} for p in problems])
        return
    for problem in problems:
        click.echo(str(problem))
    if good:
        click.echo(good)


def _count(files: Sequence[Path]) -> str:
    return f"{len(files)} file{'s' if len(files) > 1 else ''}"
