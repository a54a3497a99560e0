"""The collector: its configuration, its parts wired together, and the process that serves both ports."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware

from collectors.database import intake_url, open_database
from collectors.drift import DriftThresholds
from collectors.events import Content, EventLog, Signal
from collectors.housekeeping import Housekeeping, OwnPage, Retention
from collectors.intake import Intake
from collectors.journal import Journal
from collectors.measure import Measures
from collectors.measure_settings import MeasureSettings
from collectors.measurer import Measurer
from collectors.performance import JoinSettings
from collectors.push import REPEAT_SECONDS, PushGroups
from collectors.quality import QualityMonitor
from collectors.quality.aside import KeptAside
from collectors.quarantine import Quarantine
from collectors.query import Engine, QueryApi
from collectors.references import ClosedWindows, References, Standing
from collectors.releases import ReleaseLabels
from collectors.reloading import Reloads
from collectors.remote_write import Receiver
from collectors.replay import models_of, tables_since
from collectors.report import Reports
from collectors.scrape import Scraper, ScrapeSettings
from collectors.scraping import ScrapeConfig
from collectors.signals import Signals
from collectors.slice_views import SliceViews
from collectors.spans import SpanStore
from collectors.store import Limits, Store
from collectors.target_views import targets_json
from collectors.targets import ScrapeTarget
from collectors.views import Views, passed_on
from collectors.windows import ModelTime, Pane, Slicing, WindowSettings
from observability import names
from observability.durations import duration_text

DRAIN_SECONDS = 10
OWN_JOB = "trimtab-collector"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectorConfig:
    """Everything a collector is told. Times are seconds."""

    lake: Path
    """Folder of the Parquet lake."""
    store_url: str
    """SQLAlchemy URL of the sample store; the collector's own tables go beside it."""
    sample_retention_seconds: float = 30 * 86400.0
    sample_retention_bytes: int | None = None
    """What samples may take in the database; None: no bound. This and the next three: see Store."""
    late_seconds: float = 3600.0
    head_seconds: float = 7200.0
    limits: Limits = field(default_factory=Limits)
    host: str = "127.0.0.1"
    intake_port: int = 4318
    query_port: int = 9090
    query_timeout_seconds: float = 120.0
    query_max_samples: int = 50_000_000
    """What one query may hold at once."""
    query_max_concurrency: int = 20
    query_lookback_seconds: float = 300.0
    """How old a sample may be and still stand for its series."""
    targets: Sequence[ScrapeTarget] = ()
    file_sd: Sequence[str] = ()
    """Globs of `file_sd` JSON files."""
    scrape_interval_seconds: float = 1.0
    scrape_configs: Sequence[ScrapeConfig] = ()
    """Further targets, as a Prometheus configuration file has them: see `read_scrape_configs`."""
    scrape_file: Path | None = None
    """A Prometheus configuration file whose targets are scraped, too; read again when it changes."""
    alerts_url: str | None = None
    """The alerts service that rules and alerts are asked of."""
    window_seconds: float = 60.0
    allowed_lateness_seconds: float = 10.0
    quiet_seconds: float | None = None
    """None: as long as the lateness. See WindowSettings."""
    judged_windows: int = 1
    """Drift is read from the sum of this many last windows."""
    amend_seconds: float = 3600.0
    """Late rows amend the closed windows of this long; 0: none. See WindowSettings."""
    slices: Sequence[str] = ()
    """Columns, text or boolean, by whose values windows are also measured: "feature.origin". See Slicing."""
    slice_values: int = 20
    """At most this many values of a slice column; the rest are pooled as `other`."""
    alarm_windows: float = 1000.0
    """Windows between false drift alarms of a version, at least, on average."""
    drift: DriftThresholds = field(default_factory=DriftThresholds)
    join: JoinSettings = field(default_factory=JoinSettings)
    retention: Retention = field(default_factory=Retention)
    replay_seconds: float = 24 * 3600.0
    """How far back a start reads the lake for open windows and for predictions that wait for labels."""

    def measure_settings(self) -> MeasureSettings:
        quiet = self.allowed_lateness_seconds if self.quiet_seconds is None else self.quiet_seconds
        windows = WindowSettings(
            window_seconds=self.window_seconds,
            allowed_lateness_seconds=self.allowed_lateness_seconds,
            quiet_seconds=quiet,
            amend_seconds=self.amend_seconds,
        )
        return MeasureSettings(
            windows=windows,
            slicing=Slicing(columns=tuple(self.slices), values=self.slice_values),
            join=self.join,
            thresholds=self.drift,
            judged_windows=self.judged_windows,
            alarm_windows=self.alarm_windows,
        )


