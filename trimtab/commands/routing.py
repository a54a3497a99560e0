"""`trimtab models experiment | switch | route`: how the running server divides a model's requests."""

from __future__ import annotations

import getpass
import uuid
from typing import Any

import click

from trimtab.commands.options import call, echo_json, fail, with_settings
from trimtab.settings import Settings


def change_traffic(settings: Settings, model: str, verb: str, body: dict[str, Any]) -> None:
    """Asks the server for a change and prints its answer; a repeated request does not act twice.

    The change is the user's at the keyboard: no alert goes over a person's decision.
    """
    body = {**body, "actor": getpass.getuser()}
    url = f"{settings.serving_url}/api/v1/models/{model}/{verb}"
    echo_json(call(settings, "POST", url, body, key=uuid.uuid4().hex))


@click.command(
    epilog="Examples: trimtab models experiment flights --variant control=1:0.5 --variant wide=2:0.5 --sticky user"
    " · trimtab models experiment flights --end"
)
@click.argument("model")
@click.option("--variant", "variants", multiple=True, metavar="NAME=VERSION:WEIGHT", help="Once for each; sum 1.")
@click.option("--sticky", metavar="PARAMETER", help="Parameter, or header:NAME, that keeps a unit on its variant.")
@click.option("--end", is_flag=True, help="End it: all traffic goes to stable.")
@click.option("--reason", default="by hand")
@with_settings
def experiment(
    model: str, variants: tuple[str, ...], sticky: str | None, end: bool, reason: str, settings: Settings
) -> None:
    """Divide the requests between named variants (an A/B test); again with other weights, to change them.

    Weights are shares of the requests in steps of 0.0001. A unit keeps its variant as long as the weights let it.
    """
    if end == bool(variants):
        fail("give --variant NAME=VERSION:WEIGHT at least twice, or --end")
    if end:
        change_traffic(settings, model, "experiment", {"end": True, "reason": reason})
        return
    body: dict[str, Any] = {"variants": [_variant(text) for text in variants], "reason": reason}
    change_traffic(settings, model, "experiment", body | ({"sticky": sticky} if sticky else {}))


@click.command(epilog="Examples: trimtab models switch flights --version 3 --prepare · trimtab models switch flights")
@click.argument("model")
@click.option("--version", type=click.IntRange(min=1), help="Default: the standby.")
@click.option("--prepare", is_flag=True, help="Only load and warm it, as the standby.")
@click.option("--reason", default="by hand")
@with_settings
def switch(model: str, version: int | None, prepare: bool, reason: str, settings: Settings) -> None:
    """Blue-green: give the standby all traffic in one step; the version before becomes the standby.

    Both stay loaded and warm, so the way back is the same command again.
    """
    if prepare and version is None:
        fail("--prepare needs --version: which one is to be made ready?")
    body = {"prepare": prepare, "reason": reason} | ({} if version is None else {"version": version})
    change_traffic(settings, model, "switch", body)


@click.command(
    epilog="Examples: trimtab models route flights --rule x-tester yes 2 --rule x-team 'beta-*' canary"
    " · trimtab models route flights --clear"
)
@click.argument("model")
@click.option(
    "--rule", "rules", nargs=3, multiple=True, metavar="HEADER VALUE TARGET",
    help="VALUE may end in * (begins with). TARGET is a version, or stable, canary or a variant's name.",
)  # fmt: skip
@click.option("--clear", is_flag=True, help="End all rules.")
@click.option("--reason", default="by hand")
@with_settings
def route(model: str, rules: tuple[tuple[str, str, str], ...], clear: bool, reason: str, settings: Settings) -> None:
    """Send requests with a header to a version or a variant; the first rule that fits counts. Replaces all rules."""
    if clear == bool(rules):
        fail("give --rule HEADER VALUE TARGET, or --clear")
    change_traffic(settings, model, "route", {"rules": [_rule(*rule) for rule in rules], "reason": reason})


def _variant(text: str) -> dict[str, Any]:
    name, _, rest = text.partition("=")
    version, _, weight = rest.partition(":")
    try:
        return {"name": name, "version": int(version), "weight": float(weight)}
    except ValueError:
        fail(f"--variant {text!r}: write NAME=VERSION:WEIGHT, such as wide=2:0.5")


def _rule(header: str, value: str, target: str) -> dict[str, Any]:
    compared = {"prefix": value[:-1]} if value.endswith("*") else {"equals": value}
    return {"header": header, **compared, **({"version": int(target)} if target.isdecimal() else {"variant": target})}
