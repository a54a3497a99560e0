"""What stops a query: too many samples, its time, its client gone, too many others; and what clients then read."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette

from collectors.query import Engine, Matrix, QueryApi, QueryError, query_app
from collectors.store import Block, Matcher, Store

NOW = 1_700_000_000.0
MANY = 50


class Gated:
    """A store that answers for `slow` only when told to, and says which metrics it was asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.gate = threading.Event()
        self.asked: list[str] = []

    def select_blocks(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[Block]:
        name = next(matcher.value for matcher in matchers if matcher.name == "__name__")
        self.asked.append(name)
        if name == "slow":
            assert self.gate.wait(60)
        return self._store.select_blocks(matchers, start_ms, end_ms)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.fixture
def store() -> Iterator[Store]:
    found = Store("sqlite://", clock=lambda: NOW)
    for step in range(20):
        samples = [({"__name__": name, "i": str(i)}, float(step)) for name in ("slow", "quick") for i in range(MANY)]
        found.append("t", int(NOW * 1000) - 300_000 + step * 15_000, samples)
    yield found
    found.close()


@contextlib.contextmanager
def serving(reader: Any, **settings: Any) -> Iterator[str]:
    """The API's address while it runs."""
    engine = Engine(reader, max_samples=settings.pop("max_samples", 1_000_000))
    app = query_app(engine, reader, clock=lambda: NOW, **settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/api/v1"
    finally:
        server.should_exit = True
        thread.join()


def until(condition: Any) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it did not come to that within a minute")


@pytest.mark.parametrize(
    "expr",
    ["quick[5m]", "sum(quick)", "rate(quick[1m])", "sum_over_time(vector(1)[30d:1s])", "max_over_time(quick[5m])"],
)
def test_a_query_that_needs_too_many_samples_is_refused_as_prometheus_refuses_it(store: Store, expr: str) -> None:
    engine = Engine(store, max_samples=MANY - 1)

    with pytest.raises(QueryError) as caught:
        engine.instant(expr, int(NOW * 1000))

    assert caught.value.kind == "execution"
    assert str(caught.value) == "query processing would load too many samples into memory in query execution"


def test_many_steps_of_many_series_are_too_many_samples(store: Store) -> None:
    engine = Engine(store, max_samples=MANY * 100)
    end = int(NOW * 1000)

    assert isinstance(engine.range("quick", end - 99_000, end, 1000), Matrix)
    with pytest.raises(QueryError, match="too many samples"):
        engine.range("quick", end - 200_000, end, 1000)


def test_too_many_samples_are_422_over_http(store: Store) -> None:
    with serving(store, max_samples=MANY - 1) as url:
        answer = httpx.get(f"{url}/query", params={"query": "quick"})

    assert answer.status_code == 422
    assert answer.json()["errorType"] == "execution"


def test_a_query_whose_time_is_up_is_503_at_once_and_stops(store: Store) -> None:
    reader = Gated(store)
    with serving(reader) as url:
        answer = httpx.get(f"{url}/query", params={"query": "slow + quick", "timeout": "200ms"}, timeout=60)
        reader.gate.set()

        assert answer.status_code == 503
        assert answer.json()["errorType"] == "timeout"
        assert answer.json()["error"] == "query timed out in expression evaluation"
        # Others are answered, and the rest of the expression was not evaluated.
        assert httpx.get(f"{url}/query", params={"query": "slow"}).status_code == 200
    assert "quick" not in reader.asked


def test_a_query_that_waits_for_others_too_long_says_so(store: Store) -> None:
    reader = Gated(store)
    with serving(reader, max_concurrency=1) as url, httpx.Client(timeout=60) as http:
        held = threading.Thread(target=lambda: httpx.get(f"{url}/query", params={"query": "slow"}, timeout=60))
        held.start()
        until(lambda: "slow" in reader.asked)
        answer = http.get(f"{url}/query", params={"query": "quick", "timeout": "0.2"})
        reader.gate.set()
        held.join()

        assert answer.status_code == 503
        assert answer.json() == {"status": "error", "errorType": "timeout", "error": "query timed out in query queue"}
        assert http.get(f"{url}/query", params={"query": "quick"}).status_code == 200


def test_a_query_whose_client_is_gone_stops(store: Store) -> None:
    reader = Gated(store)
    api = QueryApi(Engine(reader), reader, clock=lambda: NOW)
    scope = {
        "type": "http", "method": "GET", "path": "/api/v1/query", "query_string": b"query=slow%2Bquick", "headers": [],
    }  # fmt: skip
    heard = iter(({"type": "http.request", "body": b""}, {"type": "http.disconnect"}))
    sent: list[Any] = []

    async def receive() -> Any:
        return next(heard)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Starlette(routes=list(api.routes()))(scope, receive, send))
    reader.gate.set()
    api.close()

    assert sent[0]["status"] == 503
    assert b'"errorType":"canceled"' in sent[1]["body"]
    assert reader.asked == ["slow"]


def test_answers_are_compressed_for_clients_that_take_it(store: Store) -> None:
    with serving(store) as url:
        with httpx.stream("GET", f"{url}/query", params={"query": "quick"}) as packed:
            body = b"".join(packed.iter_raw())
        plain = httpx.get(f"{url}/query", params={"query": "quick"}, headers={"Accept-Encoding": "identity"})
        small = httpx.get(f"{url}/query", params={"query": "1"})

    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert "content-encoding" not in small.headers
    assert gzip.decompress(body) == plain.content


def test_a_batch_answers_each_expression_and_computes_once_what_they_share(store: Store) -> None:
    reader = Gated(store)
    with serving(reader) as url:
        form = {"query": ["sum(rate(quick[1m]))", "max(rate(quick[1m]))", "sum(", "count(rate(quick[1m])) > 60"]}
        answers = httpx.post(f"{url}/query_batch", data=form).json()["data"]

    assert [answer["status"] for answer in answers] == ["success", "success", "error", "success"]
    assert answers[0]["data"]["result"][0]["value"][1] == "3.3333333333333335"
    assert answers[2]["error"] == "1:5: parse error: unclosed left parenthesis"
    assert answers[3]["data"]["result"] == []
    assert reader.asked == ["quick"]


def test_later_queries_at_the_same_time_use_what_the_first_left_until_samples_come(store: Store) -> None:
    asked: list[tuple[Matcher, ...]] = []

    class Counted(Gated):
        def version(self) -> int:
            return self._store.version()

        def select_blocks(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[Block]:
            asked.append(tuple(matchers))
            return self._store.select_blocks(matchers, start_ms, end_ms)

    engine, at = Engine(Counted(store)), int(NOW * 1000)
    before = engine.instant("sum(quick)", at)
    engine.instant("sum(quick) + 1", at)

    assert len(asked) == 1
    store.append("t", at, [({"__name__": "quick", "i": "new"}, 1000.0)], stale=False)
    assert engine.instant("sum(quick)", at) != before
    assert len(asked) == 2
