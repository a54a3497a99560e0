"""Delivery in the background: nothing lost within the bound, what is dropped is counted, the host never waits."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability import names
from observability.event_exporter import EventExporter
from observability.events import event_batch, from_ipc
from observability.exporter import Backoff, Exporter
from observability.lake import ParquetSink
from observability.metrics import Metrics
from observability.sinks import Batch, HttpSink, Rejected, Sink, Unavailable

Receiver = Any  # conftest.py's
SOON = Backoff(first_seconds=0.01, limit_seconds=0.05)


def event(id: str, rows: int = 1, column: str = "x") -> pa.RecordBatch:
    return event_batch(
        ids=[f"{id}/{row}" for row in range(rows)],
        time_ns=1,
        model="m",
        version="1",
        features={column: [1.0] * rows},
        predictions={"p": [0.5] * rows},
    )


def total(metrics: Metrics, metric: names.Metric, **labels: str) -> float:
    return sum(
        sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == metric.name and labels.items() <= sample.labels.items()
    )


def ids(receiver: Receiver) -> list[str]:
    return [id for request in receiver.accepted for id in from_ipc(request.body).column("id").to_pylist()]


@dataclass
class Gate:
    """A sink that holds each delivery until it is opened."""

    opened: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    sent: list[Batch] = field(default_factory=list)

    def send(self, batch: Batch) -> None:
        self.entered.set()
        assert self.opened.wait(60)
        self.sent.append(batch)


@dataclass
class Failing:
    """A sink that raises what it is given, then delivers."""

    errors: list[Exception]
    sent: list[Batch] = field(default_factory=list)

    def send(self, batch: Batch) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.sent.append(batch)


def test_small_batches_travel_together_in_one_body_in_their_order(receiver: Receiver) -> None:
    metrics = Metrics()
    exporter = EventExporter(HttpSink(f"{receiver.url}/v1/events"), linger_seconds=60, metrics=metrics)
    for number in range(100):
        exporter.put(event(str(number)))

    assert exporter.close()
    assert ids(receiver) == [f"{number}/0" for number in range(100)]
    assert len(receiver.requests) == 1
    assert receiver.requests[0].path == "/v1/events"
    assert receiver.requests[0].headers["Content-Type"] == "application/vnd.apache.arrow.stream"
    assert total(metrics, names.TELEMETRY_DELIVERED, signal="events") == 100
    assert total(metrics, names.TELEMETRY_QUEUE) == 0


def test_a_full_body_does_not_linger(receiver: Receiver) -> None:
    exporter = EventExporter(HttpSink(receiver.url), linger_seconds=3600, max_rows=4)
    for number in range(2):
        exporter.put(event(str(number), rows=2))

    receiver.wait_for_requests(1)
    assert exporter.close()
    assert len(ids(receiver)) == 4


def test_a_body_is_bounded_in_bytes_and_one_that_is_full_does_not_linger(receiver: Receiver) -> None:
    size = event("0", rows=50).nbytes
    exporter = EventExporter(HttpSink(receiver.url), linger_seconds=3600, max_body_bytes=3 * size)
    for number in range(4):
        exporter.put(event(str(number), rows=50))

    receiver.wait_for_requests(1)
    assert exporter.close()
    # How many wait when the thread comes to look is chance; that none holds more than its share is not.
    assert max(from_ipc(request.body).num_rows for request in receiver.requests) <= 150
    assert len(ids(receiver)) == 200


def test_events_of_different_columns_travel_apart(receiver: Receiver) -> None:
    exporter = EventExporter(HttpSink(receiver.url), linger_seconds=60)
    for number in range(6):
        exporter.put(event(str(number), column="a" if number % 2 else "b"))
    exporter.close()

    tables = [from_ipc(request.body) for request in receiver.requests]
    assert [table.num_rows for table in tables] == [3, 3]
    assert all(table.column(len(table.schema) - 2).null_count == 0 for table in tables)


def test_a_collector_that_is_killed_is_not_noticed_and_gets_everything_when_it_is_back(receiver: Receiver) -> None:
    metrics = Metrics()
    sink = HttpSink(f"{receiver.url}/v1/events")
    exporter = EventExporter(sink, linger_seconds=0, backoff=SOON, metrics=metrics)
    exporter.put(event("before"))
    assert exporter.flush(60)
    receiver.kill()

    for number in range(500):
        exporter.put(event(f"during-{number}"))
    assert not exporter.flush(0.2)
    receiver.start()

    assert exporter.flush(60)
    exporter.put(event("after"))
    assert exporter.close(60)
    assert sorted(ids(receiver)) == sorted(["before/0", *(f"during-{number}/0" for number in range(500)), "after/0"])
    assert total(metrics, names.TELEMETRY_DROPPED) == 0
    assert total(metrics, names.TELEMETRY_RETRIES) >= 1
    assert total(metrics, names.TELEMETRY_DELIVERED) == 502


def test_beyond_the_bound_the_oldest_are_dropped_and_counted_and_the_host_does_not_wait() -> None:
    metrics, gate = Metrics(), Gate()
    exporter = EventExporter(gate, max_batches=10, max_rows=1, linger_seconds=0, metrics=metrics)
    exporter.put(event("first"))
    assert gate.entered.wait(60)
    for number in range(100):
        exporter.put(event(str(number), rows=3))

    assert total(metrics, names.TELEMETRY_DROPPED, reason="queue_full") == 90
    assert total(metrics, names.TELEMETRY_DROPPED_ROWS, reason="queue_full") == 270
    assert total(metrics, names.TELEMETRY_QUEUE) == 10
    gate.opened.set()
    assert exporter.close(60)
    assert [from_ipc(batch.body).column("id")[0].as_py() for batch in gate.sent] == [
        "first/0",
        *(f"{number}/0" for number in range(90, 100)),
    ]


def test_the_bytes_that_wait_are_bounded_too() -> None:
    metrics, gate = Metrics(), Gate()
    exporter = Exporter(gate, signal="s", max_bytes=1000, metrics=metrics)
    exporter.put(Batch(b"first"))
    assert gate.entered.wait(60)
    for _ in range(20):
        exporter.put(Batch(b"x" * 100))
    exporter.put(Batch(b"x" * 1001))

    assert total(metrics, names.TELEMETRY_QUEUE) == 0
    assert total(metrics, names.TELEMETRY_DROPPED, reason="queue_full") == 21
    gate.opened.set()
    assert exporter.close(60)


def test_all_that_is_put_ends_as_delivered_or_dropped() -> None:
    metrics = Metrics()
    sink = Failing([Rejected("no"), Unavailable("later"), Rejected("no")])
    exporter = Exporter(sink, signal="s", backoff=SOON, metrics=metrics)
    for _ in range(10):
        exporter.put(Batch(b"x", rows=2))
    assert exporter.close(60)
    exporter.put(Batch(b"late"))

    assert total(metrics, names.TELEMETRY_DELIVERED) == len(sink.sent) == 8
    assert total(metrics, names.TELEMETRY_DROPPED, reason="rejected") == 2
    assert total(metrics, names.TELEMETRY_DROPPED_ROWS, reason="rejected") == 4
    assert total(metrics, names.TELEMETRY_DROPPED, reason="closed") == 1


@pytest.mark.parametrize("status", [400, 404, 413, 415, 301])
def test_a_body_that_will_never_be_taken_is_dropped_and_the_next_goes_on(receiver: Receiver, status: int) -> None:
    metrics = Metrics()
    receiver.answers = [(status, {})]
    exporter = Exporter(HttpSink(receiver.url), signal="s", backoff=SOON, metrics=metrics)
    exporter.put(Batch(b"bad"))
    exporter.put(Batch(b"good"))

    assert exporter.close(60)
    assert [request.body for request in receiver.requests] == [b"bad", b"good"]
    assert total(metrics, names.TELEMETRY_DROPPED, reason="rejected") == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_body_that_may_be_taken_later_is_sent_again_under_the_same_id(receiver: Receiver, status: int) -> None:
    metrics = Metrics()
    receiver.answers = [(status, {}), (status, {})]
    exporter = Exporter(HttpSink(receiver.url), signal="s", backoff=SOON, metrics=metrics)
    exporter.put(Batch(b"x"))

    assert exporter.close(60)
    assert len(receiver.requests) == 3
    assert len({request.headers["X-Batch-Id"] for request in receiver.requests}) == 1
    assert total(metrics, names.TELEMETRY_RETRIES) == 2
    assert total(metrics, names.TELEMETRY_DELIVERED) == 1


def test_a_body_on_which_the_receiver_keeps_failing_is_given_up() -> None:
    metrics = Metrics()
    sink = Failing([ValueError("bug")] * 3)
    exporter = Exporter(sink, signal="s", metrics=metrics, backoff=Backoff(first_seconds=0.001, max_failures=3))
    exporter.put(Batch(b"poison"))
    exporter.put(Batch(b"good"))

    assert exporter.close(60)
    assert [batch.body for batch in sink.sent] == [b"good"]
    assert total(metrics, names.TELEMETRY_DROPPED, reason="failed") == 1


def test_closing_while_the_receiver_is_away_gives_up_in_time_and_counts(receiver: Receiver) -> None:
    receiver.kill()
    metrics = Metrics()
    exporter = Exporter(HttpSink(receiver.url), signal="s", backoff=Backoff(first_seconds=60), metrics=metrics)
    for _ in range(5):
        exporter.put(Batch(b"x"))

    assert not exporter.close(0.3)
    until = time.monotonic() + 60
    while total(metrics, names.TELEMETRY_DROPPED, reason="closed") < 5 and time.monotonic() < until:
        time.sleep(0.01)
    assert total(metrics, names.TELEMETRY_DROPPED, reason="closed") == 5


def test_one_connection_is_kept_alive_and_replaced_when_the_receiver_closed_it(receiver: Receiver) -> None:
    sink = HttpSink(receiver.url)
    for _ in range(3):
        sink.send(Batch(b"x"))

    assert receiver.num_connections == 1
    receiver.kill()
    receiver.start()

    sink.send(Batch(b"y"))
    assert receiver.num_connections == 2
    assert receiver.requests[-1].body == b"y"
    sink.close()


def test_the_waiting_time_that_the_receiver_asks_for_is_passed_on(receiver: Receiver) -> None:
    receiver.answers = [(429, {"Retry-After": "7"}), (503, {"Retry-After": "Fri, 01 Jan 1999 00:00:00 GMT"}), (503, {})]
    sink, waits = HttpSink(receiver.url), []
    for _ in range(3):
        with pytest.raises(Unavailable) as caught:
            sink.send(Batch(b"x"))
        waits.append(caught.value.retry_after)

    sink.close()
    assert waits == [7.0, 0.0, None]


@given(st.integers(1, 200), st.floats(0, 0.999), st.none() | st.floats(0, 1e6))
def test_waits_grow_to_a_limit_and_honour_what_is_asked(failures: int, jitter: float, asked: float | None) -> None:
    backoff = Backoff(first_seconds=0.1, limit_seconds=10)

    delay = backoff.delay(failures, asked, jitter)

    assert min(10, 0.1 * 2 ** (failures - 1)) / 2 <= delay <= 120
    if asked is not None:
        assert delay >= min(asked, 120)
    assert backoff.delay(failures + 1, None, jitter) >= backoff.delay(failures, None, jitter)


def test_what_cannot_be_encoded_is_dropped_and_the_thread_lives_on(caplog: pytest.LogCaptureFixture) -> None:
    metrics, sink = Metrics(), Failing([])
    exporter = EventExporter(sink, metrics=metrics, linger_seconds=0)
    exporter.put("not a batch")  # type: ignore[arg-type]
    exporter.put(event("good"))

    with caplog.at_level(logging.WARNING):
        assert exporter.close(60)
    assert len(sink.sent) == 1
    assert total(metrics, names.TELEMETRY_DROPPED, reason="invalid") == 1


def test_many_threads_may_put_at_once(receiver: Receiver) -> None:
    exporter = EventExporter(HttpSink(receiver.url), linger_seconds=0.01)

    def put_many(thread: int) -> None:
        for number in range(100):
            exporter.put(event(f"{thread}-{number}"))

    threads = [threading.Thread(target=put_many, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert exporter.close(60)
    assert len(set(ids(receiver))) == 400


def test_a_forked_child_delivers_its_own_and_not_what_its_parent_had_waiting(receiver: Receiver) -> None:
    script = (
        "import os\n"
        "from observability import Batch, Exporter, HttpSink\n"
        f"exporter = Exporter(HttpSink({receiver.url!r}), signal='s')\n"
        "exporter.put(Batch(b'before'))\n"
        "assert exporter.flush(60)\n"
        "child = os.fork()\n"
        "for number in range(20): exporter.put(Batch(b'parent' if child else b'child'))\n"
        "assert exporter.close(60)\n"
        "if child: assert os.waitpid(child, 0)[1] == 0\n"
        "else: os._exit(0)\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    bodies = Counter(request.body for request in receiver.accepted)
    assert bodies == {b"before": 1, b"parent": 20, b"child": 20}


def test_the_parquet_sink_writes_bodies_as_files_and_refuses_others(tmp_path: Path) -> None:
    sink: Sink = ParquetSink(tmp_path)
    exporter = EventExporter(sink)
    exporter.put(event("a", rows=2))
    exporter.close()

    (path,) = tmp_path.glob("*.parquet")
    assert pq.read_table(path).num_rows == 2
    with pytest.raises(Rejected, match="not an Arrow IPC stream"):
        sink.send(Batch(b"nonsense"))


@pytest.mark.parametrize("url", ["collector:4318", "ftp://host/x", "http://"])
def test_a_url_that_cannot_work_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="is not usable"):
        HttpSink(url)
