"""Performance of predictions: latency and errors from panes, scores from labels joined by id, however late."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from collectors.drift.bins import Counts
from collectors.parts import Part, parts_of
from collectors.routed import Routing
from collectors.scores import LabelledRow, LabelledWindows, classification_scores, regression_scores, scorable
from collectors.windows import LATENCY_EDGES, Key, Pane

Floats = npt.NDArray[np.float64]

QUANTILES = (0.5, 0.9, 0.95, 0.99)
SHADOW, STABLE = "shadow", "stable"


def latency_quantile(counts: Counts, q: float) -> float:
    """The q-quantile (seconds) of latencies counted over `LATENCY_EDGES`: the cell's geometric middle; NaN if empty."""
    total = int(counts.sum())
    if not total:
        return math.nan
    cell = int(np.searchsorted(np.cumsum(counts), q * total, side="left"))
    low, high = LATENCY_EDGES[max(cell - 1, 0)], LATENCY_EDGES[min(cell, len(LATENCY_EDGES) - 1)]
    return float(math.sqrt(low * high))


def error_ratio(pane: Pane) -> float:
    """Share of a pane's rows whose outcome is the version's fault; NaN without rows."""
    return pane.faults() / pane.rows if pane.rows else math.nan


def scores(predictions: Floats, labels: Floats) -> dict[str, float]:
    """Scores of rows by name: `classification_scores` for probabilities and 0/1 labels, else `regression_scores`."""
    if not len(labels):
        return {}
    if np.isin(labels, (0.0, 1.0)).all() and predictions.min() >= 0 and predictions.max() <= 1:
        return classification_scores(predictions, labels)
    return regression_scores(predictions, labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinSettings:
    """Bounds of the label join, in rows."""

    scored_rows: int = 5_000
    """The latest labelled predictions (by event time) of a version that its scores are made of."""
    remembered_rows: int = 200_000
    """Predictions of a version kept in memory for their labels; older ones are looked up in the lake."""
    waiting_labels: int = 200_000
    """Labels of a model kept for predictions that have not come."""

    def __post_init__(self) -> None:
        if min(self.scored_rows, self.remembered_rows, self.waiting_labels) < 1:
            raise ValueError(f"every bound of the label join must be at least 1: {self}")


@dataclass(frozen=True, slots=True)
class Joined:
    """Labels that found a prediction, and ids of those that did not, by model."""

    matched: Mapping[str, int]
    unmatched: Mapping[str, list[str]]


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Labelled predictions of a version, shape (rows,) each, in order of (time, id)."""

    ids: list[str]
    times: npt.NDArray[np.int64]
    """Unix nanoseconds."""
    predictions: Floats
    labels: Floats


class LabelSink(Protocol):
    """Who is told of labelled predictions of releases and shadows; again, too, when a label comes again."""

    def arm(self, model: str, version: str, id_: str, routing: Routing, prediction: float, label: float) -> None:
        """A prediction of an arm."""

    def pair(
        self, model: str, version: str, id_: str, routing: Routing, prediction: float, other: float, label: float
    ) -> None:
        """A shadow's prediction, and what the stable version answered to the same request."""


_Predicted: TypeAlias = tuple[int, float, Routing | None]


@dataclass(slots=True)
class _Version:
    """One version's predictions that wait for labels, and its labelled ones.

    By id: (time, prediction, what the router chose), and (time, prediction, label, the label's time). `shadow` says
    that it has answered as a shadow.
    """

    predictions: OrderedDict[str, _Predicted]
    labelled: dict[str, tuple[int, float, float, int]]
    shadow: bool = False


class LabelJoin:
    """Labels and predictions joined by id, in any order of arrival; the latest label of an id wins.

    A version's scores are a function of its last `scored_rows` labelled predictions by (time, id), so they do not
    depend on the order in which anything came and equal a batch computation over the same rows. Every row that is
    joined, again or anew, goes to `windows`, too, and those of releases and shadows to `sink`. Not thread-safe.
    """

    def __init__(
        self,
        settings: JoinSettings | None = None,
        windows: LabelledWindows | None = None,
        sink: LabelSink | None = None,
    ) -> None:
        self.settings = settings or JoinSettings()
        self.windows = windows
        self._sink = sink
        self._versions: dict[Key, _Version] = {}
        self._waiting: dict[str, OrderedDict[str, tuple[float, int]]] = {}
        self._missed: dict[str, OrderedDict[str, None]] = {}
        self._found_later: Counter[str] = Counter()

    def add_predictions(self, events: pa.Table) -> None:
        """Remembers the predictions of a batch of events and joins the labels that came before them."""
        self.add_parts(parts_of(events))

    def add_parts(self, parts: Iterable[Part]) -> None:
        """The same of a batch that is taken apart already."""
        for part in parts:
            if part.predictions is None:
                continue
            ids = part.events.column("id").to_pylist()
            times = part.events.column("time").cast(pa.int64()).to_pylist()
            key = (part.model, part.version)
            state = self._version(key)
            state.shadow = state.shadow or any(routing.arm == SHADOW for routing in part.routed.routings)
            rows = zip(times, part.predictions.tolist(), part.routed.rows(), strict=True)
            _remember(state.predictions, ids, list(rows))
            self._join_waiting(key, state, ids)
            while len(state.predictions) > self.settings.remembered_rows:
                state.predictions.popitem(last=False)

    def add_labels(self, labels: pa.Table, *, counted: bool = True) -> Joined:
        """Joins a batch of labels; those without a prediction wait for it.

        `take_found_later` tells of those that have found it since, unless they are not `counted`.
        """
        matched: dict[str, int] = {}
        unmatched: dict[str, list[str]] = {}
        columns = (labels.column("model"), labels.column("id"), labels.column("label"))
        times = labels.column("time").cast(pa.int64()).to_pylist()
        for model, id_, label, time in zip(*(column.to_pylist() for column in columns), times, strict=True):
            # What is no number takes back the labels before it, as it does for readers of the lake.
            label = label if label is not None and math.isfinite(label) else math.inf
            # The latest that is known of the id: what was joined may have been let go of, and must not come back.
            label, time = self._wait(model, id_, label, time)
            if self._join(model, id_, label, time):
                matched[model] = matched.get(model, 0) + 1
            else:
                unmatched.setdefault(model, []).append(id_)
        if counted:
            for model, ids in unmatched.items():
                missed = self._missed.setdefault(model, OrderedDict())
                missed.update(dict.fromkeys(ids))
                while len(missed) > self.settings.waiting_labels:
                    missed.popitem(last=False)
        return Joined(matched, unmatched)

    def take_found_later(self) -> Mapping[str, int]:
        """Labels that had no prediction when they came and have found one since the last call, by model."""
        taken, self._found_later = self._found_later, Counter()
        return taken

    def waiting_ids(self, model: str) -> list[str]:
        """Ids of labels that are kept for predictions yet to come, oldest first."""
        known = [state.predictions for (name, _), state in self._versions.items() if name == model]
        return [id_ for id_ in self._waiting.get(model, {}) if not any(id_ in ids for ids in known)]

    def labelled(self, model: str, version: str) -> tuple[Floats, Floats]:
        """Predictions and labels that the scores of a version are made of, in order of (time, id)."""
        rows = self.labelled_rows(model, version)
        return rows.predictions, rows.labels

    def labelled_rows(self, model: str, version: str) -> Labelled:
        """The rows that the scores of a version are made of."""
        state = self._versions.get((model, version))
        rows = self._latest(state) if state else []
        array = np.array([(row[1], row[2]) for _, row in rows], dtype=np.float64).reshape(-1, 2)
        times = np.array([row[0] for _, row in rows], dtype=np.int64)
        predictions, labels = np.ascontiguousarray(array[:, 0]), np.ascontiguousarray(array[:, 1])
        return Labelled([id_ for id_, _ in rows], times, predictions, labels)

    def labelled_models(self) -> set[str]:
        """Models that labels came of."""
        return set(self._waiting)

    def versions(self) -> list[Key]:
        return list(self._versions)

    def _version(self, key: Key) -> _Version:
        return self._versions.setdefault(key, _Version(OrderedDict(), {}))

    def _join(self, model: str, id_: str, label: float, time: int) -> bool:
        found = False
        for (name, version), state in self._versions.items():
            if name == model and (prediction := state.predictions.get(id_)) is not None:
                self._keep((name, version), state, id_, prediction, label, time)
                found = True
        return found

    def _keep(self, key: Key, state: _Version, id_: str, found: _Predicted, label: float, time: int) -> None:
        at, prediction, routing = found
        if self.windows is not None:
            self.windows.put(*key, (id_,), (LabelledRow(at, prediction, label, time),))
        old = state.labelled.get(id_)
        if old is None or (time, label) >= (old[3], old[2]):
            state.labelled[id_] = (at, prediction, label, time)
        if self._sink is not None and routing is not None and scorable(prediction, label):
            self._tell(self._sink, key, id_, routing, prediction, label)
        if len(state.labelled) > 3 * self.settings.scored_rows:
            # As many again as are scored: labels may be taken back, and rows before them count in their place.
            ordered = sorted(state.labelled.items(), key=_by_time)
            state.labelled = dict(ordered[-2 * self.settings.scored_rows :])

    def _tell(self, sink: LabelSink, key: Key, id_: str, routing: Routing, prediction: float, label: float) -> None:
        """Tells of an arm's labelled prediction, and of the pairs that it makes, whichever half came last."""
        model, version = key
        if routing.arm == SHADOW:
            answers = self._of_arm(model, id_, STABLE)
            for _, (_, other, _) in answers[:1]:
                sink.pair(model, version, id_, routing, prediction, other, label)
            return
        sink.arm(model, version, id_, routing, prediction, label)
        if routing.arm == STABLE:
            for shadow, (_, copied, how) in self._of_arm(model, id_, SHADOW):
                if how is not None:
                    sink.pair(model, shadow, id_, how, copied, prediction, label)

    def _of_arm(self, model: str, id_: str, arm: str) -> list[tuple[str, _Predicted]]:
        """The versions whose prediction of the id is that arm's, with it."""
        found = []
        for (name, version), state in self._versions.items():
            if name != model or (arm == SHADOW and not state.shadow):
                continue
            known = state.predictions.get(id_)
            if known is not None and known[2] is not None and known[2].arm == arm and math.isfinite(known[1]):
                found.append((version, known))
        return found

    def _latest(self, state: _Version) -> list[tuple[str, tuple[int, float, float, int]]]:
        known = [item for item in state.labelled.items() if scorable(item[1][1], item[1][2])]
        return sorted(known, key=_by_time)[-self.settings.scored_rows :]

    def _wait(self, model: str, id_: str, label: float, time: int) -> tuple[float, int]:
        """The latest label of an id and its time, from now on this one if it is later.

        Kept even when it found a prediction: another version (a shadow) may have answered the same id.
        """
        waiting = self._waiting.setdefault(model, OrderedDict())
        old = waiting.get(id_)
        latest = (label, time) if old is None or (time, label) >= (old[1], old[0]) else old
        waiting[id_] = latest
        while len(waiting) > self.settings.waiting_labels:
            waiting.popitem(last=False)
        return latest

    def _join_waiting(self, key: Key, state: _Version, ids: Iterable[str]) -> None:
        waiting = self._waiting.get(key[0])
        if not waiting:
            return
        missed = self._missed.get(key[0], OrderedDict())
        for id_ in ids:
            label = waiting.get(id_)
            if label is not None and id_ in state.predictions:
                self._keep(key, state, id_, state.predictions[id_], *label)
                if id_ in missed:
                    del missed[id_]
                    self._found_later[key[0]] += 1


def _by_time(item: tuple[str, tuple[int, float, float, int]]) -> tuple[int, str]:
    return item[1][0], item[0]


def _remember(known: OrderedDict[str, _Predicted], ids: list[str], rows: list[_Predicted]) -> None:
    """Adds predictions; of one id the earliest is kept, as the lake's reader does."""
    if len(set(ids)) == len(ids) and known.keys().isdisjoint(ids):
        known.update(zip(ids, rows, strict=True))
        return
    for id_, row in zip(ids, rows, strict=True):
        if id_ not in known or _first(row) < _first(known[id_]):
            known[id_] = row


def _first(row: _Predicted) -> tuple[int, float]:
    """Of two predictions at one time the smaller comes first, one that failed last: whichever arrived first."""
    return row[0], row[1] if scorable(row[1]) else math.inf
