"""`trimtab alerts`: rules, evidence and actions, wired from the settings; a look at what fires, and silences."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import click

from alerts.actions import PolicyError
from alerts.api import serve as run
from alerts.config import AlertsConfig
from alerts.labels import Matcher
from alerts.notifications import ConfigurationError, load_configuration, parse_matcher
from alerts.releases import load_release_policies
from alerts.retraining import RetrainingPolicy
from trimtab.action_hooks import HookSettingsError, hooks_of, policies_of, retrainings_of
from trimtab.commands.options import call, echo_json, fail, make_data_folder, start_logging, with_json, with_settings
from trimtab.settings import Settings


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
      trimtab alerts check alertmanager.yml
    """
    ctx.obj = settings
    if ctx.invoked_subcommand is None:
        _run(settings)


def _run(settings: Settings) -> None:
    make_data_folder(settings)
    start_logging("alerts", settings)
    own = settings.alerts
    try:
        if own.alertmanager_config:
            load_configuration(own.alertmanager_config)
        if settings.releases.policies:
            load_release_policies(settings.releases.policies)
        policies, hooks = policies_of(settings), hooks_of(settings)
        retrainings = retrainings_of(settings)
    except (ConfigurationError, PolicyError, HookSettingsError) as error:
        fail(str(error))
    run(
        AlertsConfig(
            host=settings.trimtab.host,
            port=own.port,
            query_url=settings.query_url,
            push_url=settings.intake_url,
            write_url=own.write_url,
            external_labels=own.external_labels,
            serving_url=settings.serving_url,
            database_url=settings.journal_url,
            rule_files=tuple(own.rules),
            shipped_rules=own.shipped_rules,
            notify_urls=(*own.notify, *own.webhooks),
            alertmanager_config=own.alertmanager_config,
            alertmanagers=tuple(own.alertmanagers),
            policies=policies.policies,
            policy_version=policies.version,
            hooks=hooks,
            retraining=retrainings.pop("*", RetrainingPolicy()),
            retrainings=retrainings,
            release_policies=settings.releases.policies,
            secret=settings.trimtab.secret,
            external_url=settings.alerts_url,
        )
    )


@alerts.command("list", epilog="Example: trimtab alerts list severity=page 'model=~\"m.*\"' --json")
@click.argument("matchers", nargs=-1)
@click.option("--receiver", help="Only alerts that this receiver hears of (a regular expression).")
@click.option("--audible", is_flag=True, help="Only alerts that nothing silences or inhibits.")
@with_settings
@with_json
def list_(matchers: tuple[str, ...], receiver: str | None, audible: bool, settings: Settings, as_json: bool) -> None:
    """What fires now, where the labels match (LABEL=VALUE, LABEL!=VALUE, LABEL=~REGEX, LABEL!~REGEX)."""
    query: list[tuple[str, str]] = [("filter", str(_matcher(text))) for text in matchers]
    query += [("receiver", receiver)] if receiver else []
    query += [("silenced", "false"), ("inhibited", "false")] if audible else []
    rows = call(settings, "GET", f"{settings.alerts_url}/api/v2/alerts" + (f"?{urlencode(query)}" if query else ""))
    if as_json:
        echo_json(rows)
        return
    if not rows:
        click.echo("nothing fires")
    for row in rows:
        labels, text = row["labels"], row["annotations"].get("summary", "")
        status = row["status"]
        muted = " (silenced)" if status["silencedBy"] else " (inhibited)" if status["inhibitedBy"] else ""
        name = labels.get("alertname", "-")
        click.echo(f"{row['startsAt'][:19]}  {labels.get('severity', '-'):<7} {name:<20} {text}{muted}")


@alerts.command(epilog='Example: trimtab alerts silence alertname=HighLatency --hours 2 --comment "load test"')
@click.argument("matchers", nargs=-1, required=True)
@click.option("--hours", default=1.0, show_default=True)
@click.option("--comment", default="", help="Why.")
@click.option("--actor", help="Who says so; default: the user at the keyboard.")
@with_settings
def silence(matchers: tuple[str, ...], hours: float, comment: str, actor: str | None, settings: Settings) -> None:
    """Neither tell nor act on alerts whose labels match (LABEL=VALUE, LABEL!=VALUE, LABEL=~REGEX, LABEL!~REGEX)."""
    now = datetime.now(UTC)
    body = {
        "matchers": [_matcher_json(_matcher(text)) for text in matchers],
        "startsAt": now.isoformat(),
        "endsAt": (now + timedelta(hours=hours)).isoformat(),
        "createdBy": actor or getpass.getuser(),
        "comment": comment or "by hand",
    }
    click.echo(call(settings, "POST", f"{settings.alerts_url}/api/v2/silences", body)["silenceID"])


@alerts.command(epilog="Example: trimtab alerts silences")
@click.option("--expired", is_flag=True, help="Also those that have ended.")
@with_settings
@with_json
def silences(expired: bool, settings: Settings, as_json: bool) -> None:
    """The silences in force and to come."""
    rows = call(settings, "GET", f"{settings.alerts_url}/api/v2/silences")
    rows = [row for row in rows if expired or row["status"]["state"] != "expired"]
    if as_json:
        echo_json(rows)
        return
    if not rows:
        click.echo("nothing is silenced")
    for row in rows:
        named = " ".join(_matcher_text(item) for item in row["matchers"])
        until = f"{row['status']['state']} until {row['endsAt'][:19]}"
        click.echo(f"{row['id']}  {until}  {named}  {row['createdBy']}: {row['comment']}")


@alerts.command(epilog="Example: trimtab alerts expire 5f0cbd5c-2d47-4d35-a1a0-6f8dd0b1c5d2")
@click.argument("ids", nargs=-1, required=True)
@with_settings
def expire(ids: tuple[str, ...], settings: Settings) -> None:
    """End silences now."""
    for id in ids:
        call(settings, "DELETE", f"{settings.alerts_url}/api/v2/silence/{id}")
        click.echo(f"{id} has ended")


@alerts.command(epilog="Example: trimtab alerts check alertmanager.yml")
@click.argument("files", nargs=-1, required=True, type=click.Path(dir_okay=False))
def check(files: tuple[str, ...]) -> None:
    """Read alertmanager.yml files; say what is wrong, with file, line and column."""
    wrong = False
    for file in files:
        try:
            found = load_configuration(file)
        except ConfigurationError as error:
            click.echo(str(error), err=True)
            wrong = True
        else:
            routes = sum(1 for _ in found.route.walk())
            click.echo(
                f"{file}: {routes} routes, {len(found.receivers)} receivers, {len(found.inhibit_rules)} inhibit rules, "
                f"{len(found.intervals)} time intervals"
            )
    if wrong:
        raise SystemExit(1)


def _matcher(text: str) -> Matcher:
    try:
        return parse_matcher(text)
    except ValueError as error:
        fail(f"{text!r} is not a matcher ({error}); give LABEL=VALUE, LABEL!=VALUE, LABEL=~REGEX or LABEL!~REGEX")


def _matcher_json(matcher: Matcher) -> dict[str, object]:
    regex, equal = matcher.op.endswith("~"), not matcher.op.startswith("!")
    return {"name": matcher.name, "value": matcher.value, "isRegex": regex, "isEqual": equal}


def _matcher_text(item: dict[str, Any]) -> str:
    operator = ("=" if item["isEqual"] else "!") + ("~" if item["isRegex"] else "")
    return f'{item["name"]}{"!=" if operator == "!" else operator}"{item["value"]}"'
