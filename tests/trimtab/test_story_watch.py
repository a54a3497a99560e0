from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from observability.signing import HEADER, verify
from trimtab.demo.plan import MODEL
from trimtab.demo.watch import StepFailed, Watch, control
from trimtab.settings import General, QuerySettings, ServingSettings, Settings

SECRET = b"s3cret"


def action(identity: int, state: str, kind: str = "retrain", release: str | None = None) -> dict[str, Any]:
    return {"id": identity, "action": kind, "state": state, "labels": {"release": release} if release else {}}


def services(pages: list[Any]) -> Starlette:
    """All services in one: the journal shows one page after the other, the last one for ever; None is an error."""

    async def actions(request: Request) -> Response:
        page = pages.pop(0) if len(pages) > 1 else pages[0]
        return JSONResponse(page) if page is not None else Response("down", 503)

    async def canary(request: Request) -> Response:
        body = await request.body()
        verify(SECRET, request.headers.get(HEADER), body, time.time())
        return JSONResponse({"signed": True}) if b"2" in body else JSONResponse({"error": "no version 9"}, 404)

    async def query(request: Request) -> Response:
        if not pages:
            return Response("down", 503)
        # What was measured at that moment went with the collector if the page says so: only the present has it.
        then = float(request.query_params["time"]) == 1_700_000_000.5
        series = [("feature.temp", "0.4"), ("feature.wind", "1.5")] if then != (pages == ["lost"]) else []
        rows = [{"metric": {"column": name}, "value": [0, value]} for name, value in series]
        return JSONResponse({"status": "success", "data": {"resultType": "vector", "result": rows}})

    return Starlette(
        routes=[
            Route("/api/v1/actions", actions),
            Route("/api/v1/query", query),
            Route(f"/api/v1/models/{MODEL}/canary", canary, methods=["POST"]),
        ]
    )


def settings_for(url: str) -> Settings:
    port = urlsplit(url).port
    assert port is not None
    return msgspec.structs.replace(
        Settings(),
        trimtab=General(secret=SECRET.decode()),
        alerts=msgspec.structs.replace(Settings().alerts, port=port),
        serving=ServingSettings(url=url),
        query=QuerySettings(url=url),
    )


@asynccontextmanager
async def watching(url: str, traffic: Callable[[], Any] | None = None) -> AsyncIterator[Watch]:
    task = asyncio.create_task(traffic() if traffic else asyncio.sleep(60))
    async with httpx.AsyncClient() as http:
        yield Watch(settings_for(url), http, task)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_an_action_is_found_once_it_reaches_the_state_though_the_service_was_away(served: Any) -> None:
    url = served(services([None, [], [action(1, "running")], [action(1, "done")]]))

    async with watching(url) as watch:
        assert (await watch.action("retrain", 20.0))["state"] == "done"


async def test_an_action_of_another_kind_release_or_told_already_is_not_it(served: Any) -> None:
    rows = [action(1, "done"), action(2, "done", "rollback", "m-2"), action(3, "done", "rollback", "m-3")]
    url = served(services([rows]))

    async with watching(url) as watch:
        assert (await watch.action("rollback", 60.0, release="m-3"))["id"] == 3
        assert (await watch.action("rollback", 60.0, other_than={2}))["id"] == 3
        assert (await watch.action("rollback", 60.0, identity=2))["id"] == 2
        with pytest.raises(StepFailed, match=r"no promote within 0 s$"):
            await watch.action("promote", 0.3)


async def test_a_release_that_is_promoted_is_not_waited_for_to_be_rolled_back(served: Any) -> None:
    rows = [action(1, "done", "promote", "m-1"), action(2, "running", "promote", "m-2")]
    url = served(services([rows, [*rows, action(3, "done", "promote", "m-2")]]))

    async with watching(url) as watch:
        with pytest.raises(StepFailed, match=r"no rollback: release m-2 came to a promote$"):
            await watch.action("rollback", 60.0, release="m-2", unless="promote")


async def test_what_did_not_come_in_time_is_named_with_the_last_thing_seen(served: Any) -> None:
    async with watching(served(services([[action(7, "held")]]))) as watch:
        with pytest.raises(StepFailed, match=r"no retrain within 0 s; the last one: .*'held'"):
            await watch.action("retrain", 0.3)


async def test_the_end_of_the_traffic_is_the_end_of_every_wait() -> None:
    async def broken() -> None:
        raise RuntimeError("the collector refused labels")

    async def short() -> None:
        return

    async with watching("http://127.0.0.1:9", broken) as watch:
        with pytest.raises(StepFailed, match=r"the replay ended: .*refused labels"):
            await watch.rest(30.0)
    async with watching("http://127.0.0.1:9", short) as watch:
        with pytest.raises(StepFailed, match="ran out of flights"):
            await watch.action("retrain", 30.0)


async def test_drifted_columns_come_the_largest_first_though_the_collector_is_away_at_first(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = 1_700_000_000.5
    pages: list[Any] = []
    async with watching(served(services(pages))) as watch:
        asked = asyncio.create_task(watch.drifted_columns("1", at))
        await asyncio.sleep(0.4)
        assert not asked.done()
        pages.append([])  # the collector is back
        assert list((await asked).items()) == [("wind", 1.5), ("temp", 0.4)]
    async with watching(served(services(["lost"]))) as watch:
        assert list(await watch.drifted_columns("1", at)) == ["wind", "temp"]
    monkeypatch.setattr("trimtab.demo.watch.RESTART_SECONDS", 0.3)
    async with watching("http://127.0.0.1:9") as watch:
        assert await watch.drifted_columns("1", at) == {}


async def test_control_calls_are_signed_and_a_refusal_ends_the_step(served: Any) -> None:
    settings = settings_for(served(services([[]])))
    async with httpx.AsyncClient() as http:
        assert await control(settings, http, "canary", {"version": 2}) == {"signed": True}
        with pytest.raises(StepFailed, match="was refused: 404"):
            await control(settings, http, "canary", {"version": 9})
