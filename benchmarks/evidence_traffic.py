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


@dataclass(frozen=True, slots=True)
class Traffic:
    """(R, T) by run and second, `slow` (K, R, T) by bound too. `heard_…` and `slow_…` are of units where they stick."""

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
    for part, rate, slower in ((share, scenario.canary_rate, scenario.slower), (1 - share, STABLE_RATE, 1.0)):
        asked = np.where(sticky[:, None], 0.0, RPS * level * part)
        slow = np.zeros((len(BOUNDS), *share.shape))
        above = np.zeros(share.shape)
        requests = np.zeros(share.shape)
        for place in range(len(BOUNDS) - 1, -1, -1):
            over = tail(BOUNDS[place], slower * late)
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

    count(first(level), into.split_canary, into.split_stable)
    count(np.minimum(first(level * usual), first(level, broken)), into.heard_canary, into.heard_stable)
    times = np.full(USERS, np.inf)
    above = np.zeros((2, len(share)))
    for index in range(len(BOUNDS) - 1, -1, -1):
        over = np.stack([tail(BOUNDS[index], late), tail(BOUNDS[index], 2.0 * late)])
        here = np.maximum(over - above, 0.0)
        times = np.minimum(times, np.where(sluggish, first(level * here[1]), first(level * here[0])))
        count(times, into.slow_canary[index], into.slow_stable[index])
        above = over