class Collector:
    """One collector: `start`, then serve `intake_app` and `query_app` while `run` works, then `close`."""

    def __init__(self, config: CollectorConfig, clock: Callable[[], float] = time.time) -> None:
        self.config = config
        self.clock = clock
        self.signals = Signals()
        self.store = Store(
            config.store_url,
            clock=clock,
            head_seconds=config.head_seconds,
            retention_seconds=config.sample_retention_seconds,
            retention_bytes=config.sample_retention_bytes,
            late_seconds=config.late_seconds,
            limits=config.limits,
        )
        self.journal = Journal(open_database(intake_url(config.store_url)))
        self.windows = ClosedWindows(self.journal)
        self.references = References(self.journal, clock)
        self.spans = SpanStore(self.journal)
        self.aside = KeptAside(self.journal)
        quality = QualityMonitor(config.window_seconds, self.aside.put)
        self.release_labels = ReleaseLabels(self.journal, clock)
        self.measures = Measures(
            config.measure_settings(), self.signals, clock, self.windows.put, quality, self.release_labels
        )
        self.measurer = Measurer(self.measures, self._page_changed)
        self.measurer.show(self.signals)
        self.quarantine = Quarantine(self.journal, self._kept_apart)
        self.log = EventLog(self.journal, config.lake, clock, self.measurer.put, self._settled, self.quarantine.divide)
        own = {"job": OWN_JOB, "instance": f"{config.host}:{config.query_port}"}
        # The own page comes from the registry; scraped as well, its series would have two sources.
        targets = [target for target in config.targets if target.instance != own["instance"]]
        settings = ScrapeSettings(
            targets=targets,
            file_sd=config.file_sd,
            interval_seconds=config.scrape_interval_seconds,
            configs=config.scrape_configs,
        )
        self.scraper = Scraper(self.store, settings, clock)
        self.reloads = Reloads(config.scrape_file, self.scraper, self.signals, clock)
        self.own_page = OwnPage(self.store, self.signals, own, clock)
        self.receiver = Receiver(self.store, clock)
        self.pushes = PushGroups(self.store, clock, self.journal)
        self._started = False
        intake = self._intake()
        self._also_here = intake.prometheus_routes()
        self.intake_app = intake.app()
        self._queries = self._query_api()
        self.query_app = self._query()

    def start(self) -> None:
        """Takes up where the last run stopped: references, closed windows, the lake's latest rows, then the log's."""
        now = self.clock()
        self.measures.quality.edits.update(self.aside.edits())
        for model, version, reference in self.references.all():
            self.measures.set_reference(model, version, reference)
        closed = self.windows.all()
        standing = self.windows.standing() or self._standing_before(closed)
        self.measures.restore(closed, standing, now)
        self.log.compact()
        self._replay(standing.times, now)
        for kind, table, position in self.log.tail():
            self._measure_again(kind, table, position)
        self.measurer.start()
        self._started = True

    async def run(self) -> None:
        """Scrapes and keeps house until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.scraper.run())
            group.create_task(self.reloads.run())
            group.create_task(self._repeat_pushes())
            group.create_task(self.housekeeping().run())

    async def _repeat_pushes(self) -> None:
        while True:
            await asyncio.sleep(REPEAT_SECONDS)
            try:
                await asyncio.to_thread(self.pushes.repeat)
            except Exception:
                logger.exception("the pushed groups could not be repeated; the next round tries again")

    def housekeeping(self) -> Housekeeping:
        """The standing work over this collector's parts."""
        return Housekeeping(
            own_page=self.own_page,
            log=self.log,
            lake=self.config.lake,
            measures=self.measures,
            measurer=self.measurer,
            windows=self.windows,
            aside=self.aside,
            release_labels=self.release_labels,
            spans=self.spans,
            store=self.store,
            settings=self.config.retention,
            interval_seconds=self.config.scrape_interval_seconds,
            clock=self.clock,
        )

    def close(self) -> None:
        """Ends all threads; what was accepted is in the log or in the lake."""
        self._started = False
        self.measurer.close()
        with contextlib.suppress(sa.exc.SQLAlchemyError, OSError):  # the log keeps it for the next start
            self.log.compact()
        self.journal.close()
        self.journal.engine.dispose()
        self._queries.close()
        self.receiver.close()
        self.store.close()

    def healthy(self) -> bool:
        return self._started

    def _standing_before(self, closed: list[Pane]) -> Standing:
        """Where measuring stood in a database that does not say: all of the log belongs to windows not closed yet."""
        until: dict[str, float] = {}
        for pane in closed:
            until[pane.model] = max(until.get(pane.model, pane.end), pane.end)
        times = {model: ModelTime(end, end) for model, end in until.items()}
        return Standing(self.log.last_position(), times)

    def _settled(self) -> int:
        """The log position up to which all that was measured is durable."""
        position, committed = self.measures.settle()
        committed.result()
        return position

    def _replay(self, times: Mapping[str, ModelTime], now: float) -> None:
        """Reads back what a restart needs of the lake: the rows of windows not closed yet, and labels to wait for."""
        floor = now - self.config.replay_seconds
        since: dict[str, float] = {}
        for model in models_of(self.config.lake):
            known = times.get(model) or ModelTime(math.inf, floor)
            since[model] = min(known.closed_until, floor)
            self.measures.scoring.seal(model, since[model])
            for table in tables_since(self.config.lake, "events", model, since[model]):
                self.measures.replay(table, known)
        for batch in self.log.profiles(min([floor, *(known.closed_until for known in times.values())])):
            self.measures.replay_profile(batch, times.get(batch.model) or ModelTime(math.inf, floor))
        for model in models_of(self.config.lake, "labels"):
            for table in tables_since(self.config.lake, "labels", model, since.get(model, floor)):
                self.measures.scoring.replay_labels(table)

    def _measure_again(self, kind: Signal, content: Content, position: int) -> None:
        """Measures a batch of the log that the last run had not made durable."""
        try:
            self.measures.apply(kind, content, position, counted=False)
        except Exception:  # as in the last run: its rows are in the log, and go to the lake
            logger.exception("batch %d of the log could not be measured", position)

    def _kept_apart(self, model: str, source: str, rows: int) -> None:
        self.signals.metrics[names.QUARANTINED_ROWS].labels(model, source).inc(rows)

    def _page_changed(self) -> None:
        self.own_page.append()

    def _intake(self) -> Intake:
        return Intake(
            store=self.store,
            log=self.log,
            measures=self.measures,
            measurer=self.measurer,
            references=self.references,
            aside=self.aside,
            quarantine=self.quarantine,
            release_labels=self.release_labels,
            spans=self.spans,
            pushes=self.pushes,
            receiver=self.receiver,
            signals=self.signals,
            clock=self.clock,
        )

    def _query_api(self) -> QueryApi:
        url = self.config.alerts_url

        async def targets() -> object:
            return targets_json(self.scraper)

        engine = Engine(
            self.store,
            round(self.config.query_lookback_seconds * 1000),
            timeout_seconds=self.config.query_timeout_seconds,
            max_samples=self.config.query_max_samples,
        )
        return QueryApi(
            engine,
            self.store,
            rules=passed_on(url, "/api/v1/rules") if url else None,
            alerts=passed_on(url, "/api/v1/alerts") if url else None,
            targets=targets,
            clock=self.clock,
            max_concurrency=self.config.query_max_concurrency,
            flags=self._flags(),
            configuration=self.reloads.configuration,
        )

    def _flags(self) -> dict[str, str]:
        """The settings that Prometheus has flags for; clients read the retention here."""
        config = self.config
        return {
            "config.file": str(config.scrape_file or ""),
            "enable-feature": "exemplar-storage",
            "storage.tsdb.retention.size": f"{config.sample_retention_bytes or 0}B",
            "storage.tsdb.retention.time": duration_text(round(config.sample_retention_seconds * 1000)),
            "web.enable-admin-api": "false",
            "web.enable-lifecycle": "true",
            "web.enable-remote-write-receiver": "true",
            "web.listen-address": f"{config.host}:{config.query_port}",
        }

    def _query(self) -> Starlette:
        views = Views(
            measures=self.measures,
            aside=self.aside,
            spans=self.spans,
            signals=self.signals,
            reports=Reports(self.measures, self.config.lake, self.clock),
            slice_views=SliceViews(self.measures, self.config.lake, self.clock),
            seen_models=lambda: self.store.label_values("model"),
            waiting=self.measurer.waiting,
            healthy=self.healthy,
        )
        compressed = Middleware(GZipMiddleware, minimum_size=1024, compresslevel=1)
        own = [*views.routes(), self.reloads.route(), *self._queries.routes()]
        return Starlette(routes=[*own, *self._also_here], middleware=[compressed])


