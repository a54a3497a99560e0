"""`trimtab drift`: compare any two tables."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from collectors.drift.compare import compare, saved_profile
from collectors.drift.methods import METHODS
from collectors.drift.page import page
from collectors.drift.source import InputError
from collectors.drift.tables import Report
from collectors.drift.terminal import rendered
from collectors.report import NoReport, write_evidently_page
from trimtab.commands.options import column_names, fail, with_json
from trimtab.commands.terminal import printed

# What a shell calls a command that Ctrl-C ended.
INTERRUPTED = 130


@click.command(
    epilog="""\b
Examples:
  trimtab drift january.parquet july.parquet
  trimtab drift reference.csv.gz current.csv --columns age,income --json
  trimtab drift 'lake/2026-01-*.parquet' lake/july --by country --html drift.html
  trimtab drift january.parquet july.parquet --window 1d --time created_at
  trimtab drift january.parquet july.parquet --save-profile january.json
  trimtab drift january.json august.parquet --method psi --threshold 0.2"""
)
@click.argument("reference")
@click.argument("current")
@click.option(
    "--columns",
    multiple=True,
    metavar="A,B",
    help='Only these columns; also several times. "a,b" in quotes is one name.',
)
@click.option("--kinds", multiple=True, metavar="NAME=KIND", help="What a column is, e.g. code=categorical.")
@click.option("--by", metavar="COLUMN", help="Compare also the rows of each value of this column, worst first.")
@click.option("--window", metavar="LENGTH", help="Compare also each window of CURRENT, e.g. 1d; with --time.")
@click.option("--time", metavar="COLUMN", help="The column of times that --window goes by.")
@click.option("--engine", type=click.Choice(["numpy", "spark"]), default="numpy", show_default=True)
@click.option("--mode", type=click.Choice(["profile", "exact"]), help="On counts, or on all rows; default: what fits.")
@click.option(
    "--method", metavar="NAME", default="auto", show_default=True, help=f"What decides: {', '.join(METHODS)}."
)
@click.option("--threshold", type=float, help="The score from which it is drift; for auto the smallest effect.")
@click.option("--alpha", type=float, help="The share of false discoveries (auto), or the level of a test.")
@click.option("--save-profile", type=click.Path(dir_okay=False), metavar="FILE", help="Save REFERENCE's profile.")
@click.option("--html", type=click.Path(dir_okay=False), metavar="FILE", help="Write a page to read.")
@click.option("--evidently", is_flag=True, help="With --html: Evidently's own report beside it, FILE.evidently.html.")
@click.option("--traceback", is_flag=True, help="Show where an unexpected error comes from.")
@with_json
def drift(
    reference: str,
    current: str,
    columns: tuple[str, ...],
    kinds: tuple[str, ...],
    by: str | None,
    window: str | None,
    time: str | None,
    engine: Any,
    mode: Any,
    method: str,
    threshold: float | None,
    alpha: float | None,
    save_profile: str | None,
    html: str | None,
    evidently: bool,
    traceback: bool,
    as_json: bool,
) -> None:
    """Compare two tables column by column.

    REFERENCE and CURRENT are files (Parquet, CSV, Arrow, Feather), folders, patterns, or saved profiles.

    --method auto judges numbers by cdf_distance (how far the distribution functions are apart), categories by
    chi_square (Cohen's w, also of one rare_category, or of all new_categories) and embeddings by mmd. The method column
    says by which.

    Exit status 0: no drift; 1: drift; 2: the tables cannot be compared, or the answer not be written; 130: interrupted.
    """
    if evidently and html is None:
        fail("--evidently writes its report beside ours: give --html FILE, too", status=2)
    _check_writable([path for path in (save_profile, html) if path is not None], (reference, current))
    try:
        with _progress() as report:
            found = compare(
                reference,
                current,
                mode=mode,
                method=method,
                columns=column_names(columns),
                kinds=_pairs(kinds),
                by=by,
                window=window,
                time=time,
                threshold=threshold,
                alpha=alpha,
                engine=engine,
                progress=report,
            )
            if save_profile is not None:
                profile = saved_profile(reference, columns=column_names(columns), kinds=_pairs(kinds))
                Path(save_profile).write_bytes(profile)
        if html is not None:
            Path(html).write_text(page(found, f"{reference} → {current}"), encoding="utf-8")
        if evidently and html is not None:
            beside = Path(html).with_suffix(".evidently.html")
            write_evidently_page(reference, current, beside, list(found.columns))
    except KeyboardInterrupt:
        # Not 1, which would be drift.
        fail("interrupted", status=INTERRUPTED)
    except (InputError, NoReport) as error:
        fail(str(error), status=2)
    except (OSError, MemoryError, subprocess.SubprocessError) as error:
        fail(f"cannot compare {reference} and {current}: {error or type(error).__name__}", status=2)
    except Exception as error:
        if traceback:
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        fail(f"unexpected: {said}; please report it, with what --traceback shows", status=2)
    _say(found.json_text(indent=2).decode() if as_json else printed(partial(rendered, found)))
    sys.exit(1 if found.alarms else 0)


def _say(text: str) -> None:
    """Writes to standard output what its encoding has. A reader that has gone changes no verdict; a full disk does."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        click.echo(text.encode(encoding, "replace").decode(encoding))
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer would fail once more when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            fail(f"the answer cannot be written: {error.strerror or error}", status=2)


def _check_writable(paths: Sequence[str], tables: Sequence[str]) -> None:
    """Ends the command before any work where a file cannot be written, or is one of the tables."""
    for path in paths:
        file = Path(path)
        if not file.parent.is_dir():
            fail(f"{path} cannot be written: there is no folder {file.parent}", status=2)
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            fail(f"{path} cannot be written: permission denied", status=2)
        if file.exists() and any(Path(table).exists() and file.samefile(table) for table in tables):
            fail(f"{path} is one of the tables: it would be overwritten", status=2)


def _pairs(kinds: tuple[str, ...]) -> dict[str, str]:
    """`--kinds a=categorical,b=text`. InputError for what is no pair."""
    pairs = {}
    for entry in (part for kind in kinds for part in kind.split(",")):
        name, equals, kind = entry.rpartition("=")
        if not equals or not name:
            raise InputError(f"--kinds {entry!r}: give NAME=KIND, for example code=categorical")
        pairs[name.strip()] = kind.strip()
    return pairs


@contextmanager
def _progress() -> Iterator[Report | None]:
    """A bar on standard error, where somebody looks at it."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield report
