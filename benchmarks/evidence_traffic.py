"""Traffic of simulated canaries, second by second: what the router sent where, what failed, what was slow.

A canary is 100 requests a second that go up and down over the hour, in half of the cases on a ramp of 1, 5, 10, 25 and
50 % and else at 10 %, three in four with an incident that makes both versions fail and answer late for 1 to 10 minutes.
In half of the cases the router keeps users on their arm: 5,000 whose activity follows Pareto's law, of whom 0.2 % fail
always and 5 % are always slow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from observability.names import LATENCY_SECONDS

Floats = NDArray[np.float64]
Counts = NDArray[np.float64]
HOUR = 3600
RPS, STABLE_RATE = 100.0, 0.005
USERS, BROKEN_USERS, SLOW_USERS = 5000, 0.002, 0.05
RAMP = (0.01, 0.05, 0.1, 0.25, 0.5)
MEDIAN_SECONDS, SPREAD = 0.05, 0.5  # lognormal: 50 ms in the middle, 160 ms at 99 %
# Below the first of these bounds nobody is served, above the last nobody is left: those in between tell.
BOUNDS = tuple(bound for bound in LATENCY_SECONDS if 0.01 <= bound <= 0.75)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What the candidate does: failures and latency relative to the stable version's, and whether life is hard."""

    canary_rate: float = STABLE_RATE
    slower: float = 1.0
    varied: bool = False
    """Ramps, a rate that varies, incidents and sticky users; else 100 requests a second, 10 % of them on the canary."""
    ramp_seconds: int = 0
    """Seconds of a ramp in place of 10 %."""
    seconds: int = HOUR
    incident_from: int = -1
    """Second at which 30 % of both arms' requests begin to fail, for good."""
    tail_share: float = 0.0
    """Share of the candidate's requests that take half a second more."""
    stalls: bool = False
    """Each arm by itself stands still twice a minute for 50 to 500 ms, which all of its requests of that time wait out;
    both together once in 20 s; twice a minute one batch of an arm fails as a whole."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """(R, T) by run and second, `slow` (K, R, T) by bound too.

    Where units stick, `heard_…` are their first failures and `slow_…` of their first requests."""

    share: Floats
    canary: Counts
    stable: Counts
    canary_errors: Counts
    stable_errors: Counts
    heard_canary: Counts
    heard_stable: Counts
    slow_canary: Counts
    slow_stable: Counts
    split_canary: Counts
    split_stable: Counts
    sticky: NDArray[np.bool_]


def tail(bound: float, slower: Floats | float) -> Floats:
    """Share of the answers above the bound, by how much slower they are."""
    if bound <= 0.0:
        return np.ones_like(np.asarray(slower, dtype=np.float64))
    return np.asarray(ndtr(-(np.log(bound / MEDIAN_SECONDS) - np.log(slower)) / SPREAD))


def traffic(rng: np.random.Generator, runs: int, scenario: Scenario) -> Traffic:
    """Some canaries."""
    seconds = np.arange(scenario.seconds)
    share = np.full((runs, scenario.seconds), 0.1)
    level = np.ones((runs, scenario.seconds))
    failing = np.ones_like(level)
    sticky = np.zeros(runs, dtype=bool)
    if scenario.ramp_seconds:
        share[:] = _ramp(seconds, scenario.ramp_seconds)
    if scenario.varied:
        sticky = np.arange(runs) % 2 == 1
        share[np.arange(runs) % 4 >= 2] = _ramp(seconds, HOUR)
        level += 0.4 * np.sin(2 * np.pi * (seconds / HOUR + rng.random((runs, 1))))
        begin, length = rng.uniform(0, HOUR, (runs, 1)), rng.uniform(60, 600, (runs, 1))
        on = (seconds >= begin) & (seconds < begin + length) & (rng.random((runs, 1)) < 0.75)
        failing = np.where(on, rng.choice([5.0, 15.0, 60.0], (runs, 1)), 1.0)
    if scenario.incident_from >= 0:
        failing = np.where(seconds >= scenario.incident_from, 0.3 / STABLE_RATE, 1.0) * np.ones_like(level)
    late = np.where(failing > 1.0, 1.3, 1.0)
    free = _by_chance(rng, share, level, failing, late, scenario, sticky)
    if scenario.stalls:
        _stall(rng, free)
    for run in np.flatnonzero(sticky).tolist():
        _by_user(rng, run, free, share[run], level[run], failing[run], late[run])
    return replace(free, sticky=sticky)


def _ramp(seconds: NDArray[np.int64], length: int) -> Floats:
    return np.array(RAMP)[np.minimum(seconds * len(RAMP) // length, len(RAMP) - 1)]


def _by_chance(
    rng: np.random.Generator,
    share: Floats,
    level: Floats,
    failing: Floats,
    late: Floats,
    scenario: Scenario,
    sticky: NDArray[np.bool_],
) -> Traffic:
    """Each request by chance alone; runs with sticky users are left at 0."""
    arms = []
    for part, rate, slower, slower_share in (
        (share, scenario.canary_rate, scenario.slower, scenario.tail_share),
        (1 - share, STABLE_RATE, 1.0, 0.0),
    ):
        asked = np.where(sticky[:, None], 0.0, RPS * level * part)
        slow = np.zeros((len(BOUNDS), *share.shape))
        above = np.zeros(share.shape)
        requests = np.zeros(share.shape)
        for place in range(len(BOUNDS) - 1, -1, -1):
            over = tail(BOUNDS[place], slower * late)
            if slower_share:
                over = (1.0 - slower_share) * over + slower_share * tail(BOUNDS[place] - 0.5, late)
            requests += rng.poisson(asked * np.maximum(over - above, 0.0))
            slow[place], above = requests, over
        requests = requests + rng.poisson(asked * np.maximum(1.0 - above, 0.0))
        errors = rng.binomial(requests.astype(np.int64), np.minimum(rate * failing, 1.0)).astype(np.float64)
        arms.append((requests, errors, slow))
    (canary, canary_errors, slow_canary), (stable, stable_errors, slow_stable) = arms
    return Traffic(
        share, canary, stable, canary_errors, stable_errors, canary_errors.copy(), stable_errors.copy(),
        slow_canary, slow_stable, canary.copy(), stable.copy(), sticky,
    )  # fmt: skip


def _stall(rng: np.random.Generator, into: Traffic) -> None:
    """Clusters: what hits one arm's requests of a moment together, as likely for a request of either arm."""
    shape = into.share.shape
    common = rng.random(shape) < 1 / 20
    common_length = np.exp(rng.uniform(np.log(0.05), np.log(0.5), shape))
    for requests, errors, heard, slow in (
        (into.canary, into.canary_errors, into.heard_canary, into.slow_canary),
        (into.stable, into.stable_errors, into.heard_stable, into.slow_stable),
    ):
        own, length = rng.random(shape) < 1 / 30, np.exp(rng.uniform(np.log(0.05), np.log(0.5), shape))
        for on, seconds in ((common, common_length), (own, length)):
            waiting = np.minimum(np.where(on, rng.poisson(requests * seconds), 0), requests).astype(np.int64)
            for place, bound in enumerate(BOUNDS):
                # A wait is uniform up to the length of the stall, and what it would have taken anyway is the middle.
                over = np.clip(1.0 - (bound - MEDIAN_SECONDS) / seconds, 0.0, 1.0)
                slow[place] = np.minimum(slow[place] + rng.binomial(waiting, over), requests)
        # A batch holds what came within 30 ms.
        batch = 1 + rng.poisson(0.03 * requests)
        failed = np.where(rng.random(shape) < 1 / 30 * np.minimum(requests / batch / 30.0, 1.0), batch, 0)
        errors[:] = np.minimum(errors + failed, requests)
        heard[:] = errors


