"""The demo's story: the steps that are waited for, none of them made to happen.

The story trains, releases and replays; what is detected, rolled back, retrained and promoted is the stack's own doing,
read back from its APIs. A step that does not come within its time is reported as missing.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from observability.signing import HEADER, sign
from serving.client import InferenceClient
from trimtab.demo.plan import MODEL, Plan
from trimtab.demo.replay import Replay, Sample
from trimtab.demo.timeline import Timeline
from trimtab.settings import Settings
from trimtab.stack import Stack

POLL_SECONDS = 0.25
Json = dict[str, Any]


class StepFailed(Exception):
    """A step of the story did not happen; says which, and what was seen instead."""


@dataclass(slots=True)
class Report:
    """What `--json` prints. A step that did not happen is null."""

    trained: Json | None = None
    rollback: Json | None = None
    drift: Json | None = None
    retrain: Json | None = None
    promoted: Json | None = None
    seconds: float = 0.0
    requests: Json = field(default_factory=dict)
    missing: str | None = None
    """Why the story ended early."""

    @property
    def complete(self) -> bool:
        steps = (self.trained, self.rollback, self.drift, self.retrain, self.promoted)
        return all(step is not None for step in steps) and self.missing is None

    def as_json(self) -> Json:
        names = ("trained", "rollback", "drift", "retrain", "promoted", "requests", "missing", "seconds")
        return {name: getattr(self, name) for name in names}


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
    _ended: set[str] = field(default_factory=set)

    async def tell(self) -> Report:
        """Run all steps; never raises for a step that does not come, the report says so."""
        started = time.time()
        stop = asyncio.Event()
        async with httpx.AsyncClient(timeout=30.0) as http:
            traffic: asyncio.Task[None] | None = None
            try:
                await self._train()
                await self._start()
                traffic = asyncio.create_task(self._replay(stop))
                await self._after(self.plan.baseline_seconds, traffic)
                await self._bad_release(http, traffic)
                await self._drift_and_retrain(http, traffic)
                await self._promotion(http, traffic)
                await self._after(self.plan.tail_seconds, traffic)
            except StepFailed as failure:
                self.report.missing = str(failure)
                self.timeline.add("note", str(failure), day=self._day)
            finally:
                stop.set()
                if traffic is not None:
                    await traffic
        self.report.requests = self._requests()
        self.report.seconds = round(time.time() - started, 1)
        return self.report

    # --- steps -------------------------------------------------------------------------------------------------------
    async def _train(self) -> None:
        self.stack.start(("collector", "alerts", "dashboard"))
        self.timeline.add("done", "training v1 on January and February")
        trained = await self._command("train", MODEL, "--json")
        if not trained.get("passed"):
            raise StepFailed(f"v1 was not good enough to serve: {trained.get('reason')}")
        self.report.trained = trained
        scores = trained["metrics"]
        self.timeline.add(
            "judged",
            f"v1 beats the base rate on {trained['holdout_groups']} later days: log loss {scores['log_loss']:.4f} against "
            f"{trained['baseline_log_loss']:.4f}, AUC {scores['roc_auc']:.3f}; registered and promoted",
        )
        release = await self._module("trimtab.demo.release", *(["--healthy"] if not self.plan.fault else []))
        self.timeline.add("done", f"registered v{release['version']}: {release['description']}")

    async def _start(self) -> None:
        self.stack.start()
        await asyncio.to_thread(self.stack.wait_ready)
        self.timeline.add("done", f"collector, alerts, serving and dashboard are up: {self.settings.dashboard_url}")

    async def _replay(self, stop: asyncio.Event) -> None:
        client = InferenceClient(self.settings.serving_url)
        flights = self.flights()
        self.replay = Replay(
            flights,
            client,
            model=MODEL,
            rate=self.plan.rate,
            intake_url=self.settings.intake_url,
            trace_share=self.plan.trace_share,
            seed=self.plan.seed,
        )
        self.timeline.add(
            "done",
            f"replaying {len(flights):,} flights from {flights.days[0]} on, open loop at {self.plan.rate:g} requests/s",
        )
        try:
            await self.replay.run(stop)
        finally:
            await client.aclose()

    async def _bad_release(self, http: httpx.AsyncClient, traffic: asyncio.Task[None]) -> None:
        answer = await self._control(http, "canary", {"version": "2", "weight": self.plan.canary_weight})
        release, released_at = answer["canary"]["release"], time.time()
        self.timeline.add(
            "done",
            f"released v2 as a canary with {self.plan.canary_weight:.0%} of the traffic ({release})",
            day=self._day,
        )
        action = await self._action(http, "rollback", self.plan.rollback_seconds, traffic, release=release)
        state = await self._model(http)
        if str(state["stable"]) != "1" or state["canary"] is not None:
            raise StepFailed(f"the rollback was reported done, but traffic is {state['stable']} / {state['canary']}")
        result = action["result"] or {}
        completed_at = float(result.get("completed_at") or action["completed_at"])
        # What was in flight at the switch is answered before it is counted.
        await self._after(self.plan.settle_seconds, traffic)
        assert self.replay is not None
        tally = self.replay.tally
        self.report.rollback = {
            "alert": action["alert"],
            "release": release,
            "release_at": released_at,
            "detected_at": action["created_at"],
            "completed_at": completed_at,
            "seconds": round(completed_at - released_at, 2),
            "reason": action["reason"],
            "evidence": action["evidence"],
            "bad_requests": tally.failed(version="2"),
            "failed_by_switch": tally.failed(other_than="2", since=released_at),
            "served_after_switch": tally.served_since("2", completed_at),
        }
        self.timeline.add("seen", f"{action['alert']}: {action['reason']}", at=action["created_at"], day=self._day)
        self.timeline.add(
            "done",
            f"rolled back to v1 {completed_at - released_at:.1f} s after the release; "
            f"{self.report.rollback['bad_requests']} bad answers in all, {self.report.rollback['failed_by_switch']} failed by the switch",
            at=completed_at,
            day=self._day,
        )

    async def _drift_and_retrain(self, http: httpx.AsyncClient, traffic: asyncio.Task[None]) -> None:
        action = await self._action(http, "retrain", self.plan.drift_seconds, traffic, ended=False)
        day = self._day
        drifted = await self._drifted_columns(http)
        self.report.drift = {
            "alert": action["alert"],
            "fired_at": action["created_at"],
            "flight_day": day,
            "reason": action["reason"],
            "columns": drifted,
        }
        columns = ", ".join(f"{name} {psi:.2f}" for name, psi in list(drifted.items())[:4])
        self.timeline.add(
            "seen", f"{action['alert']}: {action['reason']} (PSI: {columns})", at=action["created_at"], day=day
        )
        action = await self._action(http, "retrain", self.plan.retrain_seconds, traffic, identity=action["id"])
        result = action["result"] if isinstance(action["result"], dict) else {}
        outcome = result.get("output", result)
        outcome = (
            json.loads(outcome.strip().splitlines()[-1]) if isinstance(outcome, str) and outcome.strip() else outcome
        )
        if not outcome.get("passed"):
            raise StepFailed(f"the retrained model did not pass its gate: {outcome.get('reason', action)}")
        self.report.retrain = {**outcome, "started_at": action["started_at"], "completed_at": action["completed_at"]}
        gate = outcome["gate"]
        self.timeline.add(
            "judged",
            f"retrained as v{outcome['version']} on {outcome['rows']:,} labelled events: log loss {gate['challenger_log_loss']:.4f} "
            f"against the champion's {gate['champion_log_loss']:.4f} on the last {gate['groups']} days, difference at most "
            f"{gate['upper_bound']:+.4f} (95 %)",
            at=action["completed_at"],
            day=self._day,
        )

    async def _promotion(self, http: httpx.AsyncClient, traffic: asyncio.Task[None]) -> None:
        assert self.report.retrain is not None
        version = str(self.report.retrain["version"])
        action = await self._action(http, "promote", self.plan.promote_seconds, traffic)
        state = await self._model(http)
        if str(state["stable"]) != version:
            raise StepFailed(f"v{version} was to be promoted, but stable is v{state['stable']}")
        self.report.promoted = {
            "version": version,
            "alert": action["alert"],
            "at": action["completed_at"],
            "flight_day": self._day,
            "reason": action["reason"],
            "evidence": action["evidence"],
            "previous": state["previous"],
        }
        self.timeline.add(
            "done",
            f"v{version} was proved safe and promoted: {action['reason']}",
            at=action["completed_at"],
            day=self._day,
        )

    # --- reading the stack -------------------------------------------------------------------------------------------
    @property
    def _day(self) -> str | None:
        return self.replay.day if self.replay else None

    async def _after(self, seconds: float, traffic: asyncio.Task[None]) -> None:
        await asyncio.wait({traffic}, timeout=seconds)
        self._check(traffic)

    def _check(self, traffic: asyncio.Task[None]) -> None:
        if traffic.done():
            failure = traffic.exception()
            raise StepFailed(f"the replay ended: {failure!r}" if failure else "the replay ran out of flights")

    async def _action(
        self,
        http: httpx.AsyncClient,
        kind: str,
        seconds: float,
        traffic: asyncio.Task[None],
        *,
        release: str | None = None,
        identity: Any = None,
        ended: bool = True,
    ) -> Json:
        """The first action of the kind that is not dealt with yet, once it is done (or, without `ended`, under way)."""
        wanted = ("done",) if ended else ("running", "done")
        deadline = time.time() + seconds
        last: Json | None = None
        while time.time() < deadline:
            for action in await self._actions(http):
                if action["action"] != kind or (identity is not None and action["id"] != identity):
                    continue
                if release is not None and action["labels"].get("release") != release:
                    continue
                last = action
                if action["state"] in wanted:
                    return action
                if action["state"] == "failed":
                    raise StepFailed(f"{kind} failed: {action['result']}")
            await self._after(POLL_SECONDS, traffic)
        raise StepFailed(f"no {kind} within {seconds:.0f} s" + (f"; the last one: {last}" if last else ""))

    async def _actions(self, http: httpx.AsyncClient) -> list[Json]:
        body = await self._get(http, f"{self.settings.alerts_url}/api/v1/actions?limit=50&model={MODEL}")
        rows: list[Json] = body.get("actions", []) if isinstance(body, dict) else body or []
        return rows

    async def _model(self, http: httpx.AsyncClient) -> Json:
        answer = await http.get(f"{self.settings.serving_url}/api/v1/models/{MODEL}")
        answer.raise_for_status()
        body: Json = answer.json()
        return body

    async def _drifted_columns(self, http: httpx.AsyncClient) -> dict[str, float]:
        body = await self._get(http, f"{self.settings.collector_url}/api/drift/{MODEL}?windows=1")
        windows = (body or {}).get("windows") or [{}]
        columns = windows[-1].get("columns", {})
        scores = {name: float(column["psi"]) for name, column in columns.items() if column.get("drifted")}
        return dict(sorted(scores.items(), key=lambda item: -item[1]))

    async def _get(self, http: httpx.AsyncClient, url: str) -> Any:
        # A service that is away for a moment (it may have been killed on purpose) is asked again at the next look.
        try:
            answer = await http.get(url)
            return answer.json() if answer.status_code == 200 else None
        except (httpx.HTTPError, ValueError):
            return None

    async def _control(self, http: httpx.AsyncClient, verb: str, body: Json) -> Json:
        content = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if self.settings.secret:
            headers[HEADER] = sign(self.settings.secret, content, time.time())
        answer = await http.post(
            f"{self.settings.serving_url}/api/v1/models/{MODEL}/{verb}", content=content, headers=headers
        )
        if answer.status_code != 200:
            raise StepFailed(f"{verb} of {body} was refused: {answer.status_code} {answer.text}")
        result: Json = answer.json()
        return result

    def _requests(self) -> Json:
        if self.replay is None:
            return {}
        return self.replay.tally.summary() | {"labels": self.replay.labels_sent, "last_flight_day": self.replay.day}

    # --- commands ----------------------------------------------------------------------------------------------------
    async def _command(self, *arguments: str) -> Json:
        return await self._module("trimtab", *arguments)

    async def _module(self, module: str, *arguments: str) -> Json:
        argv = [sys.executable, "-m", module, *arguments, "--settings", str(self.stack.settings_file)]
        process = await asyncio.create_subprocess_exec(
            *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=dict(os.environ)
        )
        output, errors = await process.communicate()
        if process.returncode != 0:
            raise StepFailed(f"{' '.join(argv[2:4])} failed: {errors.decode(errors='replace').strip()[-1000:]}")
        result: Json = json.loads(output)
        return result
