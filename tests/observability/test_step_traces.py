"""Traces of a training's steps, built from their records: a sample of them, and those that are odd."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from observability import names
from observability.metrics import Metrics
from observability.names import PHASES
from observability.rank_agent import RankAgent
from observability.step_ring import Records, StepRing
from observability.step_traces import RankSteps, StepTraces, TraceRule
from observability.tracing import Tracing, setup_tracing
from observability.training import TrainingMonitor

MS = 1_000_000
OFFSET = 5 * 10**18


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(spans: InMemorySpanExporter) -> Iterator[Tracing]:
    tracing = setup_tracing("test", exporter=spans, sample_ratio=0.0)
    yield tracing
    tracing.close()


def records(first: int, durations: list[float], saving: float = 0.0) -> Records:
    """Steps of so many milliseconds: one of them waiting for data, half of the rest forward, `saving` of it saving."""
    rows = []
    for index, duration in enumerate(durations):
        phases = dict.fromkeys(PHASES, 0)
        forward = round((duration - 1 - saving) / 2 * MS)
        phases |= {"data_wait": MS, "forward": forward, "checkpoint": round(saving * MS)}
        start = (first + index) * 1000 * MS
        rows.append([first + index, start, round(duration * MS), 32, *phases.values()])
    return np.array(rows, np.int64)


def ended(tracing: Tracing, spans: InMemorySpanExporter) -> list[ReadableSpan]:
    tracing.flush()
    return list(spans.get_finished_spans())


def steps_of(found: list[ReadableSpan]) -> list[object]:
    return [one.attributes["training.step"] for one in found if one.name == names.SPAN_TRAINING_STEP and one.attributes]


def test_an_odd_step_is_one_trace_with_its_phases_laid_out_in_unix_time(
    tracing: Tracing, spans: InMemorySpanExporter
) -> None:
    traces = StepTraces(tracing, "delay", "r1")
    traces.look({0: RankSteps(records(0, [10.0] * 30 + [41.0] + [10.0] * 5), OFFSET)})

    step, *phases = ended(tracing, spans)
    assert (step.name, step.start_time, step.end_time) == (
        "training.step",
        OFFSET + 30_000 * MS,
        OFFSET + 30_041 * MS,
    )
    assert step.attributes == {
        "training.model": "delay",
        "training.run": "r1",
        "training.attempt": 0,
        "training.step": 30,
        "training.samples": 32,
        "training.odd": "41 ms, 4.1 times the usual 10 ms",
    }
    assert [(one.name, one.start_time, one.end_time) for one in phases] == [
        ("training.data_wait", OFFSET + 30_000 * MS, OFFSET + 30_001 * MS),
        ("training.forward", OFFSET + 30_001 * MS, OFFSET + 30_021 * MS),
    ]
    assert {one.context.trace_id for one in (step, *phases) if one.context} == {step.context.trace_id}  # type: ignore[union-attr]
    assert all(one.parent and step.context and one.parent.span_id == step.context.span_id for one in phases)


def test_checkpoints_and_first_steps_are_not_odd(tracing: Tracing, spans: InMemorySpanExporter) -> None:
    traces = StepTraces(tracing, "delay", "r1")
    traces.look({0: RankSteps(records(0, [80.0] + [10.0] * 10), OFFSET)})
    traces.look({0: RankSteps(records(11, [10.0] * 30), OFFSET)})
    traces.look({0: RankSteps(records(41, [90.0], saving=80.0), OFFSET)})

    # The first step is known for slow once there are enough others, and that look is over.
    assert steps_of(ended(tracing, spans)) == []


@pytest.mark.parametrize("looks", [1, 7])
def test_the_share_is_drawn_whatever_the_looks(spans: InMemorySpanExporter, looks: int) -> None:
    tracing = setup_tracing("test", exporter=spans, sample_ratio=0.02)
    all_ranks = [StepTraces(tracing, "delay", "r1", rule=TraceRule(limit=10_000)) for _ in range(2)]
    for traces in all_ranks:
        for part in np.array_split(records(0, [10.0] * 5_000), looks):
            traces.look({0: RankSteps(part, OFFSET)})
    tracing.close()

    drawn = steps_of(list(spans.get_finished_spans()))
    first, second = drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]
    assert first == second
    assert 60 < len(first) < 140
    assert len(set(first)) == len(first)


def test_a_flood_of_odd_steps_is_bounded(tracing: Tracing, spans: InMemorySpanExporter) -> None:
    traces = StepTraces(tracing, "delay", "r1", rule=TraceRule(limit=4))
    traces.look({0: RankSteps(records(0, [10.0] * 40 + [50.0] * 30), OFFSET)})

    assert len(steps_of(ended(tracing, spans))) == 4


def test_all_ranks_of_a_step_are_in_one_trace_also_one_that_is_late(
    tracing: Tracing, spans: InMemorySpanExporter
) -> None:
    traces = StepTraces(tracing, "delay", "r1", world_size=2)
    traces.look({rank: RankSteps(records(0, [10.0] * 30), OFFSET + rank) for rank in range(2)})
    traces.look({0: RankSteps(records(30, [50.0]), OFFSET), 1: RankSteps(records(30, []).reshape(0, 12), OFFSET + 1)})
    assert not ended(tracing, spans)
    traces.look({0: RankSteps(records(31, [10.0]), OFFSET), 1: RankSteps(records(30, [48.0]), OFFSET + 1)})

    found = ended(tracing, spans)
    (step,) = [one for one in found if one.name == "training.step"]
    ranks = [one for one in found if one.name == "training.rank"]
    assert (step.start_time, step.end_time) == (OFFSET + 30_000 * MS, OFFSET + 30_050 * MS)
    assert [one.attributes and one.attributes["training.rank"] for one in ranks] == [0, 1]
    assert all(one.parent and step.context and one.parent.span_id == step.context.span_id for one in ranks)
    assert sum(one.name == "training.forward" for one in found) == 2


def test_the_ranks_of_another_node_belong_to_the_same_trace(tracing: Tracing, spans: InMemorySpanExporter) -> None:
    for leads, rank in ((True, 0), (False, 8)):
        node = StepTraces(tracing, "delay", "r1", world_size=16, leads=leads)
        node.odd(3, "told")
        node.look({rank: RankSteps(records(0, [10.0] * 5), OFFSET)})

    found = ended(tracing, spans)
    assert sorted(one.name for one in found if "rank" in one.name or "step" in one.name) == [
        "training.rank",
        "training.rank",
        "training.step",
    ]
    assert len({one.context.trace_id for one in found if one.context}) == 1


def test_a_device_tells_of_its_own_phases_and_is_waited_for(tracing: Tracing, spans: InMemorySpanExporter) -> None:
    traces = StepTraces(tracing, "delay", "r1", by_device=True)
    traces.odd(2, "told")
    traces.look({0: RankSteps(records(0, [10.0] * 5), OFFSET)})
    assert not ended(tracing, spans)
    traces.timed(2, {"forward": 0.007, "backward": 0.008})
    traces.look({0: RankSteps(records(5, [10.0]), OFFSET)})

    took = {one.name: (one.end_time or 0) - (one.start_time or 0) for one in ended(tracing, spans)}
    assert took == {
        "training.step": 16 * MS,
        "training.data_wait": MS,
        "training.forward": 7 * MS,
        "training.backward": 8 * MS,
    }


def test_a_monitor_traces_what_was_skipped_and_what_a_guard_found(
    tracing: Tracing, spans: InMemorySpanExporter
) -> None:
    monitor = TrainingMonitor("delay", run="r1", drain_seconds=0, tracing=tracing)
    for step in range(6):
        with monitor.step(samples=4), monitor.phase("forward"):
            pass
        if step == 4:
            monitor.skipped(2)
            monitor.found("loss_spike", "rewind", 3)
    monitor.drain()

    found = {one.attributes["training.step"]: one for one in ended(tracing, spans) if one.name == "training.step"}  # type: ignore[index]
    said = {step: one.attributes["training.odd"] for step, one in found.items()}  # type: ignore[index]
    assert said == {2: "skipped: loss, outputs or gradients were not finite", 3: "loss_spike: rewind"}


def test_the_agent_of_a_node_traces_the_steps_of_its_ranks(
    tmp_path: Path, tracing: Tracing, spans: InMemorySpanExporter
) -> None:
    paths = [tmp_path / f"rank-{rank}.ring" for rank in range(2)]
    rings = [
        StepRing.create(path, model="delay", run="r1", rank=rank, world_size=2, attempt=3)
        for rank, path in enumerate(paths)
    ]
    agent = RankAgent("delay", "r1", Metrics(), tracing=tracing)
    agent.follow(paths)
    for step in range(30):
        for ring in rings:
            ring.write(step, step * 1000 * MS, (60 if step == 29 else 10) * MS, 32, [MS] * len(PHASES))
    agent.look()
    agent.forget()

    found = ended(tracing, spans)
    (step_span,) = [one for one in found if one.name == "training.step"]
    assert step_span.attributes
    assert (step_span.attributes["training.step"], step_span.attributes["training.attempt"]) == (29, 3)
    assert sum(one.name == "training.rank" for one in found) == 2
