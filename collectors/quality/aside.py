"""Rows kept aside: each broken rule of each row, in SQL, the latest of a model; the rows themselves are in the lake."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from collectors.database import SCHEMA_EDITS, VIOLATIONS, insert_new, replace
from collectors.journal import Journal
from collectors.quality.schema import SchemaEdit

KEPT = 2_000


@dataclass(frozen=True, slots=True)
class KeptRow:
    """One row that broke one rule. `value` is the text of what it held; None where it held nothing."""

    model: str
    version: str
    id: str
    time: float
    """Event time, unix seconds."""
    column: str
    rule: str
    value: str | None


class KeptAside:
    """The kept rows and the schema edits. A row that comes again (a replay after a restart) is kept once."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def put(self, rows: Sequence[KeptRow]) -> Future[None]:
        values: list[dict[str, Any]] = [
            {
                "model": row.model,
                "version": row.version,
                "event_id": row.id,
                "time": row.time,
                "column": row.column,
                "rule": row.rule,
                "value": row.value,
            }
            for row in rows
        ]
        return self._journal.submit(lambda connection: insert_new(connection, VIOLATIONS, values))

    def latest(self, model: str, limit: int, column: str | None = None) -> list[KeptRow]:
        """The latest kept rows of a model by event time, latest first."""
        chosen = VIOLATIONS.c.model == model
        if column is not None:
            chosen &= VIOLATIONS.c.column == column
        statement = sa.select(VIOLATIONS).where(chosen).order_by(VIOLATIONS.c.time.desc(), VIOLATIONS.c.event_id)
        with self._journal.engine.connect() as connection:
            rows = connection.execute(statement.limit(limit)).all()
        return [
            KeptRow(row.model, row.version, row.event_id, row.time, row.column, row.rule, row.value) for row in rows
        ]

    def prune(self, keep: int = KEPT) -> None:
        """Keeps the latest `keep` rows of each model."""
        self._journal.keep_latest(VIOLATIONS, ("model",), "time", keep)

    def edit(self, model: str, edit: SchemaEdit, now: float) -> Future[None]:
        """Keeps the edit of a model's schema in the place of the last one."""
        row = {"model": model, "body": edit.to_json(), "updated_at": now}
        return self._journal.submit(lambda connection: replace(connection, SCHEMA_EDITS, row))

    def edits(self) -> dict[str, SchemaEdit]:
        """Every model's edit."""
        with self._journal.engine.connect() as connection:
            rows = connection.execute(sa.select(SCHEMA_EDITS)).all()
        return {row.model: SchemaEdit.from_json(row.body) for row in rows}
