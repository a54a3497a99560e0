"""What the first windows of versions say of training and serving, in words."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from datetime import tzinfo
from typing import Any

from dashboards import format as fmt
from dashboards import readings

HEADINGS = ("Column", "Version", "First window", "Distance, threshold", "Missing in training and serving")


def rows(firsts: Sequence[Mapping[str, Any]], zone: tzinfo) -> list[list[str]]:
    """One row a column that serving has otherwise than training, as HTML, under `HEADINGS`."""
    return [
        [
            html.escape(fmt.column(str(name))),
            html.escape(fmt.version(str(first["version"]))),
            f"{fmt.clock(readings.seconds_of(first['start']), zone)} to "
            f"{fmt.clock(readings.seconds_of(first['end']), zone)}, {fmt.number(first.get('rows'))} rows",
            f"{fmt.number(column.get('score'))} of {fmt.number(column.get('threshold'))}",
            f"{fmt.percent(column.get('reference_missing_ratio'))} → {fmt.percent(column.get('missing_ratio'))}",
        ]
        for first in firsts
        for name, column in (first.get("columns") or {}).items()
        if column.get("differs")
    ]


def judged(firsts: Sequence[Mapping[str, Any]]) -> str:
    """Which versions have been looked at, with how many columns."""
    return ", ".join(
        f"{fmt.version(str(first['version']))}: {len(first.get('columns') or {})} columns" for first in firsts
    )
