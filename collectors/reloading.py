"""The scrape configuration: read at the start, on request and when its file changes; used only if it is right."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from collectors.query import Configuration
from collectors.scrape import Scraper
from collectors.scraping import BadConfig, ScrapeFile, WatchedFile, config_text
from collectors.scraping.config_fields import Global
from collectors.signals import Signals
from observability import names
from observability.durations import duration_text

LOOK_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Reloads:
    """What a scraper's file says. Without one the scraper keeps what its settings say, and a reload changes nothing."""

    def __init__(self, path: Path | None, scraper: Scraper, signals: Signals, clock: Callable[[], float]) -> None:
        """Reads the file. BadConfig."""
        self._file = None if path is None else WatchedFile(path)
        self._scraper = scraper
        self._signals = signals
        self._clock = clock
        self._lock = threading.Lock()
        self._given = tuple(scraper.settings.configs)
        interval = duration_text(round(scraper.settings.interval_seconds * 1000))
        patience = duration_text(round(scraper.settings.patience * 1000))
        self._read = ScrapeFile(shared=Global(scrape_interval=interval, scrape_timeout=patience), configs=())
        self._loaded, self._loaded_at = True, clock()
        self.reload()

    def reload(self) -> None:
        """Reads the file and scrapes by it. BadConfig: what was in effect stays."""
        with self._lock:
            try:
                if self._file is not None:
                    self._read = self._file.read()
                    self._scraper.configure((*self._given, *self._read.configs))
            except BadConfig:
                self._loaded = False
                raise
            else:
                self._loaded, self._loaded_at = True, self._clock()
                self._signals.metrics[names.CONFIG_LOADED_AT].set(self._loaded_at)
            finally:
                self._signals.metrics[names.CONFIG_LOADED].set(float(self._loaded))

    def reload_or_log(self) -> None:
        """Reads the file; one that is wrong is logged."""
        try:
            self.reload()
        except BadConfig as error:
            logger.error("the scrape configuration stays as it was: %s", error)
        else:
            logger.info("the scrape configuration has been read")

    def look(self) -> None:
        """Reads the file if it has changed since it was last read."""
        if self._file is not None and self._file.changed():
            self.reload_or_log()

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.to_thread(self.look)

    def configuration(self) -> Configuration:
        """What is in effect now."""
        return Configuration(
            text=config_text(self._read.shared, self._scraper.settings.all_configs()),
            loaded=self._loaded,
            loaded_at=self._loaded_at,
            external_labels=self._read.shared.external_labels,
        )

    def route(self) -> Route:
        """`/-/reload`, as Prometheus has it: 500 and the reason for a file that is wrong."""
        return Route("/-/reload", self._asked, methods=["POST", "PUT"])

    async def _asked(self, request: Request) -> Response:
        try:
            await asyncio.to_thread(self.reload)
        except BadConfig as error:
            logger.error("the scrape configuration stays as it was: %s", error)
            return PlainTextResponse(f"failed to reload config: {error}\n", 500)
        return PlainTextResponse("")
