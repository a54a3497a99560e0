"""A policy tried on synthetic traffic: the real controller, judge and evidence, with a simulated server and clock.

Requests and failures are drawn (binomial, from a seed) as the simulated traffic policy divides them. Nothing outside
this process is touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from alerts.actions import PROMOTE, ROLLBACK, Action, ActionState
from alerts.durations import format_duration
from alerts.evidence import Arms, Judgement, Look, Outcome, ReleaseState, Slow, judge
from alerts.evidence.releases import Release
from alerts.labels import labels_of
from alerts.querier import QueryError, Sample
from alerts.releases.controller import ReleaseController
from alerts.releases.policy import ReleasePolicy
from alerts.releases.policy_file import ReleasePolicies
from alerts.releases.walk import Walk
from alerts.schema import open_database
from observability import names

MODEL, STABLE, CANDIDATE = "simulated", 1, 2
MOST_REQUESTS = 100_000.0  # a second
_BEGIN = 1_800_259_200.0  # a Monday, 8:00 UTC
_BEFORE_SECONDS = 600.0  # for which stable has answered before
_BOUNDS = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What is simulated; rates are requests a second, error ratios shares of the requests."""

    requests_per_second: float = 100.0
    stable_error_ratio: float = 0.005
    error_ratio: float = 0.005
    """Of the candidate."""
    latency_factor: float = 1.0
    """The candidate takes this many times as long."""
    later_error_ratio: float | None = None
    """Of the candidate from `later_seconds` after its promotion on; None: as before."""
    later_latency_factor: float | None = None
    """The same of its latency."""
    later_seconds: float = 600.0
    disagreement_ratio: float = 0.0
    """Share of a shadow's answers that differ from stable's by more than any bound."""
    approve_after_seconds: float | None = None
    """A person approves what waits for one after so long; None never does."""
    seconds: float = 6 * 3600.0
    """How long it is simulated."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("stable_error_ratio", "error_ratio", "later_error_ratio", "disagreement_ratio"):
            if not 0.0 <= (getattr(self, name) or 0.0) <= 1.0:
                raise ValueError(f"{name} is a share of the requests, from 0 to 1, got {getattr(self, name)}")
        factors = self.latency_factor, 1.0 if self.later_latency_factor is None else self.later_latency_factor
        if not 0.0 <= self.requests_per_second <= MOST_REQUESTS:
            raise ValueError(
                f"requests a second are from 0 to {MOST_REQUESTS:g} (each is drawn), got {self.requests_per_second}"
            )
        if not all(0.0 < factor < math.inf for factor in factors) or not self.seconds > 0.0:
            raise ValueError("the latency's factors and the time are above 0, and a factor is a finite number")
        if not self.later_seconds >= 0.0:
            raise ValueError(f"later_seconds are those after the promotion, at least 0, got {self.later_seconds}")


@dataclass(frozen=True, slots=True)
class Event:
    """What happened after so many seconds; `weight` is the share of the traffic that the candidate then had."""

    after: float
    told: str
    weight: float

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return {"after": self.after, "told": self.told, "weight": self.weight}


@dataclass(frozen=True, slots=True)
class Simulated:
    """How it ended: the walk as it was last, everything that happened, and the candidate's requests and failures."""

    walk: Walk
    events: Sequence[Event]
    requests: float
    errors: float
    explanation: Sequence[str] = field(default=())


def simulate(policy: ReleasePolicy, traffic: Traffic) -> Simulated:
    """Lead one release through the policy. Raises ValueError for a policy without steps."""
    world = _World(policy, traffic)
    database = open_database("sqlite://")
    releases = ReleaseController(
        database, policies=ReleasePolicies("", {MODEL: policy}), eyes=world, actor=world,
        judgement_of=world.judgement, querier=world, clock=lambda: world.now, executor=_AtOnce(),
    )  # fmt: skip
    try:
        releases.begin(MODEL, CANDIDATE, actor="simulation")
        end = _BEGIN + traffic.seconds
        while world.now < end:
            world.second()
            releases.tick(world.now)
            (walk,) = releases.walks(limit=1)
            world.person(releases, walk)
            if walk.ended or (walk.held is not None and traffic.approve_after_seconds is None):
                break
        (walk,) = releases.walks(limit=1)
        events = [
            Event(entry.time - _BEGIN, str(entry.body["told"]), world.weight_at(entry.time))
            for entry in releases.store.history(walk)
        ]
        explanation = [*releases.explain(walk), *_left_out(policy, traffic, walk, world.now)]
        return Simulated(walk, events, world.requests, world.errors, explanation)
    finally:
        releases.close()
        database.dispose()


