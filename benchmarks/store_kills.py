"""kill -9 at random moments of ingest, compaction and retention: what was acknowledged must be there, and nothing else.

Run: python benchmarks/store_kills.py [--kills 200] [--url postgresql+psycopg://…]. A child appends from three threads,
late samples too, keeps exemplars, and compacts and deletes all the time, on a clock that runs much faster; it
reports what was acknowledged, is killed, and the next child goes on in the same database. After each kill the store is
opened and compared: every acknowledged sample within retention has its value, once; no other sample is there but those
of appends under way at the kill; every acknowledged exemplar of the last hours is there. Prints the count and exits 1
at the first difference.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np

from collectors.store import Matcher, Store

STEP_MS = 120_000
T0 = 1_700_000_000_000 // 3_600_000 * 3_600_000
TARGETS = 3
SERIES = 12
RETENTION_MS = 8 * 3_600_000
LATE_MS = 20 * 60_000


def value(target: int, step: int, k: int) -> float:
    """The sample that a series has at a step."""
    return float((target * 1_000_003 + step * 7919 + k * 104_729) % 65_521)


def labels(target: int, k: int) -> dict[str, str]:
    return {"__name__": "x", "target": str(target), "k": str(k)}


def opened(url: str, now_ms: list[int]) -> Store:
    return Store(
        url,
        clock=lambda: now_ms[0] / 1000,
        head_seconds=5400.0,
        retention_seconds=RETENTION_MS / 1000,
        late_seconds=LATE_MS / 1000,
    )


# --- the child --------------------------------------------------------------------------------------------------------
def write(url: str, first: int) -> None:
    """Appends from a step on until it is killed; prints `target step` for what was acknowledged."""
    now_ms = [T0 + first * STEP_MS]
    store = opened(url, now_ms)
    printing = threading.Lock()
    steps = [first] * TARGETS

    def say(line: str) -> None:
        with printing:
            print(line, flush=True)

    def append(target: int) -> None:
        pairs = [labels(target, k) for k in range(SERIES)]
        for step in range(first, 1 << 60):
            while min(steps) < step - 5:  # the clock is one for all
                time.sleep(0.001)
            t_ms = T0 + step * STEP_MS
            # One series comes late, one only now and then: another layout each time.
            chosen = [k for k in range(SERIES) if k != step % 3 and (k != 5 or step % 4 == 0)]
            store.append(f"t{target}", t_ms, [(pairs[k], value(target, step, k)) for k in chosen], stale=False)
            say(f"now {target} {step}")
            late = step - 7
            if late >= first:
                k = late % 3
                store.append(f"t{target}", T0 + late * STEP_MS, [(pairs[k], value(target, late, k))], stale=False)
                say(f"late {target} {late}")
            if step % 10 == 0:
                store.add_exemplar(pairs[0], {"trace_id": f"{target}-{step}"}, 1.0, t_ms)
                say(f"exemplar {target} {step}")
            steps[target] = step
            now_ms[0] = max(now_ms[0], t_ms)

    for target in range(TARGETS):
        threading.Thread(target=append, args=(target,), daemon=True).start()
    while True:
        if not store.maintain():
            time.sleep(0.01)


# --- the parent -------------------------------------------------------------------------------------------------------
class Ledger:
    """What was acknowledged, and what may be there besides."""

    def __init__(self) -> None:
        self.sure: dict[tuple[int, int], dict[int, float]] = {}
        self.exemplars: set[tuple[int, int]] = set()
        self.last = -1

    def note(self, lines: list[str]) -> None:
        for line in lines:
            kind, target, step = line.split()[0], *(int(part) for part in line.split()[1:])
            self.last = max(self.last, step)
            known = self.sure.setdefault((target, step), {})
            if kind == "now":
                known |= {
                    k: value(target, step, k) for k in range(SERIES) if k != step % 3 and (k != 5 or step % 4 == 0)
                }
            elif kind == "late":
                known[step % 3] = value(target, step, step % 3)
            else:
                self.exemplars.add((target, step))


def compare(url: str, ledger: Ledger) -> tuple[str | None, int]:
    """What is wrong in the database, or None; and how many samples were compared."""
    now_ms = [T0 + (ledger.last + 1) * STEP_MS]
    begin = time.perf_counter()
    store = opened(url, now_ms)
    took = time.perf_counter() - begin
    try:
        cutoff = now_ms[0] - RETENTION_MS + 10 * STEP_MS
        found = store.select([Matcher("__name__", "=", "x")], 0, 1 << 60)
        there = {(int(s.labels["target"]), int(s.labels["k"])): (s.t, s.v) for s in found}
        if len(there) != len(found):
            return "a series came back twice", 0
        compared = 0
        for (target, k), (t, v) in there.items():
            if not (np.diff(t) > 0).all():
                return f"series {target}/{k} has a time twice", 0
            steps = (t - T0) // STEP_MS
            expected = np.array([value(target, int(step), k) for step in steps])
            if not np.array_equal(v, expected):
                return f"series {target}/{k} has a value that was not sent", 0
        for (target, step), values in ledger.sure.items():
            t_ms = T0 + step * STEP_MS
            if t_ms < cutoff:
                continue
            for k in values:
                t, _ = there.get((target, k), (np.empty(0), None))
                place = int(np.searchsorted(t, t_ms))
                if place >= len(t) or t[place] != t_ms:
                    return f"the acknowledged sample of {target}/{k} at step {step} is gone", 0
                compared += 1
        kept = store.exemplars([], cutoff, 1 << 60)
        seen = {item.labels["trace_id"] for item in kept}
        for target, step in ledger.exemplars:
            if T0 + step * STEP_MS >= cutoff and f"{target}-{step}" not in seen:
                return f"the acknowledged exemplar of {target} at step {step} is gone", 0
        if took > 30:
            return f"the store took {took:.1f} s to open", 0
        return None, compared
    finally:
        store.close()


def run(url: str, kills: int, seed: int) -> int:
    """Kills so many children; gives the exit status."""
    chance = random.Random(seed)
    ledger = Ledger()
    stages: Counter[str] = Counter()
    for number in range(kills):
        first = ledger.last + 20
        command = [sys.executable, __file__, "--write", str(first), "--url", url]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        lines: list[str] = []
        reader = threading.Thread(target=lambda out=child.stdout, into=lines: into.extend(out))
        reader.start()
        early = chance.random() < 0.1  # while it opens the store
        until = time.monotonic() + 60
        while not early and not lines and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(chance.random() * (1.0 if early else 0.7))
        child.kill()
        child.wait()
        reader.join()
        ledger.note([line for line in lines if line.endswith("\n")])
        stages["while opening" if not lines else "at work"] += 1
        wrong, compared = compare(url, ledger)
        if wrong is not None:
            print(f"kill {number + 1}: {wrong}")
            return 1
        # What is past retention need not be remembered.
        floor = ledger.last - RETENTION_MS // STEP_MS
        ledger.sure = {key: known for key, known in ledger.sure.items() if key[1] >= floor}
        ledger.exemplars = {key for key in ledger.exemplars if key[1] >= floor}
    store = opened(url, [T0 + ledger.last * STEP_MS])
    blocks = len(store._archive.directory)
    store.close()
    print(
        f"{kills} kills ({dict(stages)}): nothing acknowledged was lost; {ledger.last:,} steps, "
        f"{compared:,} samples compared after the last, {blocks} blocks"
    )
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--url", default="")
    parser.add_argument("--write", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write is not None:
        write(options.url, options.write)
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(run(options.url or f"sqlite:///{Path(folder)}/store.db", options.kills, options.seed))


if __name__ == "__main__":
    main()
