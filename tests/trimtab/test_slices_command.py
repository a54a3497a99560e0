"""`trimtab slices`: the planted segment of a file is told, and what cannot be asked is said in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result

from trimtab.cli import cli

ROWS = 4_000


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Probabilities that know nothing of the rows from one origin."""
    random = np.random.default_rng(3)
    origin = random.choice(["EWR", "JFK", "LGA", "SWF"], ROWS)
    label = (random.random(ROWS) < 0.4).astype(np.int64)
    known = np.where(label == 1, 0.9, 0.1)
    columns = {
        "origin": origin, "distance": random.uniform(100, 3000, ROWS), "label": label,
        "p": np.where(origin == "SWF", 0.5, known), "answer": np.where(origin == "SWF", "late", "on time"),
        "true": np.full(ROWS, "on time"),
    }  # fmt: skip
    pa.parquet.write_table(pa.table(columns), tmp_path / "now.parquet")
    return tmp_path / "now.parquet"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["slices", *map(str, arguments)])


@pytest.mark.parametrize(
    ("asked", "mean"),
    [
        (("--prediction", "p", "--label", "label"), -np.log(0.5)),
        (("--prediction", "p", "--label", "label", "--loss", "absolute"), 0.5),
        (("--prediction", "answer", "--label", "true"), 1.0),
    ],
    ids=["log", "absolute", "mistake"],
)
def test_the_segment_that_a_model_knows_nothing_of_is_told_first(
    table: Path, asked: tuple[str, ...], mean: float
) -> None:
    found = run(table, *asked, "--columns", "origin,distance", "--json")

    body = json.loads(found.stdout)
    assert (found.exit_code, body["rows"]) == (0, ROWS)
    assert body["slices"][0]["conditions"] == ["origin = SWF"]
    assert body["slices"][0]["mean"] == pytest.approx(mean)
    assert body["slices"][0]["drift"] is None
    assert "origin = SWF" in run(table, *asked, "--columns", "origin,distance").stdout


def test_errors_of_a_column_without_those_that_are_not_known(table: Path, tmp_path: Path) -> None:
    rows = pa.parquet.read_table(table).select(["origin", "distance"])
    wrong = np.where(np.array(rows["origin"]) == "LGA", 2.0, 1.0)
    wrong[:100] = np.nan
    pa.csv.write_csv(rows.append_column("wrong", pa.array(wrong, from_pandas=True)), tmp_path / "errors.csv")

    body = json.loads(run(tmp_path / "errors.csv", "--error", "wrong", "--json").stdout)

    assert body["rows"] == ROWS - 100
    assert [one["conditions"] for one in body["slices"]] == [["origin = LGA"]]


def test_with_a_reference_alone_the_segments_whose_share_changed_are_told(table: Path, tmp_path: Path) -> None:
    rows = pa.parquet.read_table(table)
    fewer = np.flatnonzero((np.array(rows["origin"]) != "JFK") | (np.arange(ROWS) % 4 == 0))
    pa.parquet.write_table(rows.take(fewer).drop_columns(["p"]), tmp_path / "before.parquet")

    body = json.loads(run(table, "--reference", tmp_path / "before.parquet", "--json").stdout)

    first = body["slices"][0]
    assert (first["conditions"], first["drift"] > 0.1) == (["origin = JFK"], True)
    assert "err" not in run(table, "--reference", tmp_path / "before.parquet").stdout


def test_where_nothing_differs_that_is_said(table: Path) -> None:
    found = run(table, "--prediction", "distance", "--label", "distance", "--columns", "origin")
    assert (found.exit_code, "one column" in found.output) == (2, True)
    assert "no slice errs more" in run(table, "--error", "label", "--columns", "distance").stdout


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((), "say what to look for"),
        (("--prediction", "p"), "both --prediction COLUMN and --label COLUMN"),
        (("--error", "p", "--prediction", "p", "--label", "label"), "both --prediction COLUMN and --label COLUMN"),
        (("--error", "none"), "has no column 'none'; it has origin"),
        (("--error", "origin"), "column 'origin' has no numbers"),
        (("--error", "p", "--columns", "origin,x"), "has no column 'x'"),
        (("--prediction", "distance", "--label", "label", "--loss", "log"), "needs probabilities"),
        (("--error", "p", "--alpha", "2"), "alpha"),
        (("--error", "p", "--reference", "nothing.csv"), "does not exist"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_one_line(table: Path, asked: tuple[str, ...], said: str) -> None:
    found = run(table, *asked)

    assert found.exit_code == 2
    assert said in found.output
    assert "Traceback" not in found.output
