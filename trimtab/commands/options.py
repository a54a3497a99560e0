"""Options and failures that the commands share."""

from __future__ import annotations

import csv
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from observability.logs import setup_logging
from observability.signing import HEADER, sign
from trimtab.settings import Settings, SettingsError, load

if TYPE_CHECKING:
    import httpx

F = TypeVar("F", bound=Callable[..., Any])


def _load(ctx: click.Context, _param: click.Parameter, value: str | None) -> Settings:
    if value is None and isinstance(ctx.obj, Settings):
        return ctx.obj  # given to the command's group already
    try:
        return load(Path(value) if value else None)
    except SettingsError as error:
        raise click.ClickException(str(error)) from None


def with_settings(command: F) -> F:
    """Adds `--settings FILE`; the command gets the loaded `settings`."""
    option = click.option(
        "--settings", metavar="FILE", callback=_load, help="Settings file; default: trimtab.toml here, if there is one."
    )
    return option(command)


def start_logging(service: str, settings: Settings) -> None:
    """JSON lines on standard error; the HTTP client's line a request, every second, would drown the rest."""
    setup_logging(service, settings.trimtab.log_level)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def make_data_folder(settings: Settings) -> None:
    """Makes the data folder. Ends the command where it cannot be one."""
    try:
        settings.data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"the data folder {settings.data} cannot be made: {error}; set `data` under [trimtab]")


def with_json(command: F) -> F:
    """Adds `--json`; the command gets `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def column_names(columns: tuple[str, ...]) -> list[str] | None:
    """`--columns a,b --columns '"c,d"'` as a list; None when the option was not given."""
    if not columns:
        return None
    names = [name.strip() for entry in csv.reader(columns, skipinitialspace=True) for name in entry]
    return [name for name in names if name]


def echo_json(value: object, *, indent: int | None = 2) -> None:
    click.echo(json.dumps(value, indent=indent, default=str))


def fail(message: str, *, status: int = 1) -> NoReturn:
    """End the command with one line about what went wrong, and an exit status."""
    click.echo(f"Error: {message}", err=True)
    raise SystemExit(status)


def call(settings: Settings, method: str, url: str, body: object | None = None, *, key: str | None = None) -> Any:
    """Call a service's JSON API, signed if there is a secret; a failure is said in one line."""
    # Commands that ask no service do not wait for it: it takes a fifth of a second, with what it shows progress by.
    import httpx

    content = json.dumps(body or {}).encode() if method != "GET" else None
    headers = {"Content-Type": "application/json"} if content is not None else {}
    if content is not None and settings.secret:
        headers[HEADER] = sign(settings.secret, content, time.time())
    if key:
        headers["Idempotency-Key"] = key
    try:
        answer = httpx.request(method, url, content=content, headers=headers, timeout=60.0)
    except httpx.HTTPError as error:
        fail(f"no answer from {url}: {error}; is the stack running? (trimtab status, trimtab up)")
    if answer.status_code >= 400:
        fail(f"{url} answered {answer.status_code}: {_reason(answer)}")
    return answer.json() if answer.content else None


def _reason(answer: httpx.Response) -> str:
    try:
        body = answer.json()
    except ValueError:
        return answer.text.strip()[:500]
    return str(body.get("error", body)) if isinstance(body, dict) else str(body)
