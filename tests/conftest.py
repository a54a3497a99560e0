"""What all tests share: patience, as the machines that run them may be busy, one TLS context, and who runs what."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from httpx._config import DEFAULT_TIMEOUT_CONFIG
from httpx._transports import default as transports
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

from trimtab.ports import free_port

# The machines that run them may be busy; and whether a commit passes must not hang on what Hypothesis draws this time:
# each test draws the same examples every time. `--hypothesis-profile=explore` draws others, to find what these do not.
_patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("trimtab", _patient, derandomize=True)
settings.register_profile("explore", _patient, derandomize=False)
settings.load_profile("trimtab")
# httpx gives up after five seconds where nothing else is said, as much of a test is; our services always say.
for _step in ("connect", "read", "write", "pool"):
    setattr(DEFAULT_TIMEOUT_CONFIG, _step, 60.0)

# Every client of httpx reads all certificate authorities, which takes longer than most tests; hardly one needs them.
_create = transports.create_ssl_context
_shared = cache(lambda trust_env: _create(trust_env=trust_env))


def _created(verify: Any = True, cert: Any = None, trust_env: bool = True) -> ssl.SSLContext:
    if verify is True and cert is None:
        return _shared(trust_env)
    return _create(verify=verify, cert=cert, trust_env=trust_env)


transports.create_ssl_context = _created


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files with slow tests first: the quick ones fill up the end, and no process is left alone with a long file.

    A slow test talks to real servers on a real clock, and fails once in a while where the machine stands still: it has
    one more try, and what went wrong at the first is told at the end (`-p no:rerunfailures`: none, to find such tests).
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items if config.pluginmanager.hasplugin("rerunfailures") else []:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes that are no words name no test: what gzip packs holds the second, and processes that collect the tests in
    different seconds would have different ones, for which xdist runs none at all.
    """
    return argname if isinstance(val, bytes) and not (val.isascii() and val.decode().isprintable()) else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show why tests failed that passed at the second try: each is a fault, of the test or of the product."""
    again = terminalreporter.getreports("rerun")
    if again:
        terminalreporter.section("failed at the first try")
    for report in again:
        terminalreporter.section(report.nodeid, sep="_")
        terminalreporter.line(report.longreprtext[-4000:])


# Files that share what takes long to make: a Java machine, the flights of a year.
TOGETHER = {
    "test_spark.py": "spark",
    "test_spark_stream.py": "spark",
    "test_flights.py": "flights",
    "test_flights_model.py": "flights",
}


class Together(LoadFileScheduling):
    """A file's tests run in one process, and so do those of files that share what one makes."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return TOGETHER.get(file.rpartition("/")[2], file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together | None:
    return Together(config, log) if config.getvalue("dist") == "loadfile" else None


def _postgresql_programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    path = shutil.which("initdb")
    return None if path is None else Path(path).parent


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL of a PostgreSQL server on a free port, started for these tests."""
    programs = _postgresql_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    port = free_port()
    # Not under pytest's folder: PostgreSQL refuses to run as root, and nobody else may enter that.
    folder = Path(tempfile.mkdtemp(prefix="trimtab-postgresql-"))
    user = "postgres" if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(folder, user, user)
    data = folder / "data"

    def command(program: str, *arguments: str) -> None:
        subprocess.run(
            [str(programs / program), *arguments],
            user=user,
            check=True,
            timeout=120,
            cwd=folder,
            stdout=subprocess.DEVNULL,
        )

    command("initdb", "-D", str(data), "-U", "trimtab", "--auth=trust", "--no-sync")
    # No socket in the file system: the name of a folder may be too long for one.
    settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
    command("pg_ctl", "-D", str(data), "-o", settings, "-l", str(folder / "log"), "-w", "start")
    yield f"postgresql+psycopg://trimtab@127.0.0.1:{port}/postgres"
    command("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgresql_url(postgresql_server: str) -> str:
    """The URL of an empty database of a PostgreSQL server."""
    engine = sa.create_engine(postgresql_server)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    engine.dispose()
    return postgresql_server
