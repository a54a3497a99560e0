"""Events of calls: what is laid out without Arrow is what `event_batch` makes of the same calls, row by row."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import SpanContext, TraceFlags

from observability.event_names import FEATURE
from observability.events import event_batch, from_ipc, to_ipc, validate_events
from serving import Input, Output, Signature
from serving.protocol.tensors import WIRE_TYPES
from serving.router import Choice
from serving.telemetry.columns import Anchor
from serving.telemetry.event_maker import events_of

SIGNATURE = Signature(
    (
        Input("half", "FP16", shape=(3,)),
        Input("single", "FP32"),
        Input("double", "FP64", shape=(2, 2)),
        Input("whole", "INT64"),
        Input("small", "UINT8", shape=(2,)),
        Input("flag", "BOOL"),
        Input("flags", "BOOL", shape=(2,)),
        Input("word", "BYTES", categories=("a", "ö")),
        # Not recorded, as the last output is not: its length varies.
        Input("long", "FP32", shape=(-1,)),
    ),
    (Output("y"), Output("z", shape=(2,)), Output("open", "FP32", shape=(-1,))),
)
ANCHOR = Anchor(2.0, 1_700_000_000_000_000_000)
CHOICES = [Choice(3, "stable", 0.75, "m-9"), Choice(4, "shadow", 1.0), Choice(12, "ab:ä", 0.25, "r")]
TEXTS = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@st.composite
def any_calls(draw: st.DrawFn) -> list[Any]:
    choice, alike = draw(st.sampled_from(CHOICES)), draw(st.booleans())
    count = draw(st.integers(1, 5))
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    calls = []
    for number in range(count):
        rows = draw(st.integers(1, 4))
        values: list[Any] = []
        for column in SIGNATURE.inputs:
            shape = (rows, *(3 if size == -1 else size for size in column.shape))
            if column.datatype == "BYTES":
                values.append(draw(st.lists(TEXTS, min_size=rows, max_size=rows)))
                continue
            drawn = (generator.normal(size=shape) * 3).astype(
                np.int64 if column.datatype in ("INT64", "UINT8", "BOOL") else np.float64
            )
            of_kind = (drawn % 2 if column.datatype == "BOOL" else abs(drawn)).astype(WIRE_TYPES[column.datatype])
            # From the wire, or as JSON had it.
            values.append(of_kind if draw(st.booleans()) else of_kind.reshape(-1).tolist())
        failed = draw(st.booleans()) if not alike else False
        width = draw(st.integers(1, 3))
        outputs = [generator.normal(size=(rows, *shape)).astype(np.float32) for shape in ((), (2,), (width,))]
        span = SpanContext(number + 1, 1, False, TraceFlags(1 if draw(st.booleans()) else 0))
        calls.append(SimpleNamespace(
            model="m", choice=choice, signature=SIGNATURE, rows=rows, values=values, id=f"i-{number}",
            outputs=None if failed else outputs, outcome="model_error" if failed else "ok",
            arrived=3.0 + number / 7, done=4.0 + number / 3, span=draw(st.sampled_from([None, span])),
            attributes=None if alike else draw(TEXTS), drawn=alike or draw(st.booleans()), row_ids=None,
        ))  # fmt: skip
    return calls


def as_written_row_by_row(calls: list[Any], left_out: frozenset[str]) -> list[dict[str, Any]]:
    """What the events have to say, from the calls alone."""
    rows = []
    widths = [
        max([1] + [call.outputs[place][0].size for call in calls if call.outputs is not None]) for place in range(2)
    ]
    widths[1] = 2
    for call in calls:
        for row in range(call.rows):
            event: dict[str, Any] = {
                "id": call.id if call.rows == 1 else f"{call.id}/{row}",
                "time": ANCHOR.unix(call.done),
                "model": "m", "version": str(call.choice.version), "arm": call.choice.arm,
                "release": call.choice.release, "propensity": call.choice.propensity if call.drawn else None,
                "outcome": call.outcome, "latency_seconds": call.done - call.arrived,
                "trace_id": None if call.span is None or not call.span.trace_flags else f"{call.span.trace_id:032x}",
                "attributes": call.attributes,
            }  # fmt: skip
            for column, values in zip(SIGNATURE.inputs, call.values, strict=True):
                if column.name == "long" or FEATURE + column.name in left_out:
                    continue
                if column.datatype == "BYTES":
                    event[FEATURE + column.name] = values[row]
                    continue
                of_row = np.asarray(values).reshape(call.rows, -1)[row].tolist()
                kind = float if column.datatype != "BOOL" or column.shape else bool
                event[FEATURE + column.name] = [*map(kind, of_row)] if column.shape else kind(of_row[0])
            for place, (output, width) in enumerate(zip(SIGNATURE.outputs[:2], widths, strict=True)):
                of_row = [None] * width
                if call.outputs is not None:
                    told = call.outputs[place][row].reshape(-1).tolist()
                    of_row = [*told, *[float("nan")] * (width - len(told))]
                for k, value in enumerate(of_row):
                    event[f"prediction.{output.name}" + (f".{k}" if width > 1 else "")] = value
            rows.append(event)
    return rows


@given(any_calls(), st.sampled_from([frozenset[str](), frozenset({"feature.half", "feature.word"})]))
def test_every_row_of_a_call_is_one_event(calls: list[Any], left_out: frozenset[str]) -> None:
    made = events_of(calls, ANCHOR, left_out)

    table = from_ipc(to_ipc([made, made])).slice(0, made.num_rows)
    validate_events(table)
    told = table.set_column(1, "time", table.column("time").cast(pa.int64())).to_pylist()
    wanted = as_written_row_by_row(calls, left_out)
    assert [list(row) for row in told] == [list(row) for row in wanted]
    # As text, where NaN equals itself.
    assert [repr(row) for row in told] == [repr(row) for row in wanted]


@given(any_calls())
def test_the_columns_are_those_that_event_batch_would_have_made(calls: list[Any]) -> None:
    made = events_of(calls, ANCHOR).arrow()

    given_again: dict[str, Any] = {"features": {}, "predictions": {}}
    for name in made.schema.names[11:]:
        group, _, column = name.partition(".")
        given_again[f"{group}s"][column] = made.column(name)
    same = event_batch(
        ids=made.column("id"), time_ns=made.column("time"), model=made.column("model"), version=made.column("version"),
        arm=made.column("arm"), release=made.column("release"), propensity=made.column("propensity"),
        outcome=made.column("outcome"), latency_seconds=made.column("latency_seconds"),
        trace_ids=made.column("trace_id"), attributes=made.column("attributes"), **given_again,
    )  # fmt: skip
    assert made.schema.equals(same.schema, check_metadata=True)
