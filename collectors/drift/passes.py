"""One pass over a table of any size: every column's values batch by batch, several columns at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa

from collectors.drift.source import Source

# Threads for fewer values than this cost more than they bring.
LITTLE = 250_000
Work = Callable[[str, pa.Array], None]


def each_column(source: Source, columns: Sequence[str], work: Work, progress: Callable[[int], None]) -> None:
    """Calls `work` with a column's name and values, for all columns and batch after batch.

    Of each column the batches come in the order of its rows, one after the other; of different columns at once, on a
    thread a processor. `progress` gets the rows done. What `work` and the reading raise is raised here.
    """
    progress(0)
    counted = _Counted(len(columns), progress)
    if source.lanes is not None:
        _by_lanes(source.lanes(columns, threads_for(source.rows * len(columns))), work, counted)
        return
    with ThreadPoolExecutor(threads_for(source.rows * len(columns))) as pool:
        for batch in source.batches(columns):
            each = pool.map if threads_for(batch.num_rows * batch.num_columns) > 1 else map
            for _ in each(work, batch.schema.names, batch.columns):
                pass
            counted.add(batch)


class _Counted:
    """Values done, by any of several threads, as rows."""

    def __init__(self, columns: int, progress: Callable[[int], None]) -> None:
        self._columns, self._progress = columns, progress
        self._values, self._lock = 0, threading.Lock()

    def add(self, batch: pa.RecordBatch) -> None:
        with self._lock:
            self._values += batch.num_rows * batch.num_columns
            self._progress(self._values // self._columns)


def _by_lanes(steps: Iterator[Sequence[Iterator[pa.RecordBatch]]], work: Work, counted: _Counted) -> None:
    stopped = threading.Event()

    def followed(lane: Iterator[pa.RecordBatch]) -> None:
        for batch in lane:
            if stopped.is_set():
                return
            for name, values in zip(batch.schema.names, batch.columns, strict=True):
                work(name, values)
            counted.add(batch)

    running: list[Future[None]] = []
    with ThreadPoolExecutor() as pool:
        try:
            # The next step is opened while this one is worked on.
            for lanes in steps:
                _finish(running)
                running = [pool.submit(followed, lane) for lane in lanes]
            _finish(running)
        finally:
            stopped.set()


def _finish(running: Sequence[Future[None]]) -> None:
    for lane in running:
        lane.result()


def threads_for(values: int) -> int:
    """Threads for so many values: one a processor, unless they are few."""
    return (os.cpu_count() or 1) if values >= LITTLE else 1
