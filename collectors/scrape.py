"""Scraping: every target's page at every tick of its interval, stored at the tick's time."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import httpx
import numpy as np

from collectors.formats import Lines, read_lines
from collectors.scraping.client import Clients, clients
from collectors.scraping.config import PROTOCOLS, ScrapeConfig
from collectors.scraping.discovery import USER_AGENT, Discovery
from collectors.scraping.samples import Samples, SeriesCache, Taken
from collectors.scraping.target import Pool, Target, pool_of
from collectors.store.limits import LimitExceeded
from collectors.store.store import Store
from collectors.store.values import Append, Columns, Exemplar, Labels
from collectors.targets import ScrapeTarget, files_config

MAX_PAGE_BYTES = 64 * 1024 * 1024
# How often files are looked at, and targets that came or went are started or ended.
SYNC_SECONDS = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ScrapeResult:
    """How the last scrape of a target went; `at` in unix seconds. The counts are those of `Taken`."""

    target: Target
    at: float
    duration_seconds: float
    samples: int
    error: str | None
    kept: int = 0
    added: int = 0

    @property
    def up(self) -> bool:
        return self.error is None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrapeSettings:
    """What is scraped: targets and files at one interval, and configurations that have their own."""

    targets: Sequence[ScrapeTarget] = ()
    file_sd: Sequence[str] = ()
    interval_seconds: float = 1.0
    timeout_seconds: float | None = None
    """None: the interval, at most 10 seconds."""
    configs: Sequence[ScrapeConfig] = ()

    def __post_init__(self) -> None:
        if self.interval_seconds < 0.001 or (self.timeout_seconds is not None and self.timeout_seconds < 0.001):
            raise ValueError(f"the scrape interval and timeout must be at least a millisecond: {self}")

    @property
    def patience(self) -> float:
        return min(self.interval_seconds, 10.0) if self.timeout_seconds is None else self.timeout_seconds

    def all_configs(self) -> list[ScrapeConfig]:
        """One configuration for each target, one for the files, and the others."""
        interval_ms = round(self.interval_seconds * 1000)
        timeout_ms = min(round(self.patience * 1000), interval_ms)
        own = [target.config(interval_ms, timeout_ms) for target in self.targets]
        files = [files_config(self.file_sd, interval_ms, timeout_ms)] if self.file_sd else []
        return [*own, *files, *self.configs]


@dataclass(slots=True)
class ScrapePool:
    """A configuration and its targets as they were last looked up."""

    config: ScrapeConfig
    discovery: Discovery
    targets: Pool = field(default_factory=Pool)

    @property
    def refusal(self) -> str | None:
        """Why none of the targets is scraped: there are too many."""
        count, limit = len(self.targets.active), self.config.target_limit
        return f"target_limit exceeded (number of targets: {count}, limit: {limit})" if 0 < limit < count else None


@dataclass(slots=True)
class _Loop:
    target: Target
    task: asyncio.Task[None]
    last_ms: int = 0


class Scraper:
    """Scrapes into a store. `results` holds how each target's last scrape went, `pools` which targets there are."""

    def __init__(self, store: Store, settings: ScrapeSettings, clock: Callable[[], float]) -> None:
        self.store = store
        self.settings = settings
        self.clock = clock
        self.results: dict[str, ScrapeResult] = {}
        self.pools = [ScrapePool(config, Discovery(config)) for config in settings.all_configs()]
        self._asking: list[tuple[ScrapePool, asyncio.Task[None]]] = []
        self._caches: dict[str, SeriesCache] = {}
        self._columns: dict[str, tuple[list[Labels], Columns]] = {}
        self._loops: dict[str, _Loop] = {}

    def configure(self, configs: Sequence[ScrapeConfig]) -> None:
        """Takes these for the further configurations; the next round begins and ends targets. Any thread may call it.

        A configuration that stays as it was goes on undisturbed, and of a URL that stays the answers are known.
        """
        self.settings = replace(self.settings, configs=configs)
        before = [pool.discovery for pool in self.pools]
        self.pools = [
            next((pool for pool in self.pools if pool.config == config), None)
            or ScrapePool(config, Discovery(config, before))
            for config in self.settings.all_configs()
        ]

    def look_up(self) -> dict[str, tuple[Target, str | None]]:
        """The targets now, each once, with the reason why it must not be asked, if there is one."""
        found: dict[str, tuple[Target, str | None]] = {}
        for pool in self.pools:
            targets = pool_of(pool.config, pool.discovery.groups())
            for error in targets.errors:
                if error not in pool.targets.errors:
                    logger.warning("a target of job %s cannot be scraped: %s", pool.config.job, error)
            pool.targets = targets
            refusal = pool.refusal
            for name, target in targets.active.items():
                found.setdefault(name, (target, refusal))
        return found

    async def run(self) -> None:
        """Scrapes until cancelled. A target that still answers to the last tick skips this one."""
        async with clients() as opened:
            try:
                while True:
                    try:
                        await self.sync(opened)
                    except Exception:  # the store failed: the next round tries again, and the targets go on
                        logger.exception("the targets could not be brought up to date")
                    await asyncio.sleep(min([SYNC_SECONDS, *(pool.config.interval_ms / 1000 for pool in self.pools)]))
            finally:
                running = [*(task for _, task in self._asking), *(loop.task for loop in self._loops.values())]
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def sync(self, opened: Clients) -> None:
        """Begins with the targets that are new, and ends the series of those that are gone."""
        await self._ask(opened)
        found = await asyncio.to_thread(self.look_up)
        gone = [name for name in self._loops if name not in found]
        for name in gone:
            await self._end(name)
        for name, (target, _) in found.items():
            last_ms = 0
            if name in self._loops:
                if self._loops[name].target.config == target.config:
                    continue
                last_ms = await self._leave(name)
            self._loops[name] = _Loop(target, asyncio.create_task(self._follow(opened, target)), last_ms)

    async def _ask(self, opened: Clients) -> None:
        """Asks the URLs of the pools that there are now, and no others."""
        pools = list(self.pools)
        for pool, task in self._asking:
            if not any(pool is other for other in pools):
                task.cancel()
        kept = [(pool, task) for pool, task in self._asking if not task.cancelling()]
        new = [pool for pool in pools if pool.config.urls and not any(pool is known for known, _ in kept)]
        self._asking = kept + [(pool, asyncio.create_task(pool.discovery.run(opened))) for pool in new]

    async def scrape(self, opened: Clients, target: Target, tick: float, refusal: str | None = None) -> ScrapeResult:
        """Scrapes one target and stores its page at `tick`; a failure is stored as `up` 0 and ends its series.

        With a `refusal` it is not asked: that is its error.
        """
        started = time.monotonic()
        body, content_type, error = (b"", "", refusal) if refusal else await self._body(opened, target)
        keeping = asyncio.ensure_future(asyncio.to_thread(self._keep, target, tick, started, body, content_type, error))
        try:
            result = await asyncio.shield(keeping)
        except asyncio.CancelledError:
            await keeping
            raise
        self.results[target.name] = result
        return result

    async def _follow(self, opened: Clients, target: Target) -> None:
        interval = target.interval_ms / 1000
        while True:
            tick = next_tick(self.clock(), interval)
            await asyncio.sleep(max(0.0, tick - self.clock()))
            refusal = next((pool.refusal for pool in self.pools if target.name in pool.targets.active), None)
            try:
                await self.scrape(opened, target, tick, refusal)
            except Exception:  # the store failed: the next tick tries again, and the others go on
                logger.exception("the scrape of %s could not be stored", target.url)
            if target.name in self._loops:
                self._loops[target.name].last_ms = round(tick * 1000)

    async def _leave(self, name: str) -> int:
        """Ends the loop of a target, and what is known of its pages; the time of its last scrape in milliseconds."""
        loop = self._loops.pop(name)
        loop.task.cancel()
        await asyncio.gather(loop.task, return_exceptions=True)
        for kept in (self._caches, self._columns):
            kept.pop(name, None)
        return loop.last_ms

    async def _end(self, name: str) -> None:
        last_ms = await self._leave(name)
        self.results.pop(name, None)
        ended_ms = max(round(self.clock() * 1000), last_ms + 1)
        await asyncio.to_thread(self.store.mark_stale, name, ended_ms)

    async def _body(self, opened: Clients, target: Target) -> tuple[bytes, str, str | None]:
        """The page, its content type, and what went wrong."""
        config, seconds = target.config, target.timeout_ms / 1000
        headers = {
            "Accept": config.accept,
            "Accept-Encoding": "gzip" if config.compression else "identity",
            "User-Agent": USER_AGENT,
            "X-Prometheus-Scrape-Timeout-Seconds": f"{seconds:g}",
        }
        limit = config.limits.body_bytes or MAX_PAGE_BYTES
        parts, size = [], 0
        try:
            async with asyncio.timeout(seconds):
                client = opened.get(config.client)
                extensions = dict(config.client.extensions)
                async with client.stream("GET", target.url, headers=headers, extensions=extensions) as answer:
                    if answer.status_code != httpx.codes.OK:
                        status = f"{answer.status_code} {answer.reason_phrase}"
                        return b"", "", f"server returned HTTP status {status}"
                    async for part in answer.aiter_bytes():
                        size += len(part)
                        if size >= limit:
                            return b"", "", f"body size limit exceeded: the page has at least {size} bytes of {limit}"
                        parts.append(part)
            return b"".join(parts), answer.headers.get("content-type", ""), None
        except TimeoutError:
            return b"", "", f"no answer within {seconds:g} s: context deadline exceeded"
        except Exception as error:  # whatever went wrong between here and the page, the target is down
            return b"", "", f"{type(error).__name__}: {error}"

    def _keep(
        self, target: Target, tick: float, started: float, body: bytes, content_type: str, error: str | None
    ) -> ScrapeResult:
        t_ms = round(tick * 1000)
        taken, lines = Taken(), Lines()
        if error is None and body:
            lines, taken = self._taken(target, t_ms, body, content_type)
            error = taken.error
        result = ScrapeResult(target, tick, time.monotonic() - started, taken.scraped, error, taken.kept, taken.added)
        try:
            self._append(target.name, t_ms, taken if error is None else Taken(), result)
            if error is None:
                self._store_beside(target, t_ms, taken, lines)
        except LimitExceeded as refused:
            result = replace(result, error=str(refused))
            self._append(target.name, t_ms, Taken(), result)
        return result

    def _append(self, name: str, t_ms: int, taken: Taken, result: ScrapeResult) -> None:
        """Appends the vector of a scrape. Series that are the same objects as last time are not looked up again."""
        report = _report(result)
        labels = [*taken.series, *(item for item, _ in report)]
        known = self._columns.get(name)
        if known is None or known[0] != labels:
            known = self._columns[name] = labels, self.store.columns(name, labels)
        values = np.array([*taken.values, *(value for _, value in report)], np.float64)
        self.store.append_values(known[1], t_ms, values)

    def _taken(self, target: Target, t_ms: int, body: bytes, content_type: str) -> tuple[Lines, Taken]:
        config = target.config
        fallback = PROTOCOLS.get(config.fallback_protocol, "text/plain").split(";")[0]
        cache = self._caches.setdefault(target.name, SeriesCache())
        lines = read_lines(body, content_type, cache.known, fallback=fallback, layout=cache.layout)
        return lines, cache.take(lines, config, target.series_labels, t_ms)

    def _store_beside(self, target: Target, t_ms: int, taken: Taken, lines: Lines) -> None:
        """Stores what is not part of the vector at the tick: samples with times of their own, exemplars, metadata."""
        if taken.ahead:
            logger.warning("%d samples of %s are too far into the future", taken.ahead, target.url)
        # Samples with times of their own are of no source: they do not end with the page.
        self.store.write([Append("", at_ms, taken.timed[at_ms]) for at_ms in sorted(taken.timed)])
        self.store.set_metadata(lines.metadata)
        exemplars = [
            Exemplar(series, item.labels, item.value, t_ms if item.t_ms is None else item.t_ms)
            for series, item in taken.exemplars
        ]
        if exemplars:
            self.store.add_exemplars(exemplars)


def _report(result: ScrapeResult) -> Samples:
    """The series about the scrape. As in Prometheus they lose a target's `exported_X` where there is an X after it."""
    own = result.target.series_labels
    labels = {
        name: value
        for name, value in own.items()
        if not (name.startswith("exported_") and (bare := name.removeprefix("exported_")) in own and bare > name)
    }
    values = {
        "up": float(result.up),
        "scrape_duration_seconds": result.duration_seconds,
        "scrape_samples_scraped": float(result.samples),
        "scrape_samples_post_metric_relabeling": float(result.kept),
        "scrape_series_added": float(result.added),
    }
    return [({**labels, "__name__": name}, value) for name, value in values.items()]


def next_tick(now: float, interval: float) -> float:
    """The next multiple of the interval after `now`: stored times have no jitter."""
    return (math.floor(now / interval + 1e-9) + 1) * interval
