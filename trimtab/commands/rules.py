"""`trimtab rules check`: rule files, before they run."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from alerts.rules import check as check_files
from trimtab.commands.options import echo_json, with_json


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
