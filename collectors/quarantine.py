"""Sources in quarantine: their events are kept apart, so that nothing is measured or learned from them.

A source is a member of the events' attributes with a value, such as `"source": "sensor-7"`. Its rows are durable like
all others, in a lake of their own under `quarantined/`; neither windows nor retraining read that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from collectors.database import QUARANTINE
from collectors.journal import Journal
from observability.events import BadBatch

_LONGEST = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A source of a model's events; `since` is unix seconds, `key` that of the action that put it here."""

    model: str
    attribute: str
    value: str
    since: float = 0.0
    key: str = ""
    actor: str = ""
    reason: str = ""

    @classmethod
    def from_json(cls, model: str, body: bytes, now: float) -> Source:
        """The source of `{"attribute", "value", "key"?, "actor"?, "reason"?}`. Raises BadBatch."""
        try:
            given = json.loads(body)
        except ValueError as error:
            raise BadBatch(f"the body is not JSON: {error}") from error
        known = ("attribute", "value", "key", "actor", "reason")
        if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
            raise BadBatch("a source is an object of texts: attribute, value, and if you like key, actor and reason")
        if unknown := sorted(given.keys() - set(known)):
            raise BadBatch(f"a source has no field {unknown[0]!r}; there are {', '.join(known)}")
        for name in ("attribute", "value"):
            if not 0 < len(given.get(name, "")) <= _LONGEST:
                raise BadBatch(f"{name} must be 1 to {_LONGEST} characters: a source is an attribute with its value")
        return cls(model=model, since=now, **given)

    def to_json(self) -> dict[str, Any]:
        """The fields by name, but the model."""
        body = asdict(self)
        del body["model"]
        return body


class Quarantine:
    """The sources, in SQL and in memory; `divide` is asked for every batch of events."""

    def __init__(self, journal: Journal, counted: Callable[[str, str, int], None] = lambda model, source, rows: None):
        self._journal = journal
        self._counted = counted
        with journal.engine.connect() as connection:
            rows = connection.execute(sa.select(QUARANTINE)).mappings().all()
        self._sources = {_place(source): source for source in (Source(**row) for row in rows)}

    def sources(self, model: str) -> list[Source]:
        """The model's, the oldest first."""
        return sorted((one for one in self._sources.values() if one.model == model), key=lambda one: one.since)

    def put(self, source: Source) -> Future[Any]:
        """Keep a source apart from now on; one that is there already stays as it is."""
        known = self._sources.setdefault(_place(source), source)
        return self._journal.submit(lambda connection: _replace(connection, known, [known]))

    def lift(self, source: Source) -> Future[Any]:
        """Let a source's events in again; what was kept apart stays apart."""
        self._sources.pop(_place(source), None)
        return self._journal.submit(lambda connection: _replace(connection, source, []))

    def divide(self, table: pa.Table) -> tuple[pa.Table, pa.Table | None]:
        """The rows `[rows]` of no source in quarantine, and the others; None where there are no others."""
        if not self._sources or "attributes" not in table.column_names:
            return table, None
        models = set(table.column("model").unique().to_pylist())
        concerned = [one for one in list(self._sources.values()) if one.model in models]
        if not concerned:
            return table, None
        apart = None
        for source in concerned:
            rows = pc.and_(pc.equal(table.column("model"), source.model), _has(table.column("attributes"), source))
            if count := pc.sum(rows).as_py():
                self._counted(source.model, f"{source.attribute}={source.value}", count)
                apart = rows if apart is None else pc.or_(apart, rows)
        return (table, None) if apart is None else (table.filter(pc.invert(apart)), table.filter(apart))


def _has(attributes: pa.ChunkedArray, source: Source) -> pa.ChunkedArray:
    """Which rows' attributes have the source's value; every distinct text is parsed once."""
    encoded = attributes.combine_chunks().dictionary_encode()
    matches = pa.array([_matches(text, source) for text in encoded.dictionary.to_pylist()], pa.bool_())
    return pa.chunked_array([pc.fill_null(matches.take(encoded.indices), False)])


def _matches(text: str, source: Source) -> bool:
    try:
        found = json.loads(text).get(source.attribute)
    except (ValueError, AttributeError):
        return False
    return found is not None and (found if isinstance(found, str) else json.dumps(found)) == source.value


def _replace(connection: sa.Connection, source: Source, kept: Iterable[Source]) -> None:
    table = QUARANTINE.c
    where = (table.model == source.model) & (table.attribute == source.attribute) & (table.value == source.value)
    connection.execute(QUARANTINE.delete().where(where))
    for one in kept:
        connection.execute(QUARANTINE.insert().values(asdict(one)))


def _place(source: Source) -> tuple[str, str, str]:
    return source.model, source.attribute, source.value
