"""A caller's rate holds over all replicas, however its requests spread over them: simulated time, real buckets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observability.metrics import Metrics
from serving.callers import Caller, Callers, token_digest
from serving.errors import Limited
from serving.fleet.channel import ChannelClosed
from serving.fleet.shares import TURN_SECONDS, RateShares, divided

RATE, BURST = 100.0, 50.0
CALLER = Caller(name="web", token_sha256=token_digest("t"), rows_per_second=RATE, burst_rows=BURST)
STEP = 0.01


class Replica:
    """A replica's callers behind a channel; `deaf` does not answer, and still admits."""

    def __init__(self, number: int, world: World) -> None:
        self.number = number
        self.world = world
        self.deaf = False
        self.callers = Callers([CALLER], Metrics())
        self.callers.share_nothing()

    @property
    def channel(self) -> Replica:
        return self

    async def call(self, op: str, timeout: float | None = None, **args: Any) -> Any:
        if self.deaf:
            raise ChannelClosed("gone")
        return self.callers.demand() if op == "demand" else self.callers.share(args["shares"], self.world.now)

    def ask(self, rows: int = 1) -> bool:
        account = self.callers.known({b"authorization": b"Bearer t"}, "m")
        try:
            account.take(rows, self.world.now)
        except Limited:
            return False
        return True


class World:
    """Replicas under one division of rates. `excess` is how far admissions are ahead of the rate, at most."""

    def __init__(self, count: int) -> None:
        self.now = 0.0
        self.shares = RateShares([CALLER])
        self.replicas = [Replica(number, self) for number in range(count)]
        self.admitted = self.refused = 0
        self.excess = self._level = 0.0
        self._due = [0.0] * count
        asyncio.run(self.shares.turn(self.replicas))

    def run(self, seconds: float, rates: list[float]) -> tuple[int, int]:
        """Rows admitted and refused while each replica is asked at its rate."""
        before = self.admitted, self.refused
        for _ in range(round(seconds / STEP)):
            self.now += STEP
            self._level = max(0.0, self._level - RATE * STEP)
            for replica, rate in zip(self.replicas, rates, strict=False):
                self._due[replica.number] += rate * STEP
                while self._due[replica.number] >= 1:
                    self._due[replica.number] -= 1
                    if replica.ask():
                        self.admitted += 1
                        self._level += 1
                    else:
                        self.refused += 1
            self.excess = max(self.excess, self._level)
            if int(self.now / TURN_SECONDS) != int((self.now - STEP) / TURN_SECONDS):
                asyncio.run(self.shares.turn([r for r in self.replicas if not r.deaf]))
        return self.admitted - before[0], self.refused - before[1]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=8), st.floats(0.1, 1e6))
def test_shares_add_up_to_one_and_nobody_gets_less_than_it_asks_while_others_get_more(
    demands: list[float], whole: float
) -> None:
    shares = divided(demands, whole)

    assert sum(shares) == pytest.approx(1.0)
    assert min(shares) >= 0.01 / len(demands) - 1e-12
    if sum(demands) <= 0.99 * whole:
        assert all(share * whole >= demand * (1 - 1e-9) for share, demand in zip(shares, demands, strict=True))
    for share, demand in zip(shares, demands, strict=True):
        if share * whole < demand * (1 - 1e-9):
            # Who is kept short has as much as anybody.
            assert share >= max(shares) * (1 - 1e-9)


SPREADS = st.lists(st.sampled_from([0.0, 5.0, 60.0, 400.0]), min_size=3, max_size=3)
PHASES = st.lists(st.tuples(st.sampled_from([0.3, 1.0, 2.5]), SPREADS), min_size=1, max_size=6)


@settings(max_examples=25)
@given(PHASES)
def test_no_spread_of_demand_admits_more_than_one_bucket_would(phases: list[tuple[float, list[float]]]) -> None:
    world = World(3)
    for seconds, rates in phases:
        world.run(seconds, rates)

    # A row a replica: the least that a bucket can hold.
    assert world.excess <= BURST + len(world.replicas) + 1e-6


@pytest.mark.parametrize("rates", [[300.0, 0.0, 0.0], [150.0, 60.0, 5.0], [40.0, 70.0, 40.0]])
def test_the_whole_rate_can_be_had_however_demand_is_spread(rates: list[float]) -> None:
    world = World(3)
    world.run(3.0, rates)
    admitted, _ = world.run(10.0, rates)

    assert 0.97 * RATE * 10 <= admitted <= RATE * 10 + 1


def test_who_asks_for_less_than_the_rate_is_not_refused_though_all_of_it_goes_to_one_replica() -> None:
    world = World(3)
    world.run(3.0, [90.0, 0.0, 0.0])
    assert world.run(10.0, [90.0, 0.0, 0.0])[1] == 0
    # It moves to another replica: refused is at most what comes there until the shares follow, beyond what they hold.
    assert world.run(10.0, [0.0, 90.0, 0.0])[1] <= 90.0 * 4 * TURN_SECONDS


def test_what_a_dead_replica_had_goes_to_the_others_and_not_before_it_is_gone() -> None:
    world = World(2)
    world.run(3.0, [100.0, 100.0])
    world.replicas[1].deaf = True
    # It may still admit.
    world.run(3.0, [200.0, 200.0])
    assert world.excess <= BURST + 2 + 1e-6
    world.shares.gone(1)
    world.run(2.0, [200.0, 0.0])
    assert world.run(10.0, [200.0, 0.0])[0] >= 0.97 * RATE * 10


def test_a_replica_that_was_deaf_for_a_moment_has_its_share_again() -> None:
    world = World(2)
    world.run(2.0, [100.0, 0.0])
    world.replicas[1].deaf = True
    asyncio.run(world.shares.turn(world.replicas))
    world.replicas[1].deaf = False
    world.run(3.0, [0.0, 200.0])

    assert world.run(10.0, [0.0, 200.0])[0] >= 0.97 * RATE * 10
    assert world.excess <= BURST + 2 + 1e-6


def test_without_rates_nothing_is_asked() -> None:
    class Silent(Replica):
        async def call(self, op: str, timeout: float | None = None, **args: Any) -> Any:
            raise AssertionError(op)

    free = Caller(name="free", token_sha256=token_digest("f"))
    world = World(1)
    asyncio.run(RateShares([free]).turn([Silent(0, world)]))
