"""Pushes by prometheus_client, as it pushes to a Pushgateway."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import (
    CollectorRegistry,
    Gauge,
    Histogram,
    delete_from_gateway,
    instance_ip_grouping_key,
    push_to_gateway,
    pushadd_to_gateway,
)

from collectors.api import CollectorConfig
from collectors.push import REPEAT_SECONDS, BadGroup, group_labels
from tests.collectors.conftest import FakeClock, Running, running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, FakeClock]]:
    """One collector for all tests that need no other."""
    folder, clock = tmp_path_factory.mktemp("push"), FakeClock()
    config = CollectorConfig(lake=folder / "lake", store_url=f"sqlite:///{folder / 'store.db'}")
    with running(config, clock) as made:
        yield made, clock


@pytest.fixture
def collector(shared: tuple[Running, FakeClock]) -> Iterator[Running]:
    made, clock = shared
    clock.advance(600)
    yield made
    clock.advance(1)
    for group in list(made.collector.pushes._groups.values()):
        made.collector.pushes.delete(group.labels)


@pytest.fixture
def clock(shared: tuple[Running, FakeClock]) -> FakeClock:
    return shared[1]


def registry_of(**values: float) -> CollectorRegistry:
    registry = CollectorRegistry()
    for name, value in values.items():
        Gauge(name, name, registry=registry).set(value)
    return registry


def only(found: dict[Any, float]) -> float:
    (value,) = found.values()
    return value


def test_a_push_replaces_its_group_and_an_add_its_families(collector: Any, clock: Any) -> None:
    gateway = str(collector.intake.base_url)
    push_to_gateway(gateway, job="batch", registry=registry_of(a=1, b=2))
    clock.advance(1)
    pushadd_to_gateway(gateway, job="batch", registry=registry_of(b=3))

    assert only(collector.values("a", clock())) == 1
    assert only(collector.values("b", clock())) == 3

    clock.advance(1)
    push_to_gateway(gateway, job="batch", registry=registry_of(b=4))
    assert collector.values("a", clock()) == {}
    assert only(collector.values('b{job="batch"}', clock())) == 4

    clock.advance(1)
    push_to_gateway(gateway, job="other", registry=registry_of(b=9))
    delete_from_gateway(gateway, job="batch")
    assert only(collector.values("b", clock())) == 9
    assert collector.values('push_time_seconds{job="batch"}', clock()) == {}


def test_an_add_ends_the_series_that_its_family_no_longer_has(collector: Any, clock: Any) -> None:
    gateway = str(collector.intake.base_url)
    for room in ("kitchen", "hall"):
        registry = CollectorRegistry()
        Gauge("heat", "Heat.", ["room"], registry=registry).labels(room).set(20)
        Histogram("wait", "Wait.", ["room"], registry=registry).labels(room).observe(0.1)
        pushadd_to_gateway(gateway, job="house", registry=registry)
        clock.advance(1)

    for name in ("heat", "wait_count", "wait_sum", 'wait_bucket{le="+Inf"}'):
        ((labels, _),) = collector.values(name, clock()).items()
        assert dict(labels)["room"] == "hall"


@pytest.mark.parametrize("value", ["/tmp/a b", "ünïcode/", "plain", "50%+1", ""])
def test_values_of_a_grouping_key_arrive_as_they_are(collector: Any, clock: Any, value: str) -> None:
    gateway = str(collector.intake.base_url)
    push_to_gateway(gateway, job="a/b", registry=registry_of(x=1), grouping_key={"path": value})

    ((labels, _),) = collector.values("x", clock()).items()
    assert dict(labels) == {"__name__": "x", "job": "a/b", **({"path": value} if value else {})}

    delete_from_gateway(gateway, job="a/b", grouping_key={"path": value})
    clock.advance(1)
    assert collector.values("x", clock()) == {}


def test_an_instance_is_only_that_of_the_grouping_key(collector: Any, clock: Any) -> None:
    gateway, key = str(collector.intake.base_url), instance_ip_grouping_key()
    push_to_gateway(gateway, job="batch", registry=registry_of(x=1), grouping_key=key)
    push_to_gateway(gateway, job="batch", registry=registry_of(y=1))

    assert dict(next(iter(collector.values("x", clock()))))["instance"] == key["instance"]
    assert "instance" not in dict(next(iter(collector.values("y", clock()))))


def test_the_times_of_pushes_are_metrics_of_the_group(collector: Any, clock: Any) -> None:
    gateway, began = str(collector.intake.base_url), clock()
    push_to_gateway(gateway, job="batch", registry=registry_of(x=1))
    clock.advance(5)
    refused = collector.intake.put("/metrics/job/batch", content="x{ 1\n")

    assert refused.status_code == 400
    assert only(collector.values('push_time_seconds{job="batch"}', clock())) == began
    assert only(collector.values('push_failure_time_seconds{job="batch"}', clock())) == began + 5
    assert only(collector.values("x", clock())) == 1


def test_a_group_stands_until_it_is_deleted_also_over_a_restart(config: Any, clock: Any, start: Any) -> None:
    with start(config, clock) as running:
        push_to_gateway(str(running.intake.base_url), job="batch", registry=registry_of(x=math.nan, last=7))
    for _ in range(2):
        with start(config, clock) as running:
            for _ in range(6):
                clock.advance(REPEAT_SECONDS)
                running.collector.pushes.repeat()
            assert only(running.values("last", clock())) == 7
            assert math.isnan(only(running.values("x", clock())))
            assert only(running.values("push_time_seconds", clock())) < clock() - 300
    clock.advance(1)
    with start(config, clock) as running:
        delete_from_gateway(str(running.intake.base_url), job="batch")
        clock.advance(REPEAT_SECONDS)
        running.collector.pushes.repeat()
        assert running.values("last", clock()) == {}


def test_pushes_of_one_moment_are_all_taken(collector: Any, clock: Any) -> None:
    for value in range(3):
        push_to_gateway(str(collector.intake.base_url), job="batch", registry=registry_of(x=value))

    assert only(collector.values("x", clock() + 0.01)) == 2


@pytest.mark.parametrize(
    "path", ["group/x", "job", "job/", "job/x/only", "job/x/__name__/y", "job/x/é/y", "job@base64/_w", "job@base64/="]
)
def test_a_path_that_names_no_group_is_refused(path: str) -> None:
    with pytest.raises(BadGroup):
        group_labels(path)
