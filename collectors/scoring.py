"""Scoring: predictions joined to labels that come late, and what that says of each version's performance."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from collectors.computed import Value, performance_values, score_values
from collectors.parts import Part
from collectors.performance import JoinSettings, LabelJoin, Labelled, LabelSink, scores
from collectors.scores import (
    LabelledWindow,
    LabelledWindows,
    Performance,
    PerformanceEstimator,
    PerformanceMonitor,
    Scored,
)
from collectors.signals import Signals
from collectors.windows import Key
from observability import names

ClosedUntil = Callable[[str], float | None]


class Scoring:
    """The state of scoring. Thread-safe under `lock`, which `Measures` holds while it measures.

    `closed_until` says up to where a model's windows are closed.
    """

    def __init__(
        self,
        join: JoinSettings,
        window_seconds: float,
        history_windows: int,
        signals: Signals,
        lock: threading.RLock,
        closed_until: ClosedUntil,
        sink: LabelSink | None = None,
    ) -> None:
        self.scored = LabelledWindows(window_seconds, history_windows)
        self.performance = PerformanceMonitor(self.scored)
        self.join = LabelJoin(join, self.scored, sink)
        self._waiting_labels = join.waiting_labels
        self._signals = signals
        self._lock = lock
        self._closed_until = closed_until
        self._kept: set[Key] = set()
        self._unmatched: dict[str, list[str]] = {}
        self._due: set[Key] = set()
        self._scored_at = -1e18

    def add_events(self, parts: Sequence[Part]) -> None:
        """Takes in predictions: the rows of each version."""
        with self._lock:
            self.join.add_parts(parts)
            self._count_later()
            for part in parts:
                if part.predictions is not None:
                    times = part.events.column("time").cast(pa.int64()).to_numpy()
                    self.performance.count(part.model, part.version, times, part.predictions)

    def add_found(self, events: pa.Table) -> None:
        """Takes in predictions that were found in the lake, for the join alone."""
        with self._lock:
            self.join.add_predictions(events)
            self._count_later()
            self._due.update(self.join.versions())

    def add_labels(self, labels: pa.Table, *, counted: bool) -> None:
        """Joins labels; those without a prediction in memory are told by `take_unmatched`."""
        with self._lock:
            joined = self.join.add_labels(labels, counted=counted)
            for model, ids in joined.unmatched.items():
                waiting = self._unmatched.setdefault(model, [])
                waiting += ids
                del waiting[: -self._waiting_labels]
            unmatched = {model: len(ids) for model, ids in joined.unmatched.items()}
            for matched, found in (("false", unmatched), ("true", joined.matched)):
                for model, rows in found.items() if counted else ():
                    self._signals.metrics[names.LABEL_ROWS].labels(model, matched).inc(rows)
                    # There from the first label on, so that none of its increase is missed.
                    self._signals.metrics[names.LABEL_ROWS].labels(model, "later").inc(0)
            self._labelled(labels)

    def seal(self, model: str, before: float) -> None:
        """Says that a restart reads no rows of a model before a time: its older windows are scored from the lake."""
        with self._lock:
            if math.isfinite(before):
                self.scored.seal(model, before)

    def replay_labels(self, labels: pa.Table) -> None:
        """Takes in labels of the lake after a restart."""
        with self._lock:
            self.join.add_labels(labels, counted=False)
            self._labelled(labels)

    def mark(self, key: Key) -> None:
        """Says that a version is to be scored again."""
        self._due.add(key)

    def take_unmatched(self) -> dict[str, list[str]]:
        """Ids of labels that found no prediction in memory since the last call, by model: to be sought in the lake."""
        with self._lock:
            taken, self._unmatched = self._unmatched, {}
            return taken

    def score(self, now: float, at_most_every: float) -> list[tuple[Key, list[Value]]]:
        """The values of the versions that something came of since the last time, which is that long ago at least."""
        if not self._due or now - self._scored_at < at_most_every:
            return []
        chosen, self._due, self._scored_at = self._due, set(), now
        return [(key, self._values(key)) for key in chosen]

    def set_estimator(self, key: Key, estimator: PerformanceEstimator, *, kept: bool = False) -> None:
        """Sets what a version's scores are expected from; `kept` says that it is stored already."""
        self.performance.set_estimator(*key, estimator)
        if kept:
            self._kept.add(key)

    def take_learned(self, keys: Sequence[Key]) -> Mapping[Key, bytes]:
        """Estimators that were learned, to be kept, so that a restart does not learn others from later windows."""
        found = {}
        for key in keys:
            estimator = self.performance.estimator(*key) if key not in self._kept else None
            if estimator is not None:
                self._kept.add(key)
                found[key] = estimator.to_json()
        return found

    def windows(self, model: str, version: str, limit: int) -> list[tuple[LabelledWindow, Scored]]:
        """The last `limit` windows of a version that have labels, oldest first."""
        with self._lock:
            windows = self.scored.windows(model, version)[-limit:] if limit > 0 else []
            return [(window, self.scored.scored(window)) for window in windows]

    def estimator(self, model: str, version: str) -> PerformanceEstimator | None:
        """What a version's scores are expected from; None while nothing was learned."""
        with self._lock:
            return self.performance.estimator(model, version)

    def labelled(self, model: str, version: str) -> Labelled:
        """The rows that the scores of a version are made of now."""
        with self._lock:
            return self.join.labelled_rows(model, version)

    def expected_of(self, model: str, version: str) -> Performance:
        """What is known of a version's performance now."""
        with self._lock:
            return self.performance.performance(model, version, complete_until=self._closed_until(model))

    def take_stale(self) -> list[LabelledWindow]:
        """Windows whose labels came too late to be joined in memory: to be scored anew from the lake."""
        with self._lock:
            return self.scored.take_stale()

    def score_again(self, window: LabelledWindow, scored: Scored) -> None:
        """Sets a window to what was computed from all its rows in the lake."""
        with self._lock:
            self.scored.replace(window, scored)
            self._due.add((window.model, window.version))

    def _count_later(self) -> None:
        for model, rows in self.join.take_found_later().items():
            self._signals.metrics[names.LABEL_ROWS].labels(model, "later").inc(rows)

    def _labelled(self, labels: pa.Table) -> None:
        models = set(labels.column("model").unique().to_pylist())
        self._due.update(key for key in self.join.versions() if key[0] in models)

    def _values(self, key: Key) -> list[Value]:
        predictions, labels = self.join.labelled(*key)
        found = self.performance.performance(*key, complete_until=self._closed_until(key[0]))
        if len(labels):
            # The intervals are of the rows that the scores are of.
            found = replace(found, realised=Scored.of(predictions, labels).scores())
        values = performance_values(key, found)
        return values + score_values(key, len(labels), scores(predictions, labels)) if len(labels) else values
