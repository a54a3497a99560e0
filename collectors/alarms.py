"""Alarms over time: the panes of a version as evidence for a change, column by column, with few false ones for long.

Each closed pane gives an e-value a column: what the p-values of its values and of its missing share against the
reference are worth as evidence, and no evidence where the difference is too small to matter. A column that a pane says
nothing about keeps the sum that it has. An e-detector adds e-values up over all possible beginnings of a change, and
e-BH decides over the columns together, so that a version whose data does not change raises an alarm once in `1 / alpha`
panes at most. Amended panes are taken back and counted anew, as far back as windows are amended.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from collectors.drift import ColumnDrift, DriftThresholds
from collectors.drift.detector import Alarm, DetectorSettings, EDetector
from collectors.drift.fdr import e_value

# A pane of fewer rows is no evidence either way.
EVIDENCE_ROWS = 50
# An alarm ends when so many panes one after the other show nothing of it.
QUIET_PANES = 5
QUIET_P_VALUE = 0.2
# Beginnings of panes that are remembered, so that a change can be dated.
REMEMBERED = 512


Cause = Literal["values", "missing"]


class Step(msgspec.Struct, frozen=True):
    """One pane as evidence: an e-value a column, and whether the column looks like the reference (None: cannot say)."""

    start: float
    end: float
    evalues: tuple[float | None, ...]
    quiet: tuple[bool | None, ...]


class Raised(msgspec.Struct):
    """One alarm. Times are unix seconds: `since` is the most likely beginning of the change, `at` when it was found."""

    column: str
    since: float
    at: float
    evidence: float
    """What the sum was, to be compared with `1 / alpha` (of all columns together: e-BH)."""
    quiet: int = 0
    explanation: dict[str, Any] = {}


def step_of(
    start: float,
    end: float,
    columns: Sequence[str],
    verdicts: Mapping[str, ColumnDrift],
    thresholds: DriftThresholds,
    memory: Mapping[str, float] | None = None,
) -> Step:
    """The evidence of one pane in the verdicts on it.

    `memory` says of columns how many panes one after the other are as much evidence as one (1 where it does not). The
    root of so high a degree is what each adds: by Hölder's inequality the product of such roots of e-values is one,
    however those within reach of each other depend.
    """
    known_memory = memory or {}
    evalues: list[float | None] = []
    quiet: list[bool | None] = []
    for name in columns:
        known = p_values_of(verdicts[name], thresholds) if name in verdicts else {}
        # The mean of e-values is one, however they depend on each other.
        mean = float(np.mean(e_value(np.array(list(known.values()))))) if known else None
        evalues.append(None if mean is None else mean ** (1 / known_memory.get(name, 1.0)))
        quiet.append(min(known.values()) >= QUIET_P_VALUE if known else None)
    return Step(start, end, tuple(evalues), tuple(quiet))


def cause_of(verdict: ColumnDrift, thresholds: DriftThresholds) -> Cause:
    """Which of the two is the stronger evidence in a verdict: where the values lie, or how many are missing."""
    known = p_values_of(verdict, thresholds)
    return "missing" if known.get("missing", 1.0) < known.get("values", 1.0) else "values"


def p_values_of(verdict: ColumnDrift, thresholds: DriftThresholds) -> dict[Cause, float]:
    """The p-values of what could be judged; 1 where the difference is too small to matter."""
    found: dict[Cause, float] = {}
    if verdict.reason in ("drifted", "within_threshold") and not math.isnan(verdict.p_value):
        smallest = thresholds.distance if verdict.method == "cdf_distance" else thresholds.association
        found["values"] = min(verdict.p_value, 1.0) if verdict.score >= smallest else 1.0
    if verdict.missing_p_value < 1:
        change = abs(verdict.missing_ratio - verdict.reference_missing_ratio)
        found["missing"] = verdict.missing_p_value if change >= thresholds.missing else 1.0
    return found


class VersionAlarms:
    """The evidence and the alarms of one version. Not thread-safe."""

    def __init__(self, columns: Sequence[str], alpha: float, amend_seconds: float) -> None:
        self.columns = tuple(columns)
        self.alpha = alpha
        self._amend_seconds = amend_seconds
        self._steps: list[Step] = []
        self._settled = _State(EDetector(len(self.columns), _settings(alpha)))
        self._now = self._settled.copy()
        self._explained: dict[tuple[str, float], dict[str, Any]] = {}

    def put(self, step: Step) -> list[Raised]:
        """Takes in a pane's evidence, in the place of what was known of that pane; returns the alarms it raised."""
        before = dict(self._now.active)
        place = bisect_left(self._steps, step.end, key=lambda known: known.end)
        newest = place == len(self._steps)
        if not newest and self._steps[place].end == step.end:
            self._steps[place] = step
        elif place == 0 and self._settled.starts and step.start <= self._settled.starts[-1]:
            return []  # older than all that is counted anew
        else:
            self._steps.insert(place, step)
        if newest:
            self._now.advance([step], self.columns)
        else:
            self._now = self._settled.copy()
            self._now.advance(self._steps, self.columns)
        self._settle()
        for column, raised in self._now.active.items():
            # Counted anew, an alarm may have been found at another pane: what it was about stays known.
            if (column, raised.at) not in self._explained and column in before:
                self._explained[column, raised.at] = before[column].explanation
            raised.explanation = self._explained.get((column, raised.at), {})
        return [raised for column, raised in self._now.active.items() if column not in before]

    def explain(self, raised: Raised, explanation: dict[str, Any]) -> None:
        """Keeps what an alarm was about when it was raised."""
        raised.explanation = explanation
        self._explained = {(known.column, known.at): known.explanation for known in self._now.active.values()}

    def active(self) -> list[Raised]:
        """The alarms that stand, in the order of the columns."""
        return [self._now.active[column] for column in self.columns if column in self._now.active]

    @property
    def evidence(self) -> float:
        """The evidence of all columns together, at `1 / alpha` an alarm: the greatest `k · e_(k) / columns`."""
        ordered = np.sort(self._now.detector.evidence)[::-1]
        return float(np.max(ordered * np.arange(1, len(ordered) + 1)) / len(ordered))

    def to_json(self) -> bytes:
        """The state, from which `from_json` goes on as if nothing had happened."""
        explained = [(column, at, explanation) for (column, at), explanation in self._explained.items()]
        return msgspec.json.encode(
            _Stored(self.columns, self.alpha, self._steps, self._settled.stored(), explained),
        )

    @staticmethod
    def from_json(body: bytes, amend_seconds: float) -> VersionAlarms:
        """The alarms that `to_json` wrote. ValueError if the body is something else."""
        stored = msgspec.json.decode(body, type=_Stored)
        alarms = VersionAlarms(stored.columns, stored.alpha, amend_seconds)
        alarms._steps = stored.steps
        alarms._settled = _State.restored(stored.settled)
        alarms._explained = {(column, at): explanation for column, at, explanation in stored.explained}
        alarms._now = alarms._settled.copy()
        alarms._now.advance(alarms._steps, alarms.columns)
        for raised in alarms._now.active.values():
            raised.explanation = alarms._explained.get((raised.column, raised.at), {})
        return alarms

    def _settle(self) -> None:
        """Panes that are not amended any more become part of what is settled."""
        limit = self._steps[-1].end - self._amend_seconds
        settled = bisect_right(self._steps[:-1], limit, key=lambda known: known.end)
        self._settled.advance(self._steps[:settled], self.columns)
        del self._steps[:settled]


