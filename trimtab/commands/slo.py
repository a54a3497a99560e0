"""`trimtab slo`: objectives of an `slo.yaml` as rules, as a report of their budgets, and what is wrong with them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import click

from alerts import slo as objectives
from alerts.rules import Problem, RuleError
from alerts.slo import Objective, Standing
from collectors.query import PrometheusClient, QueryError
from trimtab.commands.moment import with_moment
from trimtab.commands.options import echo_json, fail, with_json, with_settings
from trimtab.settings import Settings

DEFAULT_FILE = Path("slo.yaml")
FILES = click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
URL = click.option("--url", metavar="URL", help="A Prometheus API; default: the collector of the settings.")
HEADER = click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Sent with each request.")


@click.group()
def slo() -> None:
    """Service level objectives: rules, budgets, checks. FILES are in OpenSLO's terms; default: slo.yaml here.

    \b
    Examples:
      trimtab slo generate slo.yaml > slo-rules.yml
      trimtab slo report slo.yaml --url http://prometheus:9090
      trimtab slo check slo.yaml
    """


@slo.command(epilog="Example: trimtab slo generate slo.yaml --interval 30s > slo-rules.yml")
@FILES
@click.option("--availability", "target", type=float, help="Share of requests without a fault, e.g. 0.999.")
@click.option("--latency", metavar="SHARE:SECONDS", help="Share of requests faster than SECONDS, e.g. 0.99:0.25.")
@click.option("--interval", default="", metavar="DURATION", help="How often the rules are evaluated, e.g. 30s.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="File to write; default: print.")
def generate(
    files: tuple[Path, ...], target: float | None, latency: str | None, interval: str, output: Path | None
) -> None:
    """Print recording rules and multi-window burn-rate alerts, for Trimtab or any Prometheus from 2.42 on."""
    chosen: list[Objective] = []
    try:
        if target is not None:
            chosen.append(objectives.availability(target))
        if latency is not None:
            chosen.append(objectives.latency(*_share_and_seconds(latency)))
        if files or not chosen:
            found = _named(files)
            if not found:
                fail("give --availability, --latency, or a file of objectives (slo.yaml here is read by itself)")
            chosen += _read(found)
        text = objectives.to_yaml(*objectives.all_groups(chosen, interval=interval))
    except ValueError as error:
        fail(str(error))
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"cannot write {output}: {error.strerror or error}")
    click.echo(f"wrote {output}")


@slo.command(epilog="Example: trimtab slo report slo.yaml --by model,version --at 2026-11-22T12:00:00Z")
@FILES
@URL
@HEADER
@with_moment
@click.option("--by", metavar="LABELS", help="Labels that each have a budget of their own, e.g. model,version.")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds that one query may take.")
@with_settings
@with_json
def report(
    files: tuple[Path, ...],
    url: str | None,
    headers: tuple[str, ...],
    at: float,
    by: str | None,
    timeout: float,
    settings: Settings,
    as_json: bool,
) -> None:
    """Budget left, burn rates, and what spent it; without FILES and slo.yaml, of the shipped objectives."""
    found = _named(files)
    chosen = _read(found or [objectives.SHIPPED_OBJECTIVES])
    if by:
        labels = tuple(label.strip() for label in by.split(",") if label.strip())
        chosen = [objectives.grouped(objective, labels) for objective in chosen]
    with PrometheusClient(url or settings.query_url, timeout_seconds=timeout, headers=_headers(headers)) as client:
        try:
            standings = objectives.report(chosen, client, at)
        except QueryError as error:
            _no_answer(client, error)
    if as_json:
        echo_json([standing.to_json() for standing in standings])
    else:
        for line in lines(standings):
            click.echo(line)


@slo.command(epilog="Example: trimtab slo check slo.yaml --url http://prometheus:9090")
@FILES
@URL
@HEADER
@with_json
def check(files: tuple[Path, ...], url: str | None, headers: tuple[str, ...], as_json: bool) -> None:
    """Say what is wrong or unwise in the files, with the line; exit status 1 if something is wrong.

    With --url also whether the server has series to measure each objective by.
    """
    found = _named(files)
    if not found:
        fail(f"give a file of objectives, or write {DEFAULT_FILE} here")
    chosen, problems = objectives.read(found)
    errors = [problem for problem in problems if problem.severity == "error"]
    if url and not errors:
        problems += _unanswered(chosen, url, headers, found[0])
    if as_json:
        keys = ("line", "column", "severity", "message")
        echo_json([{"file": p.path, **{key: getattr(p, key) for key in keys}} for p in problems])
    else:
        for problem in problems:
            click.echo(str(problem))
        if not errors:
            click.echo(f"{len(chosen)} objective{'s' if len(chosen) != 1 else ''} without errors")
    sys.exit(1 if errors else 0)


def lines(standings: Sequence[Standing]) -> list[str]:
    """The report as a table, with what spent each budget below its row."""
    spans = list(dict.fromkeys(name for standing in standings for name in standing.burn_rates))
    head = [
        "SLO",
        "OF",
        "OBJECTIVE",
        "GOOD",
        "BUDGET LEFT",
        "STATE",
        *(f"BURN {name}" for name in spans),
        "EVENTS",
        "BAD",
    ]
    rows = [_row(standing, spans) for standing in standings]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    written = ["  ".join(text.ljust(width) for text, width in zip(head, widths, strict=True)).rstrip()]
    for standing, row in zip(standings, rows, strict=True):
        written.append("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
        written += _causes(standing)
    return written


def _row(standing: Standing, spans: Sequence[str]) -> list[str]:
    chosen = standing.objective
    good = None if standing.error_ratio is None else 1 - standing.error_ratio
    burns = [standing.burn_rates.get(name) for name in spans]
    return [
        chosen.name,
        " ".join(f"{name}={value}" for name, value in standing.labels) or "-",
        f"{chosen.target * 100:.6g} % in {chosen.period.name}",
        "-" if good is None else f"{good * 100:.6g} %",
        "-" if standing.budget_left is None else f"{standing.budget_left * 100:.4g} %",
        standing.state,
        *("-" if burn is None else f"{burn:.3g}" for burn in burns),
        f"{standing.events:.6g}",
        f"{standing.bad:.6g}",
    ]


def _causes(standing: Standing) -> list[str]:
    known = dict(standing.labels)
    written = []
    for cause in standing.by:
        who = " ".join(f"{name}={value}" for name, value in cause.labels if name not in known) or "all alike"
        written.append(f"    {cause.share * 100:5.1f} % of the bad: {who}")
    for cause in standing.when:
        start, end = (datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M") for t in (cause.start, cause.end))
        written.append(f"    {cause.share * 100:5.1f} % of the bad: {start} to {end} UTC")
    return written


def _named(files: Sequence[Path]) -> list[Path]:
    return list(files) or ([DEFAULT_FILE] if DEFAULT_FILE.is_file() else [])


def _read(files: Sequence[Path]) -> list[Objective]:
    try:
        return objectives.load(files)
    except RuleError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        fail(f"the objectives cannot be used: {len(error.problems)} to mend; nothing was done")


def _unanswered(chosen: Sequence[Objective], url: str, headers: Sequence[str], path: Path) -> list[Problem]:
    """The queries that the server has no series for."""
    found = []
    with PrometheusClient(url, headers=_headers(headers)) as client:
        for objective in chosen:
            for query in objective.indicator.metrics():
                try:
                    empty = not len(client.instant(f"count({query})"))  # type: ignore[arg-type]
                except QueryError as error:
                    _no_answer(client, error)
                if empty:
                    message = f"objective {objective.name!r}: {url} has no series for {query}"
                    found.append(Problem(str(path), 0, "warning", message))
    return found


def _no_answer(client: PrometheusClient, error: QueryError) -> NoReturn:
    """End the command; the server's own words do not name the server, the client's do."""
    words = str(error)
    fail(words if client.base_url in words else f"{client.base_url}: {words}")


def _headers(texts: Sequence[str]) -> dict[str, str]:
    headers = {}
    for text in texts:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            fail(f"--header {text!r}: write it like 'Authorization: Bearer TOKEN'")
        headers[name.strip()] = value.strip()
    return headers


def _share_and_seconds(text: str) -> tuple[float, float]:
    share, _, seconds = text.partition(":")
    try:
        return float(share), float(seconds)
    except ValueError:
        return fail(f"--latency {text!r}: give SHARE:SECONDS, e.g. 0.99:0.25")
