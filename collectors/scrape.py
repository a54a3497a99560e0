"""Scraping: every target's page at every tick of the interval, stored at the tick's time."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx

from collectors.exposition import BadExposition, Page, read_page, with_target_labels
from collectors.store.store import Store
from collectors.targets import FileTargets, ScrapeTarget

ACCEPT = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
MAX_PAGE_BYTES = 64 * 1024 * 1024

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ScrapeResult:
    """How the last scrape of a target went; times in unix seconds and seconds."""

    target: ScrapeTarget
    at: float
    duration_seconds: float
    samples: int
    error: str | None

    @property
    def up(self) -> bool:
        return self.error is None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrapeSettings:
    """What is scraped, how often and how patiently."""

    targets: Sequence[ScrapeTarget] = ()
    file_sd: Sequence[str] = ()
    interval_seconds: float = 1.0
    timeout_seconds: float | None = None
    """None: the interval, at most 10 seconds."""

    def __post_init__(self) -> None:
        if self.interval_seconds <= 0 or (self.timeout_seconds is not None and self.timeout_seconds <= 0):
            raise ValueError(f"the scrape interval and timeout must be positive: {self}")

    @property
    def patience(self) -> float:
        return min(self.interval_seconds, 10.0) if self.timeout_seconds is None else self.timeout_seconds


@dataclass(slots=True)
class Scraper:
    """Scrapes into a store. `results` holds how each target's last scrape went."""

    store: Store
    settings: ScrapeSettings
    clock: Callable[[], float]
    results: dict[str, ScrapeResult] = field(default_factory=dict)
    _files: FileTargets = field(init=False)
    _running: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._files = FileTargets(self.settings.file_sd)

    def targets(self) -> list[ScrapeTarget]:
        """The targets now, each once."""
        return list({target.name: target for target in (*self.settings.targets, *self._files.targets())}.values())

    async def run(self) -> None:
        """Scrapes until cancelled. A target that still answers to the last tick skips this one."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        async with httpx.AsyncClient(limits=limits, timeout=self.settings.patience, trust_env=False) as client:
            try:
                while True:
                    tick = next_tick(self.clock(), self.settings.interval_seconds)
                    await asyncio.sleep(max(0.0, tick - self.clock()))
                    await self.start_tick(client, tick)
            finally:
                for task in self._running.values():
                    task.cancel()
                await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def start_tick(self, client: httpx.AsyncClient, tick: float) -> None:
        """Starts the scrapes of one tick (unix seconds), and ends the series of targets that are gone."""
        targets = await asyncio.to_thread(self.targets)
        names = {target.name for target in targets}
        for gone in [name for name in self.results if name not in names]:
            del self.results[gone]
            await asyncio.to_thread(self.store.mark_stale, gone, round(tick * 1000))
        self._running = {name: task for name, task in self._running.items() if not task.done()}
        for target in targets:
            if target.name not in self._running:
                self._running[target.name] = asyncio.create_task(self._guarded(client, target, tick))

    async def scrape(self, client: httpx.AsyncClient, target: ScrapeTarget, tick: float) -> ScrapeResult:
        """Scrapes one target and stores its page at `tick`; a failure is stored as `up` 0 and ends its series."""
        started = time.monotonic()
        page, error = await self._page(client, target)
        result = ScrapeResult(target, tick, time.monotonic() - started, len(page.samples), error)
        await asyncio.to_thread(self._keep, result, page)
        self.results[target.name] = result
        return result

    async def _guarded(self, client: httpx.AsyncClient, target: ScrapeTarget, tick: float) -> None:
        try:
            await self.scrape(client, target, tick)
        except Exception:  # the store failed: the next tick tries again, and the others go on
            logger.exception("the scrape of %s could not be stored", target.url)

    async def _page(self, client: httpx.AsyncClient, target: ScrapeTarget) -> tuple[Page, str | None]:
        try:
            async with asyncio.timeout(self.settings.patience):
                answer = await client.get(target.url, headers={"Accept": ACCEPT})
            answer.raise_for_status()
            if len(answer.content) > MAX_PAGE_BYTES:
                raise BadExposition(f"the page has {len(answer.content)} bytes, more than {MAX_PAGE_BYTES}")
            return await asyncio.to_thread(read_page, answer.text, answer.headers.get("content-type", "")), None
        except TimeoutError:
            return Page([]), f"no answer within {self.settings.patience} s"
        except (httpx.HTTPError, httpx.InvalidURL, BadExposition) as error:
            return Page([]), f"{type(error).__name__}: {error}"

    def _keep(self, result: ScrapeResult, page: Page) -> None:
        target, t_ms = result.target, round(result.at * 1000)
        labels = target.series_labels
        samples = [
            (with_target_labels(series, labels, target.honor_labels), value) for series, value, _ in page.samples
        ]
        samples += [
            ({"__name__": "up", **labels}, float(result.up)),
            ({"__name__": "scrape_duration_seconds", **labels}, result.duration_seconds),
            ({"__name__": "scrape_samples_scraped", **labels}, float(result.samples)),
        ]
        self.store.append(target.name, t_ms, samples)
        self.store.set_metadata(page.metadata)
        for exemplar in page.exemplars:
            series = with_target_labels(exemplar.series, labels, target.honor_labels)
            at = t_ms if exemplar.t_ms is None else exemplar.t_ms
            self.store.add_exemplar(series, exemplar.labels, exemplar.value, at)


def next_tick(now: float, interval: float) -> float:
    """The next multiple of the interval after `now`: stored times have no jitter."""
    return (math.floor(now / interval + 1e-9) + 1) * interval
