"""The steps of a version: recorded, not repeated by a run that goes on, and told of as OpenLineage events."""

from __future__ import annotations

import json
import logging
import math
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from serving.registry import Registry
from training import DataError, Gate, TrainConfig, TrainJob, TrainOutcome, train
from training import making as making_module
from training.blessing import bless
from training.candidate import read_candidate
from training.data import labelled, split_recent
from training.evaluate import row_log_loss
from training.making import EVENTS, Approval
from training.openlineage import LineageSink
from training.reference import HeldOut
from training.slices import slice_scores, surely_worse
from training.steps import Done, Steps, run_of
from training.validation import digest, validated

CONFIG = TrainConfig(epochs=3, batch_size=100, learning_rate=0.02, seed=5, threads=1)
GATE = Gate(min_rows=100, min_groups=3)
STEPS = ["validate", "train", "evaluate", "bless", "push"]


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def job(task: Any, make_table: Any, tmp_path: Path) -> TrainJob:
    return TrainJob(task=task, table=make_table(), source="test", out=tmp_path / "run", config=CONFIG, gate=GATE)


def events(job: TrainJob) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (job.out / EVENTS).read_text().splitlines()]


@pytest.mark.parametrize("cut_at", STEPS)
def test_a_run_that_is_killed_in_a_step_goes_on_at_that_step(
    cut_at: str, job: TrainJob, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {
        "validate": "validated", "train": "write_candidate", "evaluate": "slice_scores", "bless": "bless",
        "push": "reference_body",
    }  # fmt: skip

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(making_module, names[cut_at], killed)
        with pytest.raises(Killed):
            train(job, registry, run="first")
    assert registry.versions("tiny") == []

    outcome = train(job, registry, run="second")

    assert (outcome.outcome, outcome.version, outcome.run) == ("completed", 1, "first"), outcome.reason
    assert list(outcome.resumed) == STEPS[: STEPS.index(cut_at)]
    assert registry.get("tiny", 1).lineage["run"] == "first"
    kinds = [(event["job"]["name"].rpartition(".")[2], event["eventType"]) for event in events(job)]
    assert (cut_at, "ABORT") in kinds
    assert [name for name, kind in kinds if kind == "COMPLETE"] == [*STEPS, "tiny"]

    again = train(job, registry)
    assert (again.version, list(again.resumed)) == (1, STEPS)
    assert again.scores == outcome.scores
    assert again.gate == outcome.gate
    assert len(registry.versions("tiny")) == 1


def test_a_step_is_repeated_where_its_inputs_or_files_are_others(
    job: TrainJob, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    def again(changed: TrainJob) -> TrainOutcome:
        return train(changed, registry)

    first = again(job)
    stricter = again(replace(job, gate=replace(GATE, confidence=0.99)))
    assert list(stricter.resumed) == ["validate", "train"]
    assert list(again(replace(job, config=replace(CONFIG, seed=6))).resumed) == ["validate"]
    assert list(again(replace(job, table=job.table.slice(0, 1900))).resumed) == []
    weights = job.out / "candidate" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert "train" not in again(replace(job, table=job.table.slice(0, 1900))).resumed
    assert "the step train is repeated: candidate/weights.safetensors is not what it wrote" in caplog.text
    assert first.passed


def test_what_a_candidate_was_is_read_back(job: TrainJob, registry: Registry) -> None:
    train(job, registry)
    split = split_recent(labelled(job.task, job.table), "day", job.held_out)
    candidate = read_candidate(job.out / "candidate", job.task, split.train)
    held_out = making_module.predicted(job.task, candidate, split.held_out)
    assert bless(job.out / "artifact", job.task, candidate.vocabularies, held_out).passed
    other = replace(held_out, probabilities=held_out.probabilities + 0.01)
    refused = bless(job.out / "artifact", job.task, candidate.vocabularies, other)
    assert not refused.passed
    assert "answers otherwise than the network: by 0.01" in refused.reason


def test_what_is_too_slow_or_surely_worse_somewhere_is_not_registered(
    job: TrainJob, registry: Registry, make_table: Any
) -> None:
    # A slice needs 200 held-out rows.
    job = replace(job, table=make_table(rows=5000))
    slow = train(replace(job, approval=Approval(latency_budget=1e-9)), registry)
    assert (slow.outcome, slow.version) == ("rejected", None)
    assert "ms is the budget" in slow.reason
    assert slow.blessing is not None
    assert slow.blessing["latency_p99"] > 0
    # Better by less than 10 nats is surely not better by 10: every slice is beyond that tolerance.
    strict = Approval(slices=("colour",), slice_tolerance=-10.0)
    sliced = train(replace(job, approval=strict), registry)
    assert sliced.outcome == "rejected"
    assert "where colour is" in sliced.reason
    assert "surely above the tolerance of -10" in sliced.reason
    assert registry.versions("tiny") == []
    lenient = train(replace(job, approval=Approval(slice_tolerance=10.0)), registry)
    assert lenient.version == 1
    assert {(one["column"], one["value"]) for one in lenient.slices} == {
        ("colour", "red"), ("colour", "green"), ("colour", "blue")
    }  # fmt: skip


def test_a_version_carries_a_sample_of_whole_rows_only(task: Any, make_table: Any) -> None:
    table = make_table(rows=50)
    table = table.set_column(1, "x", pa.array([math.nan, math.inf, *np.ones(48)]))
    held_out = HeldOut(table, np.zeros(50), np.array([0.5] * 40 + [math.nan] * 10), np.zeros(50, object))

    found = making_module.sample(task, held_out, rows=100)

    json.dumps(found, allow_nan=False)
    whole = [row for row, one in enumerate(table.slice(0, 40).to_pylist()) if row > 1 and one["y"] is not None]
    assert found["inputs"]["z"] == [table["z"][row].as_py() for row in whole]
    assert found["outputs"] == {"probability": [0.5] * len(whole)}
    nothing = HeldOut(table.slice(0, 2), np.zeros(2), np.full(2, 0.5), np.zeros(2, object))
    assert making_module.sample(task, nothing) == {}


def test_slices_are_the_means_of_their_rows_worst_first() -> None:
    generator = np.random.default_rng(1)
    count = 3000
    table = pa.table(
        {"colour": generator.choice(["red", "green", None], count), "size": generator.integers(0, 2, count)}
    )
    labels = (generator.random(count) < 0.5).astype(float)
    own, rival = generator.uniform(0.3, 0.7, (2, count))
    # Red rows are predicted the wrong way round.
    red = np.array([value == "red" for value in table["colour"].to_pylist()])
    own = np.where(red, np.where(labels > 0, 0.1, 0.9), own)
    groups = np.array([f"day-{index % 12}" for index in range(count)], object)

    found = slice_scores(table, ("colour", "size"), labels, own, rival, groups)

    assert {(one.column, one.value) for one in found} == {
        ("colour", "red"), ("colour", "green"), ("colour", "(null)"), ("size", "0"), ("size", "1"),
    }  # fmt: skip
    assert (found[0].column, found[0].value) == ("colour", "red")
    assert found[0].log_loss == pytest.approx(row_log_loss(labels[red], own[red]).mean())
    assert found[0].rows == red.sum()
    assert found[0].lower_bound < found[0].difference < found[0].upper_bound
    assert surely_worse(found, 0.5) == [one for one in found if one.value == "red"]
    with pytest.raises(ValueError, match="no column 'shape' to slice by; there are: colour, size"):
        slice_scores(table, ("shape",), labels, own, rival, groups)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda table: table.set_column(4, "label", pa.array([2.0] * len(table))),
            "has the value 2: it must be 0 or 1",
        ),
        (lambda table: table.set_column(4, "label", pa.array([1.0] * len(table))), "have the same 'label'"),
        (lambda table: table.set_column(1, "x", pa.nulls(len(table), pa.float64())), "column 'x' has no value in 2000"),
    ],
)
def test_rows_that_nothing_can_be_learned_from_are_refused_first(
    spoil: Any, message: str, job: TrainJob, registry: Registry
) -> None:
    outcome = train(replace(job, table=spoil(job.table)), registry)
    assert outcome.outcome == "failed"
    assert message in outcome.reason
    assert [event["eventType"] for event in events(job)] == ["START", "START", "FAIL", "FAIL"]


