"""Small real servers on free ports, and the command line run in this process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import uvicorn
from click.testing import CliRunner, Result

from trimtab.cli import cli
from trimtab.demo.flights import load_flights


@pytest.fixture(scope="session")
def flights_cache(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table]:
    """The folder in which the flights are kept once they are read, and the table as it was first read."""
    folder = tmp_path_factory.mktemp("flights")
    return folder, load_flights(folder)


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Callable[[Any], str]:
    """Serves an ASGI application until the end of the test; gives its URL."""

    def serve(app: Any) -> str:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()

        def stop() -> None:
            server.should_exit = True
            thread.join()
            listener.close()

        request.addfinalizer(stop)
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    return serve


@pytest.fixture
def trimtab() -> Callable[..., Result]:
    """Runs `trimtab ARGUMENTS`; an exception that a user would see as a traceback fails the test."""

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
