"""The thread that measures: what waits for it, and what it tells the windows of that."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pyarrow as pa

from collectors.measure import Measures
from collectors.measure_settings import MeasureSettings
from collectors.measurer import Backlog, Measurer
from collectors.references import Standing
from collectors.signals import Signals
from collectors.windows import WindowSettings

T0 = 1_363_000_000.0
Events = Callable[..., pa.RecordBatch]


class SlowMeasures(Measures):
    """Takes twenty seconds for every batch, and remembers how far behind each tick was."""

    def __init__(self, clock: Any) -> None:
        settings = MeasureSettings(windows=WindowSettings(window_seconds=10.0, allowed_lateness_seconds=0.0))
        super().__init__(settings, Signals(), clock, kept)
        self._slow_clock = clock
        self.behind: list[float] = []
        self.closed: list[int] = []

    def apply(self, *batch: Any, **how: Any) -> None:
        super().apply(*batch, **how)
        self._slow_clock.advance(20)

    def tick(self, behind: float = 0.0) -> bool:
        changed = super().tick(behind)
        self.behind.append(behind)
        self.closed.append(len(self.judged("delay", "1", 10)))
        return changed


def kept(_: Standing) -> Future[None]:
    done: Future[None] = Future()
    done.set_result(None)
    return done


def table(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch])


def test_what_waits_is_counted_until_it_is_measured(clock: Any, events: Events) -> None:
    measurer = Measurer(SlowMeasures(clock), lambda: None, clock=clock)
    batch = table(events(10))
    measurer.put("events", batch)
    clock.advance(5)
    measurer.put("events", batch)
    clock.advance(1)

    assert measurer.backlog() == Backlog(2, 20, 2 * batch.nbytes, 6.0)
    measurer.start()
    measurer.close()
    assert measurer.backlog() == Backlog()


def test_a_model_whose_rows_wait_to_be_measured_is_not_taken_for_quiet(clock: Any, events: Events) -> None:
    clock.now = T0 + 1
    measures = SlowMeasures(clock)
    measurer = Measurer(measures, lambda: None, tick_seconds=0.0, clock=clock)
    for number, model in enumerate(("delay", "other", "other", "delay")):
        measurer.put("events", table(events(10, prefix=f"{number}", model=model, time_s=T0 + 1)))

    measurer.start()
    measurer.close()

    assert measures.behind[:4] == [20.0, 40.0, 60.0, 0.0]
    # Its window closed once all of it was in there, not while its second batch had waited for half a minute.
    assert measures.closed[:3] == [0, 0, 0]
    clock.advance(20)
    measures.tick()
    (window,) = measures.judged("delay", "1", 10)
    assert (window.pane.rows, window.revision) == (20, 0)
