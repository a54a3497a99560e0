"""The page of metrics in the documentation."""

from __future__ import annotations

from pathlib import Path

from observability import names
from observability.catalogue import markdown

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_page_is_that_of_the_catalogue() -> None:
    assert PAGE.read_text() == markdown(), "run: python -m observability.catalogue > docs/metrics.md"


def test_every_metric_has_its_row() -> None:
    rows = [line for line in markdown().splitlines() if line.startswith("| `")]

    assert [row.split("`")[1] for row in rows] == [metric.name for metric in names.CATALOGUE]
    assert all(row.count("|") == 5 for row in rows)
