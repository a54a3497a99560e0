"""Measuring: accepted batches become windows, verdicts and scores, in commit order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from collectors.alarms import Raised
from collectors.computed import (
    Value,
    duplicate_values,
    joint_values,
    pane_values,
    performance_values,
    score_values,
    skew_values,
    slice_values,
    traffic_values,
)
from collectors.drift import DriftThresholds
from collectors.evidence import Evidence
from collectors.history import Against, History, JudgedWindow
from collectors.performance import JoinSettings, LabelJoin, predictions_of, scores
from collectors.quality import Observed, QualityMonitor, Schema, SchemaEdit
from collectors.references import Reference, Standing, StateKey
from collectors.scores import (
    LabelledWindow,
    LabelledWindows,
    Performance,
    PerformanceEstimator,
    PerformanceMonitor,
    Scored,
)
from collectors.signals import Signals
from collectors.windows import NO_SLICES, Added, Key, ModelTime, Pane, Slicing, Windows, WindowSettings, by_version
from observability import names
from observability.profile import Profile

Clock = Callable[[], float]
Keep = Callable[[Standing], "Future[None]"]
EVIDENCE, ESTIMATOR = "evidence", "estimator"
Kind = Literal["events", "labels", "predictions"]  # predictions: rows found in the lake, for the label join alone

# The furthest that nanoseconds in 64 bits reach.
MOST_SECONDS = 9.2e9


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureSettings:
    """How events are measured."""

    windows: WindowSettings = field(default_factory=WindowSettings)
    slicing: Slicing = NO_SLICES
    join: JoinSettings = field(default_factory=JoinSettings)
    thresholds: DriftThresholds = field(default_factory=DriftThresholds)
    judged_windows: int = 1
    """Drift is read from the sum of this many last windows: a sliding window that moves by one window."""
    alarm_windows: float = 1000.0
    """Windows between false drift alarms of a version, at least, on average: see `alarms`."""
    history_windows: int = 500
    """Closed windows of a version that are kept."""
    silent_windows: float = 10.0
    """After this many window lengths without rows or labels a version's values are taken off the page."""
    score_seconds: float = 2.0
    """Scores of a version are computed, and amended windows are judged again, at most this often."""

    def amendable(self) -> WindowSettings:
        """The windows, amended no further back than they are kept: of a forgotten one only the late rows are known."""
        kept = self.history_windows * self.windows.window_seconds
        return replace(self.windows, amend_seconds=min(self.windows.amend_seconds, kept))


