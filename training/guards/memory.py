"""The guard against memory leaks: a size that grows steadily, judged by a robust slope and its certainty."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median

_KEPT = 64
_PAGE = mmap.PAGESIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakRule:
    """Memory leaks when it grows certainly and to the end, by more than `bytes` and `share` of its level."""

    bytes: int = 64 << 20
    share: float = 0.05
    looks: int = 128
    """Looks before anything is judged: what a few of them show may be one tooth of a saw."""
    score: float = 4.0
    """Standard deviations of Kendall's statistic above which growth is no chance."""

    def __post_init__(self) -> None:
        if self.bytes < 1 or not self.share > 0 or self.looks < _KEPT:
            raise ValueError(
                f"bytes {self.bytes}, share {self.share}, looks {self.looks}: at least 1, above 0, at least {_KEPT}"
            )


@dataclass(frozen=True, slots=True)
class MemoryState:
    """Some tens of samples (step, bytes), evenly over all looks: each is the least of `stride` of them.

    What is freed now and then, by a collector or with an epoch, leaves a floor that only a leak raises.
    """

    samples: tuple[tuple[int, int], ...] = ()
    stride: int = 1
    waiting: tuple[tuple[int, int], ...] = ()
    looks: int = 0
    told: int = 0
    """Bytes up to which growth was told."""


@dataclass(frozen=True, slots=True)
class Leak:
    """`what` grows by `slope` bytes a step, and grew by `grown` bytes over `steps` steps."""

    what: str
    slope: float
    grown: int
    level: int
    steps: int

    @property
    def reason(self) -> str:
        """In words."""
        return (
            f"{self.what} grew by {self.grown / 2**20:.0f} MiB to {self.level / 2**20:.0f} MiB in {self.steps} steps, "
            f"steadily, by {self.slope / 2**10:.1f} KiB a step"
        )


def resident_bytes() -> int:
    """Memory of this process that is in RAM; 0 where the kernel does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        return 0


def judge_memory(
    rule: LeakRule, state: MemoryState, step: int, size: int, what: str
) -> tuple[MemoryState, Leak | None]:
    """Takes in the bytes in use at `step`. The slope is Theil and Sen's, its certainty Mann and Kendall's."""
    waiting, looks = (*state.waiting, (step, size)), state.looks + 1
    if len(waiting) < state.stride:
        return MemoryState(state.samples, state.stride, waiting, looks, state.told), None
    samples, stride = (*state.samples, _least(waiting)), state.stride
    if len(samples) == _KEPT:
        samples, stride = tuple(_least(pair) for pair in zip(samples[::2], samples[1::2], strict=True)), stride * 2
    kept = MemoryState(samples, stride, (), looks, state.told)
    # The first quarter is start-up: caches fill, allocators grow.
    judged = samples[len(samples) // 4 :]
    level, least = judged[-1][1], max(rule.bytes, rule.share * judged[0][1])
    # What hardly grew, or was told, is not worth the sums over all pairs.
    if looks < rule.looks or level < max(judged[0][1] + least, state.told) or not _grows(judged, rule):
        return kept, None
    slope = median((b - a) / (late - early) for (early, a), (late, b) in combinations(judged, 2) if late > early)
    steps = judged[-1][0] - judged[0][0]
    grown = round(slope * steps)
    if grown < least:
        return kept, None
    # Told again once it has grown by as much once more.
    return replace(kept, told=level + grown), Leak(what, slope, grown, level, steps)


def _least(samples: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return samples[-1][0], min(size for _, size in samples)


def _grows(samples: Sequence[tuple[int, int]], rule: LeakRule) -> bool:
    """Whether sizes rise beyond chance (Mann 1945, ties as in Kendall 1975), in each half as well as in the whole."""
    half = len(samples) // 2
    return _kendall(samples) > rule.score and all(
        _kendall(part) > rule.score / 2 for part in (samples[:half], samples[half:])
    )


def _kendall(samples: Sequence[tuple[int, int]]) -> float:
    """The Mann–Kendall statistic over its standard deviation without a trend."""
    count, sizes = len(samples), [size for _, size in samples]
    signs = sum((late > early) - (late < early) for early, late in combinations(sizes, 2))
    ties = sum(n * (n - 1) * (2 * n + 5) for n in (sizes.count(size) for size in set(sizes)))
    variance = (count * (count - 1) * (2 * count + 5) - ties) / 18
    return signs / math.sqrt(variance) if variance > 0 else 0.0
