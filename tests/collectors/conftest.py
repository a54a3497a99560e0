"""A collector on free ports in this process, time that moves when told to, and events to feed to both."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import uvicorn

from collectors.api import Collector, CollectorConfig, build
from collectors.spark import local_session
from observability.events import event_batch

# Quick to start rather than quick to run: the plain compiler, the plain collector, and no check of Spark's own classes.
QUICK_JAVA = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:+UnlockDiagnosticVMOptions -XX:-BytecodeVerificationRemote"


class FakeClock:
    """Time that moves when it is told to."""

    def __init__(self, now: float = 1_363_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Running:
    """A collector behind two real listeners; `intake` and `query` are clients of them."""

    def __init__(self, collector: Collector, intake: httpx.Client, query: httpx.Client) -> None:
        self.collector = collector
        self.intake = intake
        self.query = query

    def settled(self, seen: Callable[[], bool], seconds: float = 90.0) -> None:
        """Returns when `seen()` is true: measuring follows the answer on another thread."""
        until = time.monotonic() + seconds
        while not seen():
            assert time.monotonic() < until, "it did not come to be seen"
            threading.Event().wait(0.02)

    def values(self, expr: str, at: float) -> dict[tuple[tuple[str, str], ...], float]:
        answer = self.query.get("/api/v1/query", params={"query": expr, "time": at}).json()
        assert answer["status"] == "success", answer
        return {tuple(sorted(item["metric"].items())): float(item["value"][1]) for item in answer["data"]["result"]}


def make_events(
    rows: int = 100,
    *,
    prefix: str = "r",
    time_s: Any = 1_363_000_000.0,
    model: str = "delay",
    version: str = "1",
    outcome: Any = "ok",
    shift: float = 0.0,
    seed: int = 0,
) -> pa.RecordBatch:
    """Events with a numeric feature `x`, a categorical `carrier` and a prediction `p`."""
    generator = np.random.default_rng(seed)
    times = np.round(np.broadcast_to(np.asarray(time_s, float), (rows,)) * 1e9).astype(np.int64)
    return event_batch(
        ids=[f"{prefix}/{row}" for row in range(rows)],
        time_ns=times,
        model=model,
        version=version,
        outcome=outcome,
        latency_seconds=generator.exponential(0.01, rows),
        features={"x": generator.normal(shift, 1.0, rows), "carrier": generator.choice(["AA", "DL", "UA"], rows)},
        predictions={"p": generator.random(rows)},
    )


@contextlib.contextmanager
def running(config: CollectorConfig, clock: Callable[[], float]) -> Iterator[Running]:
    collector = build(config, clock)
    servers, threads, urls = [], [], []
    for app in (collector.intake_app, collector.query_app):
        listening = socket.create_server(("127.0.0.1", 0))
        urls.append(f"http://127.0.0.1:{listening.getsockname()[1]}")
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        servers.append(server)
        threads.append((thread, listening))
    try:
        with httpx.Client(base_url=urls[0], timeout=60) as intake, httpx.Client(base_url=urls[1], timeout=60) as query:
            yield Running(collector, intake, query)
    finally:
        for server in servers:
            server.should_exit = True
        for thread, listening in threads:
            thread.join()
            listening.close()
        collector.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def events() -> Callable[..., pa.RecordBatch]:
    return make_events


@pytest.fixture
def config(tmp_path: Path) -> CollectorConfig:
    return CollectorConfig(
        lake=tmp_path / "lake",
        store_url=f"sqlite:///{tmp_path / 'store.db'}",
        window_seconds=10.0,
        allowed_lateness_seconds=2.0,
    )


@pytest.fixture
def start() -> Callable[..., contextlib.AbstractContextManager[Running]]:
    """`with start(config, clock) as running:` — to stop and start a collector inside a test."""
    return running


@pytest.fixture
def collector(config: CollectorConfig, clock: FakeClock) -> Iterator[Running]:
    with running(config, clock) as made:
        yield made


@pytest.fixture(scope="session")
def events_of() -> Callable[..., pa.RecordBatch]:
    """The same, for tests that Hypothesis runs many times."""
    return make_events


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database: a SQLite file, and one of a PostgreSQL server."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    return str(request.getfixturevalue("postgresql_url"))


@pytest.fixture(scope="session")
def java() -> Iterator[None]:
    """Every Java machine that a test starts is quick to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JDK_JAVA_OPTIONS", QUICK_JAVA)
        yield


@pytest.fixture(scope="session")
def spark(java: None) -> Iterator[Any]:
    """One Spark on two cores for all that needs one: its Java machine takes longer to start than most tests."""
    session = local_session(2)
    session.conf.set("spark.sql.shuffle.partitions", "2")
    yield session
    session.stop()
