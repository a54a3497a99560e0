"""`trimtab rules check` and `trimtab slo generate`: rule files, before they run."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from alerts import slo as objective
from alerts.rules import check as check_files
from trimtab.commands.options import echo_json, fail, with_json


@click.group()
def rules() -> None:
    """Check Prometheus rule files.

    \b
    Example:
      trimtab rules check alerts/*.yml
    """


@rules.command(epilog="Example: trimtab rules check my-rules.yml")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@with_json
def check(files: tuple[Path, ...], as_json: bool) -> None:
    """Say what is wrong in the files, with the line; exit status 1 if something is."""
    problems = check_files(files)
    errors = [problem for problem in problems if problem.severity == "error"]
    if as_json:
        echo_json(
            [{"file": str(p.path), "line": p.line, "severity": p.severity, "message": p.message} for p in problems]
        )
    else:
        for problem in problems:
            click.echo(str(problem))
        if not errors:
            click.echo(f"{len(files)} file{'s' if len(files) > 1 else ''} without errors")
    sys.exit(1 if errors else 0)


@click.group()
def slo() -> None:
    """Generate SLO burn-rate rules.

    \b
    Example:
      trimtab slo generate --availability 0.999 --latency 0.99:0.25 > slo.yml
    """


@slo.command(epilog="Example: trimtab slo generate --availability 0.9995 > slo.yml")
@click.option("--availability", "target", type=float, help="Share of requests without a fault, e.g. 0.999.")
@click.option("--latency", metavar="SHARE:SECONDS", help="Share of requests faster than SECONDS, e.g. 0.99:0.25.")
def generate(target: float | None, latency: str | None) -> None:
    """Print recording and multi-window burn-rate rules for Trimtab or any Prometheus."""
    objectives = []
    try:
        if target is not None:
            objectives.append(objective.availability(target))
        if latency is not None:
            objectives.append(objective.latency(*_share_and_seconds(latency)))
    except ValueError as error:
        fail(str(error))
    if not objectives:
        fail("give --availability, --latency, or both")
    click.echo(objective.to_yaml(*(objective.rule_group(chosen) for chosen in objectives)), nl=False)


def _share_and_seconds(text: str) -> tuple[float, float]:
    share, _, seconds = text.partition(":")
    try:
        return float(share), float(seconds)
    except ValueError:
        return fail(f"--latency {text!r}: give SHARE:SECONDS, e.g. 0.99:0.25")
