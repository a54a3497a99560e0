"""Labelled predictions of releases and of shadows, numbered in the order in which they were joined.

Whoever judges reads on from the last number that it has counted. A prediction is in a feed once: its first label
counts, and one that comes again, is replayed after a restart or is corrected later changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from collectors.database import RELEASE_LABELS, insert_new
from collectors.journal import Journal
from collectors.routed import Routing

SHADOW_FEED = "shadow:"
# Labels that may wait before they are written.
_PENDING = 1_000


@dataclass(frozen=True, slots=True)
class LabelRow:
    """A labelled prediction: `other` is the stable version's answer to the same request, where it is a shadow's.

    `propensity` is the probability of the arm that answered; NaN for a shadow's, which chance says nothing of.
    """

    number: int
    version: str
    arm: str
    propensity: float
    prediction: float
    label: float
    other: float | None = None

    def to_json(self) -> list[Any]:
        """The row as the list that the feed has."""
        propensity = self.propensity if math.isfinite(self.propensity) else None
        return [self.number, self.version, self.arm, propensity, self.prediction, self.label, self.other]


def feed_of(version: str) -> str:
    """The name of a shadow's feed; a release's feed has the release's own name."""
    return f"{SHADOW_FEED}{version}"


class ReleaseLabels:
    """The feeds. `put` only remembers; `flush` hands what waits to the journal. Not thread-safe but for `rows`."""

    def __init__(self, journal: Journal, clock: Callable[[], float]) -> None:
        self._journal = journal
        self._clock = clock
        self._pending: list[dict[str, Any]] = []

    def arm(self, model: str, version: str, id_: str, routing: Routing, prediction: float, label: float) -> None:
        """Takes in a labelled prediction of a release's arm; what was not routed by chance is left out."""
        if routing.by_chance:
            self._put(model, routing.release, id_, version, routing, prediction, label, None)

    def pair(
        self, model: str, version: str, id_: str, routing: Routing, prediction: float, other: float, label: float
    ) -> None:
        """Takes in a shadow's labelled prediction beside the stable version's answer."""
        self._put(model, feed_of(version), id_, version, routing, prediction, label, other)

    def flush(self) -> None:
        """Submits what waits, so that it is durable before anything submitted later."""
        rows, self._pending = self._pending, []
        if rows:
            self._journal.submit(lambda connection: insert_new(connection, RELEASE_LABELS, rows))

    def rows(self, model: str, feed: str, after: int = 0, limit: int = 1_000) -> list[LabelRow]:
        """The next rows of a feed behind the number `after`, in order."""
        table = RELEASE_LABELS
        mine = (table.c.model == model) & (table.c.feed == feed) & (table.c.number > after)
        with self._journal.engine.connect() as connection:
            found = connection.execute(sa.select(table).where(mine).order_by(table.c.number).limit(limit)).all()
        return [
            LabelRow(
                row.number, row.version, row.arm, math.nan if row.propensity is None else row.propensity,
                row.prediction, row.label, row.other,
            )
            for row in found
        ]  # fmt: skip

    def last(self, model: str, feed: str) -> int:
        """The number of a feed's last row; 0 when it has none."""
        table = RELEASE_LABELS
        newest = sa.select(sa.func.max(table.c.number)).where(table.c.model == model, table.c.feed == feed)
        with self._journal.engine.connect() as connection:
            return int(connection.execute(newest).scalar() or 0)

    def prune(self, before: float) -> None:
        """Drops what was joined before the unix time `before`."""
        statement = RELEASE_LABELS.delete().where(RELEASE_LABELS.c.joined_at < before)

        def write(connection: sa.Connection) -> None:
            connection.execute(statement)

        done: Future[Any] = self._journal.submit(write)
        done.result()

    def view(self, model: str, query: Mapping[str, str], limit: int) -> dict[str, Any]:
        """The JSON of `/api/releases/{model}/labels`. ValueError when the query is wrong."""
        feed, after = query.get("feed", ""), query.get("after", "0")
        if not feed or not after.isdigit():
            raise ValueError("give ?feed=RELEASE or ?feed=shadow:VERSION, and &after=NUMBER to read on from there")
        rows = self.rows(model, feed, int(after), limit)
        last = rows[-1].number if rows else int(after)
        return {
            "model": model, "feed": feed, "rows": [row.to_json() for row in rows], "last": last,
            "end": self.last(model, feed),
        }  # fmt: skip

    def _put(
        self,
        model: str,
        feed: str,
        id_: str,
        version: str,
        routing: Routing,
        prediction: float,
        label: float,
        other: float | None,
    ) -> None:
        self._pending.append(
            {
                "model": model, "feed": feed, "event_id": id_, "version": version, "arm": routing.arm,
                "propensity": None if other is not None else routing.propensity, "prediction": prediction,
                "label": label, "other": other, "joined_at": self._clock(),
            }
        )  # fmt: skip
        if len(self._pending) >= _PENDING:
            self.flush()