class Measures:
    """The state of measuring. Thread-safe; time comes from `clock`.

    `keep` makes closed and amended panes durable together with the log position that they were measured up to; what it
    could not keep is handed to it again.
    """

    def __init__(
        self,
        settings: MeasureSettings,
        signals: Signals,
        clock: Clock,
        keep: Keep,
        quality: QualityMonitor | None = None,
    ) -> None:
        self.settings = settings
        self.quality = quality or QualityMonitor(settings.windows.window_seconds, keep=lambda _: None)
        self.windows = Windows(settings.amendable(), settings.slicing)
        self.scored = LabelledWindows(settings.windows.window_seconds, settings.history_windows)
        self.performance = PerformanceMonitor(self.scored)
        self.join = LabelJoin(settings.join, self.scored)
        self._signals = signals
        self._clock = clock
        self._keep = keep
        self._lock = threading.RLock()
        self._saving = threading.Lock()
        self._unsaved: dict[tuple[Key, float], Pane] = {}
        self._unsaved_states: dict[StateKey, bytes] = {}
        self._position = 0
        self._settled = -1
        self._history = History(settings.windows.window_seconds, settings.judged_windows, settings.history_windows)
        self._evidence = Evidence(settings.alarm_windows, settings.amendable().amend_seconds)
        self._against: dict[Key, Against] = {}
        self._estimators: set[Key] = set()
        self._skew: dict[Key, list[Value]] = {}
        self._active_at: dict[tuple[str, ...], float] = {}
        self._unmatched: dict[str, list[str]] = {}
        self._to_score: set[Key] = set()
        self._scored_at = -1e18
        self._amended_at = -1e18

    def set_reference(self, model: str, version: str, reference: Reference) -> None:
        """Sets what a version's windows are judged against; evidence against another reference is forgotten."""
        key, profile = (model, version), reference.profile
        with self._lock:
            if reference.estimator is not None:
                self.performance.set_estimator(model, version, reference.estimator)
            old = self._against.get(key)
            self.windows.set_reference(model, version, profile)
            self.quality.set_reference(model, version, profile)
            self._against[key] = Against(
                profile,
                reference.calibration,
                self.settings.thresholds,
                reference.pane_calibration,
                reference.seasonal,
            )
            if old is not None and old.profile != profile:
                self._evidence.forget(key)
                self._skew.pop(key, None)

    def against(self, model: str, version: str) -> Against | None:
        """What the windows of a version are judged against; None without a reference."""
        with self._lock:
            return self._against.get((model, version))

    def alarms(self, model: str, version: str) -> tuple[float, list[Raised]]:
        """The evidence of a version's windows together (an alarm at `alarm_windows`), and the alarms that stand."""
        with self._lock:
            return self._evidence.standing((model, version))

    def reference(self, model: str, version: str) -> Profile | None:
        with self._lock:
            return self.windows.reference(model, version)

    def versions(self, model: str) -> list[str]:
        """Versions of a model that have closed windows or a reference, in order."""
        with self._lock:
            known = {version for name, version in self._history.versions() if name == model}
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

    def judged(self, model: str, version: str, limit: int) -> list[JudgedWindow]:
        """The last `limit` judged windows, oldest first: each the sum of `judged_windows` closed ones."""
        with self._lock:
            return self._history.judged((model, version), limit)

    def restore(self, panes: Sequence[Pane], standing: Standing, now: float) -> None:
        """Takes over windows that were closed before a restart, and where measuring stood then."""
        with self._lock:
            for pane in sorted(panes, key=lambda pane: pane.end):
                self._history.put(pane)
            self.windows.restore(standing.times, panes, now)
            self._evidence.restore({key[1:]: body for key, body in standing.states.items() if key[0] == EVIDENCE})
            for (kind, model, version), body in standing.states.items():
                if kind == ESTIMATOR:
                    self.performance.set_estimator(model, version, PerformanceEstimator.from_json(body))
                    self._estimators.add((model, version))
            self._position = standing.position

    def apply(self, kind: Kind, table: pa.Table, position: int | None = None, *, counted: bool = True) -> None:
        """Measures the accepted batch of a log position; `counted` is False if another process has counted it."""
        with self._lock:
            try:
                self._apply(kind, table, counted)
            finally:  # one that cannot be measured must not keep those behind it in the log for ever
                self._position = self._position if position is None else position

    def settle(self) -> tuple[int, Future[None]]:
        """Makes durable what is measured so far; returns its log position and the future of the commit."""
        with self._lock:
            now = self._clock()
            self._judge(self._amended(now), now)
            return self._position, self._settle()

    def replay(self, events: pa.Table, times: ModelTime) -> None:
        """Takes in a model's rows of the lake after a restart: those of windows not closed yet are measured again.

        Rows later than all that were believed then were too far ahead of the clock; they are not measured now either.
        """
        with self._lock:
            self.join.add_predictions(events)
            parts = by_version(events)
            self._count_predictions(parts)
            self._check(parts, counted=False)
            column = events.column("time")
            # Seconds in float64 are exact to a quarter of a microsecond.
            seconds = np.clip([times.closed_until, times.latest + 1e-6], -MOST_SECONDS, MOST_SECONDS)
            limits = pa.array(np.round(seconds * 1e9).astype(np.int64)).cast(column.type)
            chosen = pc.and_(pc.greater_equal(column, limits[0]), pc.less_equal(column, limits[1]))
            in_open_windows = events.filter(chosen)
            if in_open_windows.num_rows:
                self.windows.add(in_open_windows, self._clock())

    def replay_labels(self, labels: pa.Table) -> None:
        """Takes in labels of the lake after a restart."""
        with self._lock:
            self.join.add_labels(labels)
            models = set(labels.column("model").unique().to_pylist())
            self._to_score.update(key for key in self.join.versions() if key[0] in models)

    def tick(self) -> bool:
        """Closes and amends windows, computes scores, forgets silent versions. True when the page's values changed."""
        with self._lock:
            now = self._clock()
            self._count(self.quality.checked())
            closed = self.windows.advance(now)
            for pane in closed:
                self.quality.closed(pane.model, pane.end, pane.rows)
            amended = self._amended(now) if closed or now - self._amended_at >= self.settings.score_seconds else []
            self._judge([*closed, *amended], now)
            for model in {pane.model for pane in self.windows.open_panes()} | {pane.model for pane in closed}:
                self._signals.metrics[names.WATERMARK].labels(model).set(self.windows.watermark(model, now) or 0.0)
            for model in self.quality.models():
                self._signals.publish(("traffic", model), traffic_values(self.quality, model, now))
            scored = self._score(now)
            return bool(self._forget_silent(now) or closed or amended or scored)

    def take_unmatched(self) -> dict[str, list[str]]:
        """Ids of labels that found no prediction in memory since the last call, by model: to be sought in the lake."""
        with self._lock:
            taken, self._unmatched = self._unmatched, {}
            return taken

    def _check(self, parts: Sequence[tuple[str, str, pa.Table]], *, counted: bool) -> None:
        """Checks rows against their schemas; those replayed after a restart were counted before it."""
        observed = [self.quality.observe(*part) for part in parts]
        if counted:
            self._count([found for found in observed if found is not None])
        else:
            self.quality.checked()

    def _count(self, observed: list[Observed]) -> None:
        violations = self._signals.metrics[names.QUALITY_VIOLATIONS]
        for found in observed:
            for (column, rule), rows in found.counts.items():
                violations.labels(found.model, found.version, column, rule).inc(rows)

    def _apply_labels(self, table: pa.Table, counted: bool) -> None:
        joined = self.join.add_labels(table)
        for model, ids in joined.unmatched.items():
            waiting = self._unmatched.setdefault(model, [])
            waiting += ids
            del waiting[: -self.settings.join.waiting_labels]
        for matched, found in (("false", {m: len(i) for m, i in joined.unmatched.items()}), ("true", joined.matched)):
            for model, rows in found.items() if counted else ():
                self._signals.metrics[names.LABEL_ROWS].labels(model, matched).inc(rows)
        models = set(table.column("model").unique().to_pylist())
        self._to_score.update(key for key in self.join.versions() if key[0] in models)

    def _amended(self, now: float) -> list[Pane]:
        if self.windows.has_amended():
            self._amended_at = now
        return self.windows.amended()

    def _judge(self, panes: Sequence[Pane], now: float) -> None:
        """Puts closed and amended panes into the history, judges what holds them, and publishes the latest verdicts."""
        if not panes:
            return
        for pane in panes:
            self._history.put(pane)
            self._evidence.put(pane, self._against.get((pane.model, pane.version)), self._history)
        with self._saving:
            self._unsaved.update({((pane.model, pane.version), pane.start): pane for pane in panes})
            self._unsaved_states.update(
                {(EVIDENCE, *key): state for key, state in self._evidence.take_changed().items()}
            )
        for key in dict.fromkeys((pane.model, pane.version) for pane in panes):
            self._publish(key, now)
        self._settle()

    def _publish(self, key: Key, now: float) -> None:
        latest = self._history.latest(key)
        if latest is None:
            return
        against = self._against.get(key)
        verdicts = latest.verdicts(against)
        values = pane_values(latest.last, latest.pane, self.windows.reference(*key), verdicts)
        values += slice_values(latest.pane, latest.slice_verdicts(against))
        values += joint_values(key, latest.joint(against))
        values += self._evidence.values(key) + self._skew_values(key, against)
        values += duplicate_values(key, self.quality.duplicated_ratio(*key))
        self._signals.publish(("pane", *key), values)
        self._active_at["pane", *key] = now

    def _skew_values(self, key: Key, against: Against | None) -> list[Value]:
        """What the first windows of a version said of it: they are looked at until one could be judged."""
        known = self._skew.get(key)
        if known is None:
            for window in self._history.judged(key, self.settings.history_windows):
                if values := skew_values(key, window.verdicts(against)):
                    known = self._skew[key] = values
                    break
        return known or []

    def _settle(self) -> Future[None]:
        """Hands to `keep` what is not durable yet; nothing to do gives a future that is done."""
        with self._saving:
            if self._position == self._settled and not self._unsaved and not self._unsaved_states:
                done: Future[None] = Future()
                done.set_result(None)
                return done
            panes, states = dict(self._unsaved), dict(self._unsaved_states)
        position = self._position
        committed = self._keep(Standing(position, self.windows.times(), tuple(panes.values()), states))
        committed.add_done_callback(lambda future: self._saved(future, position, panes, states))
        return committed

    def _saved(
        self,
        committed: Future[None],
        position: int,
        panes: Mapping[tuple[Key, float], Pane],
        states: Mapping[StateKey, bytes],
    ) -> None:
        if committed.cancelled() or committed.exception() is not None:
            return
        with self._saving:
            self._settled = max(self._settled, position)
            for key, pane in panes.items():
                if self._unsaved.get(key) is pane:
                    del self._unsaved[key]
            for name, body in states.items():
                if self._unsaved_states.get(name) is body:
                    del self._unsaved_states[name]

    def _apply(self, kind: Kind, table: pa.Table, counted: bool) -> None:
        now = self._clock()
        if kind == "labels":
            self._apply_labels(table, counted)
            return
        self.join.add_predictions(table)
        if kind == "predictions":
            self._to_score.update(self.join.versions())
            return
        parts = by_version(table)
        self._count_predictions(parts)
        added = self.windows.add(table, now)
        for key in added.measured:
            self._active_at["pane", *key] = now
            self._to_score.add(key)
        if counted:
            self._count_rows(added)
        self._check(parts, counted=counted)

    def _count_predictions(self, parts: Sequence[tuple[str, str, pa.Table]]) -> None:
        for model, version, part in parts:
            predictions = predictions_of(part)
            if predictions is not None:
                times = part.column("time").cast(pa.int64()).to_numpy()
                self.performance.count(model, version, times, predictions)

    def _count_rows(self, added: Added) -> None:
        for key, rows in added.measured.items():
            self._signals.metrics[names.EVENT_ROWS].labels(*key).inc(rows + added.late.get(key, 0))
        for metric, found in ((names.LATE_ROWS, added.late), (names.AMENDED_ROWS, added.amended)):
            for key, rows in found.items():
                self._signals.metrics[metric].labels(*key).inc(rows)

    def _score(self, now: float) -> bool:
        if not self._to_score or now - self._scored_at < self.settings.score_seconds:
            return False
        chosen, self._to_score, self._scored_at = self._to_score, set(), now
        for key in chosen:
            predictions, labels = self.join.labelled(*key)
            found = self.performance.performance(*key, complete_until=self.windows.closed_until(key[0]))
            if len(labels):
                # The intervals are of the rows that the scores are of.
                found = replace(found, realised=Scored.of(predictions, labels).scores())
            values = performance_values(key, found)
            if len(labels):
                values += score_values(key, len(labels), scores(predictions, labels))
            if values:
                self._signals.publish(("score", *key), values)
                self._active_at["score", *key] = now
            self._keep_estimator(key)
        return True

    def _keep_estimator(self, key: Key) -> None:
        """Keeps an estimator that was learned, so that a restart does not learn another from later windows."""
        estimator = self.performance.estimator(*key) if key not in self._estimators else None
        if estimator is not None:
            self._estimators.add(key)
            with self._saving:
                self._unsaved_states[ESTIMATOR, *key] = estimator.to_json()

    def scored_windows(self, model: str, version: str, limit: int) -> list[tuple[LabelledWindow, Scored]]:
        """The last `limit` windows of a version that have labels, oldest first."""
        with self._lock:
            windows = self.scored.windows(model, version)[-limit:] if limit > 0 else []
            return [(window, self.scored.scored(window)) for window in windows]

    def estimator(self, model: str, version: str) -> PerformanceEstimator | None:
        """What a version's scores are expected from; None while nothing was learned."""
        with self._lock:
            return self.performance.estimator(model, version)

    def expected_of(self, model: str, version: str) -> Performance:
        """What is known of a version's performance now."""
        with self._lock:
            return self.performance.performance(model, version, complete_until=self.windows.closed_until(model))

    def take_stale(self) -> list[LabelledWindow]:
        """Windows whose labels came too late to be joined in memory: to be scored anew from the lake."""
        with self._lock:
            return self.scored.take_stale()

    def score_again(self, window: LabelledWindow, scored: Scored) -> None:
        """Sets a window to what was computed from all its rows in the lake."""
        with self._lock:
            self.scored.replace(window, scored)
            self._to_score.add((window.model, window.version))

    def _forget_silent(self, now: float) -> bool:
        limit = self.settings.silent_windows * self.settings.windows.window_seconds
        silent = [owner for owner, at in self._active_at.items() if now - at > limit]
        for owner in silent:
            del self._active_at[owner]
            self._signals.publish(owner, [])
        return bool(silent)
