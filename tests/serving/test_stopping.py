"""How a server ends: what its signals mean, at any moment of its life, and what probes see of it meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from serving import Service, ServingConfig
from serving.fleet.app import RelayApp
from tests.serving.fleet_processes import PATIENCE, ROW
from trimtab.ports import free_port

pytestmark = pytest.mark.slow
INFER = "/v2/models/fares/infer"
Begin = Callable[..., subprocess.Popen[bytes]]

PROGRAM = """
    import json, signal, sys
    from pathlib import Path
    from serving import ServingConfig, serve
    from serving.fleet import FleetOptions
    given = json.loads(sys.argv[1])
    # Otherwise it is as whoever started the tests has it: their children inherit that it is ignored.
    signal.signal(signal.SIGHUP, signal.SIG_IGN if given.pop("nohup", False) else signal.SIG_DFL)
    fleet = FleetOptions(replicas=given.pop("replicas", 1))
    folder = Path(given.pop("artifacts"))
    serve(
        ServingConfig(artifacts_dir=folder, fleet=fleet, **given), "INFO",
        lambda server: print(server.port, flush=True),
    )
"""


@pytest.fixture
def begin(tmp_path: Path, registry_url: str, gate: tuple[str, Path]) -> Iterator[Begin]:
    """Starts servers with the models `fares` and `gate` in a process of their own; all have ended behind the test."""
    begun: list[subprocess.Popen[bytes]] = []

    def start(**options: Any) -> subprocess.Popen[bytes]:
        given = {
            "registry_url": registry_url, "artifacts": str(tmp_path / "artifacts"), "port": 0, "drain_notice": 0.0,
            "architectures": [gate[0]], **options,
        }  # fmt: skip
        path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
        with (tmp_path / "server.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(PROGRAM), json.dumps(given)], stdout=subprocess.PIPE, stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            )  # fmt: skip
        begun.append(process)
        return process

    yield start
    for process in begun:
        if process.poll() is None:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def port_of(process: subprocess.Popen[bytes]) -> int:
    """Its port, once it is ready."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line
    return int(line)


async def ended(process: subprocess.Popen[bytes]) -> int:
    return await asyncio.to_thread(process.wait, PATIENCE)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    limit = time.monotonic() + PATIENCE
    while not await condition():
        assert time.monotonic() < limit
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("replicas", [1, 2])
async def test_ctrl_c_again_ends_a_server_that_waits_for_a_request(
    replicas: int, begin: Begin, gate: tuple[str, Path]
) -> None:
    process = begin(replicas=replicas, drain_timeout=3600.0)
    url = f"http://127.0.0.1:{await asyncio.to_thread(port_of, process)}"
    children = psutil.Process(process.pid).children()
    gate[1].unlink()
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=PATIENCE) as client:
        stuck = asyncio.create_task(client.post("/v2/models/gate/infer", json=ROW))

        async def taken() -> bool:
            return (await client.get("/load")).json()["in_flight_requests"] > 0

        await until(taken)
        process.send_signal(signal.SIGINT)

        async def draining() -> bool:
            try:
                return (await client.get("/v2/health/ready")).status_code == 503
            except httpx.TransportError:
                return True

        await until(draining)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)  # says nothing new
        await asyncio.sleep(0.1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        with pytest.raises(httpx.TransportError):
            await stuck

    assert await ended(process) == 0
    assert psutil.wait_procs(children, timeout=PATIENCE)[1] == []


@pytest.mark.parametrize("replicas", [1, 2])
async def test_the_end_of_the_terminal_drains_and_nohup_keeps_the_server(replicas: int, begin: Begin) -> None:
    closed, kept = begin(replicas=replicas), begin(replicas=replicas, nohup=True)
    for process in (closed, kept):
        await asyncio.to_thread(port_of, process)
        for one in (process.pid, *(child.pid for child in psutil.Process(process.pid).children())):
            os.kill(one, signal.SIGHUP)  # as the terminal does: to all that it started

    assert await ended(closed) == 0
    assert kept.poll() is None
    kept.terminate()
    assert await ended(kept) == 0


async def test_a_server_that_is_told_to_end_before_it_is_ready_loads_nothing_more(
    begin: Begin, gate: tuple[str, Path], tmp_path: Path
) -> None:
    gate[1].unlink()
    port = free_port()
    process = begin(port=port, models=["gate", "fares"])
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:

        async def loading() -> bool:
            try:
                found = (await client.get("/v2/repository/index")).json()
            except httpx.TransportError:
                return False
            return any(version["state"] == "LOADING" for version in found)

        await until(loading)
        process.send_signal(signal.SIGTERM)

        async def draining() -> bool:
            try:
                return "draining" in (await client.get("/v2/health/ready")).text
            except httpx.TransportError:
                return True

        await until(draining)
    gate[1].touch()

    assert await ended(process) == 0
    assert "serving on" not in (tmp_path / "server.log").read_text()


async def test_a_front_that_drains_is_ready_for_no_model() -> None:
    away: list[str] = []

    class Replicas:
        def call(self, _request: Any, respond: Callable[[int, bytes, bytes], None]) -> None:
            respond(200, b"", b"{}")

    app = RelayApp(Replicas(), None, lambda: away[0] if away else None, None, None, time.perf_counter)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://front") as client:
        paths = ["/v2/models/a%2Fb/ready", "/v2/models/fares/versions/2/ready", "/v2/models/fares"]
        before = [(await client.get(path)).status_code for path in paths]
        away.append("the server is draining")
        draining = [await client.get(path) for path in paths]

    assert before == [200, 200, 200]
    assert [answer.status_code for answer in draining] == [503, 503, 200]
    assert draining[0].json() == {"ready": False, "error": "the server is draining"}


async def test_a_models_readiness_is_that_of_a_server_that_answers(
    gate: tuple[str, Path], registry_url: str, tmp_path: Path
) -> None:
    gate[1].unlink()
    service = Service(
        ServingConfig(
            registry_url=registry_url, artifacts_dir=tmp_path / "artifacts", port=0, drain_notice=PATIENCE,
            models=("fares", "gate"), architectures=(gate[0],),
        )
    )  # fmt: skip
    starting = asyncio.create_task(service.start())

    async def first_is_loaded() -> bool:
        return bool(service.deployments.get("fares") and service.deployments["fares"].ready)

    await until(first_is_loaded)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", trust_env=False) as client:
        while_starting = [
            await client.get("/v2/models/fares/ready"),
            await client.post("/v2/models/fares/infer", json=ROW),
        ]
        gate[1].touch()
        await starting
        when_ready = [await client.get("/v2/models/fares/ready"), await client.post(INFER, json=ROW)]
        hurried = asyncio.Event()
        draining = asyncio.create_task(service.drain(hurried))
        await asyncio.sleep(0)
        while_draining = await client.get("/v2/models/fares/versions/1/ready")
        hurried.set()
        await draining

    assert [answer.status_code for answer in while_starting] == [503, 503]
    assert [answer.status_code for answer in when_ready] == [200, 200]
    assert (while_draining.status_code, while_draining.json()["error"]) == (503, "the server is draining")
