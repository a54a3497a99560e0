"""Alarms over time: what a column's windows say together, when it began, where it is, and that a restart keeps it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from collectors.alarms import QUIET_PANES, Step, VersionAlarms
from collectors.drift import judge
from collectors.evidence import summary
from observability import names
from observability.columns import missing_ratio
from observability.events import event_batch, to_ipc
from observability.profile import Profile

T0 = 1_363_000_000.0
WINDOW = 10.0
COLUMNS = ("a", "b", "c")


def step(number: int, *evalues: float) -> Step:
    values = evalues or (0.5,) * len(COLUMNS)
    return Step(T0 + WINDOW * number, T0 + WINDOW * (number + 1), values, tuple(value < 2 for value in values))


def standing(alarms: VersionAlarms) -> list[tuple[str, float, float]]:
    return [(raised.column, raised.since, raised.at) for raised in alarms.active()]


def test_no_evidence_raises_no_alarm() -> None:
    alarms = VersionAlarms(COLUMNS, 1e-3, 60)
    for number in range(200):
        assert alarms.put(step(number)) == []
    assert alarms.evidence < 1.1


def test_a_change_is_found_dated_and_over_when_it_is_over() -> None:
    alarms = VersionAlarms(COLUMNS, 1e-3, 60)
    for number in range(50):
        alarms.put(step(number))
    raised = [found for number in range(50, 56) for found in alarms.put(step(number, 0.5, 30.0, 0.5))]

    assert [found.column for found in raised] == ["b"]
    assert raised[0].since == T0 + 50 * WINDOW
    assert raised[0].at <= T0 + 54 * WINDOW
    for number in range(56, 56 + QUIET_PANES - 1):
        alarms.put(step(number))
    assert [name for name, *_ in standing(alarms)] == ["b"]
    alarms.put(step(56 + QUIET_PANES - 1))
    assert standing(alarms) == []


def test_amended_panes_and_a_restart_give_what_the_order_of_time_gives() -> None:
    generator = np.random.default_rng(5)
    steps = [step(number, *generator.choice([0.5, 0.5, 0.5, 4.0, 9.0], 3).tolist()) for number in range(40)]
    steps += [step(number, 0.5, 12.0, 0.5) for number in range(40, 45)]
    in_order, late = VersionAlarms(COLUMNS, 1e-3, 80), VersionAlarms(COLUMNS, 1e-3, 80)
    for known in steps:
        in_order.put(known)
    for number, known in enumerate(steps):
        # Every third comes a pane late, and is first put with too little.
        if number % 3 == 1 and number + 1 < len(steps):
            continue
        late.put(known if number % 5 else replace_evalues(known))
        if number % 3 == 2:
            late.put(steps[number - 1])
        late.put(known)
        if number % 7 == 0:
            late = VersionAlarms.from_json(late.to_json(), 80)

    assert in_order.active()
    assert standing(late) == standing(in_order)
    assert late.evidence == in_order.evidence
    assert late.to_json() == in_order.to_json()


def replace_evalues(known: Step) -> Step:
    return Step(known.start, known.end, (0.5, 0.5, 0.5), (True, True, True))


def rows(number: int, count: int, shift: float, generator: np.random.Generator) -> pa.RecordBatch:
    """A window's rows; those of origin B have their `x` shifted."""
    origin = generator.choice(["A", "B", "C"], count)
    return event_batch(
        ids=[f"{number}/{row}" for row in range(count)],
        time_ns=np.round((T0 + WINDOW * number + 5) * 1e9).astype(np.int64),
        model="m",
        version="1",
        latency_seconds=0.01,
        features={
            "x": generator.normal(size=count) + shift * (origin == "B"),
            "y": generator.normal(size=count),
            "origin": origin,
        },
        predictions={"p": generator.random(count)},
    )


def published(site: Any, metric: names.Metric, **labels: str) -> list[float]:
    """The values of a metric on the page whose labels are these."""
    values = site.collector.signals.published().get(("pane", "m", "1"), [])
    return [value.value for value in values if value.metric is metric and labels.items() <= value.labels.items()]


@pytest.mark.slow
def test_an_alarm_says_what_how_far_since_when_and_where(config: Any, clock: Any, start: Callable[..., Any]) -> None:
    generator = np.random.default_rng(2)
    reference = Profile.of(pa.Table.from_batches([rows(0, 6_000, 0.0, generator)]))
    sliced = replace(config, slices=("feature.origin",))
    clock.now = T0 + 300

    def send(site: Any, number: int, shift: float) -> None:
        site.intake.post("/v1/events", content=to_ipc(rows(number, 300, shift, generator))).raise_for_status()
        # So that every window is closed by the next, however slow the machine is.
        site.settled(lambda: site.collector.measurer.waiting() == 0)
        site.settled(lambda: len(site.collector.measures.judged("m", "1", 100)) >= number)

    with start(sliced, clock) as site:
        site.intake.put("/v1/references/m/1", content=reference.to_json()).raise_for_status()
        for number in range(8):
            send(site, number, 0.0)
        assert site.query.get("/api/drift/m").json()["alarms"] == []
        for number in range(8, 14):
            send(site, number, 1.5)
        site.settled(lambda: published(site, names.DRIFT_ALARM, column="feature.x") == [1.0])
        before = site.query.get("/api/drift/m").json()["alarms"]
        since = published(site, names.DRIFT_ALARM_SINCE, column="feature.x")
        skew = published(site, names.TRAINING_SERVING_SKEW)
        slices = published(site, names.DRIFT_SLICE_ROWS, slice="feature.origin", value="B")
        evidence = published(site, names.DRIFT_EVIDENCE)

    with start(sliced, clock) as site:
        after = site.query.get("/api/drift/m").json()["alarms"]

    assert skew == [0.0]
    assert since == [alarm["since"] for alarm in before if alarm["column"] == "feature.x"]
    assert len(slices) == len(evidence) == 1
    (alarm,) = before
    assert alarm["column"] == "feature.x"
    assert alarm["version"] == "1"
    # A window or two before the change may by chance look like it already.
    assert T0 + 4 * WINDOW <= alarm["since"] <= T0 + 9 * WINDOW
    assert alarm["score"] > alarm["threshold"] > 0
    assert abs(alarm["reference"]["mean"]) < 0.1
    assert alarm["now"]["mean"] > 0.15
    assert alarm["slices"][0]["value"] == "B"
    assert after == before


def test_a_summary_counts_nan_as_missing_as_verdicts_do() -> None:
    profile = Profile.of({"x": np.array([1.0, np.nan, 2.0, np.nan])})
    column = profile.columns["x"]
    assert summary(column)["missing_ratio"] == missing_ratio(column) == 0.5
    assert judge(profile, profile)["x"].missing_ratio == 0.5
