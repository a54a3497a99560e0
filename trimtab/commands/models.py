"""`trimtab models`: the registry, and the traffic of the running server."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from collectors.references import Reference
from observability.columns import ProfileError
from serving.errors import ServingError
from serving.registry import ModelVersion
from trimtab.commands.optimize import optimize
from trimtab.commands.options import call, echo_json, fail, with_json, with_settings
from trimtab.commands.registry import registry
from trimtab.commands.routing import change_traffic, experiment, route, switch
from trimtab.settings import Settings


@click.group()
def models() -> None:
    """The registry and the traffic: list, show, register, canary, experiment, switch, route, shadow, promote, rollback.

    \b
    Examples:
      trimtab models list
      trimtab models canary flights 2 --weight 0.1
      trimtab models rollback flights --reason "wrong units"
      trimtab models optimize flights --int8 --sample holdout.parquet
    """


for command in (experiment, switch, route):
    models.add_command(command)


models.add_command(optimize)


@models.command("list", epilog="Example: trimtab models list --json")
@with_settings
@with_json
def list_(settings: Settings, as_json: bool) -> None:
    """All versions of all models, as registered."""
    source = registry(settings)
    rows = [_row(version) for model in source.models() for version in source.versions(model)]
    if as_json:
        echo_json(rows)
        return
    if not rows:
        click.echo(
            "no models registered; `trimtab models register MODEL FOLDER` adds an artifact of yours, "
            "`trimtab train MODEL` makes one"
        )
    for row in rows:
        created = datetime.fromtimestamp(row["created_at"]).isoformat(sep=" ", timespec="seconds")
        click.echo(
            f"{row['model']:<16} {row['version']:>3}  {created}  {row['digest'][:12]}  {_scores(row['metrics'])}"
        )


@models.command(epilog="Example: trimtab models show flights")
@click.argument("model")
@with_settings
def show(model: str, settings: Settings) -> None:
    """Versions, lineage, traffic policy and history of one model, from the running server."""
    echo_json(call(settings, "GET", f"{settings.serving_url}/api/v1/models/{model}"))


@models.command(epilog="Example: trimtab models register flights ./artifact")
@click.argument("model")
@click.argument("artifact", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--lineage", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A JSON file.")
@click.option("--profile", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The reference profile.")
@with_settings
def register(model: str, artifact: Path, lineage: Path | None, profile: Path | None, settings: Settings) -> None:
    """Add the artifact folder as a new immutable version."""
    try:
        reference = read_reference(profile) if profile else None
        known = registry(settings)
        version = known.register(
            model,
            artifact,
            lineage=json.loads(lineage.read_text()) if lineage else {},
            profile=reference,
            metrics={},
        )
        kept = known.profile(model, version.version)
    except (ServingError, ValueError, OSError) as error:
        fail(str(error))
    if reference is not None and kept != reference:
        before = "another profile" if kept else "no profile"
        fail(f"{model} {version.version} is this artifact already and was registered with {before}: it stays so")
    click.echo(f"{model} {version.version} {version.digest}")


def read_reference(path: Path) -> bytes:
    """The bytes of a reference profile. ValueError when the collector could not read them."""
    body = path.read_bytes()
    try:
        Reference.given(body)
    except ProfileError as error:
        raise ValueError(f"{path} is no reference profile: {error}") from error
    return body


@models.command(epilog="Example: trimtab models canary flights 2 --weight 0.1")
@click.argument("model")
@click.argument("version")
@click.option("--weight", default=0.1, show_default=True, help="Share of the requests, 0 to 1.")
@click.option("--sticky", metavar="PARAMETER", help="Request parameter that keeps a caller on one version.")
@with_settings
def canary(model: str, version: str, weight: float, sticky: str | None, settings: Settings) -> None:
    """Route a share of the traffic to a version."""
    body = {"version": version, "weight": weight} | ({"sticky": sticky} if sticky else {})
    change_traffic(settings, model, "canary", body)


@models.command(epilog="Example: trimtab models shadow flights 2 --fraction 0.5")
@click.argument("model")
@click.argument("version")
@click.option("--fraction", default=1.0, show_default=True)
@with_settings
def shadow(model: str, version: str, fraction: float, settings: Settings) -> None:
    """Send copies of requests to a version; callers never see its answers."""
    change_traffic(settings, model, "shadow", {"version": version, "fraction": fraction})


@models.command(epilog="Example: trimtab models promote flights 2")
@click.argument("model")
@click.argument("number", metavar="[VERSION]", required=False)
@click.option("--version", help="The same. Default: the canary.")
@click.option("--reason", default="by hand")
@with_settings
def promote(model: str, number: str | None, version: str | None, reason: str, settings: Settings) -> None:
    """Give a version all traffic."""
    if number and version and number != version:
        raise click.UsageError(f"the version is {number} and --version {version}; give one")
    version = number or version
    change_traffic(settings, model, "promote", {"reason": reason} | ({"version": version} if version else {}))


@models.command(epilog='Example: trimtab models rollback flights --reason "wrong units"')
@click.argument("model")
@click.option("--reason", default="by hand")
@with_settings
def rollback(model: str, reason: str, settings: Settings) -> None:
    """End the canary; without one, go back to the version before."""
    change_traffic(settings, model, "rollback", {"reason": reason})


def _row(version: ModelVersion) -> dict[str, Any]:
    return {
        "model": version.model,
        "version": version.version,
        "digest": version.digest,
        "created_at": version.created_at,
        "metrics": dict(version.metrics),
        "lineage": dict(version.lineage),
    }


def _scores(metrics: dict[str, Any]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if isinstance(value, float))
