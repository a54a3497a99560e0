"""The demo's story: the steps that are waited for, none of them made to happen.

The story trains, releases and replays; what is detected, rolled back, retrained and promoted is the stack's own doing,
read back from its APIs. A step that does not come within its time is reported as missing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from serving.clients.quick import QuickClient
from trimtab.demo.plan import MODEL, Plan
from trimtab.demo.replay import Replay, Sample
from trimtab.demo.report import Json, Report, job_outcome, rolled_back, seen
from trimtab.demo.timeline import Timeline
from trimtab.demo.watch import StepFailed, Watch, control, run_module
from trimtab.settings import Settings
from trimtab.stack import Stack


@dataclass(slots=True)
class Story:
    """One run: the stack is given; `tell` fills the report."""

    plan: Plan
    settings: Settings
    stack: Stack
    timeline: Timeline
    flights: Callable[[], Sample]
    report: Report = field(default_factory=Report)
    replay: Replay | None = None

    async def tell(self) -> Report:
        """Run all steps; never raises for a step that does not come, the report says so."""
        started = time.time()
        async with httpx.AsyncClient(timeout=30.0) as http:
            try:
                await self._train()
                await self._start(http)
                await self._live(http)
            except StepFailed as failure:
                self.report.missing = str(failure)
                self.timeline.add("note", str(failure), day=self._day)
        if self.replay is not None:
            self.report.requests = self.replay.summary()
        self.report.seconds = round(time.time() - started, 1)
        return self.report

    async def _train(self) -> None:
        # All of it from the start, so that no alert about a missing server is the first thing that one sees.
        self.stack.start()
        self.timeline.add("done", "training v1 on January and February")
        trained = await run_module(self.stack.settings_file, "trimtab", "train", MODEL, "--json")
        if not trained["passed"]:
            raise StepFailed(f"v1 is not good enough to serve: {trained['reason']}")
        gate, scores = trained["gate"], trained["metrics"]
        self.timeline.add(
            "judged",
            f"v1 beats the base rate on {gate['groups']} later days: log loss {gate['candidate_log_loss']:.4f} against "
            f"{gate['rival_log_loss']:.4f}, AUC {scores['roc_auc']:.3f}; registered",
        )
        self.report.trained = trained
        fault = [] if self.plan.fault else ["--healthy"]
        release = await run_module(self.stack.settings_file, "trimtab.demo.release", *fault)
        self.timeline.add("done", f"registered v{release['version']}: {release['description']}")

    async def _start(self, http: httpx.AsyncClient) -> None:
        await asyncio.to_thread(self.stack.wait_ready)
        self.timeline.add("done", f"collector, alerts, serving and dashboard are up: {self.settings.dashboard_url}")
        await control(self.settings, http, "promote", {"version": 1, "reason": "the first version beats the base rate"})
        self.timeline.add("done", "v1 promoted: it serves all traffic")

    async def _live(self, http: httpx.AsyncClient) -> None:
        stop = asyncio.Event()
        traffic = asyncio.create_task(self._traffic(stop))
        watch = Watch(self.settings, http, traffic)
        try:
            await watch.rest(self.plan.baseline_seconds)
            await self._bad_release(watch)
            await self._drift(watch)
            await self._promotion(watch)
            await watch.rest(self.plan.tail_seconds)
        finally:
            stop.set()
            # A replay that failed has been reported by whoever waited on it.
            await asyncio.gather(traffic, return_exceptions=True)

    async def _traffic(self, stop: asyncio.Event) -> None:
        flights = await asyncio.to_thread(self.flights)
        async with QuickClient(self.settings.serving_url) as client:
            self.replay = Replay(
                flights,
                client,
                model=MODEL,
                rate=self.plan.rate,
                intake_url=self.settings.intake_url,
                trace_share=self.plan.trace_share,
                seed=self.plan.seed,
            )
            what = f"{len(flights):,} flights from {flights.days[0]} on, open loop at {self.plan.rate:g} requests/s"
            self.timeline.add("done", f"replaying {what}")
            await self.replay.run(stop)

    async def _bad_release(self, watch: Watch) -> None:
        weight = self.plan.canary_weight
        answer = await control(self.settings, watch.http, "canary", {"version": 2, "weight": weight})
        release, released_at = answer["canary"]["release"], time.time()
        self.timeline.add("done", f"released v2 as a canary with {weight:.0%} of the traffic: {release}", day=self._day)
        action = await watch.action("rollback", self.plan.rollback_seconds, release=release, unless="promote")
        day, state = self._day, await watch.model()
        if str(state["stable"]) != "1" or state["canary"] is not None:
            raise StepFailed(
                f"the rollback is said to be done, but stable is {state['stable']}, canary {state['canary']}"
            )
        # What was in flight at the switch is answered before it is counted.
        await watch.rest(self.plan.settle_seconds)
        assert self.replay is not None
        found = self.report.rollback = rolled_back(action, released_at, self.replay.tally)
        self.timeline.add("seen", seen(action), at=action["created_at"], day=day)
        self.timeline.add(
            "done",
            f"rolled back to v1, {found['seconds']:.1f} s after the release: {found['bad_requests']} bad answers "
            f"in all, {found['failed_by_switch']} requests failed by the switch",
            at=found["completed_at"],
            day=day,
        )

    async def _drift(self, watch: Watch) -> None:
        """Retrainings that their gate refuses are told and waited past: the next one has more to learn from."""
        deadline = time.time() + self.plan.drift_seconds
        told: set[object] = set()
        while self.report.retrain is None:
            left = deadline - time.time()
            begun = await watch.action("retrain", left, states=("running", "done", "failed"), other_than=told)
            told.add(begun["id"])
            await self._tell_drift(watch, begun)
            ended = await watch.action(
                "retrain", self.plan.retrain_seconds, states=("done", "failed"), identity=begun["id"]
            )
            self._tell_retrain(ended)

    async def _tell_drift(self, watch: Watch, action: Json) -> None:
        drifted = await watch.drifted_columns("1", float(action["created_at"]))
        columns = ", ".join(f"{name} {psi:.2f}" for name, psi in drifted.items())
        self.report.drift = {
            "alert": action["alert"],
            "fired_at": action["created_at"],
            "flight_day": self._day,
            "reason": action["reason"],
            "columns": drifted,
        }
        self.timeline.add("seen", f"{seen(action)} (PSI: {columns})", at=action["created_at"], day=self._day)

    def _tell_retrain(self, action: Json) -> None:
        outcome = job_outcome(action)
        at = float(action["completed_at"])
        if action["state"] == "failed" or not outcome.get("passed"):
            reason = outcome.get("reason", action["result"])
            self.timeline.add("judged", f"the retrained model is not released: {reason}", at=at, day=self._day)
            return
        self.report.retrain = {**outcome, "started_at": action["started_at"], "completed_at": at}
        gate = outcome["gate"]
        self.timeline.add(
            "judged",
            f"v{outcome['version']}, retrained on {outcome['rows']:,} labelled events, passes its gate on their last "
            f"{gate['groups']} days: log loss {gate['candidate_log_loss']:.4f}, champion {gate['rival_log_loss']:.4f}, "
            f"difference at most {gate['upper_bound']:+.4f} at {gate['confidence']:.0%}",
            at=at,
            day=self._day,
        )

    async def _promotion(self, watch: Watch) -> None:
        assert self.report.retrain is not None
        version = str(self.report.retrain["version"])
        release = self.report.retrain["released"]["release"]
        self.timeline.add("done", f"v{version} goes out as a canary: {release}", day=self._day)
        action = await watch.action("promote", self.plan.promote_seconds, release=release)
        state = await watch.model()
        if str(state["stable"]) != version:
            raise StepFailed(f"v{version} was to be promoted, but stable is v{state['stable']}")
        self.report.promoted = {
            "version": version,
            "release": release,
            "alert": action["alert"],
            "at": action["completed_at"],
            "flight_day": self._day,
            "reason": action["reason"],
            "evidence": action["evidence"],
            "previous": state["previous"],
        }
        self.timeline.add("done", f"{seen(action)}: promoted", at=action["completed_at"], day=self._day)

    @property
    def _day(self) -> str | None:
        return self.replay.day if self.replay else None
