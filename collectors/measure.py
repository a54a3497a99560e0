"""Measuring: accepted batches become windows, verdicts and scores, on a thread of their own and in commit order."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from collectors.computed import duplicate_values, pane_values, score_values, traffic_values
from collectors.drift import DriftThresholds
from collectors.performance import JoinSettings, LabelJoin, scores
from collectors.quality import Observed, QualityMonitor, Schema, SchemaEdit
from collectors.signals import Signals
from collectors.windows import Key, Pane, Windows, WindowSettings, by_version, merge_panes
from observability import names
from observability.profile import Profile

Clock = Callable[[], float]
Kind = Literal["events", "labels", "predictions"]  # predictions: rows found in the lake, for the label join alone

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureSettings:
    """How events are measured."""

    windows: WindowSettings = field(default_factory=WindowSettings)
    join: JoinSettings = field(default_factory=JoinSettings)
    thresholds: DriftThresholds = field(default_factory=DriftThresholds)
    judged_windows: int = 1
    """Drift is read from the sum of this many last windows: a sliding window that moves by one window."""
    history_windows: int = 500
    """Closed windows of a version that are kept."""
    silent_windows: float = 10.0
    """After this many window lengths without rows or labels a version's values are taken off the page."""
    score_seconds: float = 2.0
    """Scores of a version are computed at most this often."""


