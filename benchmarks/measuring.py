"""What a collector spends on prediction events of mixed columns: processor seconds for 1,000 rows, by part.

Run: python benchmarks/measuring.py [--rows 120000] [--batch 250] [--rate 1000] [--slices 3] [--keep FOLDER]

Ten numbers, five categories, a text, an embedding of 64 and two predictions of two versions, labels a minute late by
id, a reference for each version, windows of a minute. One thread drives all parts by a clock of its own, `--rate` rows
a second of event time: `intake` reads a body and commits it, `measure` applies it, `tick` closes, judges and scores,
`lake` makes measured windows durable and moves their rows. `--keep` leaves the database, `--compare` looks in two of
them for a window that differs by a bit; `--profile` prints where the time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import math
import pstats
import sqlite3
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import pyarrow as pa

from collectors.database import open_database
from collectors.events import Batch, EventLog, read_batch
from collectors.journal import Journal
from collectors.measure import Measures
from collectors.measure_settings import MeasureSettings
from collectors.quality import QualityMonitor
from collectors.quality.aside import KeptAside
from collectors.references import ClosedWindows, Reference
from collectors.releases import ReleaseLabels
from collectors.signals import Signals
from collectors.windows import Slicing
from observability.events import event_batch, label_batch, to_ipc
from observability.profile import Profile

MODEL, VERSIONS, DIMENSIONS = "bench", ("1", "2"), 64
START, WINDOW, LATE = 1_700_000_040.0, 60.0, 60.0
KINDS = (3, 5, 8, 40, 400)
SLICED = ("feature.category0", "feature.category1", "feature.category2")
WORDS = np.array(
    ["the", "a", "delayed", "flight", "from", "gate", "9", "was", "late", "over", "New", "York", "17", "É"]
)


@dataclass(slots=True)
class Clock:
    """Event time that goes on with the rows."""

    now: float = START

    def __call__(self) -> float:
        return self.now


@dataclass(slots=True)
class Spent:
    """Processor seconds by part."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Counts what the block takes."""
        begin = time.process_time()
        yield
        self.seconds[part] += time.process_time() - begin


def events(rng: np.random.Generator, first: int, rows: int, at: float, rate: float) -> pa.RecordBatch:
    """Rows of both versions, from `at` (unix seconds) on."""
    version = np.where(rng.random(rows) < 0.8, VERSIONS[0], VERSIONS[1])
    features: dict[str, Any] = {f"number{k}": rng.normal(k, 1.0 + k, rows) for k in range(10)}
    features["number9"][rng.random(rows) < 0.05] = math.nan
    for k, kinds in enumerate(KINDS):
        codes = np.minimum(rng.geometric(min(0.6, 4 / kinds), rows), kinds) - 1
        features[f"category{k}"] = [f"kind {code}" for code in codes.tolist()]
    words = WORDS[rng.integers(0, len(WORDS), (rows, 12))]
    features["text"] = [" ".join(row[:length]) for row, length in zip(words, rng.integers(3, 12, rows), strict=True)]
    features["vector"] = pa.FixedSizeListArray.from_arrays(
        pa.array(rng.normal(size=rows * DIMENSIONS).astype(np.float32)), DIMENSIONS
    )
    return event_batch(
        ids=[f"id{first + row}" for row in range(rows)],
        time_ns=(at * 1e9 + np.arange(rows) * (1e9 / rate)).astype(np.int64),
        model=MODEL,
        version=version,
        latency_seconds=rng.exponential(0.002, rows),
        features=features,
        predictions={"probability": rng.random(rows), "minutes": rng.normal(5, 20, rows)},
    )


def labels(rng: np.random.Generator, first: int, rows: int, at: float) -> pa.RecordBatch:
    """The labels of as many rows."""
    ids = [f"id{first + row}" for row in range(rows)]
    return label_batch(ids, MODEL, (rng.random(rows) < 0.4).astype(float), np.full(rows, int(at * 1e9)))


