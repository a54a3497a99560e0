"""What the engine asks of its store: rules in batches, samples by remote write, and what a slow or lost store means."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import cramjam
import httpx
import pytest
import sqlalchemy as sa

from alerts.dependencies import batches
from alerts.engine import RuleEngine, grid_time
from alerts.labels import labels_of
from alerts.querier import (
    ClientQuerier,
    EngineQuerier,
    PushWriter,
    QueryError,
    Sample,
    StoreAway,
    StoreWriter,
    WriteError,
)
from alerts.remote_write import encoded
from alerts.rule_counts import RULE_FAMILIES
from alerts.rules import Rule, RuleGroup, load
from alerts.state_store import StateStore
from collectors import query as promql
from collectors.remote_write import LabelCache, read_v1
from collectors.store import STALE_NAN, Store
from observability.metrics import Metrics


def record(name: str, expr: str, **labels: str) -> Rule:
    return Rule(kind="record", name=name, expr=expr, labels=labels_of(labels))


def alert(name: str, expr: str, **annotations: str) -> Rule:
    return Rule(kind="alert", name=name, expr=expr, annotations=labels_of(annotations))


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([record("a:a", "x"), record("b:b", "x + y"), alert("A", "x > 1")], [range(3)]),
        ([record("a:a", "x"), record("b:b", "sum(a:a)"), record("c:c", "x")], [range(1), range(1, 3)]),
        ([record("a:a", "x"), record("b:b", 'rate({__name__=~"a:.*"}[5m])')], [range(1), range(1, 2)]),
        ([record("a:a", "x"), record("b:b", '{job="x"}')], [range(1), range(1, 2)]),
        ([record("a:a", "x", slo="1"), record("b:b", 'a:a{slo="2"}')], [range(2)]),
        ([alert("A", "x"), alert("B", 'ALERTS{alertname="A"}')], [range(1), range(1, 2)]),
        ([alert("A", "x"), alert("B", 'ALERTS{alertname="C"}')], [range(2)]),
        ([record("a:a", "x"), alert("B", "y", summary='{{ query "a:a" }}')], [range(1), range(1, 2)]),
        ([], []),
    ],
)
def test_rules_that_read_each_other_are_not_asked_for_together(rules: list[Rule], expected: list[range]) -> None:
    assert batches(rules) == expected


def test_groups_keep_to_their_own_points_of_the_grid() -> None:
    groups = [RuleGroup(name=str(n), path="f", rules=(), interval_seconds=15.0) for n in range(40)]
    now = 1_700_000_007.25

    times = [grid_time(group, now) for group in groups]

    assert all(0 <= now - ts < 15 and ts == int(ts) for ts in times)
    assert len(set(times)) > 10
    assert [grid_time(group, now + 15) - ts for group, ts in zip(groups, times, strict=True)] == [15.0] * 40
    assert grid_time(RuleGroup(name="a", path="f", rules=(), interval_seconds=1.0), now) == 1_700_000_007.0


def test_missed_evaluations_failures_and_samples_are_counted(
    make_rule_file: Callable[[str], Path], metering: Any, database: sa.Engine, clock: Any
) -> None:
    path = make_rule_file(
        "groups: [{name: g, interval: 1s, rules: [{record: 'a:a', expr: m}, {record: 'b:b', expr: m + on (x) m}]}]"
    )
    metrics = Metrics(families=RULE_FAMILIES)
    engine = RuleEngine(load([path]), metering, metering, StateStore(database), metrics=metrics)
    for seconds in (1, 1, 4):
        metering.scrape(clock.advance(seconds), {'m{y="1"}': 1.0, 'm{y="2"}': 1.0})
        ((status, ts),) = engine.due(clock.now)
        engine.evaluate(status, ts)

    def value(name: str) -> float | None:
        return metrics.registry.get_sample_value(f"prometheus_rule_{name}", {"rule_group": f"{path};g"})

    assert (value("group_iterations_total"), value("group_iterations_missed_total")) == (6.0, 3.0)
    assert (value("evaluations_total"), value("evaluation_failures_total")) == (6.0, 3.0)
    assert (value("group_last_evaluation_samples"), value("group_rules"), value("group_interval_seconds")) == (2, 2, 1)
    assert value("group_last_evaluation_timestamp_seconds") == clock.now


def test_a_series_that_is_no_longer_made_ends_even_if_another_rule_fails(
    make_rule_file: Callable[[str], Path], metering: Any, database: sa.Engine, clock: Any
) -> None:
    path = make_rule_file(
        "groups: [{name: g, interval: 1s, query_offset: 1s,"
        " rules: [{record: 'a:a', expr: m > 1}, {record: 'b:b', expr: m + on (x) m}]}]"
    )
    engine = RuleEngine(load([path]), metering, metering, StateStore(database))
    metering.scrape(clock.now, {'m{y="1"}': 5.0, 'm{y="2"}': 5.0})
    for value in (0.0, 0.0):
        metering.scrape(clock.advance(1.0), {'m{y="1"}': value, 'm{y="2"}': 5.0})
        for status, ts in engine.due(clock.now):
            engine.evaluate(status, ts)

    assert len(metering.instant("a:a", clock.now - 2)) == 2
    assert [dict(s.labels)["y"] for s in metering.instant("a:a", clock.now - 1)] == ["2"]


def test_what_could_not_be_written_is_ended_later(
    make_rule_file: Callable[[str], Path], metering: Any, database: sa.Engine, clock: Any
) -> None:
    class Writer:
        broken = False

        def write(self, samples: Sequence[Sample], at: float) -> None:
            if self.broken:
                raise WriteError("the disk is full")
            metering.write(samples, at)

        append = replace = write

    writer = Writer()
    path = make_rule_file("groups: [{name: g, interval: 1s, rules: [{record: 'a:a', expr: m > 1}]}]")
    engine = RuleEngine(load([path]), metering, writer, StateStore(database))  # type: ignore[arg-type]
    for value, broken in ((5.0, False), (0.0, True), (0.0, False)):
        writer.broken = broken
        metering.scrape(clock.advance(1.0), {"m": value})
        for status, ts in engine.due(clock.now):
            engine.evaluate(status, ts)
        assert engine.groups[0].write_error == ("the disk is full" if broken else "")
        assert engine.groups[0].rules[0].last_error == ("the disk is full" if broken else "")

    assert metering.value("a:a", clock.now - 1) == 5.0
    assert metering.value("a:a", clock.now) is None


# --- remote write -----------------------------------------------------------------------------------------------------
def test_what_is_written_is_what_the_receiver_reads() -> None:
    chance = random.Random(3)
    samples = [
        Sample(
            labels_of({"__name__": f"m{n}", "ü": "x" * chance.randint(1, 300), "le": str(n)}),
            chance.choice([0.0, -0.0, 1.5, float("inf"), STALE_NAN, 1e-300]),
        )
        for n in range(50)
    ]
    written = read_v1(encoded(samples, 1_700_000_000_123), LabelCache())

    assert [labels_of(labels) for labels in written.labels] == [sample.labels for sample in samples]
    assert written.times.tolist() == [1_700_000_000_123] * 50
    assert written.values.tobytes() == struct.pack("<50d", *(sample.value for sample in samples))


@pytest.fixture
def receiver() -> Iterator[Any]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.got.append((self.path, dict(self.headers), bytes(cramjam.snappy.decompress_raw(body))))
            self.send_response(server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.got, server.status = [], 204
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_samples_go_to_the_receiver_in_parts_and_a_refusal_is_told(receiver: Any) -> None:
    writer = PushWriter(receiver.url)
    writer.write([Sample(labels_of({"__name__": "m", "n": str(n)}), 1.0) for n in range(12_000)], 5.0)
    receiver.status = 404
    with pytest.raises(WriteError, match=r"404.*enable-remote-write-receiver"):
        writer.write([Sample((("__name__", "m"),), 1.0)], 6.0)
    writer.close()
    lost = PushWriter("http://127.0.0.1:9", write_url="http://127.0.0.1:9/elsewhere")
    with pytest.raises(WriteError, match=r"cannot write to http://127\.0\.0\.1:9/elsewhere"):
        lost.write([Sample((("__name__", "m"),), 1.0)], 6.0)
    lost.close()

    parts = [read_v1(body, LabelCache()) for path, _, body in receiver.got if path == "/api/v1/write"]
    assert [len(part.labels) for part in parts] == [10_000, 2_000, 1]
    assert receiver.got[0][1]["Content-Encoding"] == "snappy"


# --- a store that is slow or away -------------------------------------------------------------------------------------
class Answers:
    """A client of a server that knows no batches, with given answers."""

    def __init__(self, *answers: Any) -> None:
        self._answers = iter(answers)

    def batch(self, exprs: Sequence[str], at: float) -> None:
        return None

    def instant(self, expr: str, at: float) -> Any:
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


def slow() -> promql.QueryError:
    error = promql.QueryError("did not answer in time", "timeout")
    error.__cause__ = httpx.ReadTimeout("slow")
    return error


ONE = promql.Vector((promql.VectorElement({"a": "b"}, 0, 1.0),))


def test_one_slow_query_fails_alone_and_two_are_a_lost_store() -> None:
    refused = promql.QueryError("no such function", "bad_data")
    alone = ClientQuerier(Answers(ONE, slow(), refused, ONE)).instants(["a", "b", "c", "d"], 1.0)  # type: ignore[arg-type]

    assert [isinstance(answer, QueryError) for answer in alone] == [False, True, True, False]
    with pytest.raises(StoreAway):
        ClientQuerier(Answers(slow(), ONE, slow())).instants(["a", "b", "c"], 1.0)  # type: ignore[arg-type]
    lost = promql.QueryError("cannot reach it", "unavailable")
    with pytest.raises(StoreAway):
        ClientQuerier(Answers(lost)).instants(["a", "b"], 1.0)  # type: ignore[arg-type]


def test_a_result_that_is_no_vector_is_an_error_of_its_rule() -> None:
    store = Store("sqlite://", clock=lambda: 0.0)
    StoreWriter(store).write([Sample((("__name__", "m"),), 2.0)], 0.0)
    querier = EngineQuerier(promql.Engine(store))

    first, second, third = querier.instants(["m[5m]", "m", '"text"'], 0.0)

    assert "not a vector or scalar" in str(first)
    assert second == [Sample((("__name__", "m"),), 2.0)]
    assert "not a vector or scalar" in str(third)
