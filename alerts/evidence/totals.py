"""Requests of a release, totalled from counters that may restart: per series, kept in SQL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from alerts.evidence.prediction import Predicted, one_bin
from alerts.evidence.segments import Segment
from alerts.evidence.state import Arms, summed
from alerts.schema import RELEASE_TOTALS

ERROR = "error"
# Not outcomes of the server's: the units that failed or were seen for the first time, kept among the totals.
FAILED_UNIT = "failed_unit"
UNIT = "unit"
# Nor are predictions by bin: `bin:3` is the fourth.
BIN = "bin:"
CANARY = "canary"


@dataclass(frozen=True, slots=True)
class Total:
    """All requests that one series of a release has counted. `last` is the counter's value as last read."""

    series: str
    arm: str
    propensity: float
    outcome: str
    last: float
    total: float


@dataclass(frozen=True, slots=True)
class Reading:
    """One series of `release_requests_total` as it reads now."""

    series: str
    arm: str
    propensity: float
    outcome: str
    value: float


def add_up(totals: Sequence[Total], readings: Iterable[Reading]) -> list[Total]:
    """The totals after the readings. A counter that fell was restarted from 0; one that is absent keeps its total."""
    known = {total.series: total for total in totals}
    for reading in readings:
        before = known.get(reading.series)
        last, total = (before.last, before.total) if before else (0.0, 0.0)
        grown = reading.value - last if reading.value >= last else reading.value
        known[reading.series] = Total(
            reading.series, reading.arm, reading.propensity, reading.outcome, reading.value, total + grown
        )
    return list(known.values())


def grown(before: Iterable[Total], after: Iterable[Total]) -> tuple[Arms, ...]:
    """What was counted between: requests and failures of both arms by propensity, in its order."""
    counted = [
        _requests(total, more, failed=total.outcome == ERROR)
        for total, more in _growth(before, after)
        if total.outcome not in (FAILED_UNIT, UNIT) and not total.outcome.startswith(BIN)
    ]
    return summed((), counted)


def first_failures(before: Iterable[Total], after: Sequence[Total]) -> tuple[Segment, ...] | None:
    """The units that failed for the first time between; None while no server has said so of any."""
    if not any(total.outcome == FAILED_UNIT for total in after):
        return None
    failed = [
        Segment(total.propensity, more if total.arm == CANARY else 0.0, more)
        for total, more in _growth(before, after)
        if total.outcome == FAILED_UNIT
    ]
    return summed((), failed)


def first_requests(before: Iterable[Total], after: Sequence[Total]) -> tuple[Arms, ...] | None:
    """The units that were seen for the first time between, as requests; None while no server has said so of any."""
    if not any(total.outcome == UNIT for total in after):
        return None
    return summed((), [_requests(total, more) for total, more in _growth(before, after) if total.outcome == UNIT])


def predicted(before: Iterable[Total], after: Sequence[Total]) -> tuple[Predicted, ...]:
    """The predictions of both arms between, by bin and propensity."""
    parts = []
    for total, more in _growth(before, after):
        if total.outcome.startswith(BIN):
            bins = one_bin(int(total.outcome.removeprefix(BIN)), more)
            nothing = (0.0,) * len(bins)
            canary = total.arm == CANARY
            parts.append(Predicted(total.propensity, bins if canary else nothing, nothing if canary else bins))
    return summed((), parts)


def _growth(before: Iterable[Total], after: Iterable[Total]) -> Iterator[tuple[Total, float]]:
    """Each total that grew, and by how much."""
    known = {total.series: total.total for total in before}
    for total in after:
        more = total.total - known.get(total.series, 0.0)
        if more > 0.0:
            yield total, more


def _requests(total: Total, more: float, failed: bool = False) -> Arms:
    canary, stable = (more, 0.0) if total.arm == CANARY else (0.0, more)
    return Arms(
        total.propensity,
        canary_requests=canary,
        canary_errors=canary if failed else 0.0,
        stable_requests=stable,
        stable_errors=stable if failed else 0.0,
    )


def read_totals(connection: sa.Connection, model: str, release: str) -> list[Total]:
    """The saved totals of a release."""
    table = RELEASE_TOTALS
    rows = connection.execute(sa.select(table).where(table.c.model == model, table.c.release == release))
    return [Total(row.series, row.arm, row.propensity, row.outcome, row.last, row.total) for row in rows]


def write_totals(connection: sa.Connection, model: str, release: str, totals: Sequence[Total]) -> None:
    """Replace the saved totals of a release."""
    table = RELEASE_TOTALS
    connection.execute(table.delete().where(table.c.model == model, table.c.release == release))
    if totals:
        connection.execute(
            table.insert(),
            [
                {
                    "model": model,
                    "release": release,
                    "series": total.series,
                    "arm": total.arm,
                    "propensity": total.propensity,
                    "outcome": total.outcome,
                    "last": total.last,
                    "total": total.total,
                }
                for total in totals
            ],
        )
