"""What a fleet says of itself as one: load reports added up, and where a version stands in all replicas."""

from __future__ import annotations

import pytest

from serving.fleet.overview import merged_load
from serving.fleet.peers import packed_view, read_view
from serving.peers import View
from serving.versions.status import NOT_LOADED, Status, everywhere

READY = Status("READY")


def lane(version: str, rows: int, oldest: float, busy: bool) -> dict[str, object]:
    return {
        "model": "fares", "version": version, "queue_rows": rows, "queue_limit_rows": 100, "queue_bytes": 8 * rows,
        "oldest_seconds": oldest, "estimated_wait_seconds": 2 * oldest, "max_batch_rows": 64, "busy": busy,
    }  # fmt: skip


def report(utilization: float, in_flight: int, *lanes: dict[str, object]) -> dict[str, object]:
    total = {name: sum(one[name] for one in lanes) for name in ("queue_rows", "queue_bytes")}  # type: ignore[misc]
    longest = {
        name: max((one[name] for one in lanes), default=0.0) for name in ("oldest_seconds", "estimated_wait_seconds")
    }
    return {
        "state": "ready", "utilization": utilization, "in_flight_requests": in_flight, "connections": 0, **total,
        **longest, "models": list(lanes),
    }  # fmt: skip


def test_amounts_of_all_replicas_add_and_of_times_the_longest_counts() -> None:
    first = report(0.5, 7, lane("1", 10, 0.2, busy=False), lane("10", 0, 0.0, busy=False))
    second = report(0.25, 3, lane("1", 5, 0.1, busy=True), lane("2", 2, 0.5, busy=False))
    fronts = {"0": {"connections": 4, "in_flight_requests": 8}, "1": {"connections": 1, "in_flight_requests": 2}}
    merged = merged_load("ready", {"0": first, "1": second}, fronts)

    assert (merged["queue_rows"], merged["queue_bytes"], merged["in_flight_requests"]) == (17, 136, 10)
    assert (merged["connections"], merged["utilization"], merged["oldest_seconds"]) == (5, 0.375, 0.5)
    by_version = {one["version"]: one for one in merged["models"]}
    assert list(by_version) == ["1", "2", "10"]
    assert by_version["1"] == lane("1", 15, 0.2, busy=True) | {"queue_limit_rows": 200, "replicas": 2}
    assert by_version["2"]["replicas"] == 1
    assert merged["replicas"]["1"]["queue_rows"] == 7
    assert merged["fronts"] == fronts
    # What it was made of is left as it was.
    assert first["models"][0] == lane("1", 10, 0.2, busy=False)  # type: ignore[index]


def test_a_fleet_without_anybody_has_a_report() -> None:
    merged = merged_load("starting", {}, {})
    assert (merged["state"], merged["queue_rows"], merged["utilization"], merged["models"]) == ("starting", 0, 0.0, [])


def test_a_version_is_ready_when_it_is_so_everywhere_or_where_it_is_needed() -> None:
    loading = Status("LOADING", "warming up")
    assert everywhere({0: READY}) == READY
    assert everywhere({0: NOT_LOADED}) == NOT_LOADED
    assert everywhere({0: NOT_LOADED, 1: NOT_LOADED}) == NOT_LOADED
    assert everywhere({0: READY, 1: loading}) == Status("LOADING", "ready in 1 of 2 replicas; replica 1: warming up")
    assert everywhere({0: READY, 1: loading}, needed=1) == READY
    assert everywhere({0: READY, 1: loading, 2: loading}, needed=2).state == "LOADING"


@pytest.mark.parametrize("statuses", [{}, {("fares", 3): READY, ("other", 1): Status("UNAVAILABLE", "why")}])
def test_a_view_arrives_as_it_was_sent(statuses: dict[tuple[str, int], Status]) -> None:
    assert read_view(packed_view({"fares": 4}, statuses)) == View({"fares": 4}, statuses)
