"""Times as commands take them: `--at`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from trimtab.commands.options import fail

F = TypeVar("F", bound=Callable[..., Any])


def with_moment(command: F) -> F:
    """Adds `--at TIME`; the command gets `at`, in unix seconds."""
    option = click.option(
        "--at",
        metavar="TIME",
        callback=lambda _ctx, _param, text: moment(text),
        help="Unix seconds or RFC 3339, in UTC where it names no zone; default: now.",
    )
    return option(command)


def moment(text: str | None) -> float:
    """Unix seconds of a time, of now for None. A time without a zone is in UTC, as PromQL and all our output are."""
    if text is None:
        return time.time()
    try:
        seconds = float(text)
    except ValueError:
        seconds = _rfc3339(text)
    if not math.isfinite(seconds):
        fail(f"--at {text!r} is no time")
    return seconds


def _rfc3339(text: str) -> float:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return fail(f"--at {text!r}: give unix seconds or a time like 2026-11-22T12:00:00Z (RFC 3339)")
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
