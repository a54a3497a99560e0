"""Events of the shortcut's batches: built column by column, and the same as one would write them row by row."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import SpanContext, TraceFlags

from observability.events import METADATA, from_ipc, ipc_pieces, to_ipc, validate_events
from observability.laid_columns import laid_rows
from serving import Input, Output, Signature
from serving.calls import Traced
from serving.protocol.tensors import WIRE_TYPES
from serving.router import Choice
from serving.telemetry.memory import Column, Memory
from serving.telemetry.rows import row_ids
from serving.telemetry.runs import Run
from serving.telemetry.served import EventForm, feature, feature_field

SIGNATURE = Signature((Input("x", "FP32", shape=(3,)),), (Output("y", shape=(2,)), Output("z")))
CHOICE = Choice(7, "stable", 0.9, "m-3")


def runs_of(batches: list[list[int]], memory: Memory) -> tuple[list[Run], list[dict[str, Any]]]:
    """The batches of so many rows a request in runs, in place and copied in turn, and what their events must say."""
    runs, wanted = [Run(memory, SIGNATURE)], []
    for place, rows in enumerate(batches):
        count, done = sum(rows), 10.0 + place
        drawn = np.random.default_rng(place).normal(size=(count, 6)).astype(np.float32)
        arrived = [done - 0.001 * (k + 1) for k in range(len(rows))]
        if not runs[-1].fits(count):
            runs.append(Run(memory, SIGNATURE, count))
        column = runs[-1].place(count) if place % 2 else np.empty((count, 3), np.float32)
        column[:] = drawn[:, :3]
        requests = array("q", rows).tobytes()
        assert runs[-1].add(column, [drawn[:, 3:5], drawn[:, 5]], requests, array("d", arrived).tobytes(), done)
        ends = np.repeat(np.arange(len(rows)), rows)
        wanted += [
            {"x": values[:3], "y": values[3:5], "z": values[5], "latency": done - arrived[request], "done": done}
            for values, request in zip(drawn.tolist(), ends, strict=True)
        ]
    return runs, wanted


def _traced(place: int) -> Traced:
    """The request in a place, whose trace has the number behind it."""
    span = SpanContext(place + 1, 1, False, TraceFlags(TraceFlags.SAMPLED))
    return Traced("0f", "m", CHOICE, 1, 1, 0.0, 0.0, 0.0, 0.0, span, [span])


@given(
    st.lists(st.integers(1, 130), max_size=40) | st.integers(1, 300).map(lambda count: [1] * count),
    st.integers(0, 10**17) | st.sampled_from([9, 98, 9_990]),
    st.text("0123456789abcdef", max_size=12),
)
def test_ids_are_what_formatting_gives(requests: list[int], first: int, prefix: str) -> None:
    offsets, text = row_ids(prefix.encode(), first, np.array(requests, np.int64))

    ids = pa.Array.from_buffers(pa.utf8(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(text)])
    ids.validate(full=True)
    assert ids.to_pylist() == [
        f"{prefix}-{number}" + (f"/{row}" if rows > 1 else "")
        for number, rows in enumerate(requests, first)
        for row in range(rows)
    ]


@given(
    st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=6), min_size=1, max_size=5),
    st.sampled_from([0, 1, 8, 97, 9_995, 123_456_789]),
    st.booleans(),
    st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_every_row_is_one_event_as_it_was_sent_and_answered(
    sizes: list[list[int]], first: int, compiled: bool, kept: list[bool]
) -> None:
    (run,), wanted = runs_of(sizes, Memory())
    form = EventForm("m", CHOICE, SIGNATURE, b"0f")
    # Told of in any order.
    run.traced = [(place, _traced(place)) for place in reversed(range(run.requests)) if kept[place]]

    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr("serving.telemetry.served.native", lambda: None)
        made = form.events(run, first, 1_700_000_000.0)

    table = from_ipc(to_ipc(made))
    assert from_ipc(b"".join(ipc_pieces([made, made]))).equals(pa.concat_tables([table, table]))
    assert made.nbytes == sum(len(piece) for piece in made.pieces)
    validate_events(table)
    rows = table.to_pylist()
    numbered = list(enumerate([count for requests in sizes for count in requests], first))
    ids = [f"0f-{number}" + (f"/{row}" if count > 1 else "") for number, count in numbered for row in range(count)]
    for event, id, one in zip(rows, ids, wanted, strict=True):
        assert event["id"] == id
        assert event["latency_seconds"] == pytest.approx(one["latency"])
        assert event["time"].timestamp() == pytest.approx(1_700_000_000.0 + one["done"], abs=1e-5)
        assert event["feature.x"] == one["x"]
        assert [event["prediction.y.0"], event["prediction.y.1"], event["prediction.z"]] == [*one["y"], one["z"]]
    known = {"model": "m", "version": "7", "arm": "stable", "release": "m-3", "propensity": 0.9, "outcome": "ok"}
    traces = [f"{place + 1:032x}" if kept[place] else None for place in range(len(numbered))]
    of_rows = [trace for trace, (_, count) in zip(traces, numbered, strict=True) for _ in range(count)]
    assert table.column("trace_id").to_pylist() == of_rows
    for name, value in {**known, "attributes": None}.items():
        assert set(table.column(name).to_pylist()) == {value}
    assert table.schema.names[: len(METADATA)] == METADATA.names


def test_constants_are_made_anew_only_when_a_group_is_larger_than_any_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.telemetry.served.native", lambda: None)
    form = EventForm("model-of-this-test", CHOICE, SIGNATURE, b"0f")
    runs = [runs_of([[1] * rows], Memory())[0][0] for rows in (3, 1025, 2)]

    small, large, last = (form.events(run, 1, 0.0) for run in runs)

    assert (small.num_rows, large.num_rows, last.num_rows) == (3, 1025, 2)
    assert large.schema is last.schema or large.schema.equals(last.schema)
    # Slices of the same buffer: nothing is written again for a group that fits.
    of_large, of_last = (
        next(piece for piece in made.pieces if bytes(piece[:18]) == b"model-of-this-test") for made in (large, last)
    )
    assert np.frombuffer(of_large, np.uint8).ctypes.data == np.frombuffer(of_last, np.uint8).ctypes.data


@pytest.mark.parametrize("widths", [[1], [9, 2, 1]])
@pytest.mark.parametrize("left_out", [frozenset(), frozenset({"feature.x"})])
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_compiled_or_not_the_events_are_the_same(
    widths: list[int], left_out: frozenset[str], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = np.random.default_rng(rows)
    signature = Signature(SIGNATURE.inputs, tuple(Output(f"o{k}", shape=(width,)) for k, width in enumerate(widths)))
    run = Run(Memory(), signature)
    outputs = [drawn.normal(size=(rows, width)).astype(kind) for width, kind in zip(widths, "fdi", strict=False)]
    arrived = array("d", drawn.random(rows)).tobytes()
    assert run.add(np.ones((rows, 3), np.float32), outputs, array("q", [1] * rows).tobytes(), arrived, 2.0)
    run.traced = [(place, _traced(place)) for place in range(0, rows, 5)]
    choice = Choice(12, "ab:ä", 0.25)

    made = EventForm("m", choice, signature, b"", left_out).events(run, 10**15, 3.0)
    monkeypatch.setattr("serving.telemetry.served.native", lambda: None)
    other = EventForm("m", choice, signature, b"", left_out).events(run, 10**15, 3.0)

    assert made.arrow().equals(other.arrow())
    made.arrow().validate(full=True)


@pytest.mark.parametrize(("kind", "shape"), [("FP16", (2,)), ("FP64", (2,)), ("FP64", ()), ("FP32", ())])
def test_an_input_of_any_float_is_told_as_other_ways_tell_it(kind: str, shape: tuple[int, ...]) -> None:
    signature = Signature((Input("x", kind, shape=shape),), (Output("y"),))
    run, given = Run(Memory(), signature), np.arange(3 * len(shape or (1,)) * 2, dtype=WIRE_TYPES[kind])
    values = given[: 3 * max(1, sum(shape))].reshape(3, *shape)
    run.add(values, [np.zeros(3, np.float32)], array("q", [1, 2]).tobytes(), array("d", [1.0, 1.5]).tobytes(), 2.0)

    made = from_ipc(to_ipc(EventForm("m", CHOICE, signature, b"0f").events(run, 1, 0.0)))

    other_way = laid_rows(3, [feature_field(signature.inputs[0])], [feature(signature.inputs[0], [values])]).arrow()
    assert made.select(["feature.x"]).combine_chunks().to_batches()[0].equals(other_way)
    left_out = EventForm("m", CHOICE, signature, b"0f", frozenset({"feature.x"})).events(run, 1, 0.0)
    assert [name for name in left_out.schema.names if name not in METADATA.names] == ["prediction.y"]
    assert left_out.arrow().num_rows == 3


def test_a_batch_of_other_outputs_needs_a_run_of_its_own() -> None:
    run, one = Run(Memory(), SIGNATURE), array("q", [2]).tobytes()
    column, arrived = np.zeros((2, 3), np.float32), array("d", [1.0]).tobytes()

    assert run.add(column, [np.zeros((2, 2)), np.zeros(2)], one, arrived, 2.0)
    assert not run.add(column, [np.zeros((2, 5)), np.zeros(2)], one, arrived, 2.0)
    assert run.column.rows == 2
    assert run.requests == 1
    assert [told.tolist() for told in run.told()] == [[2], [1.0], [2.0]]


def test_wide_outputs_make_a_run_shorter() -> None:
    run, rows = Run(Memory(), SIGNATURE), array("q", [300]).tobytes()
    wide = np.zeros((300, 4_000), np.float32)

    assert run.fits(5_000)
    assert run.add(np.zeros((300, 3), np.float32), [wide, np.zeros(300)], rows, array("d", [1.0]).tobytes(), 2.0)
    assert not run.fits(1)


def test_memory_is_used_again_when_nobody_looks_at_it_any_more() -> None:
    memory = Memory()
    block = memory.take(3_000)
    address, view = block.ctypes.data, block[5:9].view(np.float32)
    del block

    assert memory.take(4_000).ctypes.data != address
    del view
    assert memory.take(4_096).ctypes.data == address


def test_a_few_rows_of_a_block_are_copied_and_many_are_not() -> None:
    column = Column(Memory(), (4,), np.dtype(np.float32), 64)
    column.add(np.ones((31, 4), np.float32))
    few = column.array()
    column.add(np.full((1, 4), 2.0, np.float32))
    many = column.array()

    # The block begins with the first row.
    many[0] = 0.0
    assert few.tolist() == [[1.0] * 4] * 31
    assert column.array()[0].tolist() == [0.0] * 4
    assert many[31].tolist() == [2.0] * 4
