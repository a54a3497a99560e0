"""What the demo sets: pace, waits and the settings of its stack. Nothing here says what will be found."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from trimtab.settings import (
    ActionSettings,
    AlertsSettings,
    CollectorSettings,
    General,
    ModelSettings,
    RetrainingSettings,
    ServingSettings,
    Settings,
)

MODEL = "flight-delay"
FLIGHTS_A_DAY = 923
# Drift is judged on this many flight days, about as a month of live traffic would be: a week's weather is no season.
JUDGED_DAYS = 25
WINDOW_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The pace of the story, and how long each step is waited for (seconds)."""

    seed: int = 7
    fault: bool = True
    """Without it, v2 is an honest copy of v1 and nothing is wrong with it."""
    rate: float = 250.0
    """Requests a second, open loop."""
    share: float = 0.25
    """Share of the flights that are replayed; fewer flights a day make the seasons pass faster."""
    since: str = "2013-03-01"
    canary_weight: float = 0.1
    trace_share: float = 0.02
    baseline_seconds: float = 12.0
    settle_seconds: float = 3.0
    tail_seconds: float = 8.0
    rollback_seconds: float = 90.0
    drift_seconds: float = 180.0
    retrain_seconds: float = 120.0
    promote_seconds: float = 120.0

    @property
    def days_a_second(self) -> float:
        """How many flight days pass in a second of the replay."""
        return self.rate / (self.share * FLIGHTS_A_DAY)


FULL = Plan()
FAST = Plan(rate=350.0, baseline_seconds=8.0, tail_seconds=3.0)


def demo_settings(data: Path, plan: Plan, secret: str) -> Settings:
    """The stack's settings: the defaults, but for windows and waits that fit compressed time."""
    retrain = [sys.executable, "-m", "trimtab", "retrain", "{model}", "--settings", str(data / "stack.toml"), "--json"]
    quick = ActionSettings(cooldown_seconds=10.0, budget_per_hour=20)
    return Settings(
        trimtab=General(data=str(data), secret=secret),
        collector=CollectorSettings(
            window_seconds=WINDOW_SECONDS,
            judged_windows=round(JUDGED_DAYS / (plan.days_a_second * WINDOW_SECONDS)),
            allowed_lateness_seconds=2.0,
            # Less than nearly the whole span is not judged: the first days of March alone are no month.
            drift_min_rows=round(0.85 * JUDGED_DAYS * plan.share * FLIGHTS_A_DAY),
        ),
        alerts=AlertsSettings(
            actions={
                "rollback": quick,
                "promote": quick,
                "retrain": ActionSettings(command=retrain, cooldown_seconds=10.0, budget_per_hour=20),
            },
            # A day passes in about a second: what is refused has new days to learn from soon.
            retraining={
                MODEL: RetrainingSettings(
                    calm_seconds=60.0,
                    backoff_seconds=10.0,
                    max_backoff_seconds=20.0,
                    min_new_labels=2000,
                    failure_backoff_seconds=5.0,
                    settle_seconds=60.0,
                    budget_per_day=20,
                )
            },
        ),
        serving=ServingSettings(trace_sample_ratio=0.0),
        models={
            MODEL: ModelSettings(
                task="trimtab.demo.model:flight_delay_task",
                data="trimtab.demo.tables:training_table",
                canary_weight=0.25,
                holdout_ratio=0.17,
                window_groups=JUDGED_DAYS,
                seed=plan.seed,
            )
        },
    )
