"""One page for several processes: counters and histograms add, gauges by their meaning, and nothing goes backwards."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from observability import names
from observability.metrics import Metrics
from serving.fleet.exposition import Totals, dump, rule_of

LABELS = ("fares", "1")


def page_of(totals: Totals, accept: str | None = None) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    body, _ = totals.page(accept)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in parse(body.decode()) for s in f.samples}


def process(durations: Sequence[float], waiting: int = 0, generation: int = 1) -> Metrics:
    metrics = Metrics()
    for value in durations:
        metrics[names.INFERENCE_DURATION].labels(*LABELS).observe(value)
        metrics[names.INFERENCE_REQUESTS].labels(*LABELS, "ok").inc()
    metrics[names.QUEUE_ROWS].labels(*LABELS).set(waiting)
    metrics[names.TRAFFIC_GENERATION].labels("fares").set(generation)
    return metrics


@given(st.lists(st.lists(st.floats(0, 20), max_size=20), min_size=1, max_size=4))
def test_the_sum_is_what_one_process_would_have_counted(parts: list[list[float]]) -> None:
    totals = Totals()
    for part in parts:
        totals.add(dump(process(part).registry))
    whole = Totals().add(dump(process([value for part in parts for value in part]).registry))

    ours, expected = page_of(totals), page_of(whole)
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        assert ours[key] == pytest.approx(value), key


def test_gauges_become_one_by_their_meaning() -> None:
    totals = Totals()
    for waiting, generation in ((3, 7), (4, 8), (0, 8)):
        totals.add(dump(process([], waiting, generation).registry))
    page = page_of(totals)

    labels = (("model", "fares"), ("version", "1"))
    assert page[names.QUEUE_ROWS.name, labels] == 7
    assert page[names.TRAFFIC_GENERATION.name, (("model", "fares"),)] == 7


def test_every_gauge_of_an_amount_adds_and_no_share_does() -> None:
    gauges = [metric.name for metric in names.CATALOGUE if metric.kind == "gauge"]

    amounts = [name for name in gauges if name.endswith(("_rows", "_requests", "_batches", "_bytes"))]
    assert {name for name in amounts if rule_of(name) != "sum"} == {names.BATCH_LIMIT_ROWS.name}
    assert all(rule_of(name) != "sum" for name in gauges if name.endswith(("_ratio", "_seconds", "_ready", "_up")))


def test_one_that_ended_leaves_its_counts_and_not_its_gauges() -> None:
    ended = dump(process([0.1, 0.2], waiting=9).registry)
    before = page_of(Totals().add(ended))
    departed = Totals().add(ended, gauges=False)
    after = page_of(Totals().add(departed.dump()).add(dump(process([0.3]).registry)))

    labels = (("model", "fares"), ("version", "1"))
    for key, value in before.items():
        if key[0] != names.QUEUE_ROWS.name:
            assert after[key] >= value, f"{key} went backwards"
    assert after[f"{names.INFERENCE_DURATION.name}_count", labels] == 3
    assert after[names.QUEUE_ROWS.name, labels] == 0


def test_exemplars_survive_and_the_latest_stays() -> None:
    totals = Totals()
    for trace in ("a" * 32, "b" * 32):
        metrics = Metrics()
        metrics[names.INFERENCE_DURATION].labels(*LABELS).observe(0.003, {"trace_id": trace})
        totals.add(dump(metrics.registry))
    body, content_type = totals.page("application/openmetrics-text; version=1.0.0")

    assert content_type.startswith("application/openmetrics-text")
    exemplars = [s.exemplar for f in parse_openmetrics(body.decode()) for s in f.samples if s.exemplar]
    assert [exemplar.labels["trace_id"] for exemplar in exemplars] == ["b" * 32]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_the_page() -> None:
    metrics = Metrics().register_all()
    totals = Totals().add(dump(metrics.registry)).add(dump(process([0.1, 3.0], 2).registry))
    body, _ = totals.page()

    found = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, check=False)
    assert found.returncode == 0, found.stderr.decode() + found.stdout.decode()
