"""The catalogue on a registry, and its exposition."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from observability import names
from observability.metrics import Metrics, exposition, observe_many, point_to

OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"


def filled() -> Metrics:
    """Every family of the catalogue with one child and one value."""
    metrics = Metrics()
    for metric in names.CATALOGUE:
        instrument = metrics[metric]
        child = instrument.labels(*("x" for _ in metric.labels)) if metric.labels else instrument
        {"counter": lambda c: c.inc(), "gauge": lambda c: c.set(1), "histogram": lambda c: c.observe(0.1)}[metric.kind](
            child
        )
    return metrics


def families(body: bytes) -> dict[str, object]:
    return {family.name: family for family in text_string_to_metric_families(body.decode())}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_the_page_of_the_whole_catalogue() -> None:
    body, _ = exposition(filled())

    done = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, timeout=60, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout + done.stderr == b""


def test_the_page_has_every_family_with_its_type_and_help() -> None:
    found = families(exposition(Metrics().register_all())[0])

    for metric in names.CATALOGUE:
        family = found[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind, metric.help)


def test_no_page_has_created_series() -> None:
    assert b"_created" not in exposition(filled())[0]
    assert b"_created" not in exposition(filled(), OPENMETRICS)[0]


def test_openmetrics_is_given_to_who_asks_for_it_and_has_the_exemplars() -> None:
    metrics = Metrics()
    metrics[names.INFERENCE_DURATION].labels("m", "1").observe(0.02, {"trace_id": "ab" * 16})

    text, text_type = exposition(metrics, "*/*")
    openmetrics, openmetrics_type = exposition(metrics, OPENMETRICS)

    assert text_type.startswith("text/plain; version=0.0.4")
    assert openmetrics_type.startswith("application/openmetrics-text; version=1.0.0")
    assert b"trace_id" not in text
    samples = [sample for family in parse_openmetrics(openmetrics.decode()) for sample in family.samples]
    assert [s.exemplar.labels for s in samples if s.exemplar] == [{"trace_id": "ab" * 16}]


def test_families_are_registered_when_they_are_first_used() -> None:
    metrics = Metrics()
    metrics[names.MODEL_READY].labels("m", "1").set(1)

    assert list(families(exposition(metrics)[0])) == ["model_ready"]


def test_two_metrics_on_one_registry_share_their_families() -> None:
    registry = CollectorRegistry()
    for _ in range(2):
        Metrics(registry)[names.INFERENCE_ROWS].labels("m", "1").inc()

    assert registry.get_sample_value(names.INFERENCE_ROWS.name, {"model": "m", "version": "1"}) == 2


def test_a_metric_outside_the_chosen_part_of_the_catalogue_is_refused_by_name() -> None:
    metrics = Metrics(families=[names.MODEL_READY])

    with pytest.raises(KeyError, match=r"inference_rows_total is not in this catalogue"):
        metrics[names.INFERENCE_ROWS]


def test_the_names_of_the_catalogue_are_unique_and_follow_the_conventions() -> None:
    assert len({metric.name for metric in names.CATALOGUE}) == len(names.CATALOGUE)
    for metric in names.CATALOGUE:
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert bool(metric.buckets) == (metric.kind == "histogram")


@given(
    st.lists(st.floats(min_value=0, max_value=100, allow_nan=False) | st.sampled_from(names.PHASE_SECONDS)),
    st.sampled_from([1, 300]),
    st.booleans(),
)
def test_observing_many_values_at_once_is_observing_each(values: list[float], times: int, nan: bool) -> None:
    one, many = Metrics(), Metrics()
    values = values * times
    for value in values:
        one[names.TRAINING_STEP_DURATION].labels("m").observe(value)
    observe_many(many[names.TRAINING_STEP_DURATION].labels("m"), np.array(values + [np.nan] * nan, np.float64))

    def samples(metrics: Metrics) -> dict[tuple[str, str], float]:
        collected = [sample for family in metrics.registry.collect() for sample in family.samples]
        return {(s.name, str(s.labels)): s.value for s in collected if not s.name.endswith("_created")}

    one[names.TRAINING_STEP_DURATION].labels("m"), many[names.TRAINING_STEP_DURATION].labels("m")
    assert samples(many) == pytest.approx(samples(one))


@pytest.mark.parametrize("seconds", [0.0, 0.004, 0.005, 0.3, 1e9])
def test_an_exemplar_stands_where_its_value_is_observed_and_observes_nothing(seconds: float) -> None:
    observed, pointed = Metrics(), Metrics()
    for metrics in (observed, pointed):
        histogram = metrics[names.INFERENCE_DURATION].labels("m", "1")
        if metrics is observed:
            histogram.observe(seconds, {"trace_id": "ab"})
        else:
            point_to(histogram, seconds, {"trace_id": "ab"})

    def found(metrics: Metrics) -> list[tuple[dict[str, str], dict[str, str], float]]:
        samples = [sample for family in metrics.registry.collect() for sample in family.samples]
        return [(s.labels, s.exemplar.labels, s.exemplar.value) for s in samples if s.exemplar]

    assert found(pointed) == found(observed) != []
    assert (
        pointed.registry.get_sample_value(f"{names.INFERENCE_DURATION.name}_count", {"model": "m", "version": "1"}) == 0
    )
