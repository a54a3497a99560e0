"""Releases as the judge remembers them: when they began and ended, and the verdict in force."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from alerts.evidence.verdict import Outcome
from alerts.schema import RELEASE_STATES, RELEASES

Numbers = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A canary release; times are unix seconds, `ended_at` is None while the canary has traffic."""

    model: str
    release: str
    candidate: str
    baseline: str
    started_at: float
    ended_at: float | None = None
    verdict: Outcome = Outcome.CONTINUE
    reason: str = ""
    decided_at: float | None = None

    @property
    def labels(self) -> dict[str, str]:
        """The labels that its series carry."""
        return {
            "model": self.model,
            "release": self.release,
            "candidate": self.candidate,
            "baseline": self.baseline,
        }


@dataclass(frozen=True, slots=True)
class Weight:
    """One series of `traffic_weight_ratio`."""

    model: str
    version: str
    role: str
    value: float


def in_progress(releases: Sequence[Release], weights: Sequence[Weight]) -> list[Release]:
    """The releases whose canary has traffic now, the latest one of each model.

    A model whose weights are unknown keeps its releases: an absent metric does not end a release.
    """
    known = {weight.model for weight in weights}
    candidates = {(w.model, w.version) for w in weights if w.role == "canary" and w.value > 0}
    latest: dict[str, Release] = {}
    for release in sorted(releases, key=order):
        open_still = release.ended_at is None and release.model not in known
        if open_still or (release.model, release.candidate) in candidates:
            latest[release.model] = release
    return list(latest.values())


def read_releases(connection: sa.Connection, limit: int | None = None) -> list[Release]:
    """Saved releases, the newest first."""
    query = sa.select(RELEASES).order_by(RELEASES.c.started_at.desc())
    rows = connection.execute(query.limit(limit) if limit else query).mappings()
    return [_release(row) for row in rows]


def write_release(connection: sa.Connection, release: Release) -> None:
    """Insert or replace one release."""
    where = sa.and_(RELEASES.c.model == release.model, RELEASES.c.release == release.release)
    row = {
        **release.labels,
        "started_at": release.started_at,
        "ended_at": release.ended_at,
        "verdict": release.verdict.value,
        "reason": release.reason,
        "decided_at": release.decided_at,
    }
    if connection.execute(RELEASES.update().where(where).values(row)).rowcount == 0:
        connection.execute(RELEASES.insert().values(row))


def read_state(connection: sa.Connection, model: str, release: str) -> tuple[str, dict[str, Numbers], str] | None:
    """The saved state of a release's evidence as JSON, its histograms as they last read, and why its verdict is so."""
    table = RELEASE_STATES
    row = connection.execute(sa.select(table).where(table.c.model == model, table.c.release == release)).first()
    if row is None:
        return None
    return row.state, {series: tuple(values) for series, values in row.histograms.items()}, row.because


def write_state(
    connection: sa.Connection, model: str, release: str, state: str, histograms: Mapping[str, Numbers], because: str
) -> None:
    """Insert or replace it."""
    table = RELEASE_STATES
    row = {"state": state, "histograms": {k: list(v) for k, v in histograms.items()}, "because": because}
    where = sa.and_(table.c.model == model, table.c.release == release)
    if connection.execute(table.update().where(where).values(row)).rowcount == 0:
        connection.execute(table.insert().values(model=model, release=release, **row))


def _release(row: Mapping[Any, Any]) -> Release:
    return Release(**{**row, "verdict": Outcome(row["verdict"])})


def order(release: Release) -> tuple[float, int]:
    """Releases by their start; those first seen in the same look by the number that ends their id."""
    number = re.search(r"\d+\Z", release.release)
    return release.started_at, int(number[0]) if number else 0
