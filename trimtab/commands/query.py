"""`trimtab query`: PromQL against the collector, or any Prometheus."""

from __future__ import annotations

from datetime import UTC, datetime

import click
import httpx

from observability.durations import duration_ms
from trimtab.commands.moment import with_moment
from trimtab.commands.options import echo_json, fail, with_json, with_settings
from trimtab.settings import Settings


@click.command(
    epilog="""\b
Examples:
  trimtab query 'sum by (version) (rate(inference_requests_total[1m]))'
  trimtab query drift_columns_ratio --range 1h --step 15s --json"""
)
@click.argument("promql")
@with_moment
@click.option("--range", "span", metavar="DURATION", help="A range query over the last DURATION, e.g. 1h.")
@click.option("--step", default="15s", show_default=True, help="Step of a range query.")
@with_settings
@with_json
def query(promql: str, at: float, span: str | None, step: str, settings: Settings, as_json: bool) -> None:
    """Evaluate a PromQL expression."""
    if span is None:
        path, parameters = "query", {"query": promql, "time": f"{at}"}
    else:
        start = at - _seconds(span)
        path, parameters = (
            "query_range",
            {"query": promql, "start": f"{start}", "end": f"{at}", "step": f"{_seconds(step)}"},
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
                click.echo(f"  {datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%SZ}  {value}")


def _seconds(text: str) -> float:
    try:
        milliseconds = duration_ms(text)
    except ValueError as error:
        return fail(str(error))
    return milliseconds / 1000 or fail(f"not a duration above 0: {text!r}; give one such as 15s or 1h30m")
