"""What is left of a budget, as recorded by the real Prometheus and as reported by us, against counting by hand."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from alerts.slo import (
    Calendar,
    Events,
    Objective,
    Raw,
    Rolling,
    Threshold,
    counted,
    report,
    rule_groups,
    stand,
    to_yaml,
)
from collectors.query import Engine, Matrix, Result
from collectors.store import Store

pytestmark = pytest.mark.slow
HOUR, DAY = 3600, 86400


class Asked:
    """The engine in this process, asked as a server is."""

    def __init__(self, store: Store) -> None:
        self._engine = Engine(store)

    def instant(self, expr: str, at: float | None = None) -> Result:
        return self._engine.instant(expr, round((at or 0.0) * 1000))

    def range(self, expr: str, start: float, end: float, step: float) -> Matrix:
        return self._engine.range(expr, round(start * 1000), round(end * 1000), round(step * 1000))


@pytest.fixture
def store() -> Iterator[Store]:
    opened = Store("sqlite://")
    yield opened
    opened.close()


def events(name: str = "slo", **options: Any) -> Objective:
    indicator = Events(total=counted("asked_total"), bad=counted("failed_total"), by=("model",))
    return Objective(**{"name": name, "target": 0.99, "indicator": indicator, "period": Rolling(2 * DAY), **options})


def promtool(
    folder: Path, objective: Objective, series: dict[str, str], step: int, asked: dict[str, dict[str, Any]]
) -> None:
    """Runs the objective's rules over series and holds that expressions are close to values, by eval time."""
    (folder / "rules.yml").write_text(to_yaml(*rule_groups(objective, now=0.0)))
    tests = [
        {
            "expr": f"abs(({expr}) - ({value})) < bool 1e-6",
            "eval_time": at,
            "exp_samples": [{"labels": "{}", "value": 1}],
        }
        for at, expected in asked.items()
        for expr, value in expected.items()
    ]
    test = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": f"{step}s",
        "tests": [
            {
                "interval": f"{step}s",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": tests,
            }
        ],
    }
    (folder / "test.yml").write_text(yaml.safe_dump(test))
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yml"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


def budget_left(slo: str = "slo") -> str:
    return f'sum(slo:period_error_budget_remaining:ratio{{slo="{slo}"}})'


def test_a_budget_is_weighted_by_traffic_and_no_average_of_averages(tmp_path: Path) -> None:
    # A busy day of 300 requests each 5 minutes with 4 failures, then a quiet one of 3 with none.
    busy, quiet = DAY // 300, DAY // 300
    series = {
        'asked_total{model="m"}': f"0+300x{busy} {300 * busy + 3}+3x{quiet - 1}",
        'failed_total{model="m"}': f"0+4x{busy} {4 * busy}x{quiet - 1}",
    }
    left = 1 - (4 * busy) / (300 * busy + 3 * quiet) / 0.01

    promtool(tmp_path, events(), series, 300, {"2d": {budget_left(): left}})

    assert left < -0.3  # the mean of the ratios of both days would be 0.67 %, and a third of the budget left
    assert 1 - (4 / 300) / 2 / 0.01 > 0.3


def test_a_budget_of_time_counts_bad_slices_of_the_whole_period(tmp_path: Path) -> None:
    # 12 slices of 5 minutes with 10 % failures; one with 1 % is good enough.
    steps = 2 * DAY // 300
    failed = np.zeros(steps + 1)
    failed[100:112], failed[200] = 10, 1
    series = {
        'asked_total{model="m"}': f"0+100x{steps}",
        'failed_total{model="m"}': " ".join(f"{value:g}" for value in np.cumsum(failed)),
    }
    objective = events(method="Timeslices", slice_seconds=300.0, slice_target=0.95)

    promtool(tmp_path, objective, series, 300, {"2d": {budget_left(): 1 - 12 / (steps * 0.01)}})


def test_a_threshold_is_looked_at_and_nan_is_nothing_seen(tmp_path: Path) -> None:
    steps = 2 * DAY // 300
    values = ["0.8"] * 300 + ["0.6"] * 30 + ["NaN"] * 100 + ["0.9"] * (steps + 1 - 430)
    objective = Objective(
        name="slo", target=0.9, indicator=Threshold("auc", "gte", 0.7), period=Rolling(2 * DAY), slice_seconds=300.0
    )

    # The period's 576 looks begin after the first one; 100 of them saw nothing.
    left = 1 - 30 / (steps - 100) / 0.1
    promtool(tmp_path, objective, {"auc": " ".join(values)}, 300, {"2d": {budget_left(): left}})


