"""`trimtab query`: PromQL against the collector, or any Prometheus."""

from __future__ import annotations

import time
from datetime import datetime

import click
import httpx

from collectors.query.parse import parse_duration_ms
from trimtab.commands.options import echo_json, fail, with_json, with_settings
from trimtab.settings import Settings


@click.command(
    epilog="""\b
Examples:
  trimtab query 'sum by (version) (rate(inference_requests_total[1m]))'
  trimtab query drift_columns_ratio --range 1h --step 15s --json"""
)
@click.argument("promql")
@click.option("--at", metavar="TIME", help="Unix seconds or RFC 3339; default: now.")
@click.option("--range", "span", metavar="DURATION", help="A range query over the last DURATION, e.g. 1h.")
@click.option("--step", default="15s", show_default=True, help="Step of a range query.")
@with_settings
@with_json
def query(promql: str, at: str | None, span: str | None, step: str, settings: Settings, as_json: bool) -> None:
    """Evaluate a PromQL expression."""
    end = _time(at)
    if span is None:
        path, parameters = "query", {"query": promql, "time": f"{end}"}
    else:
        start = end - _seconds(span)
        path, parameters = (
            "query_range",
            {"query": promql, "start": f"{start}", "end": f"{end}", "step": f"{_seconds(step)}"},
        )
    url = f"{settings.query_url}/api/v1/{path}"
    try:
        answer = httpx.post(url, data=parameters, timeout=60.0)
        body = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        fail(f"no usable answer from {url}: {error}; is the stack running? (trimtab status)")
    if body.get("status") != "success":
        fail(f"{body.get('errorType', 'error')}: {body.get('error', answer.text)}")
    if as_json:
        echo_json(body["data"])
    else:
        _print(body["data"])


def _print(data: dict[str, object]) -> None:
    kind, result = data["resultType"], data["result"]
    assert isinstance(result, list)
    if kind in ("scalar", "string"):
        click.echo(result[1])
        return
    if not result:
        click.echo("(no series)")
    for series in result:
        labels = dict(series["metric"])
        name = labels.pop("__name__", "")
        text = name + ("{" + ", ".join(f'{k}="{v}"' for k, v in labels.items()) + "}" if labels or not name else "")
        if kind == "vector":
            click.echo(f"{text} => {series['value'][1]}")
        else:
            click.echo(text)
            for moment, value in series["values"]:
                click.echo(f"  {datetime.fromtimestamp(moment).isoformat(timespec='seconds')}  {value}")


def _time(text: str | None) -> float:
    if text is None:
        return time.time()
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        fail(f"--at {text!r}: give unix seconds or RFC 3339, e.g. 2026-01-31T12:00:00Z")


def _seconds(text: str) -> float:
    try:
        return parse_duration_ms(text) / 1000
    except ValueError:
        return fail(f"{text!r} is not a duration; give one as PromQL has them, e.g. 15s or 1h30m")
