"""`trimtab releases`: releases that walk through their policies' steps, and what people decide on them."""

from __future__ import annotations

import getpass
from datetime import datetime
from typing import Any
from urllib.parse import quote

import click

from alerts.durations import format_duration, parse_duration
from alerts.releases import (
    ReleasePolicy,
    ReleasePolicyError,
    Simulated,
    Traffic,
    load_release_policies,
    named,
    simulate,
)
from trimtab.commands.options import call, echo_json, fail, with_json, with_settings
from trimtab.settings import Settings

_reason = click.option("--reason", default="", help="Why; the journal keeps it.")


@click.group()
def releases() -> None:
    """Releases by a policy: list, show, start, approve, pause, resume, abort; check and simulate policies.

    \b
    Examples:
      trimtab releases start flights 3
      trimtab releases show flights                what it waits for and needs, in words
      trimtab releases approve flights             past a gate, a deadline or an open blessing
      trimtab releases simulate releases.yaml --error-ratio 0.05
    """


@releases.command("list", epilog="Example: trimtab releases list --model flights")
@click.option("--model", default="", help="Only this model's.")
@click.option("--limit", default=20, show_default=True)
@with_settings
@with_json
def list_(model: str, limit: int, settings: Settings, as_json: bool) -> None:
    """The newest first."""
    query = f"?limit={limit}" + (f"&model={quote(model)}" if model else "")
    found = call(settings, "GET", f"{settings.alerts_url}/api/v1/releases{query}")
    if as_json:
        echo_json(found)
        return
    if found["error"]:
        click.echo(f"the file of policies was not taken, the old ones are in force:\n{found['error']}", err=True)
    if not found["releases"]:
        click.echo("no releases yet; `trimtab releases start MODEL VERSION` begins one")
    for row in found["releases"]:
        state = "paused" if row["paused"] else row["phase"].replace("_", " ")
        what = f"{row['id']:<5} {_when(row['began_at'])}  {row['model']:<16} version {row['version']:<4} {state:<13}"
        click.echo(f"{what} {'' if row['ended_at'] else row['place'] + ': '}{row['reason']}")


@releases.command(epilog="Example: trimtab releases show flights")
@click.argument("model")
@with_settings
@with_json
def show(model: str, settings: Settings, as_json: bool) -> None:
    """The model's latest release: where it is, why it waits, what it needs, and what has happened. Times are local."""
    found = call(settings, "GET", _url(settings, model))
    if as_json:
        echo_json(found)
        return
    for line in found["explanation"]:
        click.echo(line)
    for name, check in ((found["blessing"] or {}).get("checks") or {}).items():
        click.echo(f"  blessing, {name}: {check['state']}: {check['why']}")
    for entry in found["journal"]:
        click.echo(f"{_when(entry['time'])}  {entry['body']['told']}")


@releases.command(epilog="Example: trimtab releases start flights 3")
@click.argument("model")
@click.argument("version", type=click.IntRange(min=1))
@_reason
@click.option("--override", default="", metavar="REASON", help="Release it although its blessing is open; why.")
@click.option("--actor", help="Who says so; default: the user at the keyboard.")
@with_settings
def start(model: str, version: int, reason: str, override: str, actor: str | None, settings: Settings) -> None:
    """Release a version through the steps of the model's policy."""
    body = {"model": model, "version": version, "reason": reason, "override": override, "actor": _actor(actor)}
    _told(call(settings, "POST", f"{settings.alerts_url}/api/v1/releases", body))


@releases.command(epilog='Example: trimtab releases approve flights --reason "looked at the slices"')
@click.argument("model")
@_reason
@click.option("--override", default="", metavar="REASON", help="Let it go on although its blessing is open; why.")
@click.option("--actor", help="Who says so; default: the user at the keyboard.")
@with_settings
def approve(model: str, reason: str, override: str, actor: str | None, settings: Settings) -> None:
    """Let a release go on that waits for a person: at a gate, after a deadline, with an open blessing."""
    # A reason alone overrides nothing.
    more = {"override": override} if reason else {}
    _decide(settings, model, "approve", reason or override, actor, **more)


@releases.command(epilog='Example: trimtab releases pause flights --reason "on call changes"')
@click.argument("model")
@_reason
@click.option("--actor", help="Who says so; default: the user at the keyboard.")
@with_settings
def pause(model: str, reason: str, actor: str | None, settings: Settings) -> None:
    """Stop a release where it is; proved harm still rolls it back."""
    _decide(settings, model, "pause", reason, actor)


@releases.command(epilog="Example: trimtab releases resume flights")
@click.argument("model")
@_reason
@click.option("--actor", help="Who says so; default: the user at the keyboard.")
@with_settings
def resume(model: str, reason: str, actor: str | None, settings: Settings) -> None:
    """Let a paused release go on from what is in force; what its step needs is counted anew."""
    _decide(settings, model, "resume", reason, actor)


