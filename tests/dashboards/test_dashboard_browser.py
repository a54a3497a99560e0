"""The dashboard as a process, in a real Chromium: every page, a rollback by hand, a trace's spans, the dark theme."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from dashboards import DashboardConfig, command
from dashboards.testing import FakeStack, browser, walk
from dashboards.testing.story import MODEL
from trimtab.ports import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path(browser.CHROMIUM).exists(), reason=f"needs Chromium at {browser.CHROMIUM}"),
]

# No less than a busy machine needs to draw a page: one that is drawn all the time never comes to stand.
REFRESH_SECONDS = 2.0


@pytest.fixture(scope="module")
def stack() -> Iterator[FakeStack]:
    with FakeStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def dashboard(stack: FakeStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a dashboard that looks at the stack."""
    config = stack.config(port=free_port(), refresh_seconds=REFRESH_SECONDS)
    yield from _served(config, tmp_path_factory.mktemp("dashboard"))


def _served(config: DashboardConfig, folder: Path) -> Iterator[str]:
    with (folder / "dashboard.log").open("w") as log:
        process = subprocess.Popen(command(config), stdout=log, stderr=subprocess.STDOUT)
        try:
            url = f"http://{config.host}:{config.port}"
            _await_health(url, process)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=60)


def _await_health(url: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            if httpx.get(f"{url}/_stcore/health").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"the dashboard ended with {process.returncode}")


def test_no_page_opened_by_its_address_has_an_error_box_a_notice_or_a_console_error(dashboard: str) -> None:
    assert walk(dashboard, menu=False, settle_seconds=0.2) == []


def test_no_page_reached_by_the_menu_has_one_and_none_comes_with_a_refresh(dashboard: str) -> None:
    assert walk(dashboard, pages=("",), settle_seconds=1.25 * REFRESH_SECONDS) == []


def test_the_walk_sees_a_service_that_is_away(stack: FakeStack, tmp_path: Path) -> None:
    config = replace(stack.config(port=free_port()), alerts_url=f"http://127.0.0.1:{free_port()}")
    for url in _served(config, tmp_path):
        problems = walk(url, pages=("", "alerts"), menu=False, settle_seconds=1.0)

    assert {problem.kind for problem in problems} == {"notice"}
    assert any("trimtab alerts" in problem.text for problem in problems)


def test_a_rollback_by_hand_needs_a_reason_and_survives_refreshes(dashboard: str, stack: FakeStack) -> None:
    stack.requests.clear()
    with browser.open_page() as page:
        page.goto(f"{dashboard}/alerts")
        page.get_by_role("button", name="Roll back").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Reason").wait_for()
        page.wait_for_timeout(2200 * REFRESH_SECONDS)  # two refreshes: the dialog must still be there
        assert not stack.requests
        dialog.get_by_label("Reason").fill("p99 doubled since noon")
        dialog.get_by_label("Reason").press("Enter")
        dialog.get_by_role("button", name="Roll back").click()
        dialog.wait_for(state="hidden")

    body = {"action": "rollback", "model": MODEL, "reason": "p99 doubled since noon", "actor": "dashboard"}
    assert stack.requests == [("POST", "/api/v1/actions", body)]


def test_a_release_is_decided_on_with_a_name_and_a_reason(dashboard: str, stack: FakeStack) -> None:
    stack.requests.clear()
    with browser.open_page() as page:
        page.goto(f"{dashboard}/releases")
        page.get_by_role("button", name="Decide on the release").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Reason").fill("the labels are good enough")
        dialog.get_by_label("Reason").press("Enter")
        dialog.get_by_role("button", name="Do it").click()
        dialog.wait_for(state="hidden")
    asked, stack.requests[:] = list(stack.requests), []

    body = {"actor": "dashboard", "reason": "the labels are good enough"}
    assert asked == [("POST", f"/api/v1/releases/{MODEL}/approve", body)]
