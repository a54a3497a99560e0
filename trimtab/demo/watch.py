"""The demo's eyes and hands on the running stack: its public APIs, asked again and again until something is there."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx

from observability import names
from observability.signing import HEADER, sign
from trimtab.demo.plan import MODEL
from trimtab.settings import Settings

POLL_SECONDS = 0.25
RESTART_SECONDS = 90.0
Json = dict[str, Any]


class StepFailed(Exception):
    """A step of the story did not happen; says which, and what was seen instead."""


@dataclass(frozen=True, slots=True)
class Watch:
    """One client for all services. While it waits, `traffic` must go on: its end is the end of the story."""

    settings: Settings
    http: httpx.AsyncClient
    traffic: asyncio.Task[None]

    async def rest(self, seconds: float) -> None:
        """Let the traffic go on for so long."""
        await asyncio.wait({self.traffic}, timeout=seconds)
        if self.traffic.done():
            failure = self.traffic.exception()
            raise StepFailed(f"the replay ended: {failure!r}" if failure else "the replay ran out of flights")

    async def action(
        self,
        kind: str,
        seconds: float,
        *,
        states: tuple[str, ...] = ("done",),
        release: str | None = None,
        identity: Any = None,
        other_than: Collection[object] = (),
        unless: str | None = None,
    ) -> Json:
        """The first action of the kind (and release, or id) that reaches one of the states within `seconds`.

        An action of the kind `unless` that is done to the release ends the wait: the other one will not come.
        """
        deadline = time.time() + seconds
        last: Json | None = None
        while time.time() < deadline:
            for action in await self.actions():
                of_release = action["labels"].get("release") == release
                if of_release and (action["action"], action["state"]) == (unless, "done"):
                    raise StepFailed(f"no {kind}: release {release} came to a {unless}")
                if action["action"] != kind or (identity is not None and action["id"] != identity):
                    continue
                if action["id"] in other_than:
                    continue
                if release is not None and not of_release:
                    continue
                last = action
                if action["state"] in states:
                    return action
            await self.rest(POLL_SECONDS)
        raise StepFailed(f"no {kind} within {seconds:.0f} s" + (f"; the last one: {last}" if last else ""))

    async def actions(self) -> list[Json]:
        body = await self.read(f"{self.settings.alerts_url}/api/v1/actions?limit=50&model={MODEL}")
        rows: list[Json] = body.get("actions", []) if isinstance(body, dict) else body or []
        return rows

    async def model(self) -> Json:
        """The model's traffic, as the server has it."""
        answer = await self.http.get(f"{self.settings.serving_url}/api/v1/models/{MODEL}")
        answer.raise_for_status()
        body: Json = answer.json()
        return body

    async def drifted_columns(self, version: str, at: float) -> dict[str, float]:
        """PSI of the features of a version that had drifted at `at` (Unix seconds), the largest first.

        The collector may be away just now, and what it had measured last may have gone with it: it is asked about that
        moment and about the present, until it names some, for as long as a restart may take.
        """
        which = f'model="{MODEL}",version="{version}",column=~"feature[.].+"'
        score, detected = names.DRIFT_SCORE.name, names.DRIFT_DETECTED.name
        promql = f'{score}{{{which},method="psi"}} and on (column) {detected}{{{which}}} == 1'
        deadline = time.time() + RESTART_SECONDS
        series: list[Json] = []
        while not series and time.time() < deadline:
            for moment in (at, time.time()):
                query = urlencode({"query": promql, "time": moment})
                body = await self.read(f"{self.settings.query_url}/api/v1/query?{query}")
                series = series or (body["data"]["result"] if body else [])
            if not series:
                await self.rest(POLL_SECONDS)
        scores = {row["metric"]["column"].removeprefix("feature."): float(row["value"][1]) for row in series}
        return dict(sorted(scores.items(), key=lambda item: -item[1]))

    async def read(self, url: str) -> Any:
        """A service that is away for a moment (it may have been killed on purpose) gives None, and is asked again."""
        try:
            answer = await self.http.get(url)
            return answer.json() if answer.status_code == 200 else None
        except (httpx.HTTPError, ValueError):
            return None


async def control(settings: Settings, http: httpx.AsyncClient, verb: str, body: Json) -> Json:
    """One signed call of the serving control API."""
    content = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    if settings.secret:
        headers[HEADER] = sign(settings.secret, content, time.time())
    answer = await http.post(f"{settings.serving_url}/api/v1/models/{MODEL}/{verb}", content=content, headers=headers)
    if answer.status_code != 200:
        raise StepFailed(f"{verb} of {body} was refused: {answer.status_code} {answer.text}")
    result: Json = answer.json()
    return result


async def run_module(settings_file: Path, module: str, *arguments: str) -> Json:
    """Run `python -m MODULE ARGUMENTS --settings FILE` and read the JSON that it prints."""
    argv = [sys.executable, "-m", module, *arguments, "--settings", str(settings_file)]
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=dict(os.environ)
    )
    output, errors = await process.communicate()
    if not output.strip():
        raise StepFailed(f"{' '.join(argv[2:5])} failed: {errors.decode(errors='replace').strip()[-1000:]}")
    result: Json = json.loads(output)
    return result
