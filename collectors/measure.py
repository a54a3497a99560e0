"""Measuring: accepted batches become windows, verdicts and scores, in commit order."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from collectors.alarms import Raised
from collectors.computed import (
    Value,
    duplicate_values,
    joint_values,
    pane_values,
    slice_values,
    traffic_values,
)
from collectors.evidence import Evidence
from collectors.history import Against, History, JudgedWindow
from collectors.measure_settings import MeasureSettings
from collectors.parts import Part, parts_of
from collectors.profiles import Expected, ProfileBatch
from collectors.quality import Observed, QualityMonitor, Schema, SchemaEdit
from collectors.references import Reference, Standing
from collectors.releases import ReleaseLabels, ReleasePredictions
from collectors.scores import PerformanceEstimator
from collectors.scoring import Scoring
from collectors.signals import Signals
from collectors.skew import FirstWindow, Skew
from collectors.unsaved import Keep, Unsaved
from collectors.windows import Added, Key, ModelTime, Pane, Windows
from observability import names
from observability.profile import Profile

Clock = Callable[[], float]
EVIDENCE, ESTIMATOR, RELEASES, SKEW = "evidence", "estimator", "releases", "skew"
# Predictions are rows found in the lake, for the label join alone.
Kind = Literal["events", "labels", "profiles", "predictions"]
Content: TypeAlias = pa.Table | ProfileBatch

# The furthest that nanoseconds in 64 bits reach.
MOST_SECONDS = 9.2e9


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
        labels: ReleaseLabels | None = None,
    ) -> None:
        self.settings = settings
        self.quality = quality or QualityMonitor(settings.windows.window_seconds, keep=lambda _: None)
        self.windows = Windows(settings.amendable(), settings.slicing)
        self._signals = signals
        self._clock = clock
        self._lock = threading.RLock()
        seconds, kept = settings.windows.window_seconds, settings.history_windows
        closed_until = self.windows.closed_until
        self.scoring = Scoring(settings.join, seconds, kept, signals, self._lock, closed_until, labels)
        self._labels = labels
        self._predictions = ReleasePredictions()
        self._unsaved = Unsaved(keep)
        self._position = 0
        self._history = History(seconds, settings.judged_windows, kept)
        self._evidence = Evidence(settings.alarm_windows, settings.amendable().amend_seconds)
        self._against: dict[Key, Against] = {}
        self._skew = Skew()
        self._active_at: dict[tuple[str, ...], float] = {}
        self._amended_at = -1e18

    def set_reference(self, model: str, version: str, reference: Reference) -> None:
        """Sets what a version's windows are judged against; evidence against another reference is forgotten."""
        key, profile = (model, version), reference.profile
        with self._lock:
            if reference.estimator is not None:
                self.scoring.set_estimator(key, reference.estimator)
            old = self._against.get(key)
            self.windows.set_reference(model, version, profile, reference.source)
            self.quality.set_reference(model, version, profile, elsewhere=reference.source.columns)
            self._against[key] = Against(
                profile,
                reference.calibration,
                self.settings.thresholds,
                reference.pane_calibration,
                reference.seasonal,
            )
            self._skew.set_reference(key, profile)
            if old is not None and old.profile != profile:
                self._evidence.forget(key)
                self._look_for_skew(key)

    def against(self, model: str, version: str) -> Against | None:
        """What the windows of a version are judged against; None without a reference."""
        with self._lock:
            return self._against.get((model, version))

    def alarms(self, model: str, version: str) -> tuple[float, list[Raised]]:
        """The evidence of a version's windows together (an alarm at `alarm_windows`), and the alarms that stand."""
        with self._lock:
            return self._evidence.standing((model, version))

    def first_window(self, model: str, version: str) -> FirstWindow | None:
        """What the first window of a version that could be judged says of training–serving skew."""
        with self._lock:
            return self._skew.first_window((model, version))

    def reference(self, model: str, version: str) -> Profile | None:
        with self._lock:
            return self.windows.reference(model, version)

    def expected(self, model: str, version: str) -> Expected | None:
        """What posted profiles of a version have to look like; None without a reference."""
        with self._lock:
            reference = self.windows.reference(model, version)
            source, seconds = self.windows.source(model, version), self.settings.windows.window_seconds
        return None if reference is None else Expected(model, version, reference, source, seconds)

    def latest(self, model: str) -> float:
        """The latest event time of a model that was believed, unix seconds; infinite before its first row."""
        with self._lock:
            time = self.windows.times().get(model)
        return math.inf if time is None else time.latest

    def versions(self, model: str) -> list[str]:
        """Versions of a model that have closed windows or a reference, in order."""
        with self._lock:
            known = {version for name, version in self._history.versions() if name == model}
            known |= {version for name, version in self.windows.references() if name == model}
        return sorted(known, key=lambda version: (len(version), version))

    def models(self) -> set[str]:
        """The models that events, profiles or labels came of, or that have a reference or a schema of their own."""
        with self._lock:
            keys = [*self._history.versions(), *self.windows.references(), *self.scoring.join.versions()]
            of_labels = self.scoring.join.labelled_models()
            return {model for model, _ in keys} | self.windows.times().keys() | of_labels | self.quality.edits.keys()

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
            self._skew.restore({key[1:]: body for key, body in standing.states.items() if key[0] == SKEW})
            for known in self._history.versions():
                self._look_for_skew(known)
            for (kind, model, version), body in standing.states.items():
                if kind == ESTIMATOR:
                    self.scoring.set_estimator((model, version), PerformanceEstimator.from_json(body), kept=True)
            self._predictions.restore({key[1]: body for key, body in standing.states.items() if key[0] == RELEASES})
            self._publish_predictions({model: self._predictions.values(model) for model in self._predictions.models()})
            self._position = standing.position

    def apply(self, kind: Kind, content: Content, position: int | None = None, *, counted: bool = True) -> None:
        """Measures the accepted batch of a log position; `counted` is False if another process has counted it."""
        with self._lock:
            try:
                self._apply(kind, content, counted)
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
            parts = parts_of(events)
            self.scoring.add_events(parts)
            self._check(parts, counted=False)
            column = events.column("time")
            # Seconds in float64 are exact to a quarter of a microsecond.
            seconds = np.clip([times.closed_until, times.latest + 1e-6], -MOST_SECONDS, MOST_SECONDS)
            limits = pa.array(np.round(seconds * 1e9).astype(np.int64)).cast(column.type)
            chosen = pc.and_(pc.greater_equal(column, limits[0]), pc.less_equal(column, limits[1]))
            in_open_windows = events.filter(chosen)
            if in_open_windows.num_rows:
                self.windows.add(in_open_windows, self._clock())

    def replay_profile(self, batch: ProfileBatch, times: ModelTime) -> None:
        """Takes in a posted profile after a restart, if its window was not closed yet."""
        with self._lock:
            if batch.time >= times.closed_until and batch.end <= times.latest + 1e-6:
                self.windows.add_profile(batch, self._clock())

    def tick(self, behind: float = 0.0) -> bool:
        """Closes and amends windows, computes scores, forgets silent versions. True when the page's values changed.

        What came in the last `behind` seconds is not measured yet: a model is not quiet because its rows wait.
        """
        with self._lock:
            now = self._clock()
            self._count(self.quality.checked())
            closed = self.windows.advance(now - behind)
            for pane in closed:
                self.quality.closed(pane.model, pane.end, pane.seen)
            amended = self._amended(now) if closed or now - self._amended_at >= self.settings.score_seconds else []
            self._judge([*closed, *amended], now)
            for model in {pane.model for pane in self.windows.open_panes()} | {pane.model for pane in closed}:
                self._signals.metrics[names.WATERMARK].labels(model).set(
                    self.windows.watermark(model, now - behind) or 0.0
                )
            for model in self.quality.models():
                self._signals.publish(("traffic", model), traffic_values(self.quality, model, now))
            scored = self._score(now)
            if self._labels is not None:
                self._labels.flush()
            return bool(self._forget_silent(now) or closed or amended or scored)

    def _check(self, parts: Sequence[Part], *, counted: bool) -> None:
        """Checks rows against their schemas; those replayed after a restart were counted before it."""
        until = self._clock() + self.settings.windows.future_seconds
        observed = [self.quality.observe(part.model, part.version, part.events, until) for part in parts]
        if counted:
            self._count([found for found in observed if found is not None])
        else:
            self.quality.checked()

    def _count(self, observed: list[Observed]) -> None:
        violations = self._signals.metrics[names.QUALITY_VIOLATIONS]
        for found in observed:
            for (column, rule), rows in found.counts.items():
                violations.labels(found.model, found.version, column, rule).inc(rows)

    def _amended(self, now: float) -> list[Pane]:
        if self.windows.has_amended():
            self._amended_at = now
        return self.windows.amended()

    def _judge(self, panes: Sequence[Pane], now: float) -> None:
        """Puts closed and amended panes into the history, judges what holds them, and publishes the latest verdicts."""
        if not panes:
            return
        for pane in panes:
            key = (pane.model, pane.version)
            changed, against = self._history.put(pane), self._against.get(key)
            self._evidence.put(pane, against, self._history)
            self._skew.look(key, changed, against)
        self._unsaved.add(panes, {(EVIDENCE, *key): state for key, state in self._evidence.take_changed().items()})
        self._unsaved.add((), {(SKEW, *key): state for key, state in self._skew.take_changed().items()})
        for key in dict.fromkeys((pane.model, pane.version) for pane in panes):
            self._publish(key, now)
        self._settle()

    def _settle(self) -> Future[None]:
        """Hands on what is not durable yet; predictions of releases are shown once they are."""
        if self._labels is not None:
            self._labels.flush()
        states, values = self._predictions.take_changed()
        self._unsaved.add((), {(RELEASES, model, ""): state for model, state in states.items()})
        committed = self._unsaved.settle(self._position, self.windows.times())
        if values:
            committed.add_done_callback(partial(self._shown, values))
        return committed

    def _shown(self, values: Mapping[str, list[Value]], committed: Future[None]) -> None:
        with self._lock:
            if committed.cancelled() or committed.exception() is not None:
                self._predictions.changed_again(list(values))
            else:
                self._publish_predictions(values)

    def _publish_predictions(self, values: Mapping[str, list[Value]]) -> None:
        for model, found in values.items():
            self._signals.publish(("releases", model), found)
            self._active_at["releases", model] = self._clock()

    def _publish(self, key: Key, now: float) -> None:
        latest = self._history.latest(key)
        if latest is None:
            return
        against = self._against.get(key)
        verdicts = latest.verdicts(against)
        # A weekday has one value in all windows of a day, and varies in the reference as a whole.
        reference = against.reference_of(latest.pane) if against is not None else None
        values = pane_values(latest.last, latest.pane, reference, verdicts)
        values += slice_values(latest.pane, latest.slice_verdicts(against))
        values += joint_values(key, latest.joint(against))
        values += self._evidence.values(key) + self._skew.values(key)
        values += duplicate_values(key, self.quality.duplicated_ratio(*key))
        self._signals.publish(("pane", *key), values)
        self._active_at["pane", *key] = now

    def _look_for_skew(self, key: Key) -> None:
        """Looks at all windows of a version that are kept."""
        self._skew.look(key, self._history.judged(key, self.settings.history_windows), self._against.get(key))

    def _apply(self, kind: Kind, content: Content, counted: bool) -> None:
        now = self._clock()
        if isinstance(content, ProfileBatch):
            self._apply_profile(content, now, counted)
        elif kind == "labels":
            self.scoring.add_labels(content, counted=counted)
        elif kind == "predictions":
            self.scoring.add_found(content)
        else:
            parts = parts_of(content)
            self.scoring.add_events(parts)
            added = self.windows.add(content, now)
            for key in added.measured:
                self._active_at["pane", *key] = now
                self.scoring.mark(key)
            if counted:
                self._count_rows(added, names.EVENT_ROWS)
            for part in parts:
                self._predictions.add(part)
            self._check(parts, counted=counted)

    def _apply_profile(self, batch: ProfileBatch, now: float, counted: bool) -> None:
        added = self.windows.add_profile(batch, now)
        self._active_at["pane", batch.model, batch.version] = now
        if not added.late:
            self.quality.told(batch.model, batch.end)
        if counted:
            self._count_rows(added, names.PROFILE_ROWS)

    def _count_rows(self, added: Added, accepted: names.Metric) -> None:
        for key, rows in added.measured.items():
            self._signals.metrics[accepted].labels(*key).inc(rows + added.late.get(key, 0))
        for metric, found in ((names.LATE_EVENT_ROWS, added.late), (names.AMENDED_ROWS, added.amended)):
            for key, rows in found.items():
                self._signals.metrics[metric].labels(*key).inc(rows)

    def _score(self, now: float) -> bool:
        found = self.scoring.score(now, self.settings.score_seconds)
        for key, values in found:
            if values:
                self._signals.publish(("score", *key), values)
                self._active_at["score", *key] = now
        learned = self.scoring.take_learned([key for key, _ in found])
        self._unsaved.add((), {(ESTIMATOR, *key): body for key, body in learned.items()})
        return bool(found)

    def _forget_silent(self, now: float) -> bool:
        limit = self.settings.silent_windows * self.settings.windows.window_seconds
        silent = [owner for owner, at in self._active_at.items() if now - at > limit]
        for owner in silent:
            del self._active_at[owner]
            self._signals.publish(owner, [])
        return bool(silent)
