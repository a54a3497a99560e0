"""What `models.NAME.data` may return."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from trimtab.commands.train import load_table, load_task

HERE = "tests.trimtab.test_training_table"


def frame(folder: Path) -> pd.DataFrame:
    """A frame whose index is not that of its rows."""
    return pd.DataFrame({"amount": [1.5, 2.5], "kind": ["a", None]}, index=[7, 9])


def rows(folder: Path) -> list[dict[str, float]]:
    """No table."""
    return [{"amount": 1.5}]


def broken(folder: Path) -> None:
    """Raises."""
    raise KeyError("amount")


def test_a_frame_becomes_a_table(tmp_path: Path) -> None:
    found = load_table(f"{HERE}:frame", tmp_path)

    assert isinstance(found, pa.Table)
    assert found.select(["amount", "kind"]).to_pydict() == {"amount": [1.5, 2.5], "kind": ["a", None]}


def test_what_is_no_table_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_table(f"{HERE}:rows", tmp_path)

    assert "gave list: it must return the training table" in capsys.readouterr().err


def test_the_place_where_it_raised_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_table(f"{HERE}:broken", tmp_path)

    said = capsys.readouterr().err
    assert f"'{HERE}:broken' ended with KeyError: 'amount' (line " in said
    assert said.endswith(f"{Path(__file__).name})\n")


def test_what_is_no_task_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_task("builtins:dict")

    assert "'builtins:dict' gave dict: it must return a training.TabularTask" in capsys.readouterr().err