class Measures:
    """The state of measuring. `closed` is called with each closed pane. Thread-safe; time comes from `clock`."""

    def __init__(
        self,
        settings: MeasureSettings,
        signals: Signals,
        clock: Clock,
        closed: Callable[[Pane], None],
        quality: QualityMonitor | None = None,
    ) -> None:
        self.settings = settings
        self.quality = quality or QualityMonitor(settings.windows.window_seconds, keep=lambda _: None)
        self.windows = Windows(settings.windows)
        self.join = LabelJoin(settings.join)
        self._signals = signals
        self._clock = clock
        self._closed = closed
        self._lock = threading.RLock()
        self._history: dict[Key, deque[Pane]] = {}
        self._judged: dict[Key, deque[Pane]] = {}
        self._active_at: dict[tuple[str, ...], float] = {}
        self._unmatched: dict[str, list[str]] = {}
        self._to_score: set[Key] = set()
        self._scored_at = -1e18

    def set_reference(self, model: str, version: str, profile: Profile) -> None:
        with self._lock:
            self.windows.set_reference(model, version, profile)
            self.quality.set_reference(model, version, profile)

    def reference(self, model: str, version: str) -> Profile | None:
        with self._lock:
            return self.windows.reference(model, version)

    def versions(self, model: str) -> list[str]:
        """Versions of a model that have closed windows or a reference, in order."""
        with self._lock:
            known = {version for name, version in self._history if name == model}
            known |= {version for name, version in self.windows.references() if name == model}
        return sorted(known, key=lambda version: (len(version), version))

    def edit_schema(self, model: str, edit: SchemaEdit) -> None:
        """Changes the schema of all of a model's versions. SchemaError when the outcome contradicts itself."""
        with self._lock:
            self.quality.edit(model, edit)

    def quality_of(self, model: str, version: str) -> tuple[Schema, list[dict[str, object]]]:
        """The schema in force for a version, and how many rows of each version broke which rule since the start."""
        with self._lock:
            schema = self.quality.schema(model, version)
        counted = self._signals.metrics[names.QUALITY_VIOLATIONS].collect()
        broken = [
            {**{name: sample.labels[name] for name in ("version", "column", "rule")}, "rows": int(sample.value)}
            for family in counted
            for sample in family.samples
            if sample.labels.get("model") == model and sample.name.endswith("_total")
        ]
        return schema, sorted(broken, key=lambda item: -int(str(item["rows"])))

    def judged(self, model: str, version: str, limit: int) -> list[Pane]:
        """The last `limit` judged windows, oldest first: each the sum of `judged_windows` closed ones."""
        with self._lock:
            panes = list(self._judged.get((model, version), ()))
        return panes[-limit:] if limit > 0 else []

    def restore(self, panes: list[Pane], now: float) -> None:
        """Takes over windows that were closed before a restart."""
        with self._lock:
            until: dict[str, float] = {}
            for pane in sorted(panes, key=lambda pane: pane.end):
                self._remember(pane)
                until[pane.model] = max(until.get(pane.model, pane.end), pane.end)
            for model, end in until.items():
                self.windows.restore(model, end, now)

    def apply(self, kind: Kind, table: pa.Table) -> None:
        """Measures one accepted batch."""
        with self._lock:
            now = self._clock()
            if kind == "labels":
                self._apply_labels(table, now)
                return
            self.join.add_predictions(table)
            if kind == "predictions":
                self._to_score.update(self.join.versions())
                return
            added = self.windows.add(table, now)
            for key, rows in added.measured.items():
                self._signals.metrics[names.EVENT_ROWS].labels(*key).inc(rows + added.late.get(key, 0))
                self._active_at["pane", *key] = now
                self._to_score.add(key)
            for key, rows in added.late.items():
                self._signals.metrics[names.LATE_ROWS].labels(*key).inc(rows)
            self._check(table, counted=True)

    def replay(self, events: pa.Table, first_open_ns: int) -> None:
        """Takes in rows of the lake after a restart: those of windows not closed yet are measured, none is counted."""
        with self._lock:
            self.join.add_predictions(events)
            self._check(events, counted=False)
            limit = pa.scalar(first_open_ns, pa.int64()).cast(events.schema.field("time").type)
            in_open_windows = events.filter(pc.greater_equal(events.column("time"), limit))
            if in_open_windows.num_rows:
                self.windows.add(in_open_windows, self._clock())

    def replay_labels(self, labels: pa.Table) -> None:
        """Takes in labels of the lake after a restart."""
        with self._lock:
            self.join.add_labels(labels)
            models = set(labels.column("model").unique().to_pylist())
            self._to_score.update(key for key in self.join.versions() if key[0] in models)

    def tick(self) -> bool:
        """Closes windows, computes scores, forgets silent versions. True when the page's values changed."""
        with self._lock:
            now = self._clock()
            closed = self.windows.advance(now)
            for pane in closed:
                self._publish_pane(pane, now)
            for model in {pane.model for pane in self.windows.open_panes()} | {pane.model for pane in closed}:
                self._signals.metrics[names.WATERMARK].labels(model).set(self.windows.watermark(model, now) or 0.0)
            self._count(self.quality.checked())
            for model in self.quality.models():
                self._signals.publish(("traffic", model), traffic_values(self.quality, model, now))
            scored = self._score(now)
            return bool(self._forget_silent(now) or closed or scored)

    def take_unmatched(self) -> dict[str, list[str]]:
        """Ids of labels that found no prediction in memory since the last call, by model: to be sought in the lake."""
        with self._lock:
            taken, self._unmatched = self._unmatched, {}
            return taken

    def _check(self, events: pa.Table, *, counted: bool) -> None:
        """Checks rows against their schemas; those replayed after a restart were counted before it."""
        observed = [self.quality.observe(*part) for part in by_version(events)]
        if counted:
            self._count([found for found in observed if found is not None])
        else:
            self.quality.checked()

    def _count(self, observed: list[Observed]) -> None:
        violations = self._signals.metrics[names.QUALITY_VIOLATIONS]
        for found in observed:
            for (column, rule), rows in found.counts.items():
                violations.labels(found.model, found.version, column, rule).inc(rows)

    def _apply_labels(self, table: pa.Table, now: float) -> None:
        joined = self.join.add_labels(table)
        for model, ids in joined.unmatched.items():
            waiting = self._unmatched.setdefault(model, [])
            waiting += ids
            del waiting[: -self.settings.join.waiting_labels]
            self._signals.metrics[names.LABEL_ROWS].labels(model, "false").inc(len(ids))
        for model, rows in joined.matched.items():
            self._signals.metrics[names.LABEL_ROWS].labels(model, "true").inc(rows)
        models = set(table.column("model").unique().to_pylist())
        self._to_score.update(key for key in self.join.versions() if key[0] in models)

    def _publish_pane(self, pane: Pane, now: float) -> None:
        self._remember(pane)
        self._closed(pane)
        key = (pane.model, pane.version)
        reference = self.windows.reference(*key)
        self.quality.closed(pane.model, pane.end, pane.rows)
        values = pane_values(pane, self._judged[key][-1], reference, self.settings.thresholds)
        values += duplicate_values(key, self.quality.duplicated_ratio(*key))
        self._signals.publish(("pane", *key), values)
        self._active_at["pane", *key] = now

    def _remember(self, pane: Pane) -> None:
        key = (pane.model, pane.version)
        history = self._history.setdefault(key, deque(maxlen=self.settings.judged_windows))
        history.append(pane)
        first = pane.end - self.settings.judged_windows * self.settings.windows.window_seconds
        recent = [old for old in history if old.start >= first - 1e-6 and old.end <= pane.end]
        self._judged.setdefault(key, deque(maxlen=self.settings.history_windows)).append(merge_panes(recent))

    def _score(self, now: float) -> bool:
        if not self._to_score or now - self._scored_at < self.settings.score_seconds:
            return False
        chosen, self._to_score, self._scored_at = self._to_score, set(), now
        for key in chosen:
            predictions, labels = self.join.labelled(*key)
            if len(labels):
                self._signals.publish(("score", *key), score_values(key, len(labels), scores(predictions, labels)))
                self._active_at["score", *key] = now
        return True

    def _forget_silent(self, now: float) -> bool:
        limit = self.settings.silent_windows * self.settings.windows.window_seconds
        silent = [owner for owner, at in self._active_at.items() if now - at > limit]
        for owner in silent:
            del self._active_at[owner]
            self._signals.publish(owner, [])
        return bool(silent)


