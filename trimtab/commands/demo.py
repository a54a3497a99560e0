"""`trimtab demo`: the whole loop on real flights."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import click

from trimtab.commands.options import echo_json
from trimtab.demo.plan import FAST, FULL, demo_settings
from trimtab.demo.replay import Sample, sample
from trimtab.demo.report import Report
from trimtab.demo.story import Story
from trimtab.demo.tables import all_flights
from trimtab.demo.timeline import Timeline
from trimtab.stack import Stack, StackError, owner, with_free_ports


@click.command(
    epilog="""\b
Examples:
  trimtab demo                     with the dashboard left running; Ctrl-C stops it
  trimtab demo --headless --json   exits 0 only if every step really happened"""
)
@click.option("--headless", is_flag=True, help="Stop the stack at the end; exit 0 only if every step happened.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on standard output.")
@click.option("--seed", default=FULL.seed, show_default=True, help="Seed of the training and of the sample of flights.")
@click.option("--fast", is_flag=True, help="Fewer flights a day and shorter pauses.")
@click.option("--without-fault", is_flag=True, help="Release a healthy v2: no rollback comes, and the demo says so.")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".trimtab/demo"),
    show_default=True,
    help="Folder of this run; what an earlier run left in it is removed.",
)
def demo(headless: bool, as_json: bool, seed: int, fast: bool, without_fault: bool, data: Path) -> None:
    """The whole loop on real flights: train, serve, bad canary, rollback, drift, retrain, promote.

    A model predicts which of the flights that left New York in 2013 arrive late. It is trained on January and February;
    the following months are replayed as live requests, with their real weather and real delays.
    """
    plan = replace(FAST if fast else FULL, seed=seed, fault=not without_fault)
    data = data.absolute()
    _clear(data)
    settings, notes = with_free_ports(demo_settings(data, plan, secrets.token_hex(16)))
    timeline = Timeline(show=lambda line: click.echo(line, err=True))
    for note in notes:
        timeline.add("note", note)

    def flights() -> Sample:
        return sample(all_flights(data), plan.since, plan.share, plan.seed)

    stack = Stack.prepare(settings)
    report: Report | None = None
    # Told to end, or left by its terminal, it stops its stack as for Ctrl-C; otherwise the services would outlive it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        report = asyncio.run(Story(plan, settings, stack, timeline, flights).tell())
        _print(report, timeline, as_json)
        if not headless:
            click.echo(f"\nThe dashboard is at {settings.dashboard_url}; Ctrl-C stops the stack.", err=True)
            threading.Event().wait()
    except StackError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        click.echo("stopping", err=True)
    finally:
        stack.stop()
    sys.exit(0 if report is not None and report.complete else 1)


def _clear(data: Path) -> None:
    if pid := owner(data):
        raise click.ClickException(f"a demo runs on {data} (process {pid}); stop it, or choose another --data")
    # Only a folder that a demo made is ever removed.
    if (data / "stack.toml").exists():
        shutil.rmtree(data)
    elif data.exists() and any(data.iterdir()):
        raise click.ClickException(f"{data} is not empty and no demo made it; choose another with --data")


def _print(report: Report, timeline: Timeline, as_json: bool) -> None:
    click.echo(f"\nWhat was seen, judged and done:\n\n{timeline.text()}\n", err=True)
    if report.missing:
        click.echo(f"Not every step happened: {report.missing}", err=True)
    if as_json:
        echo_json(report.as_json())
