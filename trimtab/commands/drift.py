"""`trimtab drift`: compare any two tables."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from collectors.drift.judge import ColumnDrift, DriftThresholds
from collectors.report import drift_tables
from trimtab.commands.options import echo_json, fail, with_json


@click.command(
    epilog="""\b
Examples:
  trimtab drift january.parquet july.parquet
  trimtab drift reference.csv current.csv --json
  trimtab drift lake/january lake/july --engine spark"""
)
@click.argument("reference", type=click.Path(exists=True, path_type=Path))
@click.argument("current", type=click.Path(exists=True, path_type=Path))
@click.option("--engine", type=click.Choice(["numpy", "spark"]), default="numpy", show_default=True)
@click.option("--threshold", default=0.25, show_default=True, help="PSI beyond chance at which a column has drifted.")
@with_json
def drift(reference: Path, current: Path, engine: str, threshold: float, as_json: bool) -> None:
    """Compare two tables column by column (Parquet, CSV, Arrow).

    Exit status 1 if a column drifted or its share of missing values changed; 2 if the tables cannot be compared.
    """
    try:
        thresholds = DriftThresholds(psi=threshold)
        if engine == "spark":
            found = drift_tables(reference, current, thresholds=thresholds, engine="spark")
        else:
            found = drift_tables(_read(reference), _read(current), thresholds=thresholds)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        fail(f"cannot compare {reference} and {current}: {error}", status=2)
    if as_json:
        echo_json([asdict(column) for column in found.values()])
    else:
        _print(found)
    sys.exit(1 if any(column.drifted or column.missing_changed for column in found.values()) else 0)


def _read(path: Path) -> pa.Table:
    kind = path.suffix.lower()
    if kind == ".csv":
        return pyarrow.csv.read_csv(path)
    if kind in (".arrow", ".feather", ".ipc"):
        return _read_arrow(path)
    return pyarrow.parquet.read_table(path)


def _read_arrow(path: Path) -> pa.Table:
    """Arrow IPC has a file format and a stream format, and one ending for both."""
    with pa.memory_map(str(path)) as source:
        try:
            return pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_stream(source).read_all()


def _print(found: dict[str, ColumnDrift]) -> None:
    click.echo(f"{'column':<28} {'psi':>8} {'by chance':>10} {'KS':>8} {'W1/sd':>8} {'missing':>8}  verdict")
    for column in sorted(found.values(), key=lambda column: -column.effect):
        verdict = "DRIFTED" if column.drifted else column.reason.replace("_", " ")
        verdict += f", MISSING CHANGED from {column.reference_missing_ratio:.1%}" if column.missing_changed else ""
        click.echo(
            f"{column.column:<28} {column.psi:>8.4f} {column.psi_expected:>10.4f} {_number(column.ks)} "
            f"{_number(column.wasserstein)} {column.missing_ratio:>8.1%}  {verdict}"
        )


def _number(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{value:>8.4f}"
