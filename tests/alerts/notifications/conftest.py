"""Our Alertmanager and the real one behind the same HTTP API, and a server that keeps the webhooks it is sent."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Path_

from alerts.notifications import Alertmanager, AlertmanagerApi, read_configuration
from alerts.schema import open_database
from tests.loopback import Quiet, served
from trimtab.ports import free_port


@dataclass
class Webhooks:
    """What was posted, by path; `statuses` are answered first, then 200; `headers` go with each answer."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)

    def bodies(self, path: str = "") -> list[Any]:
        return [request["body"] for request in list(self.requests) if request["path"].startswith(path)]

    def wait(self, count: int, path: str = "", seconds: float = 60.0) -> list[Any]:
        deadline = time.monotonic() + seconds
        while len(self.bodies(path)) < count:
            assert time.monotonic() < deadline, f"{len(self.bodies(path))} of {count} webhooks came: {self.requests}"
            time.sleep(0.02)
        return self.bodies(path)


@pytest.fixture
def webhooks() -> Iterator[Webhooks]:
    state = Webhooks()

    class Handler(Quiet):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            status = state.statuses.pop(0) if state.statuses else 200
            state.requests.append(
                {"path": self.path, "headers": dict(self.headers), "body": json.loads(raw), "status": status}
            )
            # What Telegram says.
            self.send_body(status, b'{"ok": true, "result": {"message_id": 1, "chat": {"id": 1}}}', state.headers)

        do_PUT = do_POST

    with served(Handler) as state.url:
        yield state


def _until_ready(url: str, path: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url + path).status_code == 200:
                return
        assert time.monotonic() < deadline, f"{url} does not answer"
        time.sleep(0.05)


@pytest.fixture
def real_alertmanager(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Starts a real Alertmanager on a configuration; its URL."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(configuration: str) -> str:
        folder = tmp_path / f"real{len(processes)}"
        folder.mkdir()
        (folder / "alertmanager.yml").write_text(configuration)
        port = free_port()
        processes.append(
            subprocess.Popen(
                [
                    "prometheus-alertmanager",
                    f"--config.file={folder / 'alertmanager.yml'}",
                    f"--storage.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                    "--web.external-url=http://am.example",
                    "--cluster.listen-address=",
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        url = f"http://127.0.0.1:{port}"
        _until_ready(url, "/-/ready")
        return url

    yield start
    for process in processes:
        process.terminate()
        process.wait()


@pytest.fixture
def our_alertmanager(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Starts ours on a configuration; its URL."""
    stops: list[Callable[[], None]] = []

    def start(configuration: str) -> str:
        engine = open_database(f"sqlite:///{tmp_path / f'ours{len(stops)}.db'}")
        manager = Alertmanager(engine, read_configuration(configuration), external_url="http://am.example")
        manager.start()
        server = uvicorn.Server(uvicorn.Config(app_of(manager), port=0, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)

        def stop() -> None:
            server.should_exit = True
            thread.join()
            manager.close()
            engine.dispose()

        stops.append(stop)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for stop in stops:
        stop()


def app_of(manager: Alertmanager) -> Starlette:
    """The API v2 alone."""

    def endpoint(call: Callable[[Request, bytes], Any]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            raw = await request.body()
            found = await run_in_threadpool(call, request, raw)
            return found if isinstance(found, Response) else JSONResponse(found)

        return answer

    table = AlertmanagerApi(manager).table()
    return Starlette(routes=[Path_(path, endpoint(call), methods=methods) for path, methods, call in table])