class Measurer:
    """The thread that measures. `changed` is called after a tick that changed the values of the page."""

    def __init__(self, measures: Measures, changed: Callable[[], None], tick_seconds: float = 0.25) -> None:
        self._measures = measures
        self._changed = changed
        self._tick_seconds = tick_seconds
        self._closing = threading.Event()
        self._queue: queue.SimpleQueue[tuple[Kind, pa.Table]] = queue.SimpleQueue()
        self._waiting = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="collector-measurer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, kind: Kind, table: pa.Table) -> None:
        with self._lock:
            self._waiting += 1
        self._queue.put((kind, table))

    def waiting(self) -> int:
        """Batches committed but not measured yet, the one in work included."""
        with self._lock:
            return self._waiting

    def close(self) -> None:
        """Measures what waits, then ends the thread."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        ticked_at = time.monotonic()
        while True:
            wait = max(0.0, ticked_at + self._tick_seconds - time.monotonic())
            try:
                item = self._queue.get(timeout=wait) if wait else None
            except queue.Empty:
                item = None
            if item is not None:
                self._guarded(partial(self._measures.apply, *item))
                with self._lock:
                    self._waiting -= 1
            elif self._closing.is_set() and self._queue.empty():
                return
            if time.monotonic() - ticked_at >= self._tick_seconds:
                self._guarded(self._tick)
                ticked_at = time.monotonic()

    def _tick(self) -> None:
        if self._measures.tick():
            self._changed()

    def _guarded(self, work: Callable[[], None]) -> None:
        """A batch that cannot be measured must not end the measuring of all others; its rows are in the lake."""
        try:
            work()
        except Exception:
            logger.exception("a batch or a tick could not be measured; it goes on with the next")
