"""Which requests begin a trace that is kept: drawn by chance, so many a second at most."""

from __future__ import annotations

import math
import random
from collections.abc import Callable


class Draws:
    """For one event loop. `share` of the requests are drawn, `limit` a second at most: a trace costs many requests."""

    def __init__(
        self,
        share: float,
        limit: int,
        clock: Callable[[], float],
        draw: Callable[[], float] | None = None,
    ) -> None:
        self._share = share
        self._limit = limit
        self._clock = clock
        self._draw = draw or random.Random().random  # the host's seeds stay its own
        self._begun, self._since = 0, 0.0
        self._until_next = self._next() - 1

    def one(self, now: float) -> bool:
        """Whether this request is drawn."""
        return self._draw() < self._share and self._may_begin(now)

    def of(self, requests: int) -> list[int]:
        """Places, the last first, of those drawn of so many requests: as if each were drawn by itself."""
        found, place = [], self._until_next
        while place < requests:
            if self._may_begin(self._clock()):
                found.append(place)
            place += self._next()
        self._until_next = place - requests
        return found[::-1]

    def _may_begin(self, now: float) -> bool:
        if now - self._since >= 1.0:
            self._since, self._begun = now, 0
        self._begun += 1
        return self._begun <= self._limit

    def _next(self) -> int:
        """Requests until one is drawn, 1 at least."""
        if not 0.0 < self._share < 1.0:
            return 1 if self._share >= 1.0 else 1 << 62
        return 1 + int(min(math.log1p(-self._draw()) / math.log1p(-self._share), 2.0**60))
