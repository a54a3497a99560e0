"""What the recorder keeps of answers that are long, that come faster than it works, and when the server ends."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from observability import names
from observability.events import from_ipc, to_ipc
from observability.metrics import Metrics
from observability.tracing import NoTracing
from serving import Input, Output, Signature
from serving.router import Choice
from serving.telemetry import served
from serving.telemetry.columns import Anchor
from serving.telemetry.event_maker import events_of
from serving.telemetry.memory import Memory
from serving.telemetry.recorder import Recorder
from serving.telemetry.runs import MAX_VALUES, Run
from serving.telemetry.served import EventForm

SIGNATURE = Signature((Input("x", "FP32", shape=(3,)),), (Output("wide"), Output("y", shape=(2,))))
CHOICE = Choice(7, "stable", 0.9, "m-3")
WIDE, NARROW = np.zeros((2, MAX_VALUES + 1), np.float32), np.ones((2, 2), np.float32)


class Events:
    """Takes its time with each group: all that the recorder does before it is told to end."""

    def __init__(self) -> None:
        self.recorder: Recorder | None = None
        self.told: list[Sequence[Any]] = []
        self.begun = threading.Event()

    def put(self, calls: Sequence[Any], anchor: Anchor) -> None:
        self.told.append(calls)
        self.begun.set()
        while self.recorder is None or not self.recorder._ending:
            time.sleep(0.001)

    def put_served(self, group: Any, anchor: Anchor) -> None:
        raise AssertionError("no call of this test comes by the shortcut")

    def close(self) -> None:
        pass


def a_call(size: int = 0) -> Any:
    """A call of two rows that holds `size` bytes and its outputs."""
    return SimpleNamespace(
        model="m", choice=CHOICE, signature=SIGNATURE, rows=2, values=[np.zeros((2, 3), np.float32)], id="i",
        outputs=[WIDE, NARROW], outcome="ok", arrived=1.0, done=2.0, span=None, attributes=None, drawn=True,
        row_ids=None, bytes=size,
    )  # fmt: skip


def dropped(metrics: Metrics, reason: str) -> float:
    return metrics[names.TELEMETRY_DROPPED].labels("events", reason)._value.get()


def predictions(events: Any) -> list[str]:
    return [name for name in from_ipc(to_ipc(events)).schema.names if name.startswith("prediction.")]


def test_an_output_of_very_many_values_is_no_part_of_an_event() -> None:
    assert predictions(events_of([a_call()], Anchor(0.0, 0))) == ["prediction.y.0", "prediction.y.1"]


@pytest.mark.parametrize("compiled", [True, False])
def test_nor_of_one_that_came_by_the_shortcut(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(served, "native", lambda: None)
    run, form = Run(Memory(), SIGNATURE), EventForm("m", CHOICE, SIGNATURE, b"0f")
    for _ in range(2):
        rows, arrived = array("q", [2]).tobytes(), array("d", [1.0]).tobytes()
        assert run.add(np.zeros((2, 3), np.float32), [WIDE, NARROW], rows, arrived, 2.0)
    other = Run(Memory(), SIGNATURE)
    assert other.add(np.zeros((2, 3), np.float32), [NARROW, NARROW], rows, arrived, 2.0)

    made = form.events(run, 1, 0.0)
    assert predictions(made) == ["prediction.y.0", "prediction.y.1"]
    assert from_ipc(to_ipc(made)).column("prediction.y.1").to_pylist() == [1.0] * 4
    assert run.nbytes < 16 << 20
    both = ["prediction.wide.0", "prediction.wide.1", "prediction.y.0", "prediction.y.1"]
    assert predictions(form.events(other, 1, 0.0)) == both


def test_groups_that_wait_are_bounded_in_bytes() -> None:
    metrics, events = Metrics(), Events()
    recorder = events.recorder = Recorder(lambda: events, NoTracing(), metrics, max_bytes=100_000)
    events.recorder = None

    recorder.put([a_call(1_000_000)])  # alone it may be larger
    events.begun.wait()
    recorder.put([a_call(1)])
    assert dropped(metrics, "recorder_full") == 1.0

    events.recorder = recorder
    recorder.close(0.01)
    assert len(events.told) == 1


def test_a_recorder_that_is_behind_ends_with_its_server() -> None:
    metrics, events = Metrics(), Events()
    recorder = events.recorder = Recorder(lambda: events, NoTracing(), metrics)
    for _ in range(5):
        recorder.put([a_call()])
    events.begun.wait()

    recorder.close(0.01)
    assert not recorder._thread.is_alive()
    assert len(events.told) == 1
    assert dropped(metrics, "closed") == 4.0
