"""Changes of the traffic policy under load: `python benchmarks/switches.py [--switches 10000] [--connections 16]`.

One client after another asks for canaries, weights, experiments, rules, blue-green switches, promotions, rollbacks and
shadows, while `connections` clients send requests of sticky units. Every answer must be 200, and its arm and version
those that a policy which was in force while the request was under way gives its unit.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.small_server import Answered, Load, Running, options, server
from serving import Policy, Router


@dataclass(slots=True)
class Epoch:
    """A policy: from when it may have been in force, and until when it still may have been."""

    router: Router
    begun: float
    ended: float = float("inf")


@dataclass(slots=True)
class Referee:
    """Checks answers against the policies that were in force. A request is judged when the switches around it are."""

    epochs: deque[Epoch] = field(default_factory=deque)
    wrong: list[str] = field(default_factory=list)
    checked: int = 0
    arms: Counter[str] = field(default_factory=Counter)
    _waiting: deque[Answered] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def saw(self, answered: Answered) -> None:
        """An answer, in the order of their arrival."""
        with self._lock:
            self._waiting.append(answered)

    def switched(self, policy: Policy, asked: float, told: float) -> None:
        """A policy that came into force between two moments; judges what was answered before the first of them."""
        with self._lock:
            if self.epochs:
                self.epochs[-1].ended = told
            self.epochs.append(Epoch(Router.of(policy), asked))
            while self._waiting and self._waiting[0].done < asked:
                self._judge(self._waiting.popleft())
            oldest = self._waiting[0].sent if self._waiting else asked
            # A request that was sent long ago may still come in.
            while len(self.epochs) > 1 and self.epochs[0].ended < oldest - 30.0:
                self.epochs.popleft()

    def finish(self) -> None:
        """Judges what is left."""
        with self._lock:
            while self._waiting:
                self._judge(self._waiting.popleft())

    def _judge(self, answered: Answered) -> None:
        self.checked += 1
        self.arms[answered.arm] += 1
        possible = set()
        for epoch in reversed(self.epochs):
            if epoch.ended < answered.sent:
                break
            if epoch.begun <= answered.done:
                unit = answered.unit if epoch.router.policy.sticky else None
                draws = [(step + 0.5) / 100 for step in range(100)] if unit is None else [0.0]
                for draw in draws:
                    choice = epoch.router.choose(unit, lambda draw=draw: draw)  # type: ignore[misc]
                    assert choice is not None
                    possible.add((str(choice.version), choice.arm))
        if (answered.version, answered.arm) not in possible and len(self.wrong) < 20:
            self.wrong.append(f"{answered.unit} got {answered.version} {answered.arm}, possible were {possible}")


def policy_of(described: dict[str, Any], runs: Any) -> Policy:
    """The policy that the control API describes; the layout of an experiment's steps is recomputed by the caller."""
    body = {name: described[name] for name in ("model", "generation", "stable", "previous", "canary", "sticky")}
    experiment = described["experiment"]
    return Policy.from_json({
        **body, "shadows": described["shadows"], "rules": described["rules"], "standby": described["standby"],
        "experiment": None if experiment is None else {**experiment, "runs": runs},
    })  # fmt: skip


def next_call(policy: Policy, draw: random.Random) -> tuple[str, dict[str, Any]]:
    """A change that fits the policy: every kind of them comes again and again."""
    others = [number for number in (1, 2, 3) if number != policy.stable]
    if policy.canary is not None:
        verb = draw.choice(["canary", "canary", "rollback", "promote"])
        if verb == "canary":
            return verb, {"version": policy.canary.version, "weight": draw.randrange(0, 10001) / 10000}
        return verb, {}
    if policy.experiment is not None:
        if draw.random() < 0.3:
            return draw.choice([("rollback", {}), ("experiment", {"end": True})])
        # Two variants: their layout follows from their weights alone.
        weight = draw.randrange(0, 10001)
        a, b = policy.experiment.variants
        shares = ((a, weight / 10000), (b, (10000 - weight) / 10000))
        return "experiment", {"variants": [{"name": v.name, "version": v.version, "weight": w} for v, w in shares]}
    verb = draw.choice(["canary", "experiment", "switch", "shadow", "promote"])
    version = draw.choice(others)
    if verb == "canary":
        return verb, {"version": version, "weight": draw.randrange(0, 10001) / 10000, "sticky": "user"}
    if verb == "experiment":
        halves = [{"name": name, "version": v, "weight": 0.5} for name, v in (("a", policy.stable), ("b", version))]
        return verb, {"variants": halves, "sticky": "user"}
    if verb == "shadow":
        return verb, {"version": version, "fraction": draw.choice([0.0, 0.1, 1.0])}
    return verb, {"version": version}


def switch_many(running: Running, referee: Referee, switches: int, kinds: Counter[str], seed: int = 0) -> None:
    """Makes the changes one after another, tells the referee of each, and counts how many of each kind in `kinds`."""
    draw = random.Random(seed)
    described = running.get("/api/v1/models/mlp")
    policy = policy_of(described, ())
    referee.switched(policy, 0.0, 0.0)
    for _ in range(switches):
        verb, body = next_call(policy, draw)
        asked = time.perf_counter()
        try:
            answer = running.post(verb, body)
        except RuntimeError as error:
            # A rollback without a way back, or a promotion of what is stable, says so; nothing has changed.
            if ": 409 " not in str(error):
                raise
            kinds["refused"] += 1
            continue
        told = time.perf_counter()
        described = running.get("/api/v1/models/mlp") if "versions" not in answer else answer
        experiment = described["experiment"]
        runs = [] if experiment is None else [
            (place, round(variant["weight"] * 10000)) for place, variant in enumerate(experiment["variants"])
        ]  # fmt: skip
        policy = policy_of(described, runs)
        referee.switched(policy, asked, told)
        kinds[verb] += 1


def main() -> None:
    """Runs and prints one line, or JSON."""
    parser = options(__doc__)
    parser.add_argument("--switches", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second; 0: as many as go")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with server(versions=3) as running:
        result = measure(running, chosen.switches, chosen.connections, chosen.rate)
    print(json.dumps(result) if chosen.json else result)
    if result["failed"] or result["wrong"]:
        raise SystemExit(1)


def measure(running: Running, switches: int, connections: int, rate: float) -> dict[str, Any]:
    """The changes under load, and what came of the requests."""
    referee, kinds = Referee(), Counter[str]()
    load = Load(running.port, connections, 1e9, rate, keep=referee.saw)
    before = running.resources()
    stop: list[asyncio.Event] = []

    async def drive() -> None:
        stop.append(asyncio.Event())
        await load.drive(stop[0])

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(drive(),))
    thread.start()
    begun = time.perf_counter()
    try:
        switch_many(running, referee, switches, kinds)
    except KeyboardInterrupt:
        pass  # what has been done until then is measured
    finally:
        while not stop:
            time.sleep(0.01)
        loop.call_soon_threadsafe(stop[0].set)
        thread.join()
        loop.close()
    seconds = time.perf_counter() - begun
    referee.finish()
    after = running.resources()
    return {
        "switches": sum(kinds.values()) - kinds["refused"], "kinds": dict(kinds), "seconds": round(seconds, 1),
        "requests": sum(load.statuses.values()), "failed": sum(load.statuses.values()) - load.statuses[200],
        "checked": referee.checked, "wrong": referee.wrong, "arms": dict(referee.arms),
        "p50_ms": round(load.quantile(0.5), 2), "p99_ms": round(load.quantile(0.99), 2),
        "resources": [before, after],
    }  # fmt: skip


if __name__ == "__main__":
    main()
