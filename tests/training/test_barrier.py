"""Ranks that wait for each other in memory: none goes on alone, sleepers are woken, and who is gone is named."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from training import barrier
from training.barrier import LostRankError, MemoryBarrier, can_meet_in_memory, waits

LINE = 64
pytestmark = pytest.mark.skipif(not can_meet_in_memory(), reason="no compiler, or no descriptors of processes")


class Shared:
    """A line a rank for the barrier, and one a rank for its own number."""

    def __init__(self, ranks: int) -> None:
        self.ranks, self.memory = ranks, mmap.mmap(-1, 2 * ranks * LINE)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    def barrier(self, rank: int, processes: list[int], *, timeout: float = 60.0, busy: float = 2e-4) -> MemoryBarrier:
        lines = [self.start + LINE * other for other in range(self.ranks)]
        return MemoryBarrier(lines, rank, [os.pidfd_open(one) for one in processes], timeout=timeout, busy=busy)

    def number(self, rank: int) -> ctypes.c_int64:
        return ctypes.c_int64.from_address(self.start + LINE * (self.ranks + rank))


@contextmanager
def child(work: Callable[[], None]) -> Iterator[int]:
    """A process that does the work, killed behind the block."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def parade(shared: Shared, rank: int, busy: float, turns: int) -> int:
    """Comes and says so, turn by turn; how often another's number was not yet, or no longer, that of the turn."""
    # Processes of all ranks are this one: what this shows does not need them.
    ours, wrong = shared.barrier(rank, [os.getpid()] * shared.ranks, busy=busy), 0
    draw = random.Random(rank)
    for turn in range(1, turns + 1):
        shared.number(rank).value = turn
        if draw.random() < 0.1:
            time.sleep(draw.random() / 500)
        ours.wait()
        wrong += any(shared.number(other).value != turn for other in range(shared.ranks))
        ours.wait()
    return wrong


@pytest.mark.parametrize("busy", [0.0, 2e-4])
@pytest.mark.parametrize("ranks", [2, 3])
def test_nobody_goes_on_before_all_have_come(ranks: int, busy: float) -> None:
    shared, (begun, ended) = Shared(ranks), waits()

    def others(rank: int) -> None:
        if rank + 1 < ranks:
            with child(lambda: others(rank + 1)) as pid:
                _parade_and_wait(shared, rank, busy, pid)
        elif parade(shared, rank, busy, 300):
            raise AssertionError

    def _parade_and_wait(shared: Shared, rank: int, busy: float, pid: int) -> None:
        wrong = parade(shared, rank, busy, 300)
        assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT).si_status == 0  # type: ignore[union-attr]
        assert wrong == 0

    others(0)

    assert waits() == (begun + 600, ended + 600)


def test_who_is_gone_or_never_comes_is_named_and_who_came_before_it_went_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(barrier, "_LOOK_SECONDS", 0.01)
    shared = Shared(2)
    with child(lambda: shared.barrier(1, [os.getpid()] * 2).wait()) as pid:
        ours = shared.barrier(0, [os.getpid(), pid])
        ours.wait()
        # It has ended, and is nobody's care yet: neither number nor descriptor can be another's.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        begun, ended = waits()

        with pytest.raises(LostRankError, match="rank 1 of this group is gone"):
            ours.wait()
        assert waits() == (begun + 1, ended)

    shared = Shared(2)
    with child(lambda: time.sleep(600)) as pid:
        stuck = shared.barrier(0, [os.getpid(), pid], timeout=0.05)
        with pytest.raises(LostRankError, match=r"rank 1 of this group did not come .* for 0.05 s"):
            stuck.wait()

    shared = Shared(2)
    # This one comes once and is dead before anybody looks.
    early = shared.barrier(1, [os.getpid()] * 2, timeout=0.0)
    with pytest.raises(LostRankError):
        early.wait()
    with child(lambda: None) as pid:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        shared.barrier(0, [os.getpid(), pid]).wait()


def test_a_rank_that_sleeps_is_woken_and_hears_signals_meanwhile() -> None:
    shared, heard = Shared(2), list[float]()

    def late() -> None:
        parent = os.getppid()
        time.sleep(0.05)
        os.kill(parent, signal.SIGUSR2)
        time.sleep(0.05)
        shared.barrier(1, [os.getpid()] * 2).wait()

    before = signal.signal(signal.SIGUSR2, lambda *_: heard.append(waits()[1]))
    try:
        with child(late) as pid:
            shared.barrier(0, [os.getpid(), pid], busy=0.0).wait()
    finally:
        signal.signal(signal.SIGUSR2, before)

    # While it waited, not behind that.
    assert heard == [waits()[1] - 1]
