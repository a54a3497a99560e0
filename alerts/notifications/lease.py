"""A lease in the database: of the processes that share it, one at a time does a job."""

from __future__ import annotations

import threading

import sqlalchemy as sa

from alerts.holders import is_dead, this_process
from alerts.notifications.tables import LEASES

TERM_SECONDS = 15.0


class Lease:
    """`hold` takes or keeps the lease; whoever does not renew it within its term loses it.

    A process of this machine that has died loses it at once, so a restart does not wait for the term's end.
    """

    def __init__(self, engine: sa.Engine, name: str, *, holder: str = "", term_seconds: float = TERM_SECONDS) -> None:
        self._engine = engine
        self._name = name
        self._holder = holder or this_process()
        self._term = term_seconds
        self._expires_at = 0.0
        self._lock = threading.Lock()

    def hold(self, now: float) -> bool:
        """Whether the lease is ours at `now` (unix seconds), renewed when a third of its term has passed."""
        with self._lock:
            if now < self._expires_at - self._term * 2 / 3:
                return True
            try:
                ours = self._take(now)
            except sa.exc.IntegrityError:  # another process took it in the same moment
                ours = False
            self._expires_at = now + self._term if ours else 0.0
            return ours

    def _take(self, now: float) -> bool:
        with self._engine.begin() as connection:
            row = connection.execute(sa.select(LEASES).where(LEASES.c.name == self._name).with_for_update()).first()
            ours = row is None or row.holder == self._holder or row.expires_at <= now or is_dead(row.holder)
            if ours:
                new = {"holder": self._holder, "expires_at": now + self._term}
                if row is None:
                    connection.execute(LEASES.insert().values(name=self._name, **new))
                else:
                    connection.execute(LEASES.update().where(LEASES.c.name == self._name).values(new))
        return ours

    def held(self, now: float) -> bool:
        """Whether the lease is still ours, as far as this process knows without asking."""
        return now < self._expires_at

    def release(self) -> None:
        """Let another process have it now."""
        with self._lock:
            self._expires_at = 0.0
            with self._engine.begin() as connection:
                connection.execute(LEASES.delete().where(LEASES.c.name == self._name, LEASES.c.holder == self._holder))
