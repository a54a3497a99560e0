"""The store against a plain dictionary over random walks: appends, late ones, batches, compaction, restarts."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from collectors.store import STALE_NAN, Append, Matcher, Scrape, Store

HOUR = 3_600_000
T0 = 472_222 * HOUR
LATE_MS = 1_800_000
NAMES = [f"n{k}" for k in range(7)]


def bits(value: float) -> int:
    found: int = struct.unpack("<Q", struct.pack("<d", value))[0]
    return found


@dataclass
class Model:
    """What the store must hold: for each series its samples (bits of the values), and what each source sent last."""

    samples: dict[str, dict[int, int]] = field(default_factory=dict)
    sent: dict[str, set[str]] = field(default_factory=dict)
    out_of_order: int = 0
    too_old: int = 0

    def take(self, target: str, t_ms: int, values: dict[str, float], replaces: bool) -> int:
        taken = 0
        for name, value in values.items():
            known = self.samples.setdefault(name, {})
            newest = max(known, default=None)
            if newest is None or t_ms > newest:
                known[t_ms] = bits(value)
                taken += 1
            elif t_ms in known and t_ms >= newest - LATE_MS:
                taken += known[t_ms] == bits(value)
            else:
                self.out_of_order += 1
                if t_ms < newest - LATE_MS:
                    self.too_old += 1
                else:
                    known[t_ms] = bits(value)
                    taken += 1
        before = self.sent.get(target)
        if before is not None and replaces:
            self.end(before - values.keys(), t_ms)
        self.sent[target] = set(values) if replaces or before is None else before | set(values)
        return taken

    def end(self, names: set[str], t_ms: int) -> None:
        for name in names:
            known = self.samples[name]
            newest = max(known)
            if newest < t_ms and known[newest] != bits(STALE_NAN):
                known[t_ms] = bits(STALE_NAN)

    def between(self, start_ms: int, end_ms: int) -> dict[str, dict[int, int]]:
        found = {n: {t: v for t, v in known.items() if start_ms <= t <= end_ms} for n, known in self.samples.items()}
        return {name: known for name, known in found.items() if known}


class Walk:
    def __init__(self, open_store: Callable[[Callable[[], float]], Store], seed: int) -> None:
        self.chance = np.random.default_rng(seed)
        self.now_ms = T0
        self._open = lambda: open_store(lambda: self.now_ms / 1000)
        self.store = self._open()
        self.model = Model()
        self.counted = [0, 0]

    def labels(self, name: str) -> dict[str, str]:
        return {"__name__": "x", "i": name}

    def value(self) -> float:
        return float(self.chance.choice([0.0, -0.0, 1.5, 1e300, math.nan, math.inf, *self.chance.normal(0, 9, 3)]))

    def values(self) -> dict[str, float]:
        count = int(self.chance.integers(0, len(NAMES) + 1))
        return {name: self.value() for name in self.chance.permutation(NAMES)[:count].tolist()}

    def time(self) -> int:
        late = self.chance.random() < 0.3
        behind = int(self.chance.choice([0, 60_000, 1_700_000, 2_000_000, 4 * HOUR])) if late else 0
        return self.now_ms - behind

    def append(self) -> None:
        target, t_ms, values = f"t{self.chance.integers(3)}", self.time(), self.values()
        replaces = bool(self.chance.random() < 0.5)
        expected = self.model.take(target, t_ms, values, replaces)
        if self.chance.random() < 0.5:
            columns = self.store.columns(target, [self.labels(name) for name in values])
            vector = np.array(list(values.values()), dtype=np.float64)
            assert self.store.append_values(columns, t_ms, vector, stale=replaces) == expected
        else:
            pairs = [(self.labels(name), value) for name, value in values.items()]
            assert self.store.append(target, t_ms, pairs, stale=replaces) == expected

    def batch(self) -> None:
        appends: list[Append | Scrape] = []
        expected = 0
        for _ in range(int(self.chance.integers(1, 5))):
            target, t_ms, values = f"t{self.chance.integers(3)}", self.time(), self.values()
            expected += self.model.take(target, t_ms, values, False)
            appends.append(Append(target, t_ms, [(self.labels(name), value) for name, value in values.items()]))
        assert self.store.write(appends).taken == expected

    def mark_stale(self) -> None:
        target = f"t{self.chance.integers(3)}"
        self.store.mark_stale(target, self.now_ms)
        self.model.end(self.model.sent.pop(target, set()), self.now_ms)

    def advance(self) -> None:
        self.now_ms += int(self.chance.choice([1, 15_000, 600_000, HOUR, 3 * HOUR], p=[0.2, 0.5, 0.2, 0.07, 0.03]))

    def compact(self) -> None:
        while self.store.maintain():
            pass

    def restart(self) -> None:
        counts = self.store.counts()
        self.counted[0] += counts.out_of_order
        self.counted[1] += counts.too_old
        self.store.close()
        self.store = self._open()

    def check(self, start_ms: int, end_ms: int) -> None:
        found = self.store.select([Matcher("__name__", "=", "x")], start_ms, end_ms)
        names = [series.labels["i"] for series in found]
        assert len(names) == len(set(names)), "a series is in two blocks"
        got = {s.labels["i"]: dict(zip(s.t.tolist(), s.v.view(np.uint64).tolist(), strict=True)) for s in found}
        assert all((np.diff(series.t) > 0).all() for series in found)
        assert got == self.model.between(start_ms, end_ms)

    def run(self, steps: int) -> None:
        actions = [self.append, self.batch, self.mark_stale, self.advance, self.compact, self.restart]
        for _ in range(steps):
            actions[int(self.chance.choice(len(actions), p=[0.4, 0.15, 0.03, 0.34, 0.05, 0.03]))]()
            if self.chance.random() < 0.2:
                start_ms = self.now_ms - int(self.chance.choice([0, 60_000, HOUR, 5 * HOUR]))
                self.check(start_ms, start_ms + int(self.chance.choice([0, 60_000, HOUR, 5 * HOUR])))
        self.check(0, 2 * T0)
        counts = self.store.counts()
        self.store.close()
        assert self.counted[0] + counts.out_of_order == self.model.out_of_order
        assert self.counted[1] + counts.too_old == self.model.too_old


@pytest.mark.parametrize("seed", range(3))
def test_a_random_walk(database_url: str, seed: int) -> None:
    Walk(
        lambda clock: Store(
            database_url, clock=clock, head_seconds=5400.0, late_seconds=LATE_MS / 1000, synchronous="OFF"
        ),
        seed,
    ).run(100)
