"""Streams that are written without Arrow: Arrow reads them, and finds in them what it would have written itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability.event_names import EVENT_FIELDS
from observability.event_streams import ipc_body, ipc_pieces, same_columns
from observability.events import METADATA, event_batch, from_ipc, to_ipc
from observability.laid_columns import (
    Laid,
    LaidRows,
    flags,
    laid_rows,
    numbers,
    same_texts,
    texts,
    vectors,
)
from observability.stream_schema import Field, Kind, schema_message

ARROW: dict[str, pa.DataType] = {
    "utf8": pa.utf8(),
    "time": pa.timestamp("ns", "UTC"),
    "float64": pa.float64(),
    "float32": pa.float32(),
    "bool": pa.bool_(),
}
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
FLOATS = st.floats(width=32) | st.just(float("nan"))


def arrow_field(field: Field) -> pa.Field:
    kind = ARROW[field.kind]
    return pa.field(field.name, pa.list_(kind, field.size) if field.size else kind, field.nullable)


@st.composite
def any_field(draw: st.DrawFn) -> Field:
    kinds: list[Kind] = ["utf8", "time", "float64", "float32", "bool"]
    kind = draw(st.sampled_from(kinds))
    size = draw(st.integers(0, 5000)) if kind.startswith("float") else 0
    return Field(draw(NAMES), kind, draw(st.booleans()), size)


@given(st.lists(any_field(), max_size=40))
def test_arrow_reads_the_schema_that_it_would_have_written(fields: list[Field]) -> None:
    wanted = pa.schema(map(arrow_field, fields))

    written = schema_message(fields)
    read = pa.ipc.read_schema(pa.py_buffer(written))

    assert read.equals(wanted, check_metadata=True)
    assert len(written) % 8 == 0
    assert pa.ipc.open_stream(written + bytes(8)).read_all().schema.equals(wanted)


def test_the_columns_of_events_are_those_that_arrow_has() -> None:
    assert pa.ipc.read_schema(pa.py_buffer(schema_message(EVENT_FIELDS))).equals(METADATA, check_metadata=True)


def test_lists_of_what_is_no_float_are_refused() -> None:
    with pytest.raises(ValueError, match="'v' is a list of utf8"):
        schema_message([Field("v", "utf8", size=3)])


@st.composite
def any_column(draw: st.DrawFn, rows: int) -> tuple[Field, Laid, pa.Array]:
    """A column of so many rows, as it is laid out and as Arrow has it."""

    def of_each(one: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(one, min_size=rows, max_size=rows))

    null = np.array(of_each(st.booleans())) if draw(st.booleans()) else None
    match draw(st.sampled_from(["float64", "time", "bool", "vector", "texts", "same", "repeated"])):
        case "float64":
            values = np.array(of_each(FLOATS))
            return Field("n", "float64"), numbers(values, null), pa.array(values, mask=null)
        case "time":
            times = np.array(of_each(st.integers(0, 2**62)), np.int64)
            made = pa.array(times).view(ARROW["time"])
            return Field("t", "time", nullable=False), numbers(times), made
        case "bool":
            truths = np.array(of_each(st.booleans()))
            return Field("b", "bool"), flags(truths), pa.array(truths)
        case "vector":
            floats: list[Kind] = ["float32", "float64"]
            kind, size = draw(st.sampled_from(floats)), draw(st.integers(1, 5))
            flat = np.array([of_each(FLOATS) for _ in range(size)], kind).reshape(-1)
            made = pa.FixedSizeListArray.from_arrays(pa.array(flat), size)
            return Field("v", kind, size=size), vectors(flat, size), made
        case "texts":
            told = of_each(st.none() | NAMES)
            return Field("s", "utf8"), texts(told), pa.array(told, pa.utf8())
        case "same":
            text = draw(st.none() | NAMES)
            return Field("c", "utf8"), same_texts(text, rows), pa.array([text] * rows, pa.utf8())
    groups = draw(st.lists(st.tuples(st.none() | NAMES, st.integers(0, 4)), max_size=5))
    groups = [*groups, (draw(st.none() | NAMES), 0)]
    times = np.array([count for _, count in groups], np.int64)
    if times.sum() < rows:
        times[-1] = rows - times.sum()
    while times.sum() > rows:
        times[np.argmax(times)] -= 1
    told = [text for (text, _), count in zip(groups, times.tolist(), strict=True) for _ in range(count)]
    return Field("r", "utf8"), texts([text for text, _ in groups], times), pa.array(told, pa.utf8())


@st.composite
def any_batch(draw: st.DrawFn) -> tuple[LaidRows, pa.RecordBatch]:
    rows = draw(st.integers(1, 40))
    columns = draw(st.lists(any_column(rows), min_size=1, max_size=8))
    fields = [field for field, _, _ in columns]
    laid = laid_rows(rows, fields, [column for _, column, _ in columns])
    schema = pa.schema(map(arrow_field, fields))
    return laid, pa.RecordBatch.from_arrays([array for _, _, array in columns], schema=schema)


def same(first: pa.RecordBatch, other: pa.RecordBatch) -> bool:
    """Equal to the last bit, where NaN equals itself."""
    return bool(first.schema.equals(other.schema, check_metadata=True)) and all(
        repr(one.to_pylist()) == repr(two.to_pylist()) and one.null_count == two.null_count
        for one, two in zip(first.columns, other.columns, strict=True)
    )


@given(any_batch())
def test_arrow_reads_the_columns_that_it_would_have_written(made: tuple[LaidRows, pa.RecordBatch]) -> None:
    laid, wanted = made

    read = laid.arrow()
    stream = pa.ipc.open_stream(ipc_body([laid, laid]))

    read.validate(full=True)
    assert same(read, wanted)
    assert laid.schema.equals(wanted.schema)
    assert [same(batch, wanted) for batch in stream] == [True, True]
    assert to_ipc(laid) == b"".join(ipc_pieces(laid))
    assert laid.nbytes == sum(map(len, laid.pieces))
    assert same_columns(laid, wanted)
    # What Arrow made and what was laid out travel in one stream.
    both = from_ipc(b"".join(ipc_pieces([laid, wanted])))
    assert both.num_rows == from_ipc(to_ipc([wanted, laid])).num_rows == 2 * laid.num_rows


def test_batches_of_other_columns_are_put_together_by_arrow() -> None:
    one = laid_rows(2, [Field("a", "float64")], [numbers(np.arange(2.0))])
    other = laid_rows(1, [Field("b", "utf8")], [same_texts("x", 1)])

    read = from_ipc(to_ipc([one, other]))

    assert not same_columns(one, other)
    assert read.to_pylist() == [{"a": 0.0, "b": None}, {"a": 1.0, "b": None}, {"a": None, "b": "x"}]


def test_numbers_and_vectors_are_not_copied() -> None:
    values = np.arange(900.0)
    made = laid_rows(300, [Field("v", "float64", size=3)], [vectors(values, 3)])

    assert any(np.frombuffer(piece, np.uint8).ctypes.data == values.ctypes.data for piece in made.pieces if piece)


def test_more_text_than_a_column_can_have_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit in one column"):
        same_texts("x" * 1000, 3_000_000)


def test_a_whole_batch_of_events_is_what_event_batch_makes() -> None:
    """The names and types of all columns together: what one of them has, the other has."""
    made = event_batch(
        ids=["a", "b"], time_ns=[1, 2], model="m", version="1", release=None, propensity=0.5,
        latency_seconds=[0.1, 0.2], features={"x": np.ones((2, 3), np.float32), "late": [True, False]},
        predictions={"y": np.arange(2.0)},
    )  # fmt: skip
    fields = [
        *EVENT_FIELDS, Field("feature.x", "float32", size=3), Field("feature.late", "bool"),
        Field("prediction.y", "float64"),
    ]  # fmt: skip
    laid = laid_rows(2, fields, [
        texts(["a", "b"]), numbers(np.array([1, 2])), same_texts("m", 2), same_texts("1", 2), same_texts("stable", 2),
        same_texts(None, 2), numbers(np.full(2, 0.5)), same_texts("ok", 2), numbers(np.array([0.1, 0.2])),
        same_texts(None, 2), same_texts(None, 2), vectors(np.ones(6, np.float32), 3), flags(np.array([True, False])),
        numbers(np.arange(2.0)),
    ])  # fmt: skip

    assert laid.arrow().equals(made, check_metadata=True)
