"""The collector's standing work: its own page in the store, compaction, late look-ups in the lake, retention."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from collectors.events import EventLog
from collectors.exposition import page_of, with_target_labels
from collectors.measure import Measures
from collectors.measurer import Measurer
from collectors.parts import predictions_of
from collectors.quality.aside import KeptAside
from collectors.references import ClosedWindows
from collectors.releases import ReleaseLabels
from collectors.replay import predictions_with_ids
from collectors.scores import LARGEST, Scored
from collectors.scrape import next_tick
from collectors.signals import Signals
from collectors.spans import SpanStore
from collectors.store import Store, StoreCounts
from observability import names
from observability.lake import read_labelled

SELF_TARGET = "self"
LOOK_UP_SECONDS = 15.0
PRUNE_SECONDS = 60.0
BATCH_IDS_SECONDS = 2 * 24 * 3600.0

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class OwnPage:
    """Puts the collector's own page into its store, as a scrape of itself would."""

    store: Store
    signals: Signals
    labels: dict[str, str]
    clock: Callable[[], float]
    _counted: StoreCounts = field(default_factory=StoreCounts)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def append(self, at: float | None = None) -> None:
        """Appends the page at `at` (unix seconds; default now); series that left it get stale markers."""
        with self._lock:
            self._count(self.store.counts())
            self.signals.metrics[names.STORE_SERIES].set(self.store.num_series())
            page = page_of(self.signals.registry.collect())
            samples = [(with_target_labels(series, self.labels, False), value) for series, value, _ in page.samples]
            samples.append(({"__name__": "up", **self.labels}, 1.0))
            self.store.append(SELF_TARGET, round((self.clock() if at is None else at) * 1000), samples)
            self.store.set_metadata(page.metadata)

    def _count(self, now: StoreCounts) -> None:
        before, self._counted, metrics = self._counted, now, self.signals.metrics
        metrics[names.STORE_SAMPLES].inc(now.appended - before.appended)
        metrics[names.STORE_OUT_OF_ORDER].inc(now.out_of_order - before.out_of_order)
        metrics[names.STORE_DUPLICATES].inc(now.duplicates - before.duplicates)
        metrics[names.STORE_COMPACTED].inc(now.compacted - before.compacted)
        metrics[names.STORE_EXEMPLARS].inc(now.exemplars - before.exemplars)
        metrics[names.STORE_COMMITS].inc(now.commits - before.commits)
        refused = metrics[names.STORE_REFUSED]
        refused.labels("too_old").inc(now.too_old - before.too_old)
        refused.labels("conflicting").inc(now.conflicting - before.conflicting)
        refused.labels("limit").inc(now.limited - before.limited)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long things are kept and how often the log is compacted, in seconds."""

    traces_seconds: float = 24 * 3600.0
    compaction_seconds: float = 2.0
    look_back_seconds: float = 7 * 24 * 3600.0
    """How far back a late label's prediction is looked for in the lake, from the model's latest event."""


@dataclass(slots=True)
class Housekeeping:
    """The loops. Each survives its own failures: the next round tries again."""

    own_page: OwnPage
    log: EventLog
    lake: Path
    measures: Measures
    measurer: Measurer
    windows: ClosedWindows
    aside: KeptAside
    release_labels: ReleaseLabels
    spans: SpanStore
    store: Store
    settings: Retention
    interval_seconds: float
    clock: Callable[[], float]

    async def run(self) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._scrape_self())
            group.create_task(self._every(self.settings.compaction_seconds, self.log.compact))
            group.create_task(self._every(LOOK_UP_SECONDS, self.look_up))
            group.create_task(self._every(LOOK_UP_SECONDS, self.rescore))
            group.create_task(self._every(PRUNE_SECONDS, self.prune))

    def look_up(self) -> None:
        """Finds in the lake the predictions of labels that memory had none for."""
        waiting = self.measures.scoring.take_unmatched()
        if waiting:
            self.log.compact()
        for model, ids in waiting.items():
            # Behind the model's own time: in a replay of last year's events that is last year.
            latest = min(self.clock(), self.measures.latest(model))
            for table in predictions_with_ids(self.lake, model, ids, latest - self.settings.look_back_seconds):
                self.measurer.put("predictions", table)

    def rescore(self) -> None:
        """Scores windows anew from the lake whose labels came after memory had let go of their rows."""
        stale = self.measures.scoring.take_stale()
        if stale:
            self.log.compact()
        seconds = self.measures.settings.windows.window_seconds
        for window in stale:
            versions, until = [window.version], window.start + seconds
            rows = read_labelled(self.lake, window.model, since=window.start, until=until, versions=versions)
            predictions, labels = predictions_of(rows), rows.column("label").to_numpy()
            if predictions is not None:
                known = (np.abs(predictions) <= LARGEST) & (np.abs(labels) <= LARGEST)
                self.measures.scoring.score_again(window, Scored.of(predictions[known], labels[known]))

    def prune(self) -> None:
        """Drops what is past its retention."""
        now = self.clock()
        self.spans.prune(now - self.settings.traces_seconds)
        self.log.forget_batches(now - BATCH_IDS_SECONDS)
        if (standing := self.windows.standing()) is not None:
            self.log.forget_profiles({model: time.closed_until for model, time in standing.times.items()})
        self.windows.prune(self.measures.settings.history_windows)
        self.aside.prune()
        # Longer than labels are looked for and joined again, so that none is counted twice.
        self.release_labels.prune(now - 2 * self.settings.look_back_seconds)
        while self.store.maintain(now):
            pass
        self.own_page.signals.metrics[names.STORE_BYTES].set(self.store.size_bytes())

    async def _scrape_self(self) -> None:
        while True:
            tick = next_tick(self.clock(), self.interval_seconds)
            await asyncio.sleep(max(0.0, tick - self.clock()))
            await self._guarded(partial(asyncio.to_thread, self.own_page.append, tick))

    async def _every(self, seconds: float, work: Callable[[], object]) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self._guarded(lambda: asyncio.to_thread(work))

    async def _guarded(self, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except Exception:
            logger.exception("the collector's housekeeping failed once; the next round tries again")
