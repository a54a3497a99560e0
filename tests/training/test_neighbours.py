"""How soon nodes know which rank is slow, on a clock of the test's: two nodes that look when they say they will."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from observability.names import PHASES
from observability.rank_agent import Followed
from observability.step_ring import RingOwner, StepRing
from training.neighbours import Neighbours
from training.nodes import Alone
from training.watch import StragglerRule, StragglerWatch

BACKWARD = PHASES.index("backward")
# A supervisor's own work from one look to the next, and what it sleeps at most.
BUSY_SECONDS, POLL_SECONDS = 0.005, 0.1


class Board(Alone):
    """What two nodes show each other, and how often they did."""

    def __init__(self) -> None:
        self.shown: dict[int, bytes] = {}
        self.count = 0

    def of(self, node: int) -> Side:
        return Side(self, node)


class Side(Alone):
    def __init__(self, board: Board, node: int) -> None:
        self._board, self._node = board, node

    @property
    def others(self) -> int:
        return 1

    def shared(self, body: bytes) -> list[bytes]:
        self._board.shown[self._node] = body
        self._board.count += 1
        return [shown for node, shown in self._board.shown.items() if node != self._node]


class Node:
    """A supervisor of one rank, as far as stragglers go."""

    def __init__(self, number: int, board: Board, first_look: float) -> None:
        self.now, self.number = first_look, number
        self.ring = StepRing.in_memory(RingOwner(rank=number), 4096)
        self.neighbours = Neighbours(0, 3 * StragglerRule().window, lambda: self.now, node=number)
        self.watch, self._meeting = StragglerWatch(), board.of(number)
        self._followed = Followed(Path(), self.ring.view(), self.ring.view().now())

    def look(self) -> int | None:
        """The rank here, where it straggles; `now` becomes the next look's time."""
        records = self.neighbours.records({self.number: self._followed}, self._meeting)
        found = self.watch.look(records) if records is not None and len(records) == 2 else None
        self.now += BUSY_SECONDS + min(self.neighbours.pause(), POLL_SECONDS)
        return found.rank if found is not None and found.rank == self.number else None


def run(seed: int, step_seconds: float, steps: int, slow_from: int) -> tuple[list[tuple[int, int]], int, float]:
    """Ranks named, each with the steps that were at their end by then; looks of both nodes, and seconds of the run."""
    draw, board = np.random.default_rng(seed), Board()
    nodes = [Node(number, board, draw.random() * POLL_SECONDS) for number in range(2)]
    named, time = list[tuple[int, int]](), 0.0
    for step in range(steps):
        own = step_seconds * draw.lognormal(0, 0.05, 2)
        own[1] *= 1.3 if step >= slow_from else 1.0
        began, time = time, time + own.max()
        for node in sorted(nodes, key=lambda one: one.now):
            while node.now < time:
                if (rank := node.look()) is not None:
                    named.append((rank, step))
        for node in nodes:
            phases = [int(1e9 * own[node.number]) if index == BACKWARD else 0 for index in range(len(PHASES))]
            node.ring.write(step, int(1e9 * began), int(1e9 * (time - began)), 8, phases)
    return named, board.count, time


@pytest.mark.parametrize("milliseconds", [5, 10, 20, 200])
def test_a_rank_that_becomes_slower_by_a_third_is_named_within_fifty_steps_of_any_length(milliseconds: int) -> None:
    for seed in range(6):
        named, _, _ = run(seed, milliseconds / 1e3, 400, 250 + seed)

        assert [rank for rank, _ in named] == [1]
        # The step that is just at work counts.
        assert named[0][1] + 1 - (250 + seed) <= 50


@pytest.mark.parametrize(("milliseconds", "steps", "most"), [(5, 10_000, 20), (500, 1000, 1.1)])
def test_equal_ranks_are_never_named_and_their_nodes_look_every_ten_steps(
    milliseconds: int, steps: int, most: float
) -> None:
    named, looks, seconds = run(1, milliseconds / 1e3, steps, steps)

    assert named == []
    assert 0.5 * most < looks / 2 / seconds < most


def test_a_rank_that_stays_slow_is_named_once_and_nodes_look_as_seldom_as_before() -> None:
    named, looks, seconds = run(3, 0.005, 3000, 250)

    assert [rank for rank, _ in named] == [1]
    assert looks / 2 / seconds < 20