def run(folder: Path, rows: int, batch: int, rate: float, slices: int) -> Spent:
    """Feeds `rows` rows in batches; returns what each part took."""
    rng, clock, spent = np.random.default_rng(7), Clock(), Spent()
    journal = Journal(open_database(f"sqlite:///{folder / 'intake.db'}"))
    settings = MeasureSettings(slicing=Slicing(columns=SLICED[:slices]))
    quality, windows = QualityMonitor(WINDOW, KeptAside(journal).put), ClosedWindows(journal)
    measures = Measures(settings, Signals(), clock, windows.put, quality, ReleaseLabels(journal, clock))

    def settled() -> int:
        position, committed = measures.settle()
        committed.result()
        return position

    log = EventLog(journal, folder / "lake", clock, lambda *_: None, settled)
    training = pa.Table.from_batches([events(rng, 0, 20_000, START - 1e6, rate)])
    reference = Reference.given(Profile.of(training, joint=True).to_json())
    for version in VERSIONS:
        measures.set_reference(MODEL, version, reference)
    bodies = []
    for first in range(0, rows, batch):
        at = START + first / rate
        bodies.append((at, "events", to_ipc(events(rng, first, batch, at, rate))))
        late = first - round(LATE * rate / batch) * batch
        if late >= 0:
            bodies.append((at, "labels", to_ipc(labels(rng, late, batch, at))))
    ticked = moved = START
    for number, (at, signal, body) in enumerate(bodies):
        clock.now = at
        with spent.on("intake"):
            read: Batch = read_batch("events" if signal == "events" else "labels", body)
            accepted = log.accept(read, str(number)).result()
        with spent.on("measure" if signal == "events" else "labels"):
            measures.apply(read.signal, read.table, accepted.position)
        if at - ticked >= 0.25:
            ticked = at
            with spent.on("tick"):
                measures.tick()
        if at - moved >= 2.0:
            moved = at
            with spent.on("lake"):
                log.compact()
    clock.now += 2 * WINDOW
    with spent.on("tick"):
        measures.tick()
    with spent.on("lake"):
        log.compact()
    journal.close()
    journal.engine.dispose()
    return spent


def contents(database: Path) -> dict[tuple[object, ...], bytes]:
    """Every closed window and state of a database."""
    with sqlite3.connect(database) as connection:
        found = {
            row[:-1]: row[-1] for row in connection.execute("select model, version, start, body from closed_windows")
        }
        found |= {row[:-1]: row[-1] for row in connection.execute("select name, body from measured_state")}
        broken = connection.execute('select event_id, "column", rule, value from quality_violations')
        found |= dict.fromkeys(broken, b"")
    return found


def compare(left: Path, right: Path) -> int:
    """Says what differs between two databases; 0 when nothing does."""
    one, other = contents(left), contents(right)
    different = [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]
    print(f"{len(one)} windows, states and rows; {len(different)} differ: {different[:5]}")
    return int(bool(different))


def main() -> int:
    """Runs the benchmark, or compares two databases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=120_000)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--rate", type=float, default=1_000.0)
    parser.add_argument("--slices", type=int, default=3, choices=range(len(SLICED) + 1))
    parser.add_argument("--keep", type=Path, help="the folder to leave the database and the lake in")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--compare", nargs=2, type=Path, metavar="DATABASE")
    given = parser.parse_args()
    if given.compare:
        return compare(*given.compare)
    with tempfile.TemporaryDirectory() as folder:
        place = given.keep or Path(folder)
        profiler = cProfile.Profile()
        if given.profile:
            profiler.enable()
        spent = run(place, given.rows, given.batch, given.rate, given.slices)
        if given.profile:
            profiler.disable()
            pstats.Stats(profiler).sort_stats("tottime").print_stats(45)
    total = sum(spent.seconds.values())
    parts = ", ".join(f"{part} {1e3 * took / given.rows:.4f}" for part, took in spent.seconds.items())
    print(
        f"{given.rows} rows in batches of {given.batch}, {given.slices} slice columns; processor seconds for 1,000 rows"
    )
    print(f"{1e3 * total / given.rows:.4f} ({parts}): {given.rows / total:,.0f} rows a processor second")
    return 0


if __name__ == "__main__":
    sys.exit(main())