class _StoredState(msgspec.Struct):
    detector: str
    active: list[Raised]
    starts: list[float]


class _Stored(msgspec.Struct):
    columns: tuple[str, ...]
    alpha: float
    steps: list[Step]
    settled: _StoredState
    explained: list[tuple[str, float, dict[str, Any]]]


class _State:
    """The detector after some panes, and the alarms that stand then."""

    def __init__(self, detector: EDetector) -> None:
        self.detector = detector
        self.active: dict[str, Raised] = {}
        self.starts: list[float] = []

    def advance(self, steps: Sequence[Step], columns: Sequence[str]) -> None:
        """Takes in further panes, in their order."""
        if not steps:
            return
        found: defaultdict[int, list[Alarm]] = defaultdict(list)
        clock = self.detector.clock
        # At once: a version's many panes are counted anew for each that is amended.
        for alarm in self.detector.update(np.array([step.evalues for step in steps], np.float64)):
            found[alarm.index - clock].append(alarm)
        for place, step in enumerate(steps):
            self.starts.append(step.start)
            for column, raised in list(self.active.items()):
                quiet = step.quiet[columns.index(column)]
                if quiet is None:
                    continue
                raised.quiet = raised.quiet + 1 if quiet else 0
                if raised.quiet >= QUIET_PANES:
                    del self.active[column]
            for alarm in found[place]:
                column = columns[alarm.stream]
                age = min(alarm.index - alarm.since, len(self.starts) - 1, REMEMBERED - 1)
                if column not in self.active:
                    self.active[column] = Raised(column, self.starts[-1 - age], step.end, alarm.evidence)
        del self.starts[:-REMEMBERED]

    def copy(self) -> _State:
        return _State.restored(self.stored())

    def stored(self) -> _StoredState:
        active = [msgspec.structs.replace(raised) for raised in self.active.values()]
        return _StoredState(self.detector.to_json().decode(), active, list(self.starts))

    @staticmethod
    def restored(stored: _StoredState) -> _State:
        state = _State(EDetector.from_json(stored.detector.encode()))
        state.active = {raised.column: raised for raised in stored.active}
        state.starts = list(stored.starts)
        return state


def _settings(alpha: float) -> DetectorSettings:
    return DetectorSettings(kind="evalue", alpha=alpha, family=True)
