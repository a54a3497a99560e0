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
    ServingSettings,
    Settings,
)

MODEL = "flight-delay"


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


FULL = Plan()
FAST = Plan(rate=250.0, share=0.25, baseline_seconds=6.0, tail_seconds=3.0, rollback_seconds=60.0)


def demo_settings(data: Path, plan: Plan, secret: str) -> Settings:
    """The stack's settings: the defaults, but for windows and waits that fit compressed time."""
    retrain = [sys.executable, "-m", "trimtab", "retrain", "{model}", "--settings", str(data / "stack.toml"), "--json"]
    quick = ActionSettings(cooldown_seconds=10.0, budget_per_hour=20)
    return Settings(
        trimtab=General(data=str(data), secret=secret),
        collector=CollectorSettings(
            # Twelve windows of two seconds: about 25 flight days, as a month of live traffic would be judged.
            window_seconds=2.0,
            judged_windows=12,
            allowed_lateness_seconds=2.0,
            drift_min_rows=5000,
        ),
        alerts=AlertsSettings(
            actions={
                "rollback": quick,
                "promote": quick,
                "retrain": ActionSettings(command=retrain, cooldown_seconds=30.0, budget_per_hour=6),
            }
        ),
        serving=ServingSettings(trace_sample_ratio=0.0),
        models={
            MODEL: ModelSettings(
                task="trimtab.demo.model:flight_delay_task",
                data="trimtab.demo.tables:training_table",
                canary_weight=0.25,
                holdout_ratio=0.17,
                seed=plan.seed,
            )
        },
    )