def build(config: CollectorConfig, clock: Callable[[], float] = time.time) -> Collector:
    """A collector that has taken up where the last one stopped, without any listener."""
    collector = Collector(config, clock)
    collector.start()
    return collector


def serve(config: CollectorConfig) -> None:
    """Serves both ports until SIGTERM or SIGINT, drains, and returns; SIGHUP reads the scrape file again.

    OSError when a port cannot be had, BadConfig when the scrape file is wrong.
    """
    sockets = [_listen(config.host, port) for port in (config.intake_port, config.query_port)]
    collector = build(config)
    try:
        uvloop.run(_serve(collector, sockets))
    finally:
        collector.close()
        for listening in sockets:
            listening.close()


async def _serve(collector: Collector, sockets: list[socket.socket]) -> None:
    apps = (collector.intake_app, collector.query_app)
    servers = [_Server(_server_config(app)) for app in apps]
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, servers)
    loop.add_signal_handler(signal.SIGHUP, loop.run_in_executor, None, collector.reloads.reload_or_log)
    working = asyncio.create_task(collector.run())
    working.add_done_callback(lambda _: _stop(servers))
    try:
        pairs = zip(servers, sockets, strict=True)
        await asyncio.gather(*(server.serve(sockets=[listening]) for server, listening in pairs))
    finally:
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working


class _Server(uvicorn.Server):
    """A server that leaves the signals to `_serve`: two of them share the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server_config(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=DRAIN_SECONDS
    )


def _stop(servers: Sequence[uvicorn.Server]) -> None:
    for server in servers:
        server.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(
            error.errno, f"port {port} on {host} cannot be had ({error.strerror}): stop what holds it, or set another"
        ) from error


__all__ = ["Collector", "CollectorConfig", "build", "serve"]
