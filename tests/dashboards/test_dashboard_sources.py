"""What the dashboard sends and whom it asks: signatures on what acts, and a collector beside another Prometheus."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dashboards.launch import DashboardConfig
from dashboards.sources import Refused, Sources, Unavailable
from dashboards.testing import FakeStack
from dashboards.testing.stack import PATIENCE_SECONDS
from dashboards.testing.story import MODEL
from observability import signing

SECRET = b"a secret of the stack"
pytestmark = pytest.mark.slow


@pytest.fixture
def guarded_stack() -> Iterator[FakeStack]:
    """A stack that acts only on signed requests."""
    with FakeStack(secret=SECRET) as stack:
        yield stack


@contextmanager
def reader(stack: FakeStack, secret: bytes | None) -> Iterator[Sources]:
    def sign(body: bytes) -> dict[str, str]:
        return {signing.HEADER: signing.sign(secret or b"", body, time.time())}

    sources = Sources(
        stack.url("query"), stack.url("alerts"), stack.url("serving"), sign=sign if secret else None,
        patience_seconds=PATIENCE_SECONDS,
    )  # fmt: skip
    try:
        yield sources
    finally:
        sources.close()


DEEDS: dict[str, Callable[[Sources], object]] = {
    "ask for a rollback": lambda s: s.request_action("rollback", MODEL, "p99 doubled", "ada"),
    "approve": lambda s: s.decide("4", "approve", "ada"),
    "promote": lambda s: s.promote(MODEL, "3", "better", "key-1"),
    "roll back without a journal": lambda s: s.rollback(MODEL, "alerts is away", "key-2"),
}


@pytest.mark.parametrize("deed", DEEDS.values(), ids=DEEDS)
def test_what_acts_is_signed(guarded_stack: FakeStack, deed: Callable[[Sources], object]) -> None:
    with reader(guarded_stack, SECRET) as sources:
        deed(sources)

    assert len(guarded_stack.requests) == 1


@pytest.mark.parametrize("secret", [None, b"another secret"])
@pytest.mark.parametrize("deed", DEEDS.values(), ids=DEEDS)
def test_what_acts_is_refused_without_the_right_secret(
    guarded_stack: FakeStack, deed: Callable[[Sources], object], secret: bytes | None
) -> None:
    with reader(guarded_stack, secret) as sources, pytest.raises(Refused) as refusal:
        deed(sources)

    assert refusal.value.status == 401
    assert guarded_stack.requests == []


def test_a_page_signs_with_the_secret_of_its_file(
    open_page: Callable[[DashboardConfig, str], AppTest], guarded_stack: FakeStack, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(SECRET + b"\n")
    test = open_page(guarded_stack.config(secret_file=tmp_path / "secret"), "alerts")

    test.button(key="approve-4").click().run()

    assert [path for _, path, _ in guarded_stack.requests] == ["/api/v1/actions/4/approve"]


def test_drift_and_traces_come_from_the_collector_while_another_prometheus_answers_queries(
    rich_stack: FakeStack, empty_stack: FakeStack
) -> None:
    url = rich_stack.url
    sources = Sources(
        empty_stack.url("query"),
        url("alerts"),
        url("serving"),
        collector_url=url("query"),
        patience_seconds=PATIENCE_SECONDS,
    )

    assert sources.drift(MODEL)["windows"]
    assert sources.traces()
    assert sources.label_values("model") == []
    assert list(sources.health()) == ["query", "collector", "alerts", "serving"]
    sources.close()


def test_a_collector_that_is_away_is_named_once_when_it_answers_queries_too(
    rich_stack: FakeStack, nobody: DashboardConfig
) -> None:
    sources = Sources(
        nobody.query_url, rich_stack.url("alerts"), rich_stack.url("serving"), patience_seconds=PATIENCE_SECONDS
    )

    with pytest.raises(Unavailable) as away:
        sources.label_values("model")
    assert away.value.service == "collector"
    assert list(sources.health()) == ["collector", "alerts", "serving"]
    sources.close()


def test_a_service_that_does_not_answer_within_the_patience_is_away(rich_stack: FakeStack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        sources = Sources(url, rich_stack.url("alerts"), rich_stack.url("serving"), patience_seconds=0.4)
        with pytest.raises(Unavailable, match="no answer in time"):
            sources.label_values("model")
        sources.close()


def test_a_patience_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="patience_seconds is 0"):
        DashboardConfig(patience_seconds=0)
