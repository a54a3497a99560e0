"""A clock that is set by hand, a store and an engine in process, and a loopback server that receives hooks."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from alerts.labels import labels_of
from alerts.querier import QueryError, Sample, StoreAway, WriteError, samples_of
from alerts.schema import open_database
from collectors import query
from collectors.query import Engine
from collectors.store import Store
from tests.loopback import Quiet, served

START = 1_700_000_000.0


@dataclass
class FakeClock:
    """Unix seconds, moved by hand."""

    now: float = START

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        self.now += seconds
        return self.now


class Metering:
    """A store in process as the judge sees it: Querier and SampleWriter, and `scrape` for what is measured."""

    def __init__(self, clock: FakeClock) -> None:
        self.store = Store("sqlite://", clock=clock)
        self.engine = Engine(self.store)
        self.away = False

    def scrape(self, at: float, series: Mapping[str, float], target: str = "scrape") -> None:
        """Series as `name{label="value"}` texts with their values at a time."""
        samples = [(_labels(text), value) for text, value in series.items()]
        self.store.append(target, round(at * 1000), samples, stale=True)

    def instant(self, expr: str, at: float) -> Sequence[Sample]:
        if self.away:
            raise StoreAway("the store is away")
        try:
            return samples_of(self.engine.instant(expr, round(at * 1000)))
        except query.QueryError as error:
            raise QueryError(str(error)) from error

    def value(self, expr: str, at: float) -> float | None:
        found = self.instant(expr, at)
        assert len(found) <= 1, found
        return found[0].value if found else None

    def instants(self, exprs: Sequence[str], at: float) -> Sequence[Sequence[Sample] | QueryError]:
        answers: list[Sequence[Sample] | QueryError] = []
        for expr in exprs:
            try:
                answers.append(self.instant(expr, at))
            except StoreAway:
                raise
            except QueryError as error:
                answers.append(error)
        return answers

    def write(self, samples: Sequence[Sample], at: float) -> None:
        if self.away:
            raise WriteError("the store is away")
        self.store.append("rules", round(at * 1000), [(dict(s.labels), s.value) for s in samples], stale=False)

    def append(self, group: str, samples: Sequence[Sample], at: float) -> None:
        self._write(group, samples, at, stale=False)

    def replace(self, group: str, samples: Sequence[Sample], at: float) -> None:
        self._write(group, samples, at, stale=True)

    def _write(self, group: str, samples: Sequence[Sample], at: float, stale: bool) -> None:
        if self.away:
            raise WriteError("the store is away")
        pairs = [(dict(s.labels), s.value) for s in samples]
        self.store.append(f"push:{group}", round(at * 1000), pairs, stale=stale)


def _labels(text: str) -> dict[str, str]:
    name, _, rest = text.partition("{")
    pairs = [part.split("=", 1) for part in rest.rstrip("}").split(",") if part]
    return {"__name__": name, **{key: value.strip('"') for key, value in pairs}}


@dataclass
class HookServer:
    """A server that keeps what it is sent and honours idempotency keys: `effects` counts keys once."""

    url: str = ""
    status: int = 200
    statuses: list[int] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    arrived: threading.Event = field(default_factory=threading.Event)

    @property
    def effects(self) -> list[str]:
        return list(dict.fromkeys(r["headers"].get("Idempotency-Key", "") for r in self.requests))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def metering(clock: FakeClock) -> Metering:
    return Metering(clock)


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'alerts.db'}"


@pytest.fixture
def database(database_url: str) -> Iterator[sa.Engine]:
    engine = open_database(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def hook_server() -> Iterator[HookServer]:
    state = HookServer()
    state.gate.set()

    class Handler(Quiet):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state.requests.append(
                {"path": self.path, "headers": dict(self.headers), "raw": body, "body": json.loads(body)}
            )
            state.arrived.set()
            state.gate.wait(60)
            self.send_body(state.statuses.pop(0) if state.statuses else state.status, b'{"ok": true}')

    with served(Handler) as state.url:
        yield state
        state.gate.set()


@pytest.fixture
def make_rule_file(tmp_path: Path) -> Callable[[str], Path]:
    def make(text: str) -> Path:
        path = tmp_path / "rules.yml"
        path.write_text(text)
        return path

    return make


@pytest.fixture
def sample() -> Callable[..., Sample]:
    def make(name: str, value: float, **labels: str) -> Sample:
        return Sample(labels_of({"__name__": name, **labels}), value)

    return make
