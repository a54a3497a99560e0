"""Event and label batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observability.events import (
    LABELS,
    METADATA,
    BadBatch,
    event_batch,
    from_ipc,
    label_batch,
    to_ipc,
    validate_events,
    validate_labels,
)


def batch(**changed: Any) -> pa.RecordBatch:
    given: dict[str, Any] = {
        "ids": ["r/0", "r/1"],
        "time_ns": 1_700_000_000_123_456_789,
        "model": "delay",
        "version": "1",
        "features": {"temp": np.array([1.5, np.nan]), "carrier": ["UA", None], "late": [True, False]},
        "predictions": {"probability": np.array([0.1, 0.9], np.float32)},
    }
    return event_batch(**(given | changed))


def table(**changed: Any) -> pa.Table:
    return pa.Table.from_batches([batch(**changed)])


def test_a_batch_has_the_columns_of_the_contract_in_their_order() -> None:
    made = batch()

    assert made.schema.names == [
        *METADATA.names,
        "feature.temp",
        "feature.carrier",
        "feature.late",
        "prediction.probability",
    ]
    assert made.schema.types[len(METADATA) :] == [pa.float64(), pa.utf8(), pa.bool_(), pa.float64()]
    assert made.column("id").to_pylist() == ["r/0", "r/1"]
    validate_events(pa.Table.from_batches([made]))


def test_one_value_stands_for_all_rows_and_arrays_give_each_its_own() -> None:
    made = batch(arm=["stable", "canary"], propensity=[0.9, 0.1], release="d-1", time_ns=np.array([1, 2]))

    assert made.column("arm").to_pylist() == ["stable", "canary"]
    assert made.column("release").to_pylist() == ["d-1", "d-1"]
    assert made.column("time").cast(pa.int64()).to_pylist() == [1, 2]


def test_nan_stays_nan_and_none_stays_null() -> None:
    made = batch(features={"temp": pa.array([np.nan, None])})

    assert made.column("feature.temp").null_count == 1
    assert np.isnan(made.column("feature.temp")[0].as_py())


def test_a_failed_prediction_is_a_null_column() -> None:
    made = batch(outcome="model_error", predictions={"probability": None})

    assert made.column("prediction.probability").null_count == 2


def test_float64_arrays_are_not_copied() -> None:
    values = np.arange(2.0)
    made = batch(features={"temp": values})

    assert made.column("feature.temp").buffers()[1].address == values.__array_interface__["data"][0]


@pytest.mark.parametrize(
    "values",
    [np.array([1, 2]), np.array([1, 2], np.float16), [1, 2], pa.array([1, 2], pa.int8()), np.array([[1.0], [2.0]])],
)
def test_any_numbers_become_float64(values: Any) -> None:
    assert batch(features={"x": values}).column("feature.x").equals(pa.array([1.0, 2.0]))


@pytest.mark.parametrize(
    "values", [np.array(["a", "b"]), np.array(["a", "b"], object), pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]]
)
def test_any_texts_become_utf8(values: Any) -> None:
    assert batch(features={"x": values}).column("feature.x").equals(pa.array(["a", "b"]))


@pytest.mark.parametrize(
    ("changed", "column"),
    [
        ({"features": {"temp": [1.0]}}, "feature.temp"),
        ({"predictions": {"p": [object(), object()]}}, "prediction.p"),
        ({"model": 5}, "model"),
        ({"propensity": "half"}, "propensity"),
        ({"latency_seconds": [1.0, 2.0, 3.0]}, "latency_seconds"),
        ({"time_ns": np.array([1])}, "time"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_name_of_its_column(changed: dict[str, Any], column: str) -> None:
    with pytest.raises(BadBatch, match=f"column '{column}'"):
        batch(**changed)


def test_batches_survive_the_wire() -> None:
    sent = [batch(), batch(ids=["s/0", "s/1"])]

    got = from_ipc(to_ipc(sent))
    assert got.schema == sent[0].schema
    # Compared as text, where NaN equals itself.
    assert str(got.to_pylist()) == str(pa.Table.from_batches(sent).to_pylist())
    assert from_ipc(to_ipc(sent[0])).num_rows == 2


def test_batches_with_other_columns_go_together_with_nulls() -> None:
    got = from_ipc(to_ipc([batch(), batch(features={"wind": [1.0, 2.0]})]))

    assert got.column("feature.wind").to_pylist() == [None, None, 1.0, 2.0]
    with pytest.raises(BadBatch, match="different types"):
        to_ipc([batch(), batch(features={"temp": ["a", "b"]})])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_body_is_a_bad_batch_or_a_valid_table_and_never_a_crash(data: st.DataObject) -> None:
    body = bytearray(to_ipc(batch()))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(body[: data.draw(st.integers(0, len(body)))])

    try:
        got = from_ipc(damaged)
    except BadBatch as error:
        assert "is not an Arrow IPC stream" in str(error)  # noqa: PT017 - both ends are right
    else:
        got.validate(full=True)


def test_a_body_of_something_else_is_refused_with_its_size_and_the_media_type() -> None:
    with pytest.raises(BadBatch, match=r"11 bytes is not an Arrow IPC stream \(application/vnd.apache.arrow.stream\)"):
        from_ipc(b"hello world")


def replaced(name: str, values: pa.Array) -> pa.Table:
    made = table()
    return made.set_column(made.schema.get_field_index(name), name, values)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: table().drop_columns("outcome"), "column 'outcome' is missing"),
        (lambda: replaced("id", pa.array(["a", None])), "column 'id' has 1 null"),
        (lambda: replaced("time", pa.array([1, 2])), r"column 'time' has type int64: send timestamp\[ns, tz=UTC\]"),
        (lambda: replaced("arm", pa.array(["blue", "stable"])), "column 'arm' has the value 'blue'"),
        (lambda: replaced("outcome", pa.array(["ok", "fine"])), "column 'outcome' has the value 'fine'"),
        (lambda: table().append_column("temp", pa.array([1.0, 2.0])), "column 'temp' is unknown"),
        (lambda: table().append_column("feature.x", pa.array([1, 2])), "column 'feature.x' has type int64"),
        (lambda: table().append_column("id", pa.array(["a", "b"])), "column 'id' comes twice"),
    ],
)
def test_a_wrong_event_column_is_named(wrong: Any, message: str) -> None:
    with pytest.raises(BadBatch, match=message):
        validate_events(wrong())


def test_labels_have_their_schema_and_are_checked() -> None:
    labels = pa.Table.from_batches([label_batch(["a", "b"], "delay", [1, 0], 5)])

    assert labels.schema == LABELS
    assert labels.column("label").to_pylist() == [1.0, 0.0]
    validate_labels(labels)
    with pytest.raises(BadBatch, match="column 'extra' is unknown"):
        validate_labels(labels.append_column("extra", pa.array([1, 2])))
    with pytest.raises(BadBatch, match="column 'label' has 1 values for 2 ids"):
        label_batch(["a", "b"], "delay", [1.0], 5)
