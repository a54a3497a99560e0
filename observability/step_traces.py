"""Traces of a training's steps, built from their records when they are over: of a sample, and of those that are odd.

A live span costs a training tens of microseconds even where it is sampled out, a record one. A step is one trace, in
which every rank has its spans: its identity follows from run, attempt and step, so that all ranks and nodes draw the
same steps without a word between them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from observability import names
from observability.step_ring import DURATION, FIRST_PHASE, NUMBER, SAMPLES, STARTED, Records

if TYPE_CHECKING:
    # A training that is not traced does without a tenth of a second of imports.
    from opentelemetry.trace import SpanContext

    from observability.tracing import Attributes, Tracing

_USUAL_OF, _LEAST = 200, 20
_KEPT = 512
_LOOKS = 3
# What takes its time by intention is no oddity.
_LONG = tuple(FIRST_PHASE + names.PHASES.index(phase) for phase in ("checkpoint", "evaluation"))


@dataclass(frozen=True, slots=True, eq=False)
class RankSteps:
    """Records of a rank that are new, and what added to their clock gives Unix time in nanoseconds."""

    fresh: Records
    offset_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRule:
    """Which steps are odd: those that take `slow` times the median of the steps before them, checkpoints and
    evaluations left aside. At most `limit` odd and as many drawn steps are traced at each look."""

    slow: float = 3.0
    limit: int = 10

    def __post_init__(self) -> None:
        if not self.slow > 1 or self.limit < 0:
            raise ValueError(f"slow is {self.slow} and limit {self.limit}: above 1, and not negative")


class StepTraces:
    """Traces some steps of one attempt of a run. One thread at a time.

    `tracing.sample_ratio` is the share of steps that are drawn. `leads`: the ranks given here have the first of all
    among them, whose node records the span of the whole step.
    """

    def __init__(
        self,
        tracing: Tracing,
        model: str,
        run: str,
        *,
        attempt: int = 0,
        world_size: int = 1,
        leads: bool = True,
        by_device: bool = False,
        rule: TraceRule | None = None,
    ) -> None:
        """With `by_device` steps wait for what `timed` tells of them: a device's own times of its phases."""
        self._tracing, self._rule = tracing, rule or TraceRule()
        self._world_size, self._leads = world_size, leads
        self._said: dict[str, str | int] = {"training.model": model, "training.run": run, "training.attempt": attempt}
        seed = hashlib.blake2b(f"{model}\0{run}\0{attempt}".encode(), digest_size=16).digest()
        self._high, self._seed = int.from_bytes(seed[:8]) or 1, int.from_bytes(seed[8:])
        self._bound = math.ceil(tracing.sample_ratio * 2**64)
        self._kept: dict[int, Records] = {}
        self._offsets: dict[int, int] = {}
        self._usual: dict[int, NDArray[np.int64]] = {}
        self._due: dict[int, int] = {}
        self._reasons: dict[int, str] = {}
        self._timed: dict[int, Mapping[str, float]] | None = {} if by_device else None

    def odd(self, step: int, reason: str) -> None:
        """Says that step `step` is to be traced, and why; any thread may."""
        self._reasons.setdefault(step, reason)

    def timed(self, step: int, phases: Mapping[str, float]) -> None:
        """Says how many seconds a device took for its phases of a step."""
        if self._timed is not None:
            self._timed[step] = phases
            if len(self._timed) > _KEPT:
                del self._timed[next(iter(self._timed))]

    def look(self, ranks: Mapping[int, RankSteps]) -> None:
        """Takes in what is new, and records the steps that are due and that all ranks have ended."""
        for rank, one in ranks.items():
            slow = self._slow(rank, one.fresh)
            for step, reason in slow[: max(0, self._rule.limit - len(self._due))]:
                self._reasons.setdefault(step, reason)
                self._due.setdefault(step, 0)
            kept = self._kept.get(rank)
            # What another rank has not ended yet is found again at the next look.
            self._kept[rank] = one.fresh if kept is None else np.concatenate([kept[-_KEPT:], one.fresh])
            self._offsets[rank] = one.offset_ns
        for step in list(self._reasons):
            self._due.setdefault(step, 0)
        if ranks and self._bound:
            for step in self._drawn(ranks[min(ranks)].fresh[:, NUMBER])[: self._rule.limit]:
                self._due.setdefault(step, 0)
        for step in list(self._due):
            self._try(step)

    def _try(self, step: int) -> None:
        """Records the step where all ranks have ended it, or will hardly do so any more."""
        latest = {rank: _latest(kept, step) for rank, kept in sorted(self._kept.items())}
        found = {rank: record for rank, record in latest.items() if record is not None}
        self._due[step] += 1
        is_whole = len(found) == len(self._kept) and (self._timed is None or step in self._timed)
        if is_whole or self._due[step] >= _LOOKS:
            del self._due[step]
            reason = self._reasons.pop(step, "")
            if found:
                self._record(step, found, reason)

    def _record(self, step: int, found: Mapping[int, NDArray[np.int64]], reason: str) -> None:
        low = self._low(np.array([step]))[0]
        trace_id = self._high << 64 | int(low)
        root = self._tracing.kept(trace_id, int(low) ^ self._seed or 1)
        said: dict[str, str | int] = {**self._said, "training.step": step}
        odd = {"training.odd": reason} if reason else {}
        by_device = (self._timed or {}).get(step, {})
        spans = {rank: _spans(record, self._offsets[rank], by_device) for rank, record in found.items()}
        if self._world_size == 1:
            ((rank, (start, end, phases)),) = spans.items()
            samples = {"training.samples": int(found[rank][SAMPLES])}
            self._tracing.record(names.SPAN_TRAINING_STEP, start, end, None, {**said, **samples, **odd}, context=root)
            self._phases(root, phases)
            return
        if self._leads:
            start, end = min(one[0] for one in spans.values()), max(one[1] for one in spans.values())
            self._tracing.record(names.SPAN_TRAINING_STEP, start, end, None, {**said, **odd}, context=root)
        for rank, (start, end, phases) in spans.items():
            own: Attributes = {**said, "training.rank": rank, "training.samples": int(found[rank][SAMPLES]), **odd}
            self._phases(self._tracing.record(names.SPAN_TRAINING_RANK, start, end, root, own), phases)

    def _phases(self, parent: SpanContext, phases: Iterable[tuple[str, int, int]]) -> None:
        for phase, start, end in phases:
            self._tracing.record(names.SPANS_TRAINING_PHASE[phase], start, end, parent)

    def _slow(self, rank: int, records: Records) -> list[tuple[int, str]]:
        """Steps that took much longer than those before them, with the reason in words."""
        if not len(records):
            return []
        own = records[:, DURATION] - records[:, list(_LONG)].sum(axis=1)
        before = self._usual.get(rank, own[:0])
        self._usual[rank] = np.concatenate([before, own])[-_USUAL_OF:]
        # Of the first look its own steps: the first ones take longer, and are few.
        known = before if len(before) >= _LEAST else self._usual[rank]
        if len(known) < _LEAST:
            return []
        usual = float(np.median(known))
        found = np.flatnonzero(own > self._rule.slow * usual)
        of = f" of rank {rank}" if self._world_size > 1 else ""
        return [
            (
                int(records[index, NUMBER]),
                f"{own[index] / 1e6:.4g} ms{of}, {own[index] / usual:.1f} times the usual {usual / 1e6:.4g} ms",
            )
            for index in found
        ]

    def _drawn(self, steps: NDArray[np.int64]) -> list[int]:
        """Those of the steps that fall into the share that is drawn."""
        drawn = steps if self._bound >= 2**64 else steps[self._low(steps) < np.uint64(self._bound)]
        return [int(step) for step in drawn]

    def _low(self, steps: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The lower half of the steps' trace ids, evenly spread and never 0 (Steele et al., splitmix64)."""
        with np.errstate(over="ignore"):
            mixed = steps.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(self._seed)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
        low: NDArray[np.uint64] = np.maximum(mixed, np.uint64(1))
        return low


def totals_of(phases: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Seconds by phase; a phase may come several times, and "" is none."""
    found: dict[str, float] = {}
    for phase, seconds in phases:
        if phase:
            found[phase] = found.get(phase, 0.0) + seconds
    return found


def _latest(records: Records, step: int) -> NDArray[np.int64] | None:
    """The last record of a step: after a rewind there are several."""
    found = np.flatnonzero(records[:, NUMBER] == step)
    return records[found[-1]] if len(found) else None


def _spans(
    record: NDArray[np.int64], offset_ns: int, by_device: Mapping[str, float]
) -> tuple[int, int, list[tuple[str, int, int]]]:
    """Start and end of a step in Unix nanoseconds, and of its phases, laid out one after the other.

    A record holds how long each phase took in all, not when: a phase of several parts is one span.
    """
    start = at = int(record[STARTED]) + offset_ns
    phases = []
    for index, phase in enumerate(names.PHASES):
        took = round(by_device[phase] * 1e9) if phase in by_device else int(record[FIRST_PHASE + index])
        if took > 0:
            phases.append((phase, at, at + took))
            at += took
    return start, max(start + int(record[DURATION]), at), phases
