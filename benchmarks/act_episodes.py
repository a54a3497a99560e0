"""Drift episodes and what they retrain: `python benchmarks/act_episodes.py [--episodes 100] [--engines 2]`.

Measured series are synthetic, time is simulated; rules, hook, performer, journal and database are the real ones, and
the trainer is a stub. An episode is drift that holds or flaps, alone or with falling scores; its challenger is
promoted, refused by its gate, or never comes into service and the drift ends by itself. Services are restarted or
dropped, as a kill would, and left down, in the midst of it. Between episodes come shifts that are nobody's reason to
retrain. There must be one retraining an episode, and none for the others.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from alerts.actions import ActionPolicy, ActionState, Call, FunctionHook, HookError
from alerts.actions.journal import verify
from alerts.config import AlertsConfig
from alerts.querier import EngineQuerier, StoreWriter
from alerts.retraining import RetrainingPolicy
from alerts.service import AlertsService
from collectors.query import Engine
from collectors.store import Store

_START = 1_700_000_000.0
_CALM = 60.0
_SHIPPED = Path(__file__).resolve().parents[1] / "alerts" / "rules.d" / "data.yml"
# A rule of one's own beside the shipped ones: scores that fall ask as well.
_DECAY = """
groups:
  - name: own
    interval: 1s
    rules:
      - alert: ScoreFell
        expr: max by (model, version) (performance_score{metric="accuracy"}) < 0.7
        for: 5s
        labels: {severity: ticket, action: retrain}
"""
# Seconds from its begin on: what the stable version's series are while an episode goes on.
_HOLDS, _FLAPS = "holds", "flaps"
_BENIGN = (
    "a blip of 4 s", "below the threshold", "few rows", "the canary's", "a retired version's", "predictions alone",
    "one column's alarm", "a shadow's", "volume and missing values", "skew of a canary",
)  # fmt: skip


@dataclass(slots=True)
class Model:
    """A model in service, and what is measured of it now."""

    name: str
    version: int = 1
    drift: Callable[[float], float] = lambda since: 0.05
    accuracy: float = 0.9
    began: float = 0.0
    extra: Callable[[int], Mapping[str, float]] = lambda version: {}
    rows: float = 1000.0
    promote_at: float | None = None
    outcome: str = "promoted"
    labels: float = 0.0

    def series(self, now: float) -> dict[str, float]:
        """The gauges and counters of now."""
        where = f'model="{self.name}",version="{self.version}"'
        self.labels += 20.0
        return {
            f"drift_columns_ratio{{{where}}}": self.drift(now - self.began),
            f"drift_window_rows{{{where}}}": self.rows,
            f'performance_score{{{where},metric="accuracy"}}': self.accuracy,
            f'traffic_weight_ratio{{{where},role="stable"}}': 1.0,
            f'collector_label_rows_total{{model="{self.name}",matched="true"}}': self.labels,
            **self.extra(self.version),
        }


class World:
    """The models, the simulated clock, and the services that look at them."""

    def __init__(self, folder: Path, models: int, engines: int, seed: int, url: str = "") -> None:
        self.random = random.Random(seed)
        self.now = _START
        self.models = {f"m{n}": Model(f"m{n}") for n in range(models)}
        self.calls: list[str] = []
        self.restarts: Counter[str] = Counter()
        self._store = Store("sqlite://", clock=lambda: self.now)
        self._querier, self._writer = EngineQuerier(Engine(self._store)), StoreWriter(self._store)
        self._url = url or f"sqlite:///{folder}/alerts.db"
        self._rules = folder / "decay.yml"
        self._rules.write_text(_DECAY)
        self.services = [self._service() for _ in range(engines)]

    def _service(self) -> AlertsService:
        policy = ActionPolicy(cooldown_seconds=0.0, budget_per_hour=10**6)
        config = AlertsConfig(
            database_url=self._url, shipped_rules=False, rule_files=(_SHIPPED, self._rules),
            policies={"retrain": policy}, hooks={"retrain": FunctionHook(self._train)},
            retraining=RetrainingPolicy(calm_seconds=_CALM, budget_per_day=10**6, settle_seconds=300.0),
        )  # fmt: skip
        return AlertsService(config, querier=self._querier, writer=self._writer, clock=lambda: self.now)

    def _train(self, call: Call) -> Mapping[str, Any]:
        """A trainer that answers at once: with a challenger, or with its gate's refusal."""
        model = self.models[call.model]
        self.calls.append(call.key)
        if model.outcome == "refused":
            raise HookError("the gate refused it", {"exit_status": 2})
        if model.outcome == "promoted":
            model.promote_at = self.now + self.random.uniform(3.0, 15.0)
        return {"passed": True, "version": model.version + 1, "outcome": "completed"}

    def second(self, looking: bool = True) -> None:
        """A second goes by; with `looking` every service looks."""
        self.now += 1.0
        series: dict[str, float] = {}
        for model in self.models.values():
            if model.promote_at is not None and self.now >= model.promote_at:
                model.version, model.promote_at = model.version + 1, None
                model.drift, model.accuracy = _steady, 0.9
            series.update(model.series(self.now))
        self._store.append("scrape", round(self.now * 1000), [(_labels(k), v) for k, v in series.items()], stale=True)
        for service in self.services if looking else ():
            service.tick(self.now)
            self._settle(service)

    def _settle(self, service: AlertsService) -> None:
        """Hooks run in threads: simulated time stands still until they have ended."""
        limit = time.monotonic() + 60
        while any(one.state is ActionState.RUNNING for one in service.actions.actions(limit=20)):
            if time.monotonic() > limit:
                raise TimeoutError("an action does not end")
            time.sleep(0.002)

    def disturb(self) -> None:
        """A service is restarted, dropped as a kill would, or all are down for a while."""
        what = self.random.choice(("restarted", "killed", "down"))
        self.restarts[what] += 1
        place = self.random.randrange(len(self.services))
        if what == "restarted":
            self.services[place].close()
            self.services[place] = self._service()
        elif what == "killed":
            self.services[place].actions.resume()
            self.services[place] = self._service()
        else:
            for _ in range(self.random.randint(5, 100)):
                self.second(looking=False)

    def close(self) -> None:
        """Stop the services."""
        for service in self.services:
            service.close()


