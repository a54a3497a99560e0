"""`trimtab export`: files for Grafana, Prometheus and Alertmanager, so that moving to them is one step."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

import click
import yaml

import alerts
from dashboards import grafana as grafana_dashboards
from trimtab.commands.collector import targets
from trimtab.commands.options import with_settings
from trimtab.settings import Settings


@click.group()
def export() -> None:
    """Files for Grafana, Prometheus and Alertmanager.

    \b
    Examples:
      trimtab export grafana deploy/grafana
      trimtab export prometheus deploy/prometheus
      trimtab export alertmanager deploy/alertmanager
    """


_COMPUTED = (
    "drift", "quality", "performance", "estimated", "observed", "training", "canary", "collector",
)  # fmt: skip
FOLDER = click.argument("folder", type=click.Path(file_okay=False, path_type=Path))


@export.command(epilog="Example: trimtab export grafana deploy/grafana --datasource trimtab")
@FOLDER
@click.option("--datasource", default="trimtab", show_default=True, help="UID of Grafana's Prometheus data source.")
@with_settings
def grafana(folder: Path, datasource: str, settings: Settings) -> None:
    """Dashboards, and the data source that reads Trimtab's query port."""
    for name, dashboard in grafana_dashboards.export(datasource).items():
        _write(folder / f"{name}.json", json.dumps(dashboard, indent=2) + "\n")
    source = {"name": "Trimtab", "uid": datasource, "type": "prometheus", "access": "proxy", "url": settings.query_url}
    _write(folder / "datasource.yml", yaml.safe_dump({"apiVersion": 1, "datasources": [source]}, sort_keys=False))


@export.command(epilog="Example: trimtab export prometheus deploy/prometheus --alertmanager am:9093")
@FOLDER
@click.option("--alertmanager", metavar="HOST:PORT", help="Where alerts go; default: Trimtab's alerts service.")
@with_settings
def prometheus(folder: Path, alertmanager: str | None, settings: Settings) -> None:
    """A configuration that scrapes the services and evaluates the shipped rules; rules that act go to Alertmanager."""
    folder.mkdir(parents=True, exist_ok=True)
    shipped = files(alerts).joinpath("rules.d").iterdir()
    rules = sorted((path for path in shipped if path.name.endswith(".yml")), key=lambda path: path.name)
    for path in rules:
        with path.open("rb") as source, (folder / path.name).open("wb") as target:
            shutil.copyfileobj(source, target)
        click.echo(f"wrote {folder / path.name}")
    jobs = [_job(target.job, target.url, dict(target.labels)) for target in targets(settings)]
    # What is pushed to the collector and written to it is read where it is kept; what it computes is on its page.
    jobs.append(
        {
            "job_name": "trimtab-computed",
            "honor_labels": True,
            "metrics_path": "/federate",
            "params": {"match[]": [f'{{__name__=~"({"|".join(_COMPUTED)})_.*",job!="trimtab-collector"}}']},
            "static_configs": [{"targets": [_host(settings.collector_url)]}],
        }
    )
    config = {
        "global": {"scrape_interval": "5s", "evaluation_interval": "5s"},
        "rule_files": [path.name for path in rules],
        "alerting": {
            "alertmanagers": [{"static_configs": [{"targets": [alertmanager or _host(settings.alerts_url)]}]}]
        },
        "scrape_configs": jobs,
    }
    _write(folder / "prometheus.yml", yaml.safe_dump(config, sort_keys=False))


@export.command(epilog="Example: trimtab export alertmanager deploy/alertmanager")
@FOLDER
@with_settings
def alertmanager(folder: Path, settings: Settings) -> None:
    """A configuration that sends alerts with an `action` label to Trimtab's webhook, which acts on them."""
    receiver = {"url": f"{settings.alerts_url}/hooks/alertmanager", "send_resolved": True}
    if settings.secret:
        receiver["http_config"] = {"authorization": {"type": "Bearer", "credentials": "PUT THE SECRET HERE"}}
    config = {
        "route": {
            "receiver": "people",
            "group_by": ["alertname", "model"],
            "routes": [
                {"matchers": ['action=~".+"'], "receiver": "trimtab", "group_wait": "0s", "group_interval": "5s",
                 "continue": True},
            ],
        },
        "receivers": [{"name": "people"}, {"name": "trimtab", "webhook_configs": [receiver]}],
    }  # fmt: skip
    _write(folder / "alertmanager.yml", yaml.safe_dump(config, sort_keys=False))


def _host(url: str) -> str:
    return url.split("://", 1)[1]


def _job(job: str, url: str, labels: dict[str, str]) -> dict[str, object]:
    scheme, rest = url.split("://", 1)
    host, _, path = rest.partition("/")
    return {
        "job_name": job,
        "scheme": scheme,
        "metrics_path": f"/{path}",
        "static_configs": [{"targets": [host]} | ({"labels": labels} if labels else {})],
    }


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    click.echo(f"wrote {path}")
