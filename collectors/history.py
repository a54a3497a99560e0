"""Closed panes of every version in order of time, and the judged windows over them: each the sum of its last few panes.

A pane may be put again, amended: the judged windows that hold it are then made anew.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field, replace

from collectors.computed import verdicts_of
from collectors.drift import ColumnDrift, DriftThresholds
from collectors.drift.calibration import Calibration
from collectors.drift.joint_verdict import JointDrift, judge_joint
from collectors.drift.lasting import lasting
from collectors.drift.seasonal import SeasonalReference
from collectors.windows import NANOSECONDS, Key, Pane, merge_panes, same_layout
from observability.profile import Profile

Slice = tuple[str, str]


@dataclass(frozen=True, eq=False, slots=True)
class Against:
    """What the windows of a version are judged against."""

    profile: Profile
    calibration: Calibration | None
    thresholds: DriftThresholds
    pane_calibration: Calibration | None = None
    """Of single panes, which differ by more than the sums of them that are judged; None: the same."""
    seasonal: SeasonalReference | None = None
    """The reference by hour of the week: a window is compared with its own hours, where there are enough rows."""
    _lasting: dict[int, Calibration] = field(default_factory=dict, init=False, repr=False)

    def verdicts(self, judged: Pane) -> dict[str, ColumnDrift]:
        """The verdict on each column of a judged window."""
        return self._judged(judged, self.thresholds, self.calibration)

    def joint(self, judged: Pane) -> JointDrift | None:
        """The verdict on the numeric columns of a judged window together."""
        profile = judged.folded().profile if self.profile.joint is not None else None
        if profile is None or not same_layout(self.profile, profile):
            return None
        return judge_joint(self.profile, profile, self.thresholds)

    def pane_verdicts(self, pane: Pane, min_rows: int) -> dict[str, ColumnDrift]:
        """The verdict on each column of a single pane; `min_rows` in place of that of the thresholds."""
        thresholds = replace(self.thresholds, min_rows=min_rows)
        return self._judged(pane, thresholds, self.pane_calibration or self.calibration)

    def evidence_verdicts(self, pane: Pane, min_rows: int) -> dict[str, ColumnDrift]:
        """The same as evidence, which is added up over panes: farther off than the reference itself may be for good."""
        thresholds, reference = replace(self.thresholds, min_rows=min_rows), self.reference_of(pane)
        if reference is not self.profile:
            # Each hour of the week errs in a way of its own: what is off in one of them is not in the next.
            return verdicts_of(pane, reference, thresholds, self._hours_of(pane))
        # The groups of categories, and with them what lasts, hardly depend on the rows: a power of two will do.
        digits = pane.seen.bit_length()
        if digits not in self._lasting:
            self._lasting[digits] = lasting(reference, 1 << digits, self._blocks_of_panes(pane))
        return verdicts_of(pane, reference, thresholds, self._lasting[digits])

    def memory(self, pane: Pane) -> dict[str, float]:
        """How many panes one after the other are as much evidence as one, by column; 1 where that is not known."""
        known = self._blocks_of_panes(pane)
        return {name: column.memory for name, column in known.columns.items()} if known else {}

    def _blocks_of_panes(self, pane: Pane) -> Calibration | None:
        if self.reference_of(pane) is self.profile:
            return self.pane_calibration or self.calibration
        return self._hours_of(pane)

    def _hours_of(self, pane: Pane) -> Calibration | None:
        assert self.seasonal is not None
        return self.seasonal.differing(round(pane.start * NANOSECONDS), round(pane.end * NANOSECONDS))

    def _judged(
        self, pane: Pane, thresholds: DriftThresholds, calibration: Calibration | None
    ) -> dict[str, ColumnDrift]:
        profile = self.reference_of(pane)
        if profile is self.profile:
            return verdicts_of(pane, profile, thresholds, calibration)
        # The blocks of a calibration differ by the very seasons that the hours' own reference has in it.
        return verdicts_of(pane, profile, thresholds, self._hours_of(pane))

    def reference_of(self, pane: Pane) -> Profile:
        """What a pane is compared with: the reference in its own hours of the week, if they are known, or all of it."""
        if self.seasonal is None:
            return self.profile
        profile = self.seasonal.during(round(pane.start * NANOSECONDS), round(pane.end * NANOSECONDS))
        return self.profile if profile is self.seasonal.whole else profile


class JudgedWindow:
    """A sum of panes and the verdicts on it, both made when they are asked for first."""

    __slots__ = ("_against", "_joint", "_merged", "_panes", "_slices", "_verdicts")

    def __init__(self, panes: list[Pane]) -> None:
        self._panes = panes
        self._merged: Pane | None = None
        self._against: Against | None = None
        self._verdicts: dict[str, ColumnDrift] | None = None
        self._joint: tuple[JointDrift | None] | None = None
        self._slices: dict[Slice, dict[str, ColumnDrift]] | None = None

    @property
    def pane(self) -> Pane:
        """The sum."""
        if self._merged is None:
            self._merged = self._panes[0] if len(self._panes) == 1 else merge_panes(self._panes)
        return self._merged

    @property
    def last(self) -> Pane:
        """The last of the panes."""
        return self._panes[-1]

    @property
    def revision(self) -> int:
        """How often a pane of it was amended."""
        return sum(pane.revision for pane in self._panes)

    def verdicts(self, against: Against | None) -> dict[str, ColumnDrift]:
        """The verdict on each column; empty without a reference, or when a pane was made under another one."""
        self._judge_against(against)
        if self._verdicts is None:
            self._verdicts = against.verdicts(self.pane) if against else {}
        return self._verdicts

    def joint(self, against: Against | None) -> JointDrift | None:
        """The verdict on the numeric columns together, where the reference has a joint part and there are rows."""
        self._judge_against(against)
        if self._joint is None:
            self._joint = (against.joint(self.pane) if against else None,)
        return self._joint[0]

    def slice_verdicts(self, against: Against | None) -> dict[Slice, dict[str, ColumnDrift]]:
        """The same for each slice, by its column and value."""
        self._judge_against(against)
        if self._slices is None:
            self._slices = {
                (column, value): against.verdicts(part) if against else {}
                for column, parts in self.pane.slices.items()
                for value, part in parts.items()
            }
        return self._slices

    def _judge_against(self, against: Against | None) -> None:
        if self._against is not against:
            self._against = against
            self._verdicts = self._slices = self._joint = None


class History:
    """The last `keep` panes of each version and their judged windows of `judged_windows` panes."""

    def __init__(self, window_seconds: float, judged_windows: int, keep: int) -> None:
        self._seconds = window_seconds
        self.judged_windows = judged_windows
        self._keep = keep
        self._panes: dict[Key, list[Pane]] = {}
        self._judged: dict[Key, list[JudgedWindow]] = {}

    def versions(self) -> list[Key]:
        return list(self._panes)

    def put(self, pane: Pane) -> list[JudgedWindow]:
        """Adds a closed pane, in the place of the one of its time; returns the judged windows that hold it, in order.

        A pane older than everything kept gives none.
        """
        key = (pane.model, pane.version)
        panes, judged = self._panes.setdefault(key, []), self._judged.setdefault(key, [])
        place = bisect_left(panes, pane.end, key=lambda known: known.end)
        if place < len(panes) and panes[place].end == pane.end:
            panes[place] = pane
        else:
            if place == 0 and len(panes) >= self._keep:
                return []
            panes.insert(place, pane)
            judged.insert(place, JudgedWindow([pane]))
        reach = pane.end + (self.judged_windows - 1) * self._seconds + 1e-6
        changed = []
        for position in range(place, len(panes)):
            if panes[position].end > reach:
                break
            judged[position] = JudgedWindow(self._recent(panes, position))
            changed.append(judged[position])
        surplus = len(panes) - self._keep
        if surplus > 0:
            del panes[:surplus], judged[:surplus]
        return changed

    def judged(self, key: Key, limit: int) -> list[JudgedWindow]:
        """The last `limit` judged windows of a version, oldest first."""
        return self._judged.get(key, [])[-limit:] if limit > 0 else []

    def ending(self, pane: Pane) -> JudgedWindow | None:
        """The judged window that ends with a pane."""
        return self._ending((pane.model, pane.version), pane.end)

    def before(self, key: Key, time: float) -> JudgedWindow | None:
        """The last judged window that ends at or before a time."""
        panes = self._panes.get(key, [])
        place = bisect_right(panes, time, key=lambda known: known.end)
        return self._judged[key][place - 1] if place else None

    def panes(self, key: Key, since: float, until: float) -> list[Pane]:
        """The panes of a version that end after `since` and at or before `until`, oldest first."""
        panes = self._panes.get(key, [])
        first, last = (bisect_right(panes, time + 1e-6, key=lambda known: known.end) for time in (since, until))
        return panes[first:last]

    def _ending(self, key: Key, end: float) -> JudgedWindow | None:
        panes = self._panes.get(key, [])
        place = bisect_left(panes, end, key=lambda known: known.end)
        return self._judged[key][place] if place < len(panes) and panes[place].end == end else None

    def latest(self, key: Key) -> JudgedWindow | None:
        """The last judged window of a version."""
        known = self._judged.get(key)
        return known[-1] if known else None

    def _recent(self, panes: list[Pane], position: int) -> list[Pane]:
        """The panes of the judged window that ends with the pane at `position`."""
        first = panes[position].end - self.judged_windows * self._seconds
        start = max(0, position - self.judged_windows + 1)
        return [pane for pane in panes[start : position + 1] if pane.start >= first - 1e-6]
