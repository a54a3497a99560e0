"""Quality: how much data comes and how old it is, which rows break the schema, and what the schema says."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from dashboards import charts, queries, readings, shell
from dashboards import format as fmt
from dashboards.charts import Line
from dashboards.series import Series
from dashboards.theme import version_color

# What each rule of a schema means to somebody who reads it for the first time.
RULES = {
    "type": "a value of another type",
    "required": "no value, and one is required",
    "finite": "an infinite value",
    "range": "outside the range",
    "categories": "not one of the categories",
    "unique": "a value that came before",
    "unexpected": "a column that the schema does not know",
}
_SHOWN_COLUMNS = 4
_SHOWN_ROWS = 8


def body(view: shell.View) -> None:
    """The page."""
    found, problems = view.sources.ranges(queries.quality(view.model), view.span)
    answer = shell.answered(lambda: view.sources.quality(view.model), problems)
    shell.notice(problems)
    left, middle, right = st.columns(3)
    with left, shell.card("volume", "Rows against the usual", _usual(found["volume"])):
        _volume(view, found["volume"])
    with middle, shell.card("missing", "Missing values", "the columns with most"):
        _columns(view, found["missing"])
    with right, shell.card("duplicated", "Repeated rows", "share of the latest rows, features alike"):
        _versions(view, found["duplicated"])
    left, right = st.columns((2, 3))
    with left, shell.card("broken", "Broken rules", "rows since the collector's start"):
        _broken(answer.get("broken") or ())
    with right, shell.card("kept", "Rows kept aside", "the latest; every row is measured all the same"):
        _kept(view, answer.get("rows") or ())
    with shell.card("schema", "Schema", "inferred from the reference; change it with PUT /v1/schemas/" + view.model):
        _schema((answer.get("schema") or {}).get("columns") or {})


def _usual(series: Sequence[Series]) -> str:
    ratio = readings.latest(series)
    return "" if ratio is None else f"{fmt.percent(ratio)} now"


def _volume(view: shell.View, series: Sequence[Series]) -> None:
    shown = [Line("Rows", item, version_color("1")) for item in series if len(item.times)]
    _plot("volume", view, shown, "Volume is compared with the five windows before.")


def _columns(view: shell.View, series: Sequence[Series]) -> None:
    """The columns with the greatest values, of the version with the latest of them."""
    held = sorted((item for item in series if len(item.times)), key=lambda item: -float(item.values.max()))
    names: dict[str, Series] = {}
    for item in held:
        names.setdefault(item.labels.get("column", ""), item)
    shown = [
        Line(fmt.column(name), item, version_color(str(number + 1)))
        for number, (name, item) in enumerate(list(names.items())[:_SHOWN_COLUMNS])
    ]
    _plot("missing", view, shown, "Shares appear with the first closed window.")


def _versions(view: shell.View, series: Sequence[Series]) -> None:
    shown = [
        Line(fmt.version(item.labels.get("version")), item, version_color(item.labels.get("version", "")))
        for item in series
        if len(item.times)
    ]
    _plot("duplicated", view, shown, "Shares appear with the first closed window.")


def _plot(key: str, view: shell.View, shown: Sequence[Line], remedy: str) -> None:
    if not shown:
        shell.empty("Not known yet", remedy, "collector")
        return
    shell.chart(key, charts.lines(view.frame, shown, "ratio"))


def _broken(broken: Sequence[Mapping[str, Any]]) -> None:
    if not broken:
        shell.empty("No rule was broken", "Every row since the collector's start fits its schema.", "collector")
        return
    body = [
        [
            html.escape(fmt.column(str(item["column"]))),
            html.escape(RULES.get(str(item["rule"]), str(item["rule"]))),
            html.escape(fmt.version(str(item["version"]))),
            fmt.number(item["rows"]),
        ]
        for item in broken[:12]
    ]
    shell.rows(["Column", "What", "Version", "Rows"], body, numeric=(3,), tight=(0, 2))


def _kept(view: shell.View, kept: Sequence[Mapping[str, Any]]) -> None:
    if not kept:
        shell.empty("Nothing is kept aside", "Rows that break a rule appear here, with what they held.", "collector")
        return
    table = pd.DataFrame(
        {
            "Time": [fmt.moment(float(row["time"]), view.zone) for row in kept],
            "Version": [fmt.version(str(row["version"])) for row in kept],
            "Prediction": [str(row["id"]) for row in kept],
            "Column": [fmt.column(str(row["column"])) for row in kept],
            "What": [RULES.get(str(row["rule"]), str(row["rule"])) for row in kept],
            "Value": [fmt.DASH if row["value"] is None else str(row["value"]) for row in kept],
        }
    )
    st.dataframe(table, hide_index=True, height="content" if len(kept) <= _SHOWN_ROWS else 320)


def _schema(columns: Mapping[str, Mapping[str, Any]]) -> None:
    if not columns:
        shell.empty("No schema yet", "It is inferred when a version registers its reference profile.", "collector")
        return
    table = pd.DataFrame(
        {
            "Column": [fmt.column(name) for name in columns],
            "Type": [rules["type"] for rules in columns.values()],
            "Required": [bool(rules.get("required")) for rules in columns.values()],
            "Unique": [bool(rules.get("unique")) for rules in columns.values()],
            "Minimum": [rules.get("minimum") for rules in columns.values()],
            "Maximum": [rules.get("maximum") for rules in columns.values()],
            "Categories": [_some(rules.get("categories")) for rules in columns.values()],
        }
    )
    number = st.column_config.NumberColumn(format="%.4g")
    st.dataframe(
        table.astype({"Minimum": "float64", "Maximum": "float64"}),
        hide_index=True,
        column_config={"Minimum": number, "Maximum": number},
        height="content",
        placeholder=fmt.DASH,
    )


def _some(categories: Sequence[str] | None) -> str | None:
    if categories is None:
        return None
    few = ", ".join(categories[:6])
    return few if len(categories) <= 6 else f"{few} and {len(categories) - 6} more"


if __name__ == "__main__":
    shell.page("Data quality", "Volume and age of the data, and every row against the schema", body)
