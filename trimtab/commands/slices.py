"""`trimtab slices`: where in a table a model errs most, and whose share of the rows changed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

import click
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from collectors.scores import ScoreError, Slice, SliceSettings, drifted_slices, worst_slices
from collectors.scores.cells import probabilities_among
from collectors.scores.rows import row_log_loss
from observability.table_files import InputError, Source, source_of_path
from trimtab.commands.options import column_names, echo_json, fail, with_json
from trimtab.commands.terminal import printed

Loss = Literal["absolute", "log", "mistake"]
_IN_MEMORY = 1 << 30


@click.command(
    epilog="""\b
Examples:
  trimtab slices july.parquet --prediction prediction.delayed --label delayed
  trimtab slices july.parquet --prediction fare --label paid --loss absolute
  trimtab slices july.parquet --error squared_error --reference january.parquet
  trimtab slices july.parquet --reference january.parquet --json"""
)
@click.argument("table")
@click.option("--error", metavar="COLUMN", help="How wrong each row is: losses, 0/1 mistakes.")
@click.option("--prediction", metavar="COLUMN", help="With --label: what the model said.")
@click.option("--label", metavar="COLUMN", help="With --prediction: what was true.")
@click.option(
    "--loss",
    type=click.Choice(["absolute", "log", "mistake"]),
    help="Of a prediction; default: log for probabilities of labels 0 and 1, mistake for texts, else absolute.",
)
@click.option("--reference", metavar="TABLE", help="Rows of another time: without errors, whose share changed since.")
@click.option("--columns", multiple=True, metavar="A,B", help="Look for slices of these columns only.")
@click.option("--alpha", type=float, default=0.05, show_default=True, help="Share of false slices among those told.")
@click.option("--min-rows", type=int, default=50, show_default=True, help="Rows that a slice must have.")
@click.option("--limit", type=int, default=20, show_default=True, help="Slices told at most.")
@with_json
def slices(
    table: str,
    error: str | None,
    prediction: str | None,
    label: str | None,
    loss: Loss | None,
    reference: str | None,
    columns: tuple[str, ...],
    alpha: float,
    min_rows: int,
    limit: int,
    as_json: bool,
) -> None:
    """Find the segments of rows, of one column or of two, where a model errs most.

    TABLE is a file (Parquet, CSV, Arrow, Feather), a folder or a pattern. A segment is told when its error exceeds that
    of all other rows by enough to matter and by more than chance (Benjamini-Hochberg over every segment looked at).
    With --reference alone: the segments whose share of the rows has changed most.

    Exit status 0: answered; 2: the table cannot be read or lacks what is asked for.
    """
    if (prediction is None) != (label is None) or (error is not None and prediction is not None):
        fail("give --error COLUMN, or both --prediction COLUMN and --label COLUMN", status=2)
    if prediction is not None and prediction == label:
        fail(f"--prediction and --label are one column, {label!r}", status=2)
    if error is None and prediction is None and reference is None:
        fail("say what to look for: --error, --prediction with --label, or --reference", status=2)
    try:
        settings = SliceSettings(alpha=alpha, min_rows=min_rows, limit=limit)
        source = source_of_path(table, in_memory=_IN_MEMORY)
        other = None if reference is None else source_of_path(reference, in_memory=_IN_MEMORY)
        told = [name for name in (error, prediction, label) if name is not None]
        chosen = _chosen(source, other, column_names(columns), told)
        before = None if other is None else other.read(chosen)
        if told:
            rows = source.read(list(dict.fromkeys([*chosen, *told])))
            errors = _errors(rows, error, prediction, label, loss)
            known = np.isfinite(errors)
            if not known.any():
                raise InputError(f"{table} has no row with {' and '.join(map(repr, told))}")
            found = worst_slices(
                rows.select(chosen).filter(pa.array(known)), errors[known], reference=before, settings=settings
            )
            count = int(known.sum())
        else:
            assert before is not None
            rows = source.read(chosen)
            found, count = drifted_slices(before, rows, settings=settings), rows.num_rows
    except (InputError, ScoreError, ValueError, OSError, pa.ArrowException) as trouble:
        fail(str(trouble), status=2)
    if as_json:
        echo_json({"rows": count, "slices": [_plain(one) for one in found]})
    else:
        click.echo(_shown(found, count, bool(told), reference is not None))


def _chosen(source: Source, other: Source | None, asked: list[str] | None, told: list[str]) -> list[str]:
    """The columns to look for slices in. InputError for what a table does not have."""
    for name in [*told, *(asked or [])]:
        if name not in source.columns:
            raise InputError(f"{source.name} has no column {name!r}; it has {', '.join(source.columns)}")
    chosen = asked or [name for name in source.columns if name not in told]
    if other is None:
        return chosen
    missing = [name for name in chosen if name not in other.columns]
    if asked and missing:
        raise InputError(f"{other.name} has no column {missing[0]!r}; it has {', '.join(other.columns)}")
    common = [name for name in chosen if name not in missing]
    if not common:
        raise InputError(f"{source.name} and {other.name} have no column in common")
    return common


def _errors(
    rows: pa.Table, error: str | None, prediction: str | None, label: str | None, loss: Loss | None
) -> npt.NDArray[np.float64]:
    """The error of each row, shape (rows,); NaN where it is not known."""
    if error is not None:
        return _numbers(rows, error)
    assert prediction is not None
    assert label is not None
    said, true = rows.column(prediction), rows.column(label)
    if loss == "mistake" or (loss is None and not (_is_number(said.type) and _is_number(true.type))):
        unlike = pc.not_equal(pc.cast(said, pa.string()), pc.cast(true, pa.string()))
        return np.asarray(pc.cast(unlike, pa.float64()).fill_null(np.nan), np.float64)
    p, y = _numbers(rows, prediction), _numbers(rows, label)
    known = np.isfinite(p) & np.isfinite(y)
    binary = bool(np.isin(y[known], (0.0, 1.0)).all() and probabilities_among(p[known])[0].all())
    if loss == "log" and not binary:
        raise InputError("--loss log needs probabilities, and labels of 0 and 1")
    if loss == "log" or (loss is None and binary):
        return np.where(known, row_log_loss(p, y), np.nan)
    return np.where(known, np.abs(p - y), np.nan)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _numbers(rows: pa.Table, name: str) -> npt.NDArray[np.float64]:
    column = rows.column(name)
    if not _is_number(column.type):
        raise InputError(f"column {name!r} has no numbers but {column.type}")
    return np.asarray(pc.cast(column, pa.float64(), safe=False).fill_null(np.nan), np.float64)


def _plain(one: Slice) -> dict[str, object]:
    """A slice as JSON has it: no NaN."""
    body = asdict(one) | {"conditions": list(one.conditions)}
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in body.items()
    }


def _shown(found: list[Slice], rows: int, errs: bool, drifts: bool) -> str:
    if not found:
        what = "errs more than the rest" if errs else "holds another share of the rows"
        return f"{rows:,} rows; no slice {what} by more than chance and enough to matter"
    shown = Table(box=box.SIMPLE_HEAD)
    shown.add_column("slice", overflow="fold")
    names = ["rows", "share", *(("error", "rest") if errs else ("now", "before")), "effect", "q-value"]
    if errs:
        names.append("of all error")
        names += ["share since"] if drifts else []
    for name in names:
        shown.add_column(name, justify="right")
    for one in found:
        cells = [f"{one.rows:,}", f"{one.share:.1%}", f"{one.mean:.4g}", f"{one.rest:.4g}", f"{one.effect:+.2f}"]
        cells.append(f"{one.qvalue:.1e}")
        if errs:
            cells.append(f"{one.contribution:.1%}")
            cells += [f"{one.drift:+.1%}"] if drifts else []
        shown.add_row(one.text, *cells)
    what = "err most" if errs else "changed most"
    said = Text(f"{rows:,} rows; the slices that {what}, strongest evidence first")
    return printed(lambda _width: Group(said, shown))