def _left_out(policy: ReleasePolicy, traffic: Traffic, walk: Walk, now: float) -> list[str]:
    """Why what is to happen after the promotion did not show, in words; nothing where it did, or is not asked for."""
    if traffic.later_error_ratio is None and traffic.later_latency_factor is None:
        return []
    asked = f"What is to happen {format_duration(round(traffic.later_seconds))} after the promotion was not simulated"
    if policy.after_promotion is None:
        return [
            f"{asked}: the policy has no `after_promotion`, so nobody watches the version then, and nothing would roll "
            "it back. `after_promotion: {seconds: 1h}` watches it for an hour."
        ]
    if walk.promoted_at is None:
        return [f"{asked}: the version was not promoted."]
    watched = (walk.ended_at or now) - walk.promoted_at
    if watched < traffic.later_seconds:
        return [f"{asked}: the watch, or what was simulated, was over {format_duration(round(watched))} after it."]
    return []


class _AtOnce(Executor):
    """Runs what it is given in the caller."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class _World:
    """A server, a judge, a store and an act path that do at once what they are asked."""

    def __init__(self, policy: ReleasePolicy, traffic: Traffic) -> None:
        self.now = _BEGIN
        self.requests = self.errors = 0.0
        self._policy, self._traffic = policy, traffic
        self._random = np.random.default_rng(traffic.seed)
        self._stable, self._generation = STABLE, 1
        self._canary = self._experiment = self._shadow = self._held_back = 0.0
        self._promoted_at = math.inf
        self._release = ""
        self._history: list[dict[str, Any]] = []
        self._state: ReleaseState | None = None
        self._outcome, self._reason = Outcome.CONTINUE, ""
        self._actions: dict[str, Action] = {}
        self._counters: dict[tuple[tuple[str, str], ...], float] = {}
        self._weights: list[tuple[float, float]] = [(_BEGIN, 0.0)]
        self._waiting_since: float | None = None
        usual = round(_BEFORE_SECONDS * traffic.requests_per_second)
        self._of_versions(0, 0, 1.0, usual, int(self._random.binomial(usual, traffic.stable_error_ratio)))

    # --- time --------------------------------------------------------------------------------------------------------
    def second(self) -> None:
        """A second's requests, divided as the policy in force says."""
        self.now += 1.0
        traffic, draw = self._traffic, self._random
        total = int(draw.poisson(traffic.requests_per_second))
        weight = self._weight()
        mine = int(draw.binomial(total, weight))
        error_ratio, factor = self._candidate()
        failed = int(draw.binomial(mine, error_ratio))
        others = int(draw.binomial(total - mine, traffic.stable_error_ratio))
        self.requests += mine
        self.errors += failed
        if self._canary:
            self._judge(weight, mine, failed, total - mine, others)
        self._of_versions(mine, failed, factor, total - mine, others)
        if self._held_back:
            self._of_release(weight, mine, failed, factor, total - mine, others)
        if self._experiment:
            for version, count, bad in ((CANDIDATE, mine, failed), (STABLE, total - mine, others)):
                common = {"release": self._release, "version": str(version), "propensity": f"{weight:g}"}
                self._count(names.EXPERIMENT_REQUESTS.name, count - bad, outcome="ok", **common)
                self._count(names.EXPERIMENT_REQUESTS.name, bad, outcome="error", **common)
        if self._shadow:
            copies = int(draw.binomial(total, self._shadow))
            broken = int(draw.binomial(copies, traffic.error_ratio))
            differing = int(draw.binomial(copies - broken, traffic.disagreement_ratio))
            self._count(names.SHADOW_REQUESTS.name, copies - broken, outcome="compared")
            self._count(names.SHADOW_REQUESTS.name, broken, outcome="failed")
            self._count("within", copies - broken - differing, le="bound")
            self._count("all", copies - broken, le="+Inf")

    def _weight(self) -> float:
        """The candidate's share of the requests now."""
        return self._canary or self._experiment or (1.0 - self._held_back) * float(self._stable == CANDIDATE)

    def _candidate(self) -> tuple[float, float]:
        """Share of the candidate's requests that fail now, and how many times as long they take."""
        traffic = self._traffic
        ratio, factor = traffic.error_ratio, traffic.latency_factor
        if self.now >= self._promoted_at + traffic.later_seconds:
            ratio = ratio if traffic.later_error_ratio is None else traffic.later_error_ratio
            factor = factor if traffic.later_latency_factor is None else traffic.later_latency_factor
        return ratio, factor

    def _of_versions(self, mine: int, failed: int, factor: float, stable: int, others: int) -> None:
        for version, count, bad, slower in ((CANDIDATE, mine, failed, factor), (STABLE, stable, others, 1.0)):
            if count:
                self._count(names.INFERENCE_REQUESTS.name, count - bad, version=str(version), outcome="ok")
                self._count(names.INFERENCE_REQUESTS.name, bad, version=str(version), outcome="model_error")
                self._time(names.INFERENCE_DURATION.name, count, slower, version=str(version))

    def _of_release(self, weight: float, mine: int, failed: int, factor: float, stable: int, others: int) -> None:
        of = {"release": self._release, "candidate": str(CANDIDATE), "baseline": str(STABLE)}
        for arm, count, bad, slower in (("canary", mine, failed, factor), ("stable", stable, others, 1.0)):
            common = {**of, "arm": arm, "propensity": f"{weight:g}"}
            self._count(names.RELEASE_REQUESTS.name, count - bad, outcome="ok", **common)
            self._count(names.RELEASE_REQUESTS.name, bad, outcome="error", **common)
            self._time(names.RELEASE_DURATION.name, count, slower, **common)

    def _time(self, name: str, count: int, factor: float, **labels: str) -> None:
        for bound, above in zip(_BOUNDS, self._slower(count, factor), strict=True):
            self._count(f"{name}_bucket", count - above, le=f"{bound:g}", **labels)
        self._count(f"{name}_bucket", count, le="+Inf", **labels)

    def person(self, releases: ReleaseController, walk: Walk) -> None:
        """Approves what waits, where the simulation has somebody who does."""
        after = self._traffic.approve_after_seconds
        if walk.held is None or walk.held.value == "harm" or after is None:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = self.now
        elif self.now - self._waiting_since >= after:
            self._waiting_since = None
            releases.approve(MODEL, actor="simulated person", reason="simulated")

    def weight_at(self, at: float) -> float:
        """The candidate's share of the traffic."""
        return [weight for since, weight in self._weights if since <= at][-1]

    def _judge(self, weight: float, mine: int, failed: int, stable: int, others: int) -> None:
        assert self._state is not None
        slow = Slow(weight, self._slower(mine, self._traffic.latency_factor), self._slower(stable, 1.0), mine, stable)
        look = Look(
            at=self.now, arms=(Arms(weight, mine, failed, stable, others),), bounds=_BOUNDS,
            slow=(slow,) if mine or stable else (),
        )  # fmt: skip
        self._state = self._state.after(look, self._policy.verdict)
        if self._outcome is Outcome.ROLLBACK:
            return
        policy = self._policy.verdict
        found = judge(self._state.evidence(policy), self._state.counts, policy, self.now)
        if self._outcome is not Outcome.ADVANCE or found.outcome is Outcome.ROLLBACK:
            self._outcome, self._reason = found.outcome, found.reason

    def _slower(self, count: int, factor: float) -> tuple[float, ...]:
        """Requests above each bound: lognormal, half of them within 50 ms, 99 % within 160 ms."""
        times = self._random.lognormal(np.log(0.05), 0.5, count) * factor
        return tuple(float((times > bound).sum()) for bound in _BOUNDS)

    def _count(self, name: str, more: float, **labels: str) -> None:
        key = tuple(sorted({"__name__": name, "model": MODEL, **labels}.items()))
        self._counters[key] = self._counters.get(key, 0.0) + more

    # --- what the controller sees ------------------------------------------------------------------------------------
    def page(self, model: str) -> Mapping[str, Any]:
        """Serving's page."""
        canary = {"version": CANDIDATE, "weight": self._canary, "release": self._release}
        variants = [
            {"version": STABLE, "weight": 1.0 - self._experiment}, {"version": CANDIDATE, "weight": self._experiment}
        ]  # fmt: skip
        gate = {"passed": True, "rival": "champion", "reason": "simulated"}
        return {
            "generation": self._generation,
            "stable": self._stable,
            "hold_back": {"weight": self._held_back} if self._held_back else None,
            "canary": canary if self._canary else None,
            "experiment": {"release": self._release, "variants": variants} if self._experiment else None,
            "shadows": [{"version": CANDIDATE, "fraction": self._shadow}] if self._shadow else [],
            "versions": [
                {"version": CANDIDATE, "digest": "simulated", "lineage": {
                    "gate": gate, "parent": STABLE, "sample": {"inputs": {}, "outputs": {"y": [0.0]}}}},
            ],
            "history": self._history,
        }  # fmt: skip

    def examine(self, model: str, version: int, inputs: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """A version that is all that a blessing asks for."""
        return {
            "digest": "simulated", "load_seconds": 1.0, "bytes": 0, "rows": 1, "seconds": [0.0],
            "outputs": {"y": [0.0]}, "deterministic": True,
        }  # fmt: skip

    def close(self) -> None:
        """Nothing to close."""

    def judgement(self, model: str, release: str) -> Judgement | None:
        """The judge's, once there is a canary."""
        if self._state is None or release != self._release:
            return None
        found = Release(
            model=MODEL, release=release, candidate=str(CANDIDATE), baseline=str(STABLE), verdict=self._outcome,
            started_at=self._state.started_at, reason=self._reason, decided_at=self.now,
        )  # fmt: skip
        policy = self._policy.verdict
        return Judgement(found, self._state.evidence(policy), self._state, policy, policy.alpha)

    def instant(self, expr: str, at: float) -> Sequence[Sample]:
        """The counters that an expression of the controller's names."""
        name = expr.partition("{")[0]
        if name == f"{names.SHADOW_DIFFERENCE.name}_bucket":
            name = "all" if "+Inf" in expr else "within"
        only = str(CANDIDATE) if f'version="{CANDIDATE}"' in expr else None
        return [
            Sample(labels_of(labels), value)
            for labels, value in ((dict(key), value) for key, value in self._counters.items())
            if labels["__name__"] == name and only in (None, labels.get("version"))
        ]

    def instants(self, exprs: Sequence[str], at: float) -> Sequence[Sequence[Sample] | QueryError]:
        """Of several."""
        return [self.instant(expr, at) for expr in exprs]

    # --- what it asks for --------------------------------------------------------------------------------------------
    def propose(
        self, action: str, model: str, *, key: str, reason: str, release: str = "",
        labels: Mapping[str, str] | None = None, evidence: Mapping[str, Any] | None = None,
    ) -> Action:  # fmt: skip
        """Done at once."""
        if key not in self._actions:
            self._generation += 1
            after = self._changed(action, dict(labels or {}))
            self._weights.append((self.now, self._weight()))
            self._actions[key] = Action(
                id=len(self._actions) + 1, key=key, action=action, model=model, release=release, state=ActionState.DONE,
                reason=reason, created_at=self.now, completed_at=self.now, result={"after": after},
            )  # fmt: skip
        return self._actions[key]

    def request(self, action: str, model: str, *, reason: str, actor: str, release: str = "", key: str = "") -> Action:
        """As proposed."""
        return self.propose(action, model, key=key, reason=reason, release=release)

    def approve(self, id: int, actor: str) -> Action:
        """Nothing waits here."""
        return next(action for action in self._actions.values() if action.id == id)

    def known(self, key: str) -> Action | None:
        """The action of a key."""
        return self._actions.get(key)

    def _changed(self, action: str, labels: Mapping[str, str]) -> dict[str, Any]:
        if action in (PROMOTE, ROLLBACK):
            line = {"generation": self._generation, "event": action, "release": self._release, "actor": "trimtab"}
            self._history.append(line)
            self._stable = CANDIDATE if action == PROMOTE else STABLE
            self._canary = self._experiment = self._held_back = 0.0
            self._promoted_at = self.now if action == PROMOTE else math.inf
            return {"generation": self._generation}
        share = float(labels["share"])
        if labels["traffic"] == "shadow":
            self._shadow = share
            return {"generation": self._generation}
        if not self._release:
            self._release = f"{MODEL}-1"
            self._state = ReleaseState(started_at=self.now) if labels["traffic"] == "canary" else None
        match labels["traffic"]:
            case "canary":
                self._canary = share
            case "experiment":
                self._experiment = share
            case "hold_back":
                self._held_back = share
            case _:
                self._stable, self._promoted_at = CANDIDATE, self.now
        return {"generation": self._generation, "release": self._release}
