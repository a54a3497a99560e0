"""Slices of rows in words: where a version errs most, and which rows came or went."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from datetime import tzinfo
from typing import Any

from dashboards import format as fmt
from dashboards import readings, shell
from dashboards.sources import SourceError

ERROR_HEADINGS = ("Segment", "Of the rows", "Error here", "Elsewhere", "Excess, of all error")
DRIFT_HEADINGS = ("Segment", "Of the rows before", "Now", "Change")
MEASURES = {"log_loss": "log loss", "absolute_error": "absolute error"}

Found = Mapping[str, Any]


def cards(view: shell.View, version: str) -> None:
    """The worst slices of a version, by error and by share of the rows, side by side."""
    problems: list[SourceError] = []
    answer = shell.answered(lambda: view.sources.slices(view.model, version), problems)
    shell.notice(problems)
    errors, moved = answer.get("error") or {}, answer.get("drift") or {}
    with shell.card("worst", "Where it errs most", error_detail(errors, version, view.zone)):
        if found := error_rows(errors):
            shell.rows(ERROR_HEADINGS, found, numeric=(1, 2, 3, 4))
        elif errors.get("rows"):
            shell.empty("No segment stands out", "By more than chance and by enough to matter.", "collector")
        else:
            shell.empty("No labels yet", "Segments are told once labels of served predictions come in.", "collector")
    with shell.card("moved", "Rows that came or went", drift_detail(moved, version, view.zone)):
        if found := drift_rows(moved):
            shell.rows(DRIFT_HEADINGS, found, numeric=(1, 2, 3))
        elif moved.get("now"):
            shell.empty("No segment's share changed", "By more than chance and by enough to matter.", "collector")
        else:
            shell.empty("No rows yet", "Segments are told once predictions are stored.", "collector")


def error_rows(found: Found) -> list[list[str]]:
    """Cells of the slices by error: the segment, its share, its mean error, that of the rest, and its excess."""
    return [
        [
            _where(one),
            fmt.percent(one["share"]),
            fmt.number(one["mean"]),
            fmt.number(one["rest"]),
            fmt.percent(one["contribution"]),
        ]
        for one in found.get("slices") or ()
    ]


def drift_rows(found: Found) -> list[list[str]]:
    """Cells of the slices by share of the rows: the segment, its share before and now, and by how much that is."""
    return [
        [_where(one), fmt.percent(one["rest"]), fmt.percent(one["mean"]), _points(one["drift"])]
        for one in found.get("slices") or ()
    ]


def error_detail(found: Found, version: str, zone: tzinfo) -> str:
    """What the errors are of: how many labelled rows, from when to when, and their mean."""
    if not found.get("rows"):
        return ""
    measure = MEASURES.get(str(found.get("measure")), "error")
    rows = f"{fmt.number(found['rows'])} labelled rows of {html.escape(fmt.version(version))}"
    return f"{rows}, {_times(found, zone)}; mean {measure} {fmt.number(found.get('mean'))}"


def drift_detail(found: Found, version: str, zone: tzinfo) -> str:
    """Which rows are held against which."""
    before, now = found.get("before"), found.get("now")
    if not (before and now):
        return ""
    rows = f"newest {fmt.number(now['rows'])} rows of {html.escape(fmt.version(version))}"
    return f"{rows}, {_times(now, zone)}, against the {fmt.number(before['rows'])} before them"


def _where(one: Mapping[str, Any]) -> str:
    conditions: Sequence[str] = one["conditions"]
    return " <b>and</b> ".join(html.escape(condition.replace("feature.", "", 1)) for condition in conditions)


def _points(change: float | None) -> str:
    """A difference of two shares in percentage points."""
    return fmt.DASH if change is None else f"{change * 100:+.1f} points".replace("-", "−")


def _times(span: Mapping[str, Any], zone: tzinfo) -> str:
    start, end = readings.seconds_of(span["start"]), readings.seconds_of(span["end"])
    return f"{fmt.moment(start, zone)} to {fmt.moment(end, zone)}"
