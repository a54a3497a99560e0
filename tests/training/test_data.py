from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from training.data import DataError, batches, encode, encode_rows, fit, labelled, split_recent


@settings(deadline=None)
@given(st.lists(st.integers(1, 28), min_size=2, max_size=200), st.floats(0.01, 0.99))
def test_held_out_groups_share_nothing_with_training_and_are_the_latest(days: list[int], share: float):
    assume(len(set(days)) > 1)
    table = pa.table({"day": [f"2024-01-{day:02d}" for day in days], "row": range(len(days))})

    split = split_recent(table, "day", share)

    train, held_out = set(split.train["day"].to_pylist()), set(split.held_out["day"].to_pylist())
    assert max(train) < min(held_out)
    assert sorted(split.train["row"].to_pylist() + split.held_out["row"].to_pylist()) == list(range(len(days)))


def test_a_single_group_cannot_be_split():
    with pytest.raises(DataError, match="1 value of 'day' in 2 rows"):
        split_recent(pa.table({"day": ["a", "a"]}), "day", 0.2)


def test_codes_are_zero_for_what_is_rare_unseen_or_null_else_one_and_the_position(task, make_table):
    table = make_table()
    rare = table.set_column(0, "colour", pa.array(["violet", *table["colour"].to_pylist()[1:]]))

    encoding = fit(task, rare)
    shown = pa.table({"colour": ["blue", "green", "red", "violet", "pink", None], **dict.fromkeys("xyz", [0.0] * 6)})

    assert encoding.vocabularies == {"colour": ("blue", "green", "red")}
    assert encode(task, encoding.vocabularies, shown)[0].tolist() == [1, 2, 3, 0, 0, 0]


def test_missing_numbers_stay_missing_and_do_not_touch_the_mean(task, make_table):
    table = make_table()
    y = table["y"].to_pylist()

    encoding = fit(task, table)
    inputs = encode(task, encoding.vocabularies, table)

    known = [value for value in y if value is not None]
    assert encoding.means["y"] == pytest.approx(np.mean(known))
    assert encoding.deviations["y"] == pytest.approx(np.std(known))
    assert [math.isnan(value) for value in inputs[2].tolist()] == [value is None for value in y]


def test_rows_without_a_label_are_left_out(task, make_table):
    table = make_table()
    labels = table["label"].to_pylist()
    labels[:3] = [None, float("nan"), 1.0]

    kept = labelled(task, table.set_column(4, "label", pa.array(labels)))

    assert len(kept) == len(table) - 2


def test_a_missing_or_empty_column_is_named(task, make_table):
    with pytest.raises(DataError, match="column 'x' is missing"):
        labelled(task, make_table().drop_columns("x"))
    with pytest.raises(DataError, match="column 'x' has no finite value"):
        fit(task, make_table().set_column(1, "x", pa.nulls(2000, pa.float64())))


def test_an_epoch_shows_every_row_once_and_goes_on_from_any_batch(task, make_table):
    table = make_table(rows=250)
    rows = encode_rows(task, fit(task, table).vocabularies, table)

    whole = [inputs[1] for inputs, _ in batches(rows, 64, seed=1, epoch=2)]
    rest = [inputs[1] for inputs, _ in batches(rows, 64, seed=1, epoch=2, start=2)]
    other = [inputs[1] for inputs, _ in batches(rows, 64, seed=1, epoch=3)]

    assert [len(batch) for batch in whole] == [64, 64, 64, 58]
    assert sorted(value for batch in whole for value in batch.tolist()) == sorted(rows.inputs[1].tolist())
    assert all(a.equal(b) for a, b in zip(whole[2:], rest, strict=True))
    assert not whole[0].equal(other[0])
