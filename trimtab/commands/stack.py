"""`trimtab init`, `up`, `status`, `doctor`: the stack on one machine."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

import click
import msgspec

from trimtab.commands.options import echo_json, fail, make_data_folder, with_json, with_settings
from trimtab.doctor import examine
from trimtab.settings import FILE, Settings, dump
from trimtab.stack import Stack, StackError, owner, states, with_free_ports


@click.command(epilog="Example: trimtab init && trimtab up")
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
def init(force: bool) -> None:
    """Write a trimtab.toml with all fields at their defaults."""
    path = Path(FILE)
    if path.exists() and not force:
        fail(f"{path} exists; use --force to overwrite it")
    path.write_text(f"# Trimtab's settings; docs/settings.md says what each field does.\n{dump(Settings())}")
    click.echo(f"wrote {path}")


@click.command(epilog="Example: trimtab up --free-ports")
@with_settings
@click.option("--free-ports", is_flag=True, help="Where a port is in use, take a free one instead of failing.")
def up(settings: Settings, free_ports: bool) -> None:
    """Run the collector, alerts, serving and the dashboard; stop with Ctrl-C."""
    chosen, notes = with_free_ports(settings)
    if notes and not free_ports:
        fail("; ".join(note.split(":")[0] for note in notes) + "; stop what uses it, set another, or use --free-ports")
    for note in notes:
        click.echo(note, err=True)
    if pid := owner(chosen.data):
        fail(f"a stack runs on {chosen.data} already (process {pid}); stop it, or set another trimtab.data")
    make_data_folder(chosen)
    stack = Stack.prepare(chosen)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    try:
        stack.start()
        stack.wait_ready()
        click.echo(f"dashboard  {chosen.dashboard_url}")
        click.echo(f"serving    {chosen.serving_url}/v2")
        click.echo(f"queries    {chosen.collector_url}")
        click.echo(f"alerts     {chosen.alerts_url}")
        click.echo(f"intake     {chosen.intake_url} (OTLP, events, labels)")
        click.echo(f"logs       {chosen.data / 'logs'}")
        click.echo("Ctrl-C stops all of it.")
        stop.wait()
    except StackError as error:
        fail(str(error))
    finally:
        stack.stop()


@click.command(epilog="Example: trimtab status --json")
@with_settings
@with_json
def status(settings: Settings, as_json: bool) -> None:
    """Whether each service is ready; exit status 1 if one is not."""
    found = states(settings)
    if as_json:
        echo_json([msgspec.to_builtins(state) for state in found])
    else:
        for state in found:
            click.echo(f"{state.name:<10} {state.detail:<12} {state.url}")
        if not any(state.ready for state in found):
            click.echo("nothing is running here; start it with: trimtab up")
    sys.exit(0 if all(state.ready for state in found) else 1)


@click.command(epilog="Example: trimtab doctor")
@with_settings
@with_json
def doctor(settings: Settings, as_json: bool) -> None:
    """What is missing or wrong on this machine, and how to mend it; exit status 1 if something needed is."""
    findings = examine(settings)
    if as_json:
        echo_json([msgspec.to_builtins(finding) for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{finding.state:<8} {finding.what:<28} {finding.detail}")
            if finding.remedy:
                click.echo(f"{'':<8} {'':<28} -> {finding.remedy}")
    sys.exit(1 if any(finding.state == "missing" for finding in findings) else 0)
