"""Slower answers: a bet, look by look, that more of the canary's requests than of the stable version's exceed a bound.

Requests of one look (a second) are not independent: a stall hits all of a batch, and so of one arm. So a look is one
observation at each bound: d = a - tolerance b, with a and b the shares of the canary's and of the stable version's
requests that exceeded it. If a request has the same chance to be slow whichever arm it got, d has a mean of at most 0
*whatever the requests of a look have in common*, and however many each arm got. (The canary's share of the slow
requests has not: where a batch holds three stable requests or one of the canary's, a stall that hits a batch at random
hits the canary's too often.) The wealth prod(1 + lambda_t d_t) is then an e-process for every lambda_t that is known
before the look: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 86(1), 2024.

lambda_t is a fraction of 1 / (the largest stable share seen so far), which is small for a tail and makes a single slow
canary request count there; two fractions are mixed, of which the smaller wins where looks differ much by themselves. A
look can never gain more than `MOST`-fold, so that a stall of one arm, however long, proves nothing. A stable share
beyond all before would cost more than there is: its loss is paid in parts, exp-like. That is the one inexact place, and
it does not recur: the share is remembered. Bounds are mixed with weights that the first looks set.

What is asked of the looks is that what slows one arm alone passes: an arm that stays slow for many looks is slower.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from alerts.evidence.exceedances import Slow, Slowness
from alerts.evidence.native_sums import native_sums
from alerts.evidence.segments import NOTHING, log_plus_one

Numbers = tuple[float, ...]

# Of the largest bet that could lose all, and how the wealth begins divided among them.
FRACTIONS: Numbers = (0.95, 0.3)
SHARES: Numbers = (0.8, 0.2)
# What a look can gain at most, as a multiple of the wealth, besides what it was.
MOST = 7.0
# The stable share is taken for so many requests of a look at least, where none was seen.
LEAST_REQUESTS = 1.0
# What is left of the largest stable share after another look: an incident is no measure for ever.
REMEMBERED = 0.99
# Requests of both arms after which the bounds get their weights.
TEACHING = 50.0
# What of the weight all bounds up to the second that nobody exceeded have alike: a new tail shows where nobody was.
ALIKE = 0.5
_EMPTY = 2
_MOST_LOG = 690.0


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the bets; `after` gives the next one. A new one has seen nothing.

    `weights` and `usual` (the largest stable share) are by bound, `wealth` (logarithms) by fraction and bound;
    `waiting` are the requests of looks in which one arm had none. `requests` (canary, stable) and `above` (both arms,
    by bound) are what came before the weights were set; `looks` counts those that were bet on, and `slow` the canary's
    requests above each bound in them.
    """

    weights: Numbers = ()
    usual: Numbers = ()
    wealth: tuple[Numbers, ...] = ()
    waiting: Slow | None = None
    requests: Numbers = (0.0, 0.0)
    above: Numbers = ()
    looks: int = 0
    slow: Numbers = ()

    def after(
        self,
        parts: Sequence[Slow],
        bounds: Numbers,
        *,
        tolerance: float = 1.0,
        floor_seconds: float = 0.0,
        warm_up_requests: float = 0.0,
        least_requests: float = 1.0,
        since_any: bool = False,
    ) -> Pace:
        """After a look: requests by arm above each of `bounds` (seconds), whatever the router's probabilities were.

        Bounds below `floor_seconds` are not bet on. Looks until the canary has answered `warm_up_requests` only teach
        what is usual. Looks are put together until each arm has `least_requests`. With `since_any` the wealth is the
        sum over all beginnings, an e-detector (`alerts.evidence.after_promotion`), at each look.
        """
        look = _pooled(parts if self.waiting is None else (self.waiting, *parts), len(bounds))
        if look.canary_requests < least_requests or look.stable_requests < least_requests:
            return self._with(waiting=look)
        if self.weights:
            wealth, usual, slow = self._wagered(look, tolerance, since_any)
            return Pace(weights=self.weights, usual=usual, wealth=wealth, looks=self.looks + 1, slow=slow)
        stable = [count / look.stable_requests for count in look.stable]
        taught = Pace(usual=_remembered(self.usual or (0.0,) * len(bounds), stable))
        begun = NOTHING if since_any else 0.0
        return taught._taught(self, look, bounds, floor_seconds, warm_up_requests, begun)

    def evidence(self) -> Slowness:
        """Log e-value that the canary is slower, and the place of the bound that says so most (-1 before any look)."""
        if not self.looks:
            return Slowness(0.0, -1)
        native = native_sums()
        if native is not None and len(self.weights) <= native.MOST:
            return Slowness(*native.mixed_wealth(self.weights, self.wealth, SHARES, _MOST_LOG))
        exp, most, (large, small) = math.exp, _MOST_LOG, SHARES
        parts = [
            weight * (large * exp(a if a < most else most) + small * exp(b if b < most else most)) if weight else 0.0
            for weight, a, b in zip(self.weights, *self.wealth, strict=True)
        ]
        total = 0.0
        for part in parts:  # one after the other: `sum` adds in another way in later versions of Python
            total += part
        telling = parts.index(max(parts))
        return Slowness(math.log(total) if total else 0.0, telling)

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> Pace:
        """Of its fields as JSON has them. KeyError or TypeError when they are none."""
        given: dict[str, Any] = {name: _untouched(value) for name, value in body.items()}
        given["wealth"] = tuple([tuple(row) for row in body["wealth"]])
        if (waiting := body["waiting"]) is not None:
            given["waiting"] = Slow(**{name: _untouched(value) for name, value in waiting.items()})
        return Pace(**given)

    def _wagered(self, look: Slow, tolerance: float, since_any: bool) -> tuple[tuple[Numbers, ...], Numbers, Numbers]:
        """Wealth, usual shares and slow requests after a look."""
        native = native_sums()
        if native is not None and len(self.weights) <= native.MOST:
            settings = (
                look.canary_requests, look.stable_requests, tolerance, MOST, LEAST_REQUESTS, REMEMBERED,
            )  # fmt: skip
            return native.wealth_after(
                self.wealth, self.weights, self.usual, self.slow, look.canary, look.stable, settings, FRACTIONS,
                since_any,
            )  # fmt: skip
        canary = [count / look.canary_requests for count in look.canary]
        stable = [count / look.stable_requests for count in look.stable]
        wealth = tuple([tuple([log_plus_one(m) for m in row]) for row in self.wealth]) if since_any else self.wealth
        slow = tuple([before + more for before, more in zip(self.slow, look.canary, strict=True)])
        wealth = self._bet(wealth, canary, stable, look.stable_requests, tolerance)
        return wealth, _remembered(self.usual, stable), slow

    def _bet(
        self, wealth: tuple[Numbers, ...], canary: list[float], stable: list[float], requests: float, tolerance: float
    ) -> tuple[Numbers, ...]:
        least = LEAST_REQUESTS / requests
        rows = []
        for fraction, row in zip(FRACTIONS, wealth, strict=True):
            found = []
            for a, b, usual, weight, before in zip(canary, stable, self.usual, self.weights, row, strict=True):
                if not weight or (not a and not b):
                    found.append(before)
                    continue
                cap = min(max(usual, least), 1.0)
                stake = fraction / (cap * tolerance)
                d = stake * (min(a, MOST / stake) - tolerance * b)
                parts = max(math.ceil(b / cap), 1) if d < 0.0 else 1
                found.append(before + parts * math.log1p(d / parts))
            rows.append(tuple(found))
        return tuple(rows)

    def _taught(self, before: Pace, look: Slow, bounds: Numbers, floor: float, warm_up: float, begun: float) -> Pace:
        requests = (before.requests[0] + look.canary_requests, before.requests[1] + look.stable_requests)
        above = tuple(
            known + c + s
            for known, c, s in zip(before.above or (0.0,) * len(bounds), look.canary, look.stable, strict=True)
        )
        if sum(requests) < TEACHING or requests[0] < warm_up:
            return self._with(requests=requests, above=above)
        weights = _weights(above, sum(requests), bounds, floor)
        return Pace(
            weights=weights, usual=self.usual, wealth=((begun,) * len(bounds),) * len(FRACTIONS),
            slow=(0.0,) * len(bounds),
            requests=requests, above=above,
        )  # fmt: skip

    def _with(
        self, *, waiting: Slow | None = None, requests: Numbers | None = None, above: Numbers | None = None
    ) -> Pace:
        return Pace(
            weights=self.weights, usual=self.usual, wealth=self.wealth, waiting=waiting,
            requests=self.requests if requests is None else requests, above=self.above if above is None else above,
            looks=self.looks, slow=self.slow,
        )  # fmt: skip