def test_a_report_on_rows_says_what_is_missing(task: Any, make_table: Any) -> None:
    table = make_table()
    empty = pa.array([None] * 1200 + [0.5] * 800, pa.float64())
    table = table.set_column(3, "z", empty)
    report = validated(task, table, split_recent(table, "day", 0.2))
    assert (report.rows, report.train_rows, report.held_out_rows, report.groups) == (2000, 1600, 400, 20)
    assert report.missing["z"] == pytest.approx(0.6)
    assert report.warnings == ("z is missing in 60% of the rows, 0% of those held out",)
    assert digest(table) == digest(pa.concat_tables([table.slice(0, 7), table.slice(7)]))
    assert digest(table) != digest(table.slice(1))
    ones = table.set_column(4, "label", pa.array([1.0] * len(table)))
    with pytest.raises(DataError, match="same 'label'"):
        validated(task, ones, split_recent(ones, "day", 0.2))


def test_events_tell_of_data_code_and_parents_and_reach_an_endpoint(job: TrainJob, registry: Registry) -> None:
    taken: list[tuple[str, dict[str, Any]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            taken.append((self.path, json.loads(self.rfile.read(length))))
            self.send_response(201)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            outcome = train(replace(job, lineage_url=f"http://127.0.0.1:{server.server_port}"), registry, run="r")
        finally:
            server.shutdown()
            thread.join()
    assert outcome.passed
    written = events(job)
    assert [event for _, event in taken] == written
    assert {path for path, _ in taken} == {"/api/v1/lineage"}
    whole = written[0]["run"]["runId"]
    for event in written:
        assert set(event) == {"eventType", "eventTime", "producer", "schemaURL", "run", "job", "inputs", "outputs"}
        if event["job"]["name"] != "train.tiny":
            assert event["run"]["facets"]["parent"]["run"]["runId"] == whole
        for facet in (*event["run"]["facets"].values(), *event["job"]["facets"].values()):
            assert {"_producer", "_schemaURL"} <= set(facet)
    source = written[0]["inputs"][0]
    assert source["facets"]["trimtab_window"]["last"] == "2024-01-20"
    assert source["inputFacets"]["dataQualityMetrics"]["rowCount"] == 2000
    assert written[-1]["outputs"][0]["facets"]["version"]["datasetVersion"] == "1"


def test_a_run_that_is_interrupted_is_aborted_and_two_of_one_second_are_two(
    job: TrainJob, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted:
        def register(self, *_: object, **__: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr("training.run.time.strftime", lambda *_: "20240101T000000Z")
    with pytest.raises(KeyboardInterrupt):
        train(job, Interrupted())  # type: ignore[arg-type]
    other = replace(job, out=job.out.with_name("other"))
    assert train(other, registry).passed

    first, second = events(job), events(other)
    assert [event["eventType"] for event in first[-2:]] == ["ABORT", "ABORT"]
    assert first[-1]["job"]["name"] == "train.tiny"
    assert not {event["run"]["runId"] for event in first} & {event["run"]["runId"] for event in second}
    ended = [event["run"]["runId"] for event in first if event["eventType"] != "START"]
    assert sorted(ended) == sorted(event["run"]["runId"] for event in first if event["eventType"] == "START")


def test_what_is_not_finite_is_null_in_lineage_and_costs_neither_event_nor_run(
    job: TrainJob, registry: Registry
) -> None:
    config = replace(job.config, clip_norm=math.inf)

    outcome = train(replace(job, config=config), registry)

    written = events(job)
    assert outcome.passed, outcome.reason
    assert [event["eventType"] for event in written].count("START") * 2 == len(written)
    assert written[0]["run"]["facets"]["trimtab_run"]["config"]["clip_norm"] is None


def test_an_endpoint_that_fails_twice_is_not_waited_for_again(caplog: pytest.LogCaptureFixture) -> None:
    sink = LineageSink(None, "http://127.0.0.1:1/x", timeout=1.0)
    with caplog.at_level(logging.WARNING):
        for number in range(5):
            sink.send({"a": number})

    assert len(caplog.messages) == 2
    assert "it is not asked again by this run" in caplog.messages[1]


def test_lineage_that_nobody_takes_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        LineageSink(tmp_path / "file" / "events", "http://127.0.0.1:1/x", timeout=1.0).send({"a": 1})
    assert "the lineage was not written" in caplog.text
    assert "the lineage was not taken by http://127.0.0.1:1/x" in caplog.text


def test_steps_give_what_was_recorded_and_survive_a_record_that_is_not_whole(tmp_path: Path) -> None:
    calls: list[str] = []

    def action() -> Done:
        calls.append("made")
        (tmp_path / "made.txt").write_text("x")
        return Done({"numbers": (1, 2)}, [tmp_path / "made.txt"])

    for _ in range(2):
        assert Steps(tmp_path).run("one", {"a": 1}, action) == {"numbers": [1, 2]}
    assert calls == ["made"]
    (tmp_path / "steps" / "one.json").write_text("{")
    assert Steps(tmp_path).run("one", {"a": 1}, action) == {"numbers": [1, 2]}
    assert calls == ["made", "made"]
    assert run_of(tmp_path, "a") == run_of(tmp_path, "b") == "a"
