"""Two wide tables compared from Parquet by profiles: 3,000,000 rows x 1,000 columns a side, unless told otherwise.

    python benchmarks/wide.py [--parts 100] [--columns 1000] [--rows-a-part 30000] [--folder DIR]

A side is a folder of hard links to one file, so that 24 GB of table take a quarter of a GB of disk, and stay in memory:
what the disk alone takes for a real one is to be added, where that is more. `compare` runs in a process of its own:
wall seconds, processor seconds, and the memory that it takes more than one on two tiny tables. The goal is 3 minutes
on two cores, for a machine that does nothing else: the load is printed. The limit is what Arrow alone takes to decode
each table once: measured on one file of a side, just before and just after, and multiplied.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# Compares the tables that it is given twice: tiny ones, so that all is loaded, then those to be measured.
COMPARED = """
import json, sys, time
from collectors.drift import compare

def peak():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

tiny, reference, current = sys.argv[1:]
compare(tiny, tiny, mode="profile")
before, wall, cpu = peak(), time.perf_counter(), time.process_time()
found = compare(reference, current, mode="profile")
wall, cpu, memory = time.perf_counter() - wall, time.process_time() - cpu, peak() - before
drifted = sum(column.drifted for column in found.columns.values())
print(json.dumps([found.rows.reference, len(found.columns), drifted, wall, cpu, memory]))
"""


def written(folder: Path, name: str, seed: int, options: argparse.Namespace) -> Path:
    """A folder of `parts` names of one file. Of the second side each tenth column is 0.2 sd away."""
    random = np.random.default_rng(seed)
    columns = {
        f"x{i}": random.normal(0.2 if seed and i % 10 == 0 else 0.0, 1.0, options.rows_a_part)
        for i in range(options.columns)
    }
    file, side = folder / f"{name}.parquet", folder / name
    pq.write_table(pa.table(columns), file, use_dictionary=False, compression="NONE")
    side.mkdir()
    for part in range(options.parts):
        os.link(file, side / f"part-{part:04d}.parquet")
    return side


def decoded(file: Path) -> float:
    """Processor seconds in which Arrow reads all columns of a file, as many together as the comparison does."""
    with pq.ParquetFile(file, pre_buffer=False) as opened:
        names, begun = opened.schema_arrow.names, time.process_time()
        for first in range(0, len(names), 16):
            for _ in opened.iter_batches(32_768, columns=names[first : first + 16], use_threads=False):
                pass
        return time.process_time() - begun


def measured(what: str, tiny: Path, reference: Path, current: Path) -> None:
    sides = [sorted(side.iterdir()) for side in (reference, current) if side.is_dir()]
    begun = os.getloadavg()[0]
    limits = [sum(len(files) * decoded(files[0]) for files in sides)]
    done = subprocess.run(
        [sys.executable, "-c", COMPARED, *map(str, (tiny, reference, current))],
        check=True, stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parent.parent,
    )  # fmt: skip
    rows, columns, drifted, wall, cpu, memory = json.loads(done.stdout)
    limits.append(sum(len(files) * decoded(files[0]) for files in sides))
    limit = sum(limits) / len(limits)
    load = f"load {begun:.1f} to {os.getloadavg()[0]:.1f}"
    print(f"{what}: {rows:,} rows x {columns:,} columns a side, {drifted} drifted")
    print(f"  {wall:.1f} s, {cpu:.1f} processor s, {memory:.0f} MB more memory; {load}")
    print(f"  limit, to decode alone: {limit:.1f} processor s; ours takes {cpu / limit:.1f} times that", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=100)
    parser.add_argument("--rows-a-part", type=int, default=30_000)
    parser.add_argument("--columns", type=int, default=1_000)
    parser.add_argument("--folder", help="where to write; a folder that is removed afterwards is made in it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        tiny = folder / "tiny.parquet"
        pq.write_table(pa.table({"x": np.arange(1_000.0)}), tiny)
        reference, current = written(folder, "reference", 0, options), written(folder, "current", 1, options)
        measured("both from rows", tiny, reference, current)
        saved = folder / "reference.json"
        subprocess.run(
            [sys.executable, "-c", "import sys; from pathlib import Path; from collectors.drift.compare import "
             "saved_profile; Path(sys.argv[2]).write_bytes(saved_profile(sys.argv[1]))", str(reference), str(saved)],
            check=True, cwd=Path(__file__).resolve().parent.parent,
        )  # fmt: skip
        measured("against the saved profile", tiny, saved, current)


if __name__ == "__main__":
    main()
