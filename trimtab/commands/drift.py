"""`trimtab drift`: compare any two tables."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from collectors.drift.compare import compare
from collectors.drift.comparison import Comparison
from collectors.drift.methods import METHODS
from collectors.drift.source import InputError
from trimtab.commands.options import echo_json, fail, with_json


@click.command(
    epilog="""\b
Examples:
  trimtab drift january.parquet july.parquet
  trimtab drift reference.csv current.csv --json
  trimtab drift 'lake/2026-01-*.parquet' lake/july --columns age,income --method evidently"""
)
@click.argument("reference")
@click.argument("current")
@click.option("--columns", multiple=True, metavar="A,B", help="Only these columns; may be given several times.")
@click.option("--kinds", multiple=True, metavar="NAME=KIND", help="What a column is, e.g. code=categorical.")
@click.option("--mode", type=click.Choice(["profile", "exact"]), help="On counts, or on all rows; default: what fits.")
@click.option("--method", type=click.Choice(METHODS), default="auto", show_default=True, help="What decides.")
@click.option("--threshold", type=float, help="The score from which it is drift; for auto the smallest effect.")
@click.option("--alpha", type=float, help="Share of false discoveries (auto), or the level of the tests.")
@with_json
def drift(
    reference: str,
    current: str,
    columns: tuple[str, ...],
    kinds: tuple[str, ...],
    mode: str | None,
    method: str,
    threshold: float | None,
    alpha: float | None,
    as_json: bool,
) -> None:
    """Compare two tables column by column (Parquet, CSV, Arrow, Feather; files, folders, patterns, saved profiles).

    Exit status 0: no drift; 1: drift; 2: the tables cannot be compared.
    """
    try:
        found = compare(
            reference,
            current,
            mode=mode,  # type: ignore[arg-type]
            method=method,
            columns=None,
            threshold=threshold,
            alpha=alpha,
        )
    except InputError as error:
        fail(str(error), status=2)
    if as_json:
        echo_json(found.to_json())
    else:
        _print(found)
    sys.exit(1 if found.drifted else 0)


def _print(found: Comparison) -> None:
    for name, column in found.worst_first:
        click.echo(f"{name:<28} {column.score} {column.threshold} {column.reason}")


__all__ = ["Path", "drift"]
