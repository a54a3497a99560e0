"""Walks every page of a running dashboard in a real Chromium and reports what a reader would stumble over."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import ConsoleMessage, Page, sync_playwright

PAGES = ("", "serving", "drift", "quality", "training", "releases", "alerts")
CHROMIUM = "/usr/bin/chromium"
_FLAGS = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--disable-domain-reliability",
    "--metrics-recording-only",
    "--disable-gpu",
)
_BROKEN = (
    ("exception", '[data-testid="stException"]'),
    ("error box", '[data-testid="stAlertContentError"]'),
    ("notice", ".tt-notice"),
)
# Chromium's words about its own hardware and about feature flags of the frontend; nothing a page can do about them.
_HARMLESS = re.compile(r"Unrecognized feature|WebGL|GPU stall|Canvas2D|preload", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong on a page: an exception, an error box, a notice (a service is away), an error on the console."""

    page: str
    kind: str
    text: str


def walk(
    base_url: str,
    *,
    pages: Sequence[str] = PAGES,
    menu: bool = True,
    settle_seconds: float = 3.0,
    notices: bool = True,
    chromium: str = CHROMIUM,
) -> list[Problem]:
    """Open the pages of the dashboard at `base_url`, stay through a refresh, and list the problems; none is good.

    Pages are opened by address and then, with `menu`, all of them by the menu. With `notices=False` lines about
    services that are away are let pass.
    """
    problems: list[Problem] = []
    with open_page(chromium) as page:
        where = [""]
        page.on("console", lambda message: problems.extend(_console(where[0], message)))
        page.on("pageerror", lambda error: problems.append(Problem(where[0], "page error", str(error)[:500])))
        for name in pages:
            where[0] = name or "overview"
            page.goto(f"{base_url.rstrip('/')}/{name}")
            problems += _look(page, where[0], settle_seconds, notices)
        links = page.locator('[data-testid="stSidebarNavLink"]').all() if menu else []
        for link in links:
            where[0] = f"{link.inner_text().strip()} (menu)"
            link.click()
            problems += _look(page, where[0], settle_seconds, notices)
    return problems


def screenshots(
    base_url: str,
    folder: Path,
    *,
    size: tuple[int, int] = (1440, 900),
    settle_seconds: float = 3.0,
    pages: Sequence[str] = PAGES,
    chromium: str = CHROMIUM,
) -> list[Path]:
    """A picture of every page as it opens and, as `…-full.png`, one of its whole height."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with open_page(chromium, size) as page:
        for name in pages:
            page.set_viewport_size({"width": size[0], "height": size[1]})
            page.goto(f"{base_url.rstrip('/')}/{name}")
            _settle(page, settle_seconds)
            paths.append(folder / f"{name or 'overview'}.png")
            page.screenshot(path=paths[-1])
            height = page.evaluate(
                "document.querySelector('[data-testid=\"stMainBlockContainer\"]').getBoundingClientRect().height"
            )
            page.set_viewport_size({"width": size[0], "height": max(size[1], int(height) + 8)})
            page.wait_for_timeout(900)
            paths.append(folder / f"{name or 'overview'}-full.png")
            page.screenshot(path=paths[-1])
    return paths


@contextmanager
def open_page(chromium: str = CHROMIUM, size: tuple[int, int] = (1440, 900)) -> Iterator[Page]:
    """A headless browser with one empty page."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(_FLAGS))
        try:
            page = browser.new_page(viewport={"width": size[0], "height": size[1]})
            page.set_default_timeout(90_000)
            yield page
        finally:
            browser.close()


def _settle(page: Page, seconds: float) -> None:
    """Wait until the page stands, and then as long as a refresh may need to break it."""
    page.locator(".tt-title").first.wait_for(timeout=90_000)
    charts = "[...document.querySelectorAll('[data-testid=\"stPlotlyChart\"]')]"
    page.wait_for_function(f"{charts}.every(chart => chart.querySelector('.main-svg'))")
    page.wait_for_function(
        '!document.querySelector(\'[data-testid="stApp"][data-test-script-state="running"]\')', timeout=90_000
    )
    page.wait_for_timeout(seconds * 1000)


def _look(page: Page, where: str, seconds: float, notices: bool) -> list[Problem]:
    _settle(page, seconds)
    return [
        Problem(where, kind, box.inner_text()[:500])
        for kind, selector in _BROKEN
        if notices or kind != "notice"
        for box in page.locator(selector).all()
    ]


def _console(where: str, message: ConsoleMessage) -> list[Problem]:
    # Opened by its address, the frontend first looks for its server under the page's own path.
    probe = "/_stcore/" in message.location.get("url", "")
    if message.type != "error" or probe or _HARMLESS.search(message.text):
        return []
    return [Problem(where, "console", message.text[:500])]