def run(world: World, rounds: int) -> dict[str, int]:
    """Rounds of one benign shift and one episode a model."""
    benign = 0
    for number in range(rounds):
        for place, model in enumerate(world.models.values()):
            _shift(model, _BENIGN[(number + place) % len(_BENIGN)], world.now)
        benign += len(world.models)
        _pass(world, 30)
        before = len(world.calls)
        if before != number * len(world.models):
            return {"episodes": number * len(world.models), "benign": benign}
        for model in world.models.values():
            _quiet(model)
        _pass(world, 5)
        for model in world.models.values():
            _episode(model, world)
        _pass(world, world.random.randint(25, 50))
        for model in world.models.values():
            _quiet(model)
        # Longer than twice the calm: what ends by itself is over, and what comes next is another.
        _pass(world, round(2 * _CALM) + 45)
    return {"episodes": rounds * len(world.models), "benign": benign}


def _pass(world: World, seconds: int) -> None:
    for _ in range(seconds):
        world.second()
        if world.random.random() < 0.03:
            world.disturb()


def _steady(since: float) -> float:
    return 0.05


def _quiet(model: Model) -> None:
    model.drift, model.accuracy, model.rows, model.extra = _steady, 0.9, 1000.0, lambda version: {}


def _episode(model: Model, world: World) -> None:
    shape = world.random.choice((_HOLDS, _FLAPS))
    height = world.random.uniform(0.4, 1.0)
    # One that flaps is over the threshold for long enough to fire, and again.
    model.drift = (lambda since: height) if shape == _HOLDS else (lambda since: height if since % 14 < 10 else 0.1)
    model.accuracy = world.random.choice((0.9, 0.5))
    model.began = world.now
    model.outcome = world.random.choice(("promoted", "promoted", "refused", "stays out"))


def _shift(model: Model, kind: str, now: float) -> None:
    """A shift that must not retrain."""
    name, model.began = model.name, now

    def series(version: int, role: str, weight: float) -> dict[str, float]:
        where = f'model="{name}",version="{version}"'
        return {
            f"drift_columns_ratio{{{where}}}": 0.9,
            f"drift_window_rows{{{where}}}": 1000.0,
            f'traffic_weight_ratio{{{where},role="{role}"}}': weight,
        }

    def column(metric: str) -> Callable[[int], Mapping[str, float]]:
        return lambda version: {f'{metric}{{model="{name}",version="{version}",column="prediction.y"}}': 1.0}

    if kind == "a blip of 4 s":
        model.drift = lambda since: 0.9 if since <= 4 else 0.05
    elif kind == "below the threshold":
        model.drift = lambda since: 0.34
    elif kind == "few rows":
        model.drift, model.rows = (lambda since: 0.9), 150.0
    elif kind == "the canary's":
        model.extra = lambda version: series(version + 100, "canary", 0.2)
    elif kind == "a shadow's":
        model.extra = lambda version: series(version + 100, "shadow", 1.0)
    elif kind == "a retired version's":
        model.extra = lambda version: series(version + 100, "stable", 0.0)
    elif kind == "predictions alone":
        model.extra = column("drift_detected")
    elif kind == "one column's alarm":
        model.extra = column("drift_alarm")
    elif kind == "volume and missing values":
        model.extra = lambda version: {
            f'quality_volume_ratio{{model="{name}"}}': 8.0,
            f'quality_missing_ratio{{model="{name}",version="{version}",column="feature.a"}}': 0.6,
        }
    elif kind == "skew of a canary":
        model.extra = lambda version: {f'training_serving_skew_ratio{{model="{name}",version="{version + 100}"}}': 0.9}
    else:
        raise ValueError(kind)


def _labels(text: str) -> dict[str, str]:
    name, _, rest = text.partition("{")
    pairs = [part.split("=", 1) for part in rest.rstrip("}").split(",") if part]
    return {"__name__": name, **{key: value.strip('"') for key, value in pairs}}


def main() -> int:
    """0 when every episode retrained once and nothing else did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--database", default="", help="SQLAlchemy URL; default: SQLite in a folder of its own")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="trimtab-episodes-") as folder:
        world = World(Path(folder), options.models, options.engines, options.seed, options.database)
        injected = run(world, -(-options.episodes // options.models))
        episodes = world.services[0].retraining.episodes(limit=10_000)
        with world.services[0].database.begin() as connection:
            rows = verify(connection)
        world.close()
        attempts = Counter(attempt["outcome"] for episode in episodes for attempt in episode["attempts"])
        found = {
            "engines": options.engines, "models": options.models, "episodes_injected": injected["episodes"],
            "benign_shifts": injected["benign"], "episodes_seen": len(episodes), "retrains": len(world.calls),
            "retrains_twice": len(world.calls) - len(set(world.calls)), "attempts": dict(attempts),
            "ended": dict(Counter(episode["ended_because"].split(" ")[0] for episode in episodes)),
            "services": dict(world.restarts), "simulated_seconds": world.now - _START, "journal_rows": rows,
            "seconds": round(time.perf_counter() - began, 1),
        }  # fmt: skip
        print(json.dumps(found, indent=2))
        right = len(episodes) == len(world.calls) == len(set(world.calls)) == injected["episodes"]
        return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