def test_ready_ratios_are_averaged_over_slices(tmp_path: Path) -> None:
    steps = 2 * DAY // 300
    values = ["0.99"] * (steps // 2 + 1) + ["0.97"] * (steps // 2)
    objective = Objective(
        name="slo", target=0.9, indicator=Raw("share", failures=False), period=Rolling(2 * DAY),
        method="RatioTimeslices", slice_seconds=300.0,
    )  # fmt: skip

    promtool(tmp_path, objective, {"share": " ".join(values)}, 300, {"2d": {budget_left(): 1 - 0.02 / 0.1}})


def test_a_calendar_period_begins_anew_in_its_time_zone(tmp_path: Path) -> None:
    # Days of New York: 1970-01-01 begins at 05:00 UTC. Failures at 04:00 to 05:00 are the day's before.
    steps = 2 * DAY // 300
    failed, asked = np.zeros(steps + 1), np.full(steps + 1, 100.0)
    asked[0], failed[48:60], failed[96:108] = 0, 5, 2  # 04:00 to 05:00, 08:00 to 09:00
    series = {
        'asked_total{model="m"}': " ".join(f"{value:g}" for value in np.cumsum(asked)),
        'failed_total{model="m"}': " ".join(f"{value:g}" for value in np.cumsum(failed)),
    }
    period = Calendar(1, "d", datetime(1969, 12, 31), "America/New_York")
    first = 100.0 * 59

    expected = {
        "4h55m": {budget_left(): 1 - 60 / first / 0.01},
        "10h": {budget_left(): 1 - 24 / (100.0 * 60) / 0.01},
        "28h55m": {budget_left(): 1 - 24 / (100.0 * 287) / 0.01},
        "30h": {budget_left(): 1.0, "sum(slo:period_start:timestamp_seconds)": 29 * HOUR},
    }
    promtool(tmp_path, events(period=period), series, 300, expected)


# --- the report ------------------------------------------------------------------------------------------------------


def filled(store: Store, hours: int, failed: dict[int, float]) -> None:
    """Counters of two versions over hours, a sample each minute; version 2 fails so often in some of the hours."""
    asked = {"1": 0.0, "2": 0.0}
    bad = 0.0
    for minute in range(hours * 60 + 1):
        samples = []
        for version, number in (("1", 90.0), ("2", 10.0)):
            asked[version] += number if minute else 0.0
            labels = {"model": "m", "version": version, "instance": "a:1"}
            samples.append(({"__name__": "asked_total", **labels}, asked[version]))
            if version == "2":
                bad += 10.0 * failed.get((minute - 1) // 60, 0.0) if minute else 0.0
                samples.append(({"__name__": "failed_total", **labels}, bad))
        store.append("test", minute * 60_000, samples)


def test_the_report_says_what_is_left_how_fast_it_burns_and_what_spent_it(store: Store) -> None:
    filled(store, 48, {10: 1.0, 47: 0.5})

    (standing,) = stand(events(), Asked(store), 2.0 * DAY)

    failures, asked = 60 * 10.0 + 60 * 5.0, 48 * 60 * 100.0
    assert standing.labels == (("model", "m"),)
    assert standing.error_ratio == pytest.approx(failures / asked, rel=1e-6)
    assert standing.budget_left == pytest.approx(1 - failures / asked / 0.01, rel=1e-6)
    # The last hour failed in 5 of 100: five times too fast in every window within it.
    assert standing.burn_rates["4m"] == pytest.approx(5.0, rel=1e-3)
    assert dict(standing.by[0].labels)["version"] == "2"
    assert standing.by[0].share == pytest.approx(1.0)
    assert standing.when[0].share == pytest.approx(600 / 900, abs=0.1)
    assert standing.when[0].start <= 10.5 * HOUR <= standing.when[0].end
    assert standing.to_json()["budget_left"] == standing.budget_left


def test_groups_have_budgets_of_their_own_and_nothing_is_no_data(store: Store) -> None:
    filled(store, 48, {10: 1.0})
    by_version = replace(events(), indicator=replace(events().indicator, by=("model", "version")))

    first, second = stand(by_version, Asked(store), 2.0 * DAY)
    (nothing,) = stand(events(indicator=Events(total=counted("none"), bad=counted("none"))), Asked(store), 2.0 * DAY)

    assert (first.labels[1], second.labels[1]) == (("version", "1"), ("version", "2"))
    assert first.budget_left == pytest.approx(1.0)
    assert second.budget_left == pytest.approx(1 - (1 / 48) / 0.01, rel=1e-6)
    assert (first.state, second.state) == ("kept", "spent")
    assert (nothing.state, nothing.budget_left, nothing.error_ratio) == ("no data", None, None)


def test_time_slices_and_calendars_are_reported_as_they_are_recorded(store: Store) -> None:
    filled(store, 48, {10: 1.0})
    slices = events(method="Timeslices", slice_seconds=300.0, slice_target=0.95)
    month = events(period=Calendar(1, "M", datetime(1970, 1, 1)))

    one, other = report([slices, month], Asked(store), 2.0 * DAY)

    assert one.bad == pytest.approx(12.0)
    assert one.budget_left == pytest.approx(1 - 12 / (576 * 0.01))
    assert (other.start, other.end) == (0.0, 2.0 * DAY)
    assert other.budget_left == pytest.approx(1 - 600 / (48 * 60 * 100) / 0.01, rel=1e-6)
