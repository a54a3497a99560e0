"""Claims on running actions: of the processes that share a database one carries an action out, with a fencing token.

A claim ends when its holder dies on this machine, or has not renewed it within its term. Whoever takes it over gets a
larger token; the one before finds its own refused when it wants to write, and must not act any more. Every function
runs in a transaction that has locked the journal, so that two processes never see a claim as free at once.
"""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from alerts.holders import is_dead
from alerts.schema import ACTION_CLAIMS

TERM_SECONDS = 10.0
# Where the effect itself shows whether it is there, as serving's does: a holder on another machine that is gone is
# waited for no longer than this.
BRIEF_TERM_SECONDS = 3.0


def database_time(connection: sa.Connection, now: float) -> sa.ColumnElement[float]:
    """Unix seconds that all processes agree on: the server's clock, or this machine's `now` for a file on it."""
    if connection.dialect.name != "postgresql":
        return sa.literal(now, sa.Double)
    return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double)


def claim(
    connection: sa.Connection, key: str, holder: str, now: float, term_seconds: float = TERM_SECONDS
) -> int | None:
    """The token under which `holder` carries the action out; None while another one does."""
    at = database_time(connection, now)
    row = connection.execute(sa.select(ACTION_CLAIMS, at.label("now")).where(ACTION_CLAIMS.c.key == key)).first()
    new = {"holder": holder, "expires_at": at + term_seconds}
    if row is None:
        connection.execute(ACTION_CLAIMS.insert().values(key=key, token=1, **new))
        return 1
    if row.holder != holder and row.expires_at > row.now and not is_dead(row.holder):
        return None
    token = row.token if row.holder == holder else row.token + 1
    connection.execute(ACTION_CLAIMS.update().where(ACTION_CLAIMS.c.key == key).values(token=token, **new))
    return int(token)


def renew(
    connection: sa.Connection, key: str, holder: str, token: int, now: float, term_seconds: float = TERM_SECONDS
) -> bool:
    """Hold the claim for another term. Whether it was still ours; a claim that nobody took over is."""
    table = ACTION_CLAIMS
    mine = sa.and_(table.c.key == key, table.c.holder == holder, table.c.token == token)
    expires_at = database_time(connection, now) + term_seconds
    return connection.execute(table.update().where(mine).values(expires_at=expires_at)).rowcount == 1


def release(connection: sa.Connection, key: str, token: int) -> None:
    """Let the next one claim it at once; the token stays, so that it goes on growing."""
    mine = sa.and_(ACTION_CLAIMS.c.key == key, ACTION_CLAIMS.c.token == token)
    connection.execute(ACTION_CLAIMS.update().where(mine).values(expires_at=0.0))


def claimed(connection: sa.Connection, keys: Collection[str], now: float, *, but: str = "") -> set[str]:
    """Those of the actions whose claim is held by a process that is not known to be dead; `but` is no such holder."""
    at = database_time(connection, now)
    held = ACTION_CLAIMS.c.key.in_(list(keys))
    rows = connection.execute(sa.select(ACTION_CLAIMS).where(held, ACTION_CLAIMS.c.expires_at > at))
    return {row.key for row in rows if row.holder != but and not is_dead(row.holder)}