def _by_user(
    rng: np.random.Generator, run: int, into: Traffic, share: Floats, level: Floats, failing: Floats, late: Floats
) -> None:
    """A run whose users keep their arm: all requests, and of each user what happens for the first time.

    A user's requests are a Poisson process, so the first of a kind comes when an exponential waiting time is over on
    the clock that runs as fast as such requests come.
    """
    activity = rng.pareto(1.5, USERS) + 0.05
    activity *= RPS / activity.sum()
    place = rng.random(USERS)
    broken, sluggish = rng.random(USERS) < BROKEN_USERS, rng.random(USERS) < SLOW_USERS

    on_canary = place[:, None] < np.unique(share)[None, :]
    at = np.searchsorted(np.unique(share), share)
    asked, bad = (activity @ on_canary)[at], ((activity * broken) @ on_canary)[at]
    whole, all_bad = activity.sum(), (activity * broken).sum()
    usual = np.minimum(STABLE_RATE * failing, 1.0)
    for requests, errors, weight, always in (
        (into.canary, into.canary_errors, asked, bad),
        (into.stable, into.stable_errors, whole - asked, all_bad - bad),
    ):
        sound, faulty = rng.poisson(level * (weight - always)), rng.poisson(level * np.maximum(always, 0.0))
        requests[run] = sound + faulty
        errors[run] = rng.binomial(sound, usual) + faulty

    def first(clock: Floats, users: NDArray[np.bool_] | None = None) -> Floats:
        waits = rng.exponential(1.0, USERS) / activity
        times = np.interp(waits, np.concatenate([[0.0], np.cumsum(clock)]), np.arange(len(clock) + 1), right=np.inf)
        return times if users is None else np.where(users, times, np.inf)

    def count(times: Floats, canary: Counts, stable: Counts) -> None:
        within = times < len(share)
        second = times[within].astype(np.int64)
        mine = place[within] < share[second]
        canary[run] = np.bincount(second[mine], minlength=len(share))
        stable[run] = np.bincount(second[~mine], minlength=len(share))

    begun = first(level)
    count(begun, into.split_canary, into.split_stable)
    count(np.minimum(first(level * usual), first(level, broken)), into.heard_canary, into.heard_stable)
    asked_first = np.where(begun < len(share), begun, 0).astype(np.int64)
    took = MEDIAN_SECONDS * np.exp(SPREAD * rng.standard_normal(USERS)) * late[asked_first]
    took = np.where(sluggish, 2.0 * took, took)
    for index, bound in enumerate(BOUNDS):
        count(np.where(took > bound, begun, np.inf), into.slow_canary[index], into.slow_stable[index])
