"""`trimtab actions`: the journal of what was done, a person's yes or no, and policies tried on the past."""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click
import sqlalchemy as sa

from alerts.actions import PolicyError, load_policies
from alerts.actions.journal import Anchor, JournalBroken, entries, head, verify
from alerts.actions.simulate import Outcome, simulate
from alerts.durations import parse_duration
from alerts.recheck import recheck
from alerts.schema import JOURNAL
from trimtab.action_hooks import policies_of
from trimtab.commands.options import call, echo_json, fail, with_json, with_settings
from trimtab.settings import Settings

_ALL = 10_000_000


@click.group()
def actions() -> None:
    """The journal of actions: list, show, episodes, approve, reject, undo, verify, replay.

    \b
    Examples:
      trimtab actions list --model flights
      trimtab actions show 3                       why it was done, in words
      trimtab actions episodes                     of drift or decay, and their retrainings
      trimtab actions verify                       is the journal as it was written?
      trimtab actions replay --since 7d --policy new.yaml     what would another policy have done?
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


@actions.command(epilog="Example: trimtab actions episodes --model flights")
@click.option("--model", help="Only this model's.")
@click.option("--limit", default=20, show_default=True)
@with_settings
@with_json
def episodes(model: str | None, limit: int, settings: Settings, as_json: bool) -> None:
    """Episodes of drift or decay, the newest first: when each began and ended, and what its retrainings came to."""
    query = urlencode({"limit": limit} | ({"model": model} if model else {}))
    rows = call(settings, "GET", f"{settings.alerts_url}/api/v1/episodes?{query}")["episodes"]
    if as_json:
        echo_json(rows)
        return
    if not rows:
        click.echo("no episodes yet")
    for row in rows:
        end = f"ended {_when(row['ended_at'])}: {row['ended_because']}" if row["ended_at"] else "goes on"
        after = f", after episode {row['follows']}" if row["follows"] else ""
        version = f" version {row['version']}" if row["version"] else ""
        click.echo(f"{row['id']:<5} {_when(row['opened_at'])}  {row['model']}{version}  {row['cause']}{after}; {end}")
        for attempt in row["attempts"]:
            click.echo(f"      action {attempt['action']}: {attempt['outcome']}  {attempt['why']}")
        if row["waits"]:
            click.echo(f"      waits: {row['waits']}")


@actions.command(epilog="Example: trimtab actions show 3")
@click.argument("action_id")
@with_settings
@with_json
def show(action_id: str, settings: Settings, as_json: bool) -> None:
    """One action whole, in words: what was seen, judged, decided and done. Times are UTC."""
    found = call(settings, "GET", f"{settings.alerts_url}/api/v1/actions/{action_id}")
    if as_json or not isinstance(found, dict) or "explanation" not in found:
        echo_json(found)
        return
    for line in found["explanation"]:
        click.echo(line)


def _decide(settings: Settings, action_id: str, verb: str, actor: str | None) -> None:
    body = {"actor": actor or getpass.getuser()}
    answer: Any = call(settings, "POST", f"{settings.alerts_url}/api/v1/actions/{action_id}/{verb}", body)
    click.echo(f"{answer['action']} of {answer['model']}: {answer['state']}")


@actions.command(epilog="Example: trimtab actions approve 3")
@click.argument("action_id")
@click.option("--actor", help="Who says so; default: the user at the keyboard.")
@with_settings
def approve(action_id: str, actor: str | None, settings: Settings) -> None:
    """Let a waiting, advised or held action run."""
    _decide(settings, action_id, "approve", actor)


@actions.command(epilog="Example: trimtab actions reject 3")
@click.argument("action_id")
@click.option("--actor", help="Who says so; default: the user at the keyboard.")
@with_settings
def reject(action_id: str, actor: str | None, settings: Settings) -> None:
    """Forbid a waiting, advised or held action."""
    _decide(settings, action_id, "reject", actor)


@actions.command(epilog="Example: trimtab actions undo 7 --reason 'the sensor was repaired'")
@click.argument("action_id")
@click.option("--actor", help="Who says so; default: the user at the keyboard.")
@click.option("--reason", default="")
@with_settings
def undo(action_id: str, actor: str | None, reason: str, settings: Settings) -> None:
    """Take back what a scale or a quarantine did: the number of pods as before, the source let in again."""
    body = {"actor": actor or getpass.getuser(), "reason": reason}
    answer: Any = call(settings, "POST", f"{settings.alerts_url}/api/v1/actions/{action_id}/undo", body)
    click.echo(f"{answer['action']} of {answer['model']}: {answer['state']}, as action {answer['id']}")


@actions.command("verify", epilog="Example: trimtab actions verify --anchor 120:9f86d081884c7d65…")
@click.option("--anchor", "anchor_text", metavar="SEQ:HASH", help="An end of the journal that was noted earlier.")
@click.option("--database", metavar="URL", help="The journal's database; default: that of the settings.")
@with_settings
@with_json
def verify_(anchor_text: str | None, database: str | None, settings: Settings, as_json: bool) -> None:
    """Whether the journal is as it was written, and its decisions follow from what it holds.

    Every row's hash covers the row before it: a row that was changed, removed, put in or moved is found. The journal's
    head says where it ends, sealed with the secret if one is set, so that a cut end is found, too. Whoever may write
    the database and has an old head and seal can put those back: note the end that this prints somewhere else, and give
    it as --anchor later. Every decision is made again from its inputs and must come out the same, bit for bit.
    """
    try:
        anchor = Anchor.parse(anchor_text) if anchor_text else None
    except ValueError as error:
        fail(str(error))
    with _journal(settings, database) as connection:
        try:
            rows = verify(connection, secret=settings.trimtab.secret, anchor=anchor)
        except JournalBroken as error:
            fail(str(error))
        again = recheck(entries(connection, limit=_ALL))
        end = head(connection)
    wrong = [one for one in again if one.wrong]
    found = {
        "rows": rows,
        "end": str(end),
        "sealed": bool(settings.trimtab.secret),
        "decisions": len(again),
        "verdicts": sum(one.verdict for one in again),
        "differ": [{"row": one.seq, "key": one.key, "what": one.wrong} for one in wrong],
    }
    if as_json:
        echo_json(found)
    else:
        sealed = "its head is sealed" if found["sealed"] else "no secret is set: its head is not sealed"
        click.echo(f"{rows} rows, the chain is whole; {sealed}")
        click.echo(f"{len(again)} decisions and {found['verdicts']} verdicts made again, {len(wrong)} differ")
        for one in wrong:
            click.echo(f"row {one.seq} ({one.key}): {one.wrong}")
        click.echo(f"end: {end}")
    if wrong:
        raise SystemExit(1)


@actions.command(epilog="Example: trimtab actions replay --since 7d --policy new.yaml")
@click.option("--since", default="7d", show_default=True, help="How far back: 7d, 12h, 30m.")
@click.option(
    "--policy", "policy_file", required=True, metavar="FILE", help="The policies to try (YAML; docs/actions.md)."
)
@click.option("--model", help="Only this model's.")
@click.option("--all", "show_all", is_flag=True, help="Those, too, that the policy decides alike.")
@click.option("--database", metavar="URL", help="The journal's database; default: that of the settings.")
@with_settings
@with_json
def replay(
    since: str, policy_file: str, model: str | None, show_all: bool, database: str | None, settings: Settings,
    as_json: bool,
) -> None:  # fmt: skip
    """What another policy would have done with all that was asked for lately. Nothing is done or written."""
    try:
        begin = time.time() - parse_duration(since)
    except ValueError as error:
        fail(f"--since: {error}")
    try:
        new = load_policies(policy_file, policies_of(settings).policies)
    except PolicyError as error:
        fail(str(error))
    with _journal(settings, database) as connection:
        rows = entries(connection, limit=_ALL)
    outcomes = [one for one in simulate(rows, new.policies, begin) if model in (None, one.model)]
    differ = [one for one in outcomes if one.differs]
    if as_json:
        echo_json({
            "policy": new.version, "since": begin, "asked": len(outcomes), "differ": len(differ),
            "outcomes": [one.to_json() for one in outcomes],
        })  # fmt: skip
        return
    click.echo(f"{len(outcomes)} actions were asked for in the last {since}; {len(differ)} would have gone otherwise")
    for one in outcomes if show_all else differ:
        click.echo(_line(one))


def _line(one: Outcome) -> str:
    release = f" {one.release}" if one.release else ""
    was = f"{one.was}; would {one.would}: {one.would_reason}"
    return f"{_when(one.time)}  {one.action} {one.model}{release}: was {was}"


@contextmanager
def _journal(settings: Settings, database: str | None) -> Iterator[sa.Connection]:
    """The journal, read only: neither its folder nor its tables are made."""
    try:
        url = sa.make_url(database or settings.journal_url)
    except sa.exc.ArgumentError as error:
        fail(f"--database: {error}")
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).is_file():
        fail(f"there is no journal at {url.database}; name its database with --database, or its settings (--settings)")
    try:
        engine = sa.create_engine(url)
    except (sa.exc.ArgumentError, ImportError) as error:
        fail(f"{url.render_as_string()} cannot be opened: {error}")
    lite = url.get_backend_name() == "sqlite"
    try:
        # All of it as it is at one moment: an alerts service may be writing.
        engine = engine.execution_options(isolation_level="AUTOCOMMIT" if lite else "REPEATABLE READ")
        with engine.connect() as connection:
            if lite:
                connection.exec_driver_sql("BEGIN")
            if not sa.inspect(connection).has_table(JOURNAL.name):
                fail(f"{url.render_as_string()} holds no journal: no alerts service has run on it")
            yield connection
    except sa.exc.SQLAlchemyError as error:
        fail(f"the journal cannot be read: {getattr(error, 'orig', None) or error}")
    finally:
        engine.dispose()


def _when(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="seconds") if seconds else "-"
