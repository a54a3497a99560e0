"""Rollbacks by the whole act path, under load: `python benchmarks/act_rollbacks.py [--rollbacks 1000] [--rate 300]`.

A real server answers an open-loop load. One release after another goes out, half of them as canaries of 1 to 100 % and
half promoted to all traffic; an alert asks for its rollback, and the runner of actions carries it out over its
database: decided, claimed, prepared, done, looked at and written. No request may fail, and none that is sent after a
rollback is written may be answered by the version that was rolled back.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from alerts.actions import ActionPolicy, ActionRunner, ActionState, serving_hooks
from alerts.actions.journal import verify
from alerts.schema import open_database
from alerts.states import Alert
from benchmarks.small_server import Answered, Load, Running, options, server

_MODEL = "mlp"
_LIMIT_SECONDS = 60.0


@dataclass(slots=True)
class Watch:
    """What was answered by which version, and when nothing may be answered by the bad one."""

    bad: list[tuple[float, float]] = field(default_factory=list)
    answered: dict[str, int] = field(default_factory=dict)

    def saw(self, answered: Answered) -> None:
        """An answer."""
        self.answered[answered.version] = self.answered.get(answered.version, 0) + 1
        if answered.version == "2":
            self.bad.append((answered.sent, answered.done))


def rolled_back(running: Running, runner: ActionRunner, draw: random.Random) -> tuple[float, float, float]:
    """One release and its rollback: when it went out, when it was known to be back, and the seconds from the alert."""
    whole = draw.random() < 0.5
    out = time.perf_counter()
    answer = running.post("canary", {"version": 2, "weight": draw.choice((0.01, 0.1, 0.5, 1.0))})
    release = str(answer["canary"]["release"])
    if whole:
        running.post("promote", {"release": release})
    time.sleep(draw.uniform(0.0, 0.05))
    labels = {"action": "rollback", "alertname": "CanaryHarmful", "model": _MODEL, "release": release}
    now = time.time()
    asked = time.perf_counter()
    action = runner.consider(
        Alert(
            labels=tuple(sorted(labels.items())), annotations=(("summary", "harm is proved"),), value=1.0,
            state="firing", active_at=now, fired_at=now,
        )
    )  # fmt: skip
    if action is None or action.state is not ActionState.RUNNING:
        raise RuntimeError(f"the rollback of {release} does not run: {action}")
    limit = time.monotonic() + _LIMIT_SECONDS
    while (found := runner.action(action.id)).state is ActionState.RUNNING:
        if time.monotonic() > limit:
            raise TimeoutError(f"the rollback of {release} does not end")
        time.sleep(0.002)
    told = time.perf_counter()
    if found.state is not ActionState.DONE:
        raise RuntimeError(f"the rollback of {release} is {found.state}: {found.result}")
    # The moment at which the result was written, not that at which this loop saw it.
    return out, told, (found.completed_at or 0.0) - now if found.completed_at else told - asked


def measure(running: Running, rollbacks: int, connections: int, rate: float, seed: int) -> dict[str, Any]:
    """The rollbacks under load, and what came of the requests."""
    watch, draw = Watch(), random.Random(seed)
    load = Load(running.port, connections, 1e9, rate, keep=watch.saw)
    stop: list[asyncio.Event] = []

    async def drive() -> None:
        stop.append(asyncio.Event())
        await load.drive(stop[0])

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(drive(),))
    times: list[tuple[float, float, float]] = []
    with tempfile.TemporaryDirectory(prefix="trimtab-rollbacks-") as folder:
        database = open_database(f"sqlite:///{folder}/alerts.db")
        policy = ActionPolicy(cooldown_seconds=0.0, budget_per_hour=10**9, breaker_failures=0)
        hooks = serving_hooks(f"http://127.0.0.1:{running.port}")
        runner = ActionRunner(database, policies={"rollback": policy}, hooks=hooks, secret="sealed")
        runner.start()
        thread.start()
        began = time.perf_counter()
        try:
            for number in range(rollbacks):
                times.append(rolled_back(running, runner, draw))
                if number % 100 == 99:
                    print(f"{number + 1} rollbacks", file=sys.stderr, flush=True)
        finally:
            seconds = time.perf_counter() - began
            while not stop:
                time.sleep(0.01)
            loop.call_soon_threadsafe(stop[0].set)
            thread.join()
            loop.close()
            runner.close()
        with database.begin() as connection:
            rows = verify(connection, secret="sealed")
        database.dispose()
    seconds_each = sorted(one[2] for one in times)
    cuts = statistics.quantiles(seconds_each, n=100, method="inclusive")
    return {
        "rollbacks": len(times), "seconds": round(seconds, 1), "requests": sum(load.statuses.values()),
        "failed": sum(load.statuses.values()) - load.statuses[200], "answered_by": watch.answered,
        "answered_by_the_bad_after_its_rollback": _strays(watch, times), "journal_rows": rows,
        "alert_to_verified": {
            "median": round(cuts[49], 4), "p99": round(cuts[98], 4), "max": round(seconds_each[-1], 4),
        },
        "request_ms": {"p50": round(load.quantile(0.5), 2), "p99": round(load.quantile(0.99), 2)},
    }  # fmt: skip


def _strays(watch: Watch, times: list[tuple[float, float, float]]) -> int:
    """Requests that were sent between a rollback and the next release, and answered by the bad version."""
    quiet = [(told, nxt[0]) for (_, told, _), nxt in pairwise(times)]
    place = strays = 0
    for sent, done in sorted(watch.bad):
        while place < len(quiet) and quiet[place][1] < sent:
            place += 1
        if place < len(quiet) and quiet[place][0] < sent and done < quiet[place][1]:
            strays += 1
    return strays


def main() -> int:
    """0 when no request failed and none went astray."""
    parser = options(__doc__)
    parser.add_argument("--rollbacks", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second, open loop")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    with server(versions=2) as running:
        result = measure(running, chosen.rollbacks, chosen.connections, chosen.rate, chosen.seed)
    print(json.dumps(result, indent=2))
    return 1 if result["failed"] or result["answered_by_the_bad_after_its_rollback"] else 0


if __name__ == "__main__":
    sys.exit(main())
