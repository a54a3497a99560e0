"""The intake by HTTP: what is accepted is durable and measured once; what is not says why."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import sqlalchemy as sa

from collectors.database import BATCHES, EVENT_LOG, SEGMENTS
from collectors.drift import DriftThresholds
from collectors.events import EventLog, read_batch, read_json_labels
from collectors.intake import MAX_WAITING_BYTES
from collectors.journal import Journal, JournalClosed
from collectors.measurer import Backlog
from observability import names
from observability.events import event_batch, label_batch, to_ipc, validate_labels
from observability.lake import read_events, read_labels
from observability.profile import Profile

T0 = 1_363_000_000.0
Events = Callable[..., pa.RecordBatch]


def post(collector: Any, batch: pa.RecordBatch, batch_id: str | None = None, path: str = "/v1/events") -> Any:
    headers = {"Content-Type": "application/vnd.apache.arrow.stream"} | ({"X-Batch-Id": batch_id} if batch_id else {})
    answer = collector.intake.post(path, content=to_ipc(batch), headers=headers)
    collector.settled(lambda: collector.collector.measurer.waiting() == 0)
    return answer


def lake_ids(collector: Any, model: str = "delay") -> list[str]:
    collector.collector.log.compact()
    return sorted(read_events(collector.collector.config.lake, model).column("id").to_pylist())


def counted(collector: Any, metric: names.Metric, *labels: str) -> float:
    return float(collector.collector.signals.metrics[metric].labels(*labels)._value.get())


def test_events_reach_the_lake_and_the_windows(collector: Any, clock: Any, events: Events) -> None:
    answer = post(collector, events(100))

    assert (answer.status_code, answer.json()) == (200, {"accepted_rows": 100, "duplicate": False})
    assert len(lake_ids(collector)) == 100
    clock.advance(60)
    collector.settled(lambda: collector.query.get("/api/drift/delay").json()["windows"])
    (window,) = collector.query.get("/api/drift/delay").json()["windows"]
    assert (window["rows"], window["start"], window["version"]) == (100, T0, "1")


@pytest.mark.parametrize("path", ["drift", "performance", "quality"])
def test_a_model_that_does_not_exist_is_told_apart_from_one_without_data(
    collector: Any, clock: Any, path: str, events: Events
) -> None:
    nobody = collector.query.get(f"/api/{path}/delay")
    assert (nobody.status_code, nobody.headers["content-type"]) == (404, "application/json")
    assert nobody.json() == {"error": "no model 'delay' has sent anything or has a reference; none is known yet"}

    assert post(collector, events(10)).status_code == 200
    at_once = collector.query.get(f"/api/{path}/delay")  # while the batch may still wait to be measured
    served_series = ({"__name__": "traffic_weight_ratio", "model": "served"}, 1.0)
    collector.collector.store.append("serving", int(clock() * 1000), [served_series])
    served, wrong = collector.query.get(f"/api/{path}/served"), collector.query.get(f"/api/{path}/dealy")

    assert (at_once.status_code, at_once.json()["model"]) == (200, "delay")
    assert (served.status_code, served.json()["model"]) == (200, "served")
    assert wrong.status_code == 404
    assert wrong.json() == {"error": "no model 'dealy' has sent anything or has a reference; known are delay, served"}


@pytest.mark.parametrize(("path", "name"), [("drift/delay", "windows"), ("quality/delay", "limit"), ("logs", "limit")])
def test_a_number_of_answers_that_is_none_is_named(collector: Any, events: Events, path: str, name: str) -> None:
    post(collector, events(10))
    for wrong in ("abc", "-1", "1.5", "\N{SUPERSCRIPT TWO}"):
        answer = collector.query.get(f"/api/{path}", params={name: wrong})

        assert (answer.status_code, answer.json()) == (400, {"error": f"{name}={wrong} is no whole number from 0 on"})
    assert collector.query.get(f"/api/{path}", params={name: "9" * 5000}).status_code == 200


def test_predictions_that_are_vectors_lose_no_row(collector: Any, clock: Any) -> None:
    batch = event_batch(
        ids=[f"v/{row}" for row in range(20)],
        time_ns=round(T0 * 1e9),
        model="delay",
        version="1",
        features={},
        predictions={"vector": np.zeros((20, 3)), "p": 0.5},
    )

    post(collector, batch)
    labels = [{"id": f"v/{row}", "model": "delay", "label": row % 2} for row in range(20)]
    collector.intake.post("/v1/labels", json=labels).raise_for_status()
    clock.advance(60)
    collector.settled(lambda: collector.query.get("/api/drift/delay").json()["windows"])

    assert [window["rows"] for window in collector.query.get("/api/drift/delay").json()["windows"]] == [20]
    collector.settled(lambda: collector.query.get("/api/performance/delay").json()["windows"])
    (window,) = collector.query.get("/api/performance/delay").json()["windows"]
    assert window["labelled_rows"] == 20


def test_a_batch_sent_again_is_acknowledged_and_has_no_second_effect(collector: Any, events: Events) -> None:
    first = post(collector, events(10), "one")
    again = post(collector, events(10), "one")
    collector.collector.log.compact()
    later = post(collector, events(10), "one")

    assert first.json() == {"accepted_rows": 10, "duplicate": False}
    assert again.json() == later.json() == {"accepted_rows": 10, "duplicate": True}
    assert len(lake_ids(collector)) == 10
    collector.settled(lambda: counted(collector, names.EVENT_ROWS, "delay", "1") == 10)


def test_what_cannot_be_read_is_refused_with_the_reason(collector: Any, events: Events) -> None:
    garbage = collector.intake.post("/v1/events", content=b"not arrow")
    wrong = post(collector, events(3).drop_columns(["outcome"]))

    assert garbage.status_code == wrong.status_code == 400
    assert "Arrow IPC" in garbage.json()["error"]
    assert "'outcome' is missing" in wrong.json()["error"]
    assert counted(collector, names.EVENT_ERRORS, "events", "unreadable") == 2


def test_gzip_is_accepted_and_an_oversized_body_is_not(collector: Any, events: Events) -> None:
    body = gzip.compress(to_ipc(events(10)))
    bomb = gzip.compress(b"\0" * (65 * 1024 * 1024))

    accepted = collector.intake.post("/v1/events", content=body, headers={"Content-Encoding": "gzip"})
    refused = collector.intake.post("/v1/events", content=bomb, headers={"Content-Encoding": "gzip"})

    assert accepted.json()["accepted_rows"] == 10
    assert refused.status_code == 413


def test_labels_come_as_arrow_or_json_and_make_scores(collector: Any, clock: Any, events: Events) -> None:
    post(collector, events(4))
    arrow = label_batch(["r/0", "r/1"], "delay", [1.0, 0.0], round((T0 + 50) * 1e9))
    json_labels = [{"id": "r/2", "model": "delay", "label": 1}, {"id": "r/9", "model": "delay", "label": 0, "time": T0}]

    assert post(collector, arrow, path="/v1/labels").json() == {"accepted_rows": 2, "duplicate": False}
    assert collector.intake.post("/v1/labels", json=json_labels).json()["accepted_rows"] == 2
    clock.advance(3)
    collector.settled(lambda: list(collector.values("performance_labelled_rows", clock()).values()) == [3])
    collector.settled(lambda: counted(collector, names.LABEL_ROWS, "delay", "true") == 3)
    collector.settled(lambda: counted(collector, names.LABEL_ROWS, "delay", "false") == 1)
    collector.collector.log.compact()
    assert len(read_labels(collector.collector.config.lake, "delay")) == 4
    assert collector.intake.post("/v1/labels", json=[{"id": 3}]).status_code == 400
    assert collector.intake.post("/v1/labels", json=[]).status_code == 400


@pytest.mark.parametrize("time", [1e10, 1e300, -1e10, "9999-12-31T00:00:00Z", "0001-01-01T00:00:00"])
def test_a_label_of_a_time_that_none_can_be_is_refused_with_the_reason(collector: Any, time: Any) -> None:
    answer = collector.intake.post("/v1/labels", json=[{"id": "a", "model": "delay", "label": 1, "time": time}])

    assert answer.status_code == 400
    assert "times reach from the year 1678 to 2261" in answer.json()["error"]


@pytest.mark.parametrize("name", ["m" * 300, "\u00e9" * 100, ""])
def test_a_name_that_no_folder_can_have_is_refused_before_it_holds_up_the_lake(
    collector: Any, events: Events, name: str
) -> None:
    refused = [
        post(collector, events(1, model=name)),
        post(collector, events(1, version=name)),
        post(collector, label_batch(["a"], name, [1.0], round(T0 * 1e9)), path="/v1/labels"),
        collector.intake.post("/v1/labels", json=[{"id": "a", "model": name, "label": 1}]),
    ]
    post(collector, events(5))

    assert [answer.status_code for answer in refused] == [400] * 4
    assert "names a folder" in refused[0].json()["error"]
    assert len(lake_ids(collector)) == 5


def test_a_reference_is_kept_and_drift_is_measured_against_it(
    config: Any, clock: Any, events: Events, start: Any
) -> None:
    reference = Profile.of(pa.Table.from_batches([events(3000, seed=5)]))
    with start(config, clock) as collector:
        put = collector.intake.put("/v1/references/delay/1", content=reference.to_json())
        assert put.json() == {"model": "delay", "version": "1"}
        assert collector.intake.put("/v1/references/delay/1", content=b"{}").status_code == 400
        assert collector.intake.get("/v1/references/delay/2").status_code == 404
        raw = Profile.of(pa.table({"x": [1.0, 2.0], "carrier": ["AA", "DL"]})).to_json()
        refused = collector.intake.put("/v1/references/delay/2", content=raw)
        assert refused.status_code == 400
        assert "none of the profile's columns ('x', 'carrier', …) is named feature.…" in refused.json()["error"]
        counted_elsewhere = raw[:-1] + b', "from_profiles": true}'
        assert collector.intake.put("/v1/references/other/1", content=counted_elsewhere).status_code == 200

    with start(config, clock) as collector:
        assert Profile.from_json(collector.intake.get("/v1/references/delay/1").content) == reference
        post(collector, events(500, shift=1.5))
        clock.advance(60)
        collector.settled(lambda: collector.values("drift_detected", clock()))

        detected = {dict(k)["column"]: v for k, v in collector.values("drift_detected", clock()).items()}
        view = collector.query.get("/api/drift/delay", params={"version": "1"}).json()

        assert detected == {"feature.x": 1, "feature.carrier": 0, "prediction.p": 0}
        assert list(collector.values("drift_columns_ratio", clock()).values()) == [0.5]
        assert set(view["reference"]) == {"feature.x", "feature.carrier", "prediction.p"}
        column = view["windows"][0]["columns"]["feature.x"]
        assert column["drifted"]
        assert column["threshold"] == DriftThresholds().psi
        assert len(column["edges"]) + 1 == len(column["counts"])
        assert {"psi", "jensen_shannon", "wasserstein", "ks", "missing_ratio"} <= set(column)
        assert view["windows"][0]["columns"]["feature.carrier"]["categories"][-2:] == ["unseen", "other"]


def test_values_of_a_version_that_is_gone_leave_no_ghosts(collector: Any, clock: Any, events: Events) -> None:
    post(collector, events(50))
    clock.advance(60)
    collector.settled(lambda: collector.values("observed_rows_per_second", clock()))

    clock.advance(101)
    collector.settled(lambda: ("pane", "delay", "1") not in collector.collector.signals.published())

    collector.settled(lambda: not collector.values("observed_rows_per_second", clock()))


def test_a_restart_finds_open_windows_closed_ones_and_waiting_labels(
    config: Any, clock: Any, events: Events, start: Any
) -> None:
    with start(config, clock) as collector:
        post(collector, events(30, prefix="a"))
        post(collector, events(20, prefix="b", time_s=T0 + 13))
        collector.settled(lambda: collector.query.get("/api/drift/delay").json()["windows"])
        collector.intake.post("/v1/labels", json=[{"id": "c/0", "model": "delay", "label": 1}])
        collector.settled(lambda: collector.collector.measurer.waiting() == 0)

    with start(config, clock) as collector:
        post(collector, events(5, prefix="c", time_s=T0 + 14))
        clock.advance(30)
        collector.settled(lambda: len(collector.query.get("/api/drift/delay").json()["windows"]) == 2)
        windows = collector.query.get("/api/drift/delay").json()["windows"]
        assert [(window["start"], window["rows"]) for window in windows] == [(T0, 30), (T0 + 10, 25)]
        collector.settled(lambda: collector.values("performance_labelled_rows", clock()))
        assert list(collector.values("performance_labelled_rows", clock()).values()) == [1]


def test_a_label_of_a_prediction_that_memory_forgot_is_joined_from_the_lake(
    config: Any, clock: Any, events: Events, start: Any
) -> None:
    with start(config, clock) as collector:
        post(collector, events(5, prefix="old"))
        clock.advance(60)
        collector.settled(lambda: collector.query.get("/api/drift/delay").json()["windows"])
    clock.advance(3 * 24 * 3600)

    with start(config, clock) as collector:
        collector.intake.post("/v1/labels", json=[{"id": "old/3", "model": "delay", "label": 1}])
        collector.settled(lambda: counted(collector, names.LABEL_ROWS, "delay", "false") == 1)
        housekeeping = collector.collector.housekeeping()
        housekeeping.look_up()
        collector.settled(lambda: len(collector.collector.measures.scoring.join.labelled("delay", "1")[0]) == 1)
        assert counted(collector, names.LABEL_ROWS, "delay", "later") == 1


def test_a_replay_of_last_years_events_finds_predictions_that_memory_forgot(
    config: Any, clock: Any, events: Events, start: Any
) -> None:
    last_year = clock() - 365 * 24 * 3600
    with start(config, clock) as collector:
        post(collector, events(5, prefix="old", time_s=last_year))
        collector.settled(lambda: collector.collector.measurer.waiting() == 0)
        clock.advance(60)
        collector.settled(lambda: collector.query.get("/api/drift/delay").json()["windows"])

    with start(config, clock) as collector:
        post(collector, events(5, prefix="new", time_s=last_year + 3 * 24 * 3600))
        collector.intake.post("/v1/labels", json=[{"id": "old/3", "model": "delay", "label": 1}])
        collector.settled(lambda: counted(collector, names.LABEL_ROWS, "delay", "false") == 1)
        collector.collector.housekeeping().look_up()
        collector.settled(lambda: len(collector.collector.measures.scoring.join.labelled("delay", "1")[0]) == 1)
        assert collector.collector.measures.latest("delay") < clock() - 360 * 24 * 3600


def test_senders_are_asked_to_wait_when_what_is_not_measured_takes_too_much_memory(
    collector: Any, events: Events
) -> None:
    large = pa.Table.from_batches([events(1, prefix="large")])
    place = large.schema.get_field_index("attributes")
    large = large.set_column(place, "attributes", pa.array(["x" * 100_000_000]))
    with collector.collector.measures._lock:  # what comes now waits
        for _ in range(3):
            collector.collector.measurer.put("predictions", large)
        refused = collector.intake.post("/v1/events", content=to_ipc(events(1, prefix="one")))
        ready = collector.intake.get("/health/ready")
        (backlog,) = collector.collector.signals.metrics[names.BACKLOG_BYTES].collect()[0].samples

    assert refused.status_code == 429
    assert refused.headers["Retry-After"] == "1"
    assert ready.status_code == 503
    assert "wait to be measured" in ready.text
    assert backlog.value > MAX_WAITING_BYTES
    collector.settled(lambda: collector.collector.measurer.backlog() == Backlog())
    assert post(collector, events(1, prefix="one")).status_code == 200


def test_labels_that_come_before_their_predictions_are_counted_as_found_later(collector: Any, events: Events) -> None:
    labels = [{"id": id_, "model": "delay", "label": 1} for id_ in ("soon/0", "soon/1", "never/0")]
    collector.intake.post("/v1/labels", json=labels).raise_for_status()
    collector.settled(lambda: counted(collector, names.LABEL_ROWS, "delay", "false") == 3)
    assert counted(collector, names.LABEL_ROWS, "delay", "later") == 0

    post(collector, events(2, prefix="soon"))

    collector.settled(lambda: counted(collector, names.LABEL_ROWS, "delay", "later") == 2)
    # Once each, and again only where a label had to wait again.
    collector.intake.post("/v1/labels", json=labels[:2]).raise_for_status()
    collector.settled(lambda: counted(collector, names.LABEL_ROWS, "delay", "true") == 2)
    assert counted(collector, names.LABEL_ROWS, "delay", "later") == 2


def test_a_label_that_comes_after_a_restart_makes_the_score_of_all_its_window(
    config: Any, clock: Any, events: Events, start: Any
) -> None:
    def label(collector: Any, first: int, until: int) -> None:
        labels = [{"id": f"old/{row}", "model": "delay", "label": row % 2} for row in range(first, until)]
        collector.intake.post("/v1/labels", json=labels).raise_for_status()
        collector.settled(lambda: collector.collector.measurer.waiting() == 0)

    def labelled(collector: Any) -> list[int]:
        return [w["labelled_rows"] for w in collector.query.get("/api/performance/delay?version=1").json()["windows"]]

    with start(config, clock) as collector:
        post(collector, events(40, prefix="old"))
        label(collector, 0, 30)
        assert labelled(collector) == [30]
        # A prediction beyond every score must not keep others from being scored.
        huge = events(1, prefix="huge")
        place = huge.schema.get_field_index("prediction.p")
        post(collector, huge.set_column(place, huge.schema.field(place), pa.array([1e80])))
        collector.intake.post("/v1/labels", json=[{"id": "huge/0", "model": "delay", "label": 1}]).raise_for_status()
        clock.advance(60)
        collector.settled(lambda: collector.query.get("/api/drift/delay").json()["windows"])
    clock.advance(25 * 3600)

    with start(config, clock) as collector:
        label(collector, 30, 32)
        housekeeping = collector.collector.housekeeping()
        housekeeping.look_up()
        collector.settled(lambda: collector.collector.measurer.waiting() == 0)
        housekeeping.rescore()
        assert labelled(collector) == [32]


def test_a_crash_between_lake_and_log_doubles_nothing(collector: Any, events: Events) -> None:
    post(collector, events(10, prefix="a"))
    log: EventLog = collector.collector.log
    engine = collector.collector.journal.engine
    with engine.connect() as connection:
        row = connection.execute(sa.select(EVENT_LOG)).one()
    log.compact()
    # The crash: the files are there, and the log's rows and their segment still are too.
    with engine.begin() as connection:
        connection.execute(EVENT_LOG.insert(), dict(row._mapping))
        connection.execute(SEGMENTS.insert(), {"last_id": row.id})
    post(collector, events(10, prefix="b"))

    log.compact()

    files = list((collector.collector.config.lake / "events").rglob("*.parquet"))
    assert sum(pa.parquet.read_metadata(file).num_rows for file in files) == 20
    assert log.waiting_rows() == 0


def test_a_full_disk_is_a_503_and_loses_nothing_that_was_accepted(collector: Any, events: Events) -> None:
    post(collector, events(10, prefix="a"), "a")
    engine = collector.collector.journal.engine
    with engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    # What SQLite does on a full disk: the journal's connection may not grow the file.
    collector.collector.journal.submit(
        lambda connection: connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    ).result()

    refused = post(collector, events(20_000, prefix="b"), "b")

    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) > 0
    assert "full" in refused.json()["error"]
    collector.collector.journal.submit(
        lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 1073741823")
    ).result()
    assert post(collector, events(20_000, prefix="b"), "b").json() == {"accepted_rows": 20_000, "duplicate": False}
    assert len(lake_ids(collector)) == 20_010


def test_health_is_said(collector: Any) -> None:
    assert collector.intake.get("/health/live").status_code == 200
    assert collector.intake.get("/health/ready").status_code == 200
    assert collector.query.get("/-/healthy").status_code == 200
    assert collector.query.get("/-/ready").status_code == 200
    assert "collector_event_rows_total" in collector.query.get("/metrics").text


def test_pushes_are_stored_under_their_group_and_what_a_put_leaves_out_ends(collector: Any, clock: Any) -> None:
    url = "/metrics/job/batch/dir@base64/L3RtcA/shift/night%2Flate"
    put = collector.intake.put(url, content='# TYPE a gauge\na 1\nb{x="1"} 2\n')
    ((labels, value),) = collector.values("a", clock()).items()

    assert put.status_code == 200
    assert (dict(labels), value) == ({"__name__": "a", "job": "batch", "dir": "/tmp", "shift": "night/late"}, 1)

    clock.advance(1)
    collector.intake.post(url, content="a 3\n")
    assert list(collector.values("b", clock()).values()) == [2]

    clock.advance(1)
    collector.intake.put(url, content="a 4\n")
    assert collector.values("b", clock()) == {}
    assert list(collector.values("a", clock()).values()) == [4]

    clock.advance(1)
    assert collector.intake.delete(url).status_code == 202
    assert collector.values("a", clock()) == {}


def test_series_pushed_with_honor_labels_keep_exactly_their_own_and_still_end_with_their_group(
    collector: Any, clock: Any
) -> None:
    url = "/metrics/job/trimtab-alerts/group/mine?honor_labels=true"
    stamp = round(clock() * 1000)
    collector.intake.put(url, content=f'ALERTS{{job="serving",group="a"}} 1 {stamp}\nmodel:errors:ratio 2 {stamp}\n')

    (alert,) = collector.values("ALERTS", clock())
    (recorded,) = collector.values("model:errors:ratio", clock())
    assert dict(alert) == {"__name__": "ALERTS", "job": "serving", "group": "a"}
    assert dict(recorded) == {"__name__": "model:errors:ratio"}

    clock.advance(1)
    collector.intake.put(url, content=f"model:errors:ratio 3 {round(clock() * 1000)}\n")

    assert collector.values("ALERTS", clock()) == {}
    assert list(collector.values("model:errors:ratio", clock()).values()) == [3]


def test_a_push_may_carry_times(collector: Any, clock: Any) -> None:
    at = clock() - 30
    collector.intake.post("/metrics/job/batch", content=f"a 1 {round(at * 1000)}\na 2 {round(clock() * 1000)}\n")

    assert list(collector.values("a", at + 1).values()) == [1]
    assert list(collector.values("a", clock()).values()) == [2]


@pytest.mark.parametrize("path", ["/metrics/group/x", "/metrics/job/x/only", "/metrics/job/x/__name__/y"])
def test_a_group_without_sense_is_refused(collector: Any, path: str) -> None:
    assert collector.intake.put(path, content="a 1\n").status_code == 400


def test_a_page_that_is_no_exposition_is_refused(collector: Any) -> None:
    answer = collector.intake.put("/metrics/job/x", content="a{ 1\n")

    assert answer.status_code == 400
    assert "text format" in answer.json()["error"]


def test_rules_and_alerts_are_empty_without_an_alerts_service(collector: Any) -> None:
    assert collector.query.get("/api/v1/rules").json()["data"] == {"groups": []}
    assert collector.query.get("/api/v1/alerts").json()["data"] == {"alerts": []}


def test_old_batch_ids_are_forgotten(collector: Any, clock: Any, events: Events) -> None:
    post(collector, events(1), "old")
    clock.advance(100)
    post(collector, events(1), "new")

    assert collector.collector.log.forget_batches(clock() - 50) == 1
    with collector.collector.journal.engine.connect() as connection:
        assert connection.execute(sa.select(BATCHES.c.batch_id)).scalars().all() == ["new"]


def test_a_failing_write_fails_alone(tmp_path: Path) -> None:
    journal = Journal(sa.create_engine(f"sqlite:///{tmp_path / 'x.db'}"))
    journal.submit(lambda connection: connection.exec_driver_sql("create table t (x integer primary key)")).result()
    futures = [
        journal.submit(lambda connection, x=x: connection.exec_driver_sql(f"insert into t values ({x})"))
        for x in (1, 2, 2, 3)
    ]

    failed = [future.exception() is not None for future in futures]

    assert failed == [False, False, True, False]
    journal.close()
    with pytest.raises(JournalClosed):
        journal.submit(lambda connection: None)
    with journal.engine.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from t").scalar() == 3
    journal.engine.dispose()


def test_a_readable_batch_keeps_its_bytes(events: Events) -> None:
    body = to_ipc(events(3))

    assert read_batch("events", body).body == body


def test_a_json_label_tells_its_time_in_unix_seconds_or_in_rfc_3339_or_not_at_all() -> None:
    rows = [
        {"id": "a", "model": "m", "label": 1, "time": 1_700_000_000.5},
        {"id": "b", "model": "m", "label": 0, "time": "2023-11-14T22:13:20.500Z"},
        {"id": "c", "model": "m", "label": 0},
    ]

    table = read_json_labels(json.dumps(rows).encode(), now=1_700_000_001.0).table

    assert table.column("time").cast(pa.int64()).to_pylist() == [1_700_000_000_500_000_000] * 2 + [
        1_700_000_001_000_000_000
    ]


def test_a_json_label_of_null_takes_back_the_one_before() -> None:
    taken_back = read_json_labels(b'[{"id": "a", "model": "m", "label": null}]', now=5.0).table

    assert taken_back.column("label").to_pylist() == [None]
    validate_labels(taken_back)
