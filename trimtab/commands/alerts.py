"""`trimtab alerts`: rules, evidence and actions, wired from the settings; and a look at what fires."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime, timedelta

import click

from alerts.actions import ActionPolicy, CommandHook, Hook, HttpHook
from alerts.api import serve as run
from alerts.config import AlertsConfig
from trimtab.commands.options import call, echo_json, fail, start_logging, with_json, with_settings
from trimtab.settings import ACTIONS, ActionSettings, Settings


@click.group(invoke_without_command=True)
@with_settings
@click.pass_context
def alerts(ctx: click.Context, settings: Settings) -> None:
    """Run the rules, the judge of releases and the actions; or look at what fires.

    \b
    Examples:
      trimtab alerts              run the service
      trimtab alerts list         what fires now
      trimtab alerts silence alertname=HighLatency --hours 2 --comment "load test"
    """
    ctx.obj = settings
    if ctx.invoked_subcommand is None:
        _run(settings)


def _run(settings: Settings) -> None:
    settings.data.mkdir(parents=True, exist_ok=True)
    start_logging("alerts", settings)
    own = settings.alerts
    run(
        AlertsConfig(
            host=settings.trimtab.host,
            port=own.port,
            query_url=settings.query_url,
            push_url=settings.intake_url,
            serving_url=settings.serving_url,
            database_url=settings.journal_url,
            rule_files=tuple(own.rules),
            shipped_rules=own.shipped_rules,
            notify_urls=(*own.notify, *own.webhooks),
            policies={name: _policy(own.actions.get(name, ActionSettings())) for name in ACTIONS},
            hooks={name: hook for name, action in own.actions.items() if (hook := _hook(action, settings)) is not None},
            secret=settings.trimtab.secret,
            external_url=settings.alerts_url,
        )
    )


def _policy(action: ActionSettings) -> ActionPolicy:
    return ActionPolicy(
        mode=action.mode,
        cooldown_seconds=action.cooldown_seconds,
        budget_per_hour=action.budget_per_hour,
    )


def _hook(action: ActionSettings, settings: Settings) -> Hook | None:
    """The command or URL of the settings; None leaves rollback and promote to Trimtab's own serving."""
    if action.command:
        return CommandHook(action.command, timeout_seconds=action.timeout_seconds)
    if action.url:
        return HttpHook(action.url, secret=settings.trimtab.secret, timeout_seconds=action.timeout_seconds)
    return None


@alerts.command("list", epilog="Example: trimtab alerts list --json")
@with_settings
@with_json
def list_(settings: Settings, as_json: bool) -> None:
    """What fires now."""
    rows = call(settings, "GET", f"{settings.alerts_url}/api/v2/alerts")
    if as_json:
        echo_json(rows)
        return
    if not rows:
        click.echo("nothing fires")
    for row in rows:
        labels, text = row["labels"], row["annotations"].get("summary", "")
        click.echo(f"{row['startsAt'][:19]}  {labels.get('severity', '-'):<7} {labels['alertname']:<20} {text}")


@alerts.command(epilog='Example: trimtab alerts silence alertname=HighLatency --hours 2 --comment "load test"')
@click.argument("matchers", nargs=-1, required=True)
@click.option("--hours", default=1.0, show_default=True)
@click.option("--comment", default="", help="Why.")
@click.option("--actor", help="Who says so; default: the user at the keyboard.")
@with_settings
def silence(matchers: tuple[str, ...], hours: float, comment: str, actor: str | None, settings: Settings) -> None:
    """Neither tell nor act on alerts whose labels match (LABEL=VALUE …)."""
    now = datetime.now(UTC)
    body = {
        "matchers": [_matcher(text) for text in matchers],
        "startsAt": now.isoformat(),
        "endsAt": (now + timedelta(hours=hours)).isoformat(),
        "createdBy": actor or getpass.getuser(),
        "comment": comment or "by hand",
    }
    click.echo(call(settings, "POST", f"{settings.alerts_url}/api/v2/silences", body)["silenceID"])


def _matcher(text: str) -> dict[str, object]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        fail(f"{text!r} is not a matcher; give LABEL=VALUE")
    return {"name": name, "value": value, "isRegex": False, "isEqual": True}
