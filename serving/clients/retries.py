"""When a client asks again: which failures are safe to repeat, how long it waits, and how much repeating is allowed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How a client repeats a request. Times are seconds.

    The waits grow from `first_wait` by two each time up to `max_wait`, and are drawn evenly between 0 and that ("full
    jitter", Brooker 2015), but never end before the server's Retry-After. `budget` is the share of requests that may be
    repeated in the long run, `reserve` how many at once: when everything fails, a client does not double its load.
    """

    attempts: int = 4
    first_wait: float = 0.05
    max_wait: float = 2.0
    budget: float = 0.2
    reserve: float = 10.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_wait < 0 or self.max_wait < self.first_wait:
            raise ValueError(
                f"attempts is {self.attempts}, first_wait {self.first_wait}, max_wait {self.max_wait}: "
                "at least 1, not negative, at least first_wait"
            )
        if self.budget < 0 or self.reserve < 0:
            raise ValueError(f"budget is {self.budget}, reserve {self.reserve}: not negative")


NO_RETRIES = Retries(attempts=1)


@dataclass(frozen=True, slots=True)
class Failure:
    """One try that gave no answer to keep. `sent`: the server may have worked on it."""

    reason: str  # connect, reset, rejected or unavailable; anything else is not repeated
    sent: bool
    retry_after: float | None = None


class Budget:
    """A client's retries, over all its requests; not shared between threads' clients."""

    def __init__(self, policy: Retries, draw: Callable[[], float] = random.random) -> None:
        self._policy = policy
        self._draw = draw
        self._tokens = policy.reserve

    def began(self) -> None:
        """A first try earns its share of a retry."""
        self._tokens = min(self._policy.reserve, self._tokens + self._policy.budget)

    def wait(self, failure: Failure, tries: int, remaining: float, *, idempotent: bool) -> float | None:
        """Seconds to wait before the next try; None: give up. `tries` were made, `remaining` s are left."""
        policy = self._policy
        if tries >= policy.attempts or failure.reason not in ("connect", "reset", "rejected", "unavailable"):
            return None
        if failure.sent and not idempotent:
            return None
        ceiling = min(policy.max_wait, policy.first_wait * 2.0 ** (tries - 1))
        seconds = self._draw() * ceiling
        if failure.retry_after is not None:
            # Behind the server's moment, not at it: all who were refused together would come back together.
            seconds += failure.retry_after
        if seconds >= remaining or self._tokens < 1.0:
            return None
        self._tokens -= 1.0
        return seconds
