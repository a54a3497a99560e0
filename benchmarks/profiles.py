"""What profiles cost: a column's state against numpy's sort and histogram and a KLL sketch; tables; files.

    OMP_NUM_THREADS=1 python benchmarks/profiles.py [--rows 1000000] [--columns 20] [--wide 1000 --wide-rows 3000000]

Times are processor seconds, the least of several runs that take turns, so that other work on the machine meets them all
alike. `--wide` writes a Parquet file of that shape (8 bytes a value) and profiles it with two threads: wall seconds.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasketches
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from observability import NumericColumn, Profile

RUNS = 15


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--columns", type=int, default=20)
    arguments.add_argument("--wide", type=int, default=0)
    arguments.add_argument("--wide-rows", type=int, default=3_000_000)
    options = arguments.parse_args()
    one_column(options.rows)
    small_batches(options.columns)
    table(options.rows, options.columns)
    categories(options.rows, options.columns)
    if options.wide:
        wide(options.wide_rows, options.wide)


def one_column(rows: int) -> None:
    """The state of one column against its peers, on three shapes of numbers."""
    generator = np.random.default_rng(0)
    for name, draw in {
        "normal": generator.normal,
        "lognormal": generator.lognormal,
        "float32": lambda size: generator.normal(size=size).astype(np.float32),
    }.items():
        before, now = draw(size=rows), draw(size=rows)
        column = NumericColumn.layout(pa.chunked_array([before]))
        values = pa.array(now)
        peers: dict[str, Callable[[], object]] = {
            "ours, 128 bins": lambda column=column, values=values: column.updated(values),  # type: ignore[misc]
            "numpy.sort": lambda now=now: np.sort(now),  # type: ignore[misc]
            "numpy.histogram": lambda now=now, column=column: np.histogram(now, column.edges),  # type: ignore[misc]
        }
        if name != "float32":
            peers["KLL, k=200"] = lambda now=now: datasketches.kll_doubles_sketch(200).update(now)  # type: ignore[misc]
        seconds = least(peers)
        print(f"\none column of {rows:,} {name} numbers    M values/s   × ours")
        for peer, taken in seconds.items():
            print(f"  {peer:32s} {rows / taken / 1e6:11.1f} {taken / seconds['ours, 128 bins']:8.2f}")
        print(f"  at least 1.5 × numpy.sort: {seconds['numpy.sort'] / seconds['ours, 128 bins']:.2f} ×")
    reference, window = generator.lognormal(size=rows), generator.lognormal(0.02, 1.0, size=rows)
    column = NumericColumn.layout(pa.chunked_array([reference])).updated(pa.array(reference))
    found = column.empty().updated(pa.array(window))
    binned = np.abs(np.cumsum(column.counts) - np.cumsum(found.counts)).max() / rows
    both = np.sort(np.concatenate([reference, window]))
    sides = [np.searchsorted(np.sort(side), both, side="right") for side in (reference, window)]
    exact = np.abs(sides[0] - sides[1]).max() / rows
    print(f"\nKS: exact {exact:.5f}, from counts {binned:.5f}, apart {abs(exact - binned):.1e} (limit 1e-3)")
    parts = [column.empty().updated(pa.array(part)) for part in np.array_split(window, 97)]
    total = parts[0]
    for part in parts[1:]:
        total = part + total
    print(f"merged from 97 parts: counts equal to the bit: {bool((total.counts == found.counts).all())}")
    state = column.counts.nbytes + 10 * 8
    print(f"state {state:,} bytes (limit 2,048), JSON {len(Profile({'x': column}).to_json()):,} bytes")


def small_batches(columns: int) -> None:
    """What a collector pays for the rows that it folds at a time."""
    generator = np.random.default_rng(1)
    profile = Profile.of({f"x{i}": generator.normal(size=10_000) for i in range(columns)}).empty()
    print("\nsmall batches             µs a column   M values/s")
    for rows in (300, 4_096, 65_536):
        batch = pa.table({f"x{i}": generator.normal(size=rows) for i in range(columns)})
        taken = least({"": lambda batch=batch: [profile.updated(batch) for _ in range(10)]})[""] / 10  # type: ignore[misc]
        print(f"  {rows:6,} × {columns:<3} {1e6 * taken / columns:22.1f} {rows * columns / taken / 1e6:12.1f}")


def table(rows: int, columns: int) -> None:
    """A table in memory, the same from Parquet, and the memory that they take."""
    generator = np.random.default_rng(2)
    data = pa.table({f"x{i}": generator.normal(size=rows) for i in range(columns)})
    empty = Profile.of(data.slice(0, 100_000)).empty()
    print(f"\n{rows:,} × {columns} numbers, CPU s         (peak memory above the table's, MB)")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        pq.write_table(data, path, row_group_size=max(rows // 4, 1))
        for name, work in {
            "update": lambda: empty.updated(data),
            "update from Parquet": lambda: empty.updated(path),
            "reference of Parquet, two passes": lambda: Profile.of(path),
            "reference": lambda: Profile.of(data),
            "update with covariance and embedding": Profile.of(data.slice(0, 10_000), joint=True).empty().updated,
        }.items():
            before, began = peak(), time.process_time()
            work(data) if name.startswith("update with") else work()  # type: ignore[call-arg,arg-type]
            print(f"  {name:38s} {time.process_time() - began:8.3f} {peak() - before:10.0f}")


def categories(rows: int, columns: int) -> None:
    """Dictionary-encoded and raw texts."""
    generator = np.random.default_rng(3)
    names = [[f"category {i}" for i in range(10 + 10 * column)] for column in range(columns)]
    coded = {
        f"c{column}": pa.DictionaryArray.from_arrays(
            pa.array(generator.integers(0, len(labels), rows).astype(np.int32)), pa.array(labels)
        )
        for column, labels in enumerate(names)
    }
    data, raw = pa.table(coded), pa.table({name: values.cast(pa.utf8()) for name, values in coded.items()})
    empty = Profile.of(data.slice(0, 50_000)).empty()
    unique = pa.table({"u": pa.array([f"id-{number:012d}" for number in range(rows)])})
    high = Profile.of(unique.slice(0, 10_000)).empty()
    seconds = least({"codes": lambda: empty.updated(data), "texts": lambda: empty.updated(raw)}, 3)
    print(
        f"\n{rows:,} × {columns} categories: codes {seconds['codes']:.3f} CPU s, raw texts {seconds['texts']:.3f} CPU s"
    )
    taken = least({"": lambda: high.updated(unique)}, 3)[""]
    print(
        f"{rows:,} different texts in one column: {taken:.3f} CPU s, JSON {len(high.updated(unique).to_json()):,} bytes"
    )


def wide(rows: int, columns: int) -> None:
    """Many columns from a file, by two threads."""
    generator = np.random.default_rng(4)
    names = [f"x{i}" for i in range(columns)]
    base = generator.normal(size=(64, 65_536))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "wide.parquet"
        schema = pa.schema([(name, pa.float64()) for name in names])
        with pq.ParquetWriter(path, schema, use_dictionary=False, compression="NONE") as writer:
            for start in range(0, rows, 65_536):
                size = min(65_536, rows - start)
                writer.write_table(
                    pa.table({name: base[(i + start // 65_536) % 64, :size] + i for i, name in enumerate(names)})
                )
        before = peak()
        began, cpu = time.perf_counter(), time.process_time()
        reference = Profile.of(path, threads=2)
        middle = time.perf_counter()
        reference.empty().updated(path, threads=2)
        end = time.perf_counter()
    print(f"\n{rows:,} × {columns} from Parquet, two threads, wall seconds:")
    print(f"  reference {middle - began:.1f}, current {end - middle:.1f}")
    print(f"  {time.process_time() - cpu:.0f} CPU s, {peak() - before:.0f} MB more memory")


def least(works: dict[str, Callable[[], object]], runs: int = RUNS) -> dict[str, float]:
    """The least processor seconds of each, in turns."""
    found = dict.fromkeys(works, float("inf"))
    for _ in range(runs):
        for name, work in works.items():
            began = time.process_time()
            work()
            found[name] = min(found[name], time.process_time() - began)
    return found


def peak() -> float:
    """The most memory that this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
