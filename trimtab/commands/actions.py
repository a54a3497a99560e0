"""`trimtab actions`: the journal of what was done, and the gate for a person's yes or no."""

from __future__ import annotations

import getpass
from datetime import datetime
from typing import Any

import click

from trimtab.commands.options import call, echo_json, with_json, with_settings
from trimtab.settings import Settings


@click.group()
def actions() -> None:
    """The journal of actions: list, show, approve, reject.

    \b
    Example:
      trimtab actions list --model flights
    """


@actions.command("list", epilog="Example: trimtab actions list --limit 5")
@click.option("--model", help="Only this model's.")
@click.option("--limit", default=20, show_default=True)
@with_settings
@with_json
def list_(model: str | None, limit: int, settings: Settings, as_json: bool) -> None:
    """The newest actions first."""
    url = f"{settings.alerts_url}/api/v1/actions?limit={limit}" + (f"&model={model}" if model else "")
    rows = call(settings, "GET", url)
    rows = rows.get("actions", rows) if isinstance(rows, dict) else rows
    if as_json:
        echo_json(rows)
        return
    if not rows:
        click.echo("no actions yet")
    for row in rows:
        what = f"{row['action']:<9} {row['model']:<12} {row['state']:<9}"
        click.echo(f"{row['id']:<6} {_when(row['created_at'])}  {what} {row['reason']}")


@actions.command(epilog="Example: trimtab actions show 3")
@click.argument("action_id")
@with_settings
def show(action_id: str, settings: Settings) -> None:
    """One action whole: what was seen, judged and done."""
    echo_json(call(settings, "GET", f"{settings.alerts_url}/api/v1/actions/{action_id}"))


def _decide(settings: Settings, action_id: str, verb: str, actor: str | None) -> None:
    body = {"actor": actor or getpass.getuser()}
    answer: Any = call(settings, "POST", f"{settings.alerts_url}/api/v1/actions/{action_id}/{verb}", body)
    click.echo(f"{answer['action']} of {answer['model']}: {answer['state']}")


@actions.command(epilog="Example: trimtab actions approve 3")
@click.argument("action_id")
@click.option("--actor", help="Who says so; default: the user at the keyboard.")
@with_settings
def approve(action_id: str, actor: str | None, settings: Settings) -> None:
    """Let a waiting action run."""
    _decide(settings, action_id, "approve", actor)


@actions.command(epilog="Example: trimtab actions reject 3")
@click.argument("action_id")
@click.option("--actor", help="Who says so; default: the user at the keyboard.")
@with_settings
def reject(action_id: str, actor: str | None, settings: Settings) -> None:
    """Forbid a waiting action."""
    _decide(settings, action_id, "reject", actor)


def _when(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="seconds") if seconds else "-"
