"""Events of the shortcut's batches: built column by column, and the same as one would write them row by row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability.events import METADATA, from_ipc, to_ipc, validate_events
from serving import Input, Output, Signature
from serving.router import Choice
from serving.telemetry.accounts import Served
from serving.telemetry.served import EventForm, ServedGroup, row_ids

SIGNATURE = Signature((Input("x", "FP32", shape=(3,)),), (Output("y", shape=(2,)), Output("z")))
CHOICE = Choice(7, "stable", 0.9, "m-3")


def batch(rows: list[int], done: float, seed: int) -> Served:
    count = sum(rows)
    drawn = np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)
    arrived = [done - 0.001 * (k + 1) for k in range(len(rows))]
    return Served(SIGNATURE, rows, drawn[:, :3].copy(), [drawn[:, 3:5].copy(), drawn[:, 5].copy()], arrived, done)


@given(
    st.lists(st.integers(1, 130), max_size=40) | st.integers(1, 300).map(lambda count: [1] * count),
    st.integers(0, 10**17) | st.sampled_from([9, 98, 9_990]),
    st.text("0123456789abcdef", max_size=12),
)
def test_ids_are_what_formatting_gives(requests: list[int], first: int, prefix: str) -> None:
    ids = row_ids(prefix.encode(), first, np.array(requests, np.int64))

    ids.validate(full=True)
    assert ids.to_pylist() == [
        f"{prefix}-{number}" + (f"/{row}" if rows > 1 else "")
        for number, rows in enumerate(requests, first)
        for row in range(rows)
    ]


@given(
    st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=6), min_size=1, max_size=5),
    st.sampled_from([0, 1, 8, 97, 9_995, 123_456_789]),
)
def test_every_row_is_one_event_as_it_was_sent_and_answered(sizes: list[list[int]], first: int) -> None:
    batches = [batch(rows, 10.0 + place, place) for place, rows in enumerate(sizes)]
    form = EventForm("m", CHOICE, SIGNATURE, b"0f")

    made = form.events(ServedGroup("m", CHOICE, batches, first), 1_700_000_000.0)

    table = from_ipc(to_ipc(made))
    validate_events(table)
    rows = table.to_pylist()
    number, place = first, 0
    for one in batches:
        row = 0
        for count, arrived in zip(one.rows, one.arrived, strict=True):
            for part in range(count):
                event = rows[place]
                assert event["id"] == f"0f-{number}" + (f"/{part}" if count > 1 else "")
                assert event["latency_seconds"] == pytest.approx(one.done - arrived)
                assert event["time"].timestamp() == pytest.approx(1_700_000_000.0 + one.done, abs=1e-5)
                assert event["feature.x"] == one.column[row].tolist()
                assert [event["prediction.y.0"], event["prediction.y.1"]] == one.outputs[0][row].tolist()
                assert event["prediction.z"] == one.outputs[1][row]
                place, row = place + 1, row + 1
            number += 1
    assert len(rows) == place
    known = {"model": "m", "version": "7", "arm": "stable", "release": "m-3", "propensity": 0.9, "outcome": "ok"}
    for name, value in {**known, "trace_id": None, "attributes": None}.items():
        assert set(table.column(name).to_pylist()) == {value}
    assert table.schema.names[: len(METADATA)] == METADATA.names


def test_constants_are_made_anew_only_when_a_group_is_larger_than_any_before() -> None:
    form = EventForm("m", CHOICE, SIGNATURE, b"0f")
    groups = [ServedGroup("m", CHOICE, [batch([1] * rows, 5.0, rows)], 1) for rows in (3, 1025, 2)]

    small, large, last = (form.events(group, 0.0) for group in groups)

    assert (small.num_rows, large.num_rows, last.num_rows) == (3, 1025, 2)
    assert large.schema is last.schema or large.schema.equals(last.schema)
    # Slices of the same buffer: nothing is written again for a group that fits.
    assert large.column("model").buffers()[2].address == last.column("model").buffers()[2].address
