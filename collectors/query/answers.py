"""The answer to one expression: its data, what is to be said of it, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from collectors.query.annotations import Notes, notes_on
from collectors.query.context import Limits, Tally
from collectors.query.encode import outcome_json
from collectors.query.engine import Outcome

TRUNCATED = "results truncated due to limit"


def answered(expr: str, evaluate: Callable[[Limits], Outcome], limit: int | None) -> Callable[[Limits], bytes]:
    """The answer of one expression: its data, what is to be said of it, and what it cost if that is counted."""
    asked = time.monotonic()

    def work(limits: Limits) -> bytes:
        started, tally = time.monotonic(), limits.tally
        outcome = evaluate(limits)
        cost = b"" if tally is None else _statistics(tally, started - asked, time.monotonic() - started)
        return _written(outcome, limit, notes_on(expr), cost)

    return work


def _statistics(tally: Tally, queued_seconds: float, seconds: float) -> bytes:
    """What a query cost, as Prometheus has it; evaluation is not told apart into its parts."""
    timings = {
        "evalTotalTime": seconds,
        "resultSortTime": 0.0,
        "queryPreparationTime": 0.0,
        "innerEvalTime": seconds,
        "execQueueTime": queued_seconds,
        "execTotalTime": queued_seconds + seconds,
    }
    samples = {"totalQueryableSamples": tally.samples, "peakSamples": tally.peak}
    return msgspec.json.encode({"timings": timings, "samples": samples})


def _written(outcome: Outcome, limit: int | None, notes: Notes, statistics: bytes) -> bytes:
    cut = limit is not None and len(outcome) > limit
    data = outcome_json(outcome.first(limit) if cut and limit is not None else outcome)
    if statistics:
        data = b'%b,"stats":%b}' % (data[:-1], statistics)
    there = len(outcome) > 0
    warnings = [*(notes.warnings if there else ()), *([TRUNCATED] if cut else ())]
    infos = notes.infos if there else ()
    beside = b"".join(
        b',"%b":%b' % (name, msgspec.json.encode(texts))
        for name, texts in ((b"warnings", warnings), (b"infos", infos))
        if texts
    )
    return b'{"status":"success","data":%b%b}' % (data, beside)