@releases.command(epilog='Example: trimtab releases abort flights --reason "wrong data"')
@click.argument("model")
@_reason
@click.option("--actor", help="Who says so; default: the user at the keyboard.")
@with_settings
def abort(model: str, reason: str, actor: str | None, settings: Settings) -> None:
    """End a release: all traffic goes back to stable."""
    _decide(settings, model, "abort", reason, actor)


@releases.command(epilog="Example: trimtab releases check releases.yaml")
@click.argument("files", nargs=-1, required=True, type=click.Path(dir_okay=False))
def check(files: tuple[str, ...]) -> None:
    """Read files of release policies; say what is wrong, with file, line and column."""
    wrong = False
    for file in files:
        try:
            found = load_release_policies(file)
        except ReleasePolicyError as error:
            click.echo(str(error), err=True)
            wrong = True
            continue
        for model, policy in found.policies.items():
            steps = ", ".join(named(step) for step in policy.steps) or "no steps: the shipped rules act"
            click.echo(f"{file}: {model}: {steps} (digest {policy.digest})")
    if wrong:
        raise SystemExit(1)


@releases.command("simulate", epilog="Example: trimtab releases simulate releases.yaml --rate 50 --error-ratio 0.05")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--model", default="", help="Whose policy; needed if the file has several.")
@click.option("--rate", default=100.0, show_default=True, help="Requests a second.")
@click.option("--stable-error-ratio", default=0.005, show_default=True, help="Share of stable's requests that fail.")
@click.option("--error-ratio", default=0.005, show_default=True, help="Share of the new version's that fail.")
@click.option("--latency-factor", default=1.0, show_default=True, help="How much longer the new version takes.")
@click.option("--later-error-ratio", type=float, help="What of its requests fails some time after its promotion.")
@click.option("--later-latency-factor", type=float, help="How much longer it takes some time after its promotion.")
@click.option("--later", default="10m", show_default=True, metavar="DURATION", help="That time after its promotion.")
@click.option("--disagreement-ratio", default=0.0, show_default=True, help="Share of a shadow's answers that differ.")
@click.option("--approve-after", metavar="DURATION", help="Somebody approves what waits after so long; default: never.")
@click.option("--duration", default="6h", show_default=True, help="How long to simulate at most.")
@click.option("--seed", default=0, show_default=True)
@with_json
def simulate_(
    file: str, model: str, rate: float, stable_error_ratio: float, error_ratio: float, latency_factor: float,
    later_error_ratio: float | None, later_latency_factor: float | None, later: str, disagreement_ratio: float,
    approve_after: str | None, duration: str, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """What a policy would do and when, on synthetic traffic: the real controller and judge, with a simulated clock.

    Nothing outside this process is touched. Exit status 0, whatever became of the release.
    """
    policy = _policy(file, model)
    try:
        traffic = Traffic(
            requests_per_second=rate, stable_error_ratio=stable_error_ratio, error_ratio=error_ratio,
            latency_factor=latency_factor, later_error_ratio=later_error_ratio,
            later_latency_factor=later_latency_factor, later_seconds=parse_duration(later),
            disagreement_ratio=disagreement_ratio,
            approve_after_seconds=None if approve_after is None else parse_duration(approve_after),
            seconds=parse_duration(duration), seed=seed,
        )  # fmt: skip
        found = simulate(policy, traffic)
    except ValueError as error:
        fail(str(error))
    if as_json:
        echo_json({
            "phase": found.walk.phase.value, "events": [event.to_json() for event in found.events],
            "requests": found.requests, "errors": found.errors, "explanation": list(found.explanation),
        })  # fmt: skip
        return
    _simulated(found)


def _simulated(found: Simulated) -> None:
    for event in found.events:
        click.echo(f"{format_duration(round(event.after)):>10}  {event.weight:>7.2%}  {event.told}")
    for line in found.explanation:
        click.echo(line)
    click.echo(f"The new version answered {found.requests:.0f} requests, {found.errors:.0f} of them failed.")


def _policy(file: str, model: str) -> ReleasePolicy:
    try:
        found = load_release_policies(file).policies
    except ReleasePolicyError as error:
        fail(str(error))
    if not model and len(found) == 1:
        (model,) = found
    if model not in found:
        wanted = f"has no model {model!r}" if model else "has several models, or none"
        fail(f"{file} {wanted}: give --model, one of {', '.join(found) or 'none'}")
    return found[model]


def _decide(settings: Settings, model: str, deed: str, reason: str, actor: str | None, **more: str) -> None:
    body = {"actor": _actor(actor), "reason": reason, **more}
    _told(call(settings, "POST", f"{_url(settings, model)}/{deed}", body))


def _told(row: dict[str, Any]) -> None:
    state = "paused" if row["paused"] else row["phase"].replace("_", " ")
    click.echo(f"release {row['id']} of {row['model']} (version {row['version']}) is {state}, at {row['place']}")


def _url(settings: Settings, model: str) -> str:
    return f"{settings.alerts_url}/api/v1/releases/{quote(model, safe='')}"


def _actor(given: str | None) -> str:
    return given or getpass.getuser()


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="seconds")
