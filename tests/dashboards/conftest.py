"""A stack to look at, in the states in which a reader may find it."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dashboards.launch import APP, DashboardConfig, arguments
from dashboards.testing import FakeStack


@pytest.fixture
def rich_stack() -> Iterator[FakeStack]:
    """A stack whose story has just come to its end: with one for all tests, the last would look at a later hour."""
    with FakeStack() as stack:
        yield stack


@pytest.fixture(scope="session")
def empty_stack() -> Iterator[FakeStack]:
    """A stack that has seen nothing yet."""
    with FakeStack(rich=False) as stack:
        yield stack


@pytest.fixture
def nobody() -> Iterator[DashboardConfig]:
    """URLs at which nobody listens, and nobody can as long as the test runs."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        yield DashboardConfig(query_url=url, alerts_url=url, serving_url=url)


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> Callable[[DashboardConfig, str], AppTest]:
    """Run the app as `streamlit run` does, with the page opened; the command line is the app's interface."""

    def open_(config: DashboardConfig, page: str) -> AppTest:
        monkeypatch.setattr(sys, "argv", [str(APP), *arguments(config)])
        test = AppTest.from_file(str(APP), default_timeout=240)
        test.run()
        return test if page == "overview" else test.switch_page(str(Path("views") / f"{page}.py")).run()

    return open_