def _remembered(usual: Sequence[float], shares: Sequence[float]) -> Numbers:
    """The largest shares after further ones."""
    return tuple([max(REMEMBERED * before, share) for before, share in zip(usual, shares, strict=True)])


def _untouched(value: Any) -> Any:
    """A list of JSON as the tuple that it was."""
    return tuple(value) if isinstance(value, list) else value


def _pooled(parts: Sequence[Slow], bounds: int) -> Slow:
    if len(parts) == 1:
        return parts[0]
    canary, stable = [0.0] * bounds, [0.0] * bounds
    for part in parts:
        canary = [a + b for a, b in zip(canary, part.canary, strict=True)]
        stable = [a + b for a, b in zip(stable, part.stable, strict=True)]
    return Slow(
        parts[-1].propensity if parts else 0.0, tuple(canary), tuple(stable),
        sum(part.canary_requests for part in parts), sum(part.stable_requests for part in parts),
    )  # fmt: skip


def _weights(above: Numbers, requests: float, bounds: Numbers, floor: float) -> Numbers:
    """Most where the answers are: in proportion to the variance of "slower than the bound", besides what is alike."""
    shares = [min(count / requests, 1.0) for count in above]
    material = [bound >= floor for bound in bounds]
    empty, within = 0, []
    for share, counts in zip(shares, material, strict=True):
        empty += counts and share <= 0.0
        within.append(counts and empty <= _EMPTY)
    variances = [share * (1.0 - share) if counts else 0.0 for share, counts in zip(shares, material, strict=True)]
    total, number = math.fsum(variances), sum(within)
    if not number:
        return (0.0,) * len(bounds)
    alike = [1.0 / number if inside else 0.0 for inside in within]
    if not total:
        return tuple(alike)
    return tuple(
        ALIKE * even + (1.0 - ALIKE) * variance / total for even, variance in zip(alike, variances, strict=True)
    )
