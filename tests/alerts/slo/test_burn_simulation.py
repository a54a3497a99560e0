"""Burn-rate alerts in the real Prometheus, against error traces of which is known when an alert begins and ends.

The oracle counts the trace's own events over the workbook's windows. It knows no PromQL, and its times are compared
with the workbook's formula: detection = factor * budget * long window / error ratio.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from alerts.slo import Objective, availability, burn_windows, rule_groups, to_yaml
from observability import names

pytestmark = pytest.mark.slow
HOUR = 3600


@dataclass(frozen=True)
class Trace:
    """Requests and failures of each step, which steps were not scraped, and when the server began anew."""

    name: str
    total: np.ndarray
    bad: np.ndarray
    unseen: frozenset[int] = frozenset()
    restarts: tuple[int, ...] = ()
    starts: int = field(default=0)

    def values(self, events: np.ndarray) -> str:
        """A counter as promtool writes it: what came up to each step, since the last restart."""
        written, counter = [], 0.0
        for step, number in enumerate(events):
            counter = number if step in self.restarts else counter + number
            written.append("_" if step in self.unseen or step < self.starts else f"{counter:g}")
        return " ".join(written)


def steady(steps: int, ratio: Callable[[int], float], a_step: float = 100.0) -> tuple[np.ndarray, np.ndarray]:
    total = np.full(steps, a_step)
    return total, np.round(total * [ratio(step) for step in range(steps)], 6)


def during(start: int, end: float, ratio: float) -> Callable[[int], float]:
    return lambda step: ratio if start < step <= end else 0.0


def oracle(trace: Trace, objective: Objective, severity: str, step_seconds: float) -> list[int]:
    """The steps at which the alert fires."""
    total, bad = np.cumsum(trace.total), np.cumsum(trace.bad)
    steps = np.arange(len(total))
    seen = np.array([n for n in steps if n not in trace.unseen and n >= trace.starts])

    def counted(span: float) -> tuple[np.ndarray, np.ndarray]:
        """Events and failures between the first and the last sample of the window that ends at each step."""
        first = np.searchsorted(seen, steps - span / step_seconds - 1e-9)
        last = np.searchsorted(seen, steps, side="right") - 1
        several = last > first
        first, last = seen[np.minimum(first, len(seen) - 1)], seen[last]
        return np.where(several, total[last] - total[first], 0.0), np.where(several, bad[last] - bad[first], 0.0)

    fires = np.zeros(len(total), dtype=bool)
    for window in burn_windows(objective.period.seconds):
        if window.severity == severity:
            (events, failures), (few, short) = counted(window.long_seconds), counted(window.short_seconds)
            enough = (events >= 50) & (failures > 1.5) & (few > 0)
            limit = window.factor * objective.budget
            fires |= enough & (failures > limit * events) & (short > limit * few)
    return [int(step) for step in np.flatnonzero(fires)]


def simulate(
    folder: Path, traces: Sequence[Trace], objectives: Sequence[Objective], step_seconds: int
) -> dict[tuple[str, str, str], list[int]]:
    """What the oracle says, after promtool has agreed to it within a step at each beginning and end."""
    (folder / "rules.yml").write_text(to_yaml(*(rule_groups(chosen)[0] for chosen in objectives)))
    metric, steps = names.INFERENCE_REQUESTS.name, len(traces[0].total)
    series = [
        {"series": f'{metric}{{model="{trace.name}",outcome="{outcome}"}}', "values": trace.values(events)}
        for trace in traces
        for outcome, events in (("ok", trace.total - trace.bad), ("model_error", trace.bad))
    ]
    end, span = f"{(steps - 1) * step_seconds}s", f"{steps * step_seconds}s"
    expected, found = [], {}
    for trace in traces:
        for chosen in objectives:
            for severity in ("page", "ticket"):
                firing = oracle(trace, chosen, severity, step_seconds)
                found[trace.name, chosen.name, severity] = firing
                alert = (
                    f'ALERTS{{alertname="ErrorBudgetBurn",alertstate="firing",model="{trace.name}",'
                    f'slo="{chosen.name}",severity="{severity}"}}'
                )
                count = f"sum(count_over_time({alert}[{span}])) or vector(0)"
                expected.append(_is(f"abs(({count}) - {len(firing)}) <= bool 2", 1, end))
                if firing:
                    first, last = firing[0], firing[-1]
                    for step, fires in ((first - 2, 0), (first + 1, 1), (last - 1, 1), (last + 2, 0)):
                        if 0 < step < steps and (step in firing) == bool(fires):
                            at = f"{step * step_seconds}s"
                            expected.append(_is(f"count({alert}) or vector(0)", fires, at))
    every = f"{step_seconds}s"
    test = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": every,
        "tests": [{"interval": every, "input_series": series, "promql_expr_test": expected}],
    }
    (folder / "test.yml").write_text(yaml.safe_dump(test, width=10**9))
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yml"], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return found


def _is(expr: str, value: float, at: str) -> dict[str, Any]:
    return {"expr": expr, "eval_time": at, "exp_samples": [{"labels": "{}", "value": value}]}


def test_fast_burns_page_and_end_when_the_workbook_says(tmp_path: Path) -> None:
    step, healthy, steps = 2, 210, 330  # minutes a step; steps: seven hours, then four
    quiet = np.where(np.arange(steps) % 2 == 0, 2.0, 0.0)  # 30 an hour
    one_failure = np.zeros(steps)
    one_failure[healthy + 2] = 1.0
    late = (np.arange(steps) > healthy) & (np.arange(steps) <= healthy + 30)
    gap = frozenset(range(healthy + 6, healthy + 11))
    traces = [
        Trace("outage", *steady(steps, during(healthy, healthy + 8, 1.0))),
        Trace("half", *steady(steps, during(healthy, healthy + 20, 0.5))),
        Trace("blip", *steady(steps, during(healthy, healthy + 1, 1.0))),
        Trace("good", *steady(steps, lambda _: 0.0005)),
        Trace("slow", *steady(steps, during(healthy, steps, 0.03))),
        Trace("unscraped", *steady(steps, during(healthy, healthy + 15, 1.0)), gap),
        Trace("restarted", *steady(steps, during(healthy, healthy + 15, 0.6)), restarts=(healthy + 3, healthy + 10)),
        Trace("rare", quiet, one_failure),
        Trace("rare-outage", quiet, np.where(late, quiet, 0.0)),
        Trace("idle", np.zeros(steps), np.zeros(steps)),
        Trace("new", *steady(steps, during(healthy + 50, steps, 1.0)), starts=healthy + 45),
    ]
    loose, strict = availability(0.99, name="loose"), availability(0.999, name="strict")

    found = simulate(tmp_path, traces, [loose, strict], 60 * step)

    def minutes(name: str, slo: str = "loose") -> tuple[float, float]:
        """From when to when it pages, in minutes since the errors began."""
        firing = found[name, slo, "page"]
        return (firing[0] - healthy) * step, (firing[-1] + 1 - healthy) * step

    # An outage: 14.4 * 1 % of an hour, and five minutes less 14.4 % of them after it has ended.
    assert minutes("outage") == (pytest.approx(14.4 * 0.01 * 60, abs=step), pytest.approx(16 + 5 * 0.856, abs=step))
    assert minutes("half")[0] == pytest.approx(14.4 * 0.01 * 60 / 0.5, abs=step)
    assert minutes("restarted")[0] == pytest.approx(14.4 * 0.01 * 60 / 0.6, abs=step)
    # 3 % is three times too fast for 99 %, no page; and thirty times for 99.9 %, found after 14.4 / 30 of an hour.
    assert found["slow", "loose", "page"] == []
    assert minutes("slow", "strict")[0] == pytest.approx(60 * 14.4 / 30, abs=step)
    assert minutes("blip", "strict")[0] <= 2 * step
    assert found["blip", "loose", "page"] == []
    for name in ("good", "rare", "idle"):
        for slo in ("loose", "strict"):
            assert found[name, slo, "page"] == found[name, slo, "ticket"] == []
    # 30 requests an hour are too few for the hour's window; six hours hold enough of them.
    assert minutes("rare-outage")[0] == pytest.approx(6 * 0.01 * 360, abs=2 * step)
    assert minutes("unscraped")[0] == pytest.approx(14.4 * 0.01 * 60, abs=step)
    assert found["new", "loose", "page"]


def test_slow_burns_are_tickets_when_the_workbook_says(tmp_path: Path) -> None:
    step, healthy = 600, 3 * 144  # three days of ten minutes
    steps = 6 * 144
    traces = [
        Trace("twice", *steady(steps, during(healthy, steps, 0.02), 1000.0)),
        Trace("four", *steady(steps, during(healthy, healthy + 144, 0.04), 1000.0)),
        Trace("half", *steady(steps, during(healthy, steps, 0.005), 1000.0)),
    ]
    objective = availability(0.99, name="loose")

    found = simulate(tmp_path, traces, [objective], step)

    # 1 times over three days at twice the rate; 3 times over a day at four times.
    assert found["twice", "loose", "ticket"][0] * step - 3 * 86400 == pytest.approx(3 * 86400 / 2, abs=step)
    assert found["four", "loose", "ticket"][0] * step - 3 * 86400 == pytest.approx(86400 * 3 / 4, abs=step)
    # After a day at four times the six hours' window falls below 1 after three quarters of it.
    last = found["four", "loose", "ticket"][-1] * step - 4 * 86400
    assert last == pytest.approx(6 * HOUR * (1 - 1 / 4), abs=step)
    assert found["half", "loose", "ticket"] == []
    assert all(found[trace.name, "loose", "page"] == [] for trace in traces)


def test_an_alert_without_the_guard_would_page_for_one_failure(tmp_path: Path) -> None:
    """The trace that the guard is for does burn: the same objective without it pages."""
    steps = 240
    quiet = np.where(np.arange(steps) % 2 == 0, 2.0, 0.0)
    one = np.zeros(steps)
    one[212] = 1.0
    bare = availability(0.999, name="bare", minimum_events=1.0, minimum_bad_events=1.0)

    with pytest.raises(AssertionError, match="FAILED"):
        simulate(tmp_path, [Trace("rare", quiet, one)], [bare], 120)
