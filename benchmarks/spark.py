"""Spark's profile of Parquet: `python benchmarks/spark.py [--rows 8000000]`. One core, two cores, and numpy alone.

Wall seconds, as it is the time that must fall with the cores; sessions are started and warmed up before the clock runs.
The peer is `Profile.updated` of the same files in one process. The counts of all three are compared.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Run as a script, this folder comes first on the path, and this file would pass for another of its name.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from collectors.spark import local_session, profile_of_lake  # noqa: E402
from observability.profile import Profile  # noqa: E402

COLUMNS, FILES = 20, 8


def write(folder: Path, rows: int) -> Profile:
    """The lake, and a reference from its first file."""
    first = None
    for number in range(FILES):
        draw = np.random.default_rng(number)
        columns = {f"x{place}": draw.normal(size=rows // FILES) for place in range(COLUMNS)}
        table = pa.table(columns)
        pq.write_table(table, folder / "lake" / f"{number}.parquet", compression="none", use_dictionary=False)
        first = first or Profile.of(table.slice(0, 100_000))
    assert first is not None
    return first


def counted_by_spark(folder: Path, cores: int, rounds: int) -> None:
    """Run in a process of its own: a JVM's cores are chosen once. Prints the seconds of each round and the counts."""
    reference = Profile.from_json((folder / "reference.json").read_bytes())
    session = local_session(cores)
    profile_of_lake(folder / "lake" / "0.parquet", reference, session)
    for _ in range(rounds):
        started = time.perf_counter()
        found = profile_of_lake(folder / "lake", reference, session)
        print(time.perf_counter() - started, flush=True)
    (folder / f"spark{cores}.json").write_bytes(found.to_json())
    session.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", nargs=2, metavar=("FOLDER", "CORES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        counted_by_spark(Path(arguments.worker[0]), int(arguments.worker[1]), arguments.rounds)
        return
    with tempfile.TemporaryDirectory(prefix="trimtab-spark-") as name:
        folder = Path(name)
        (folder / "lake").mkdir()
        reference = write(folder, arguments.rows)
        (folder / "reference.json").write_bytes(reference.to_json())
        seconds: dict[str, float] = {}
        for cores in (1, 2):
            command = [sys.executable, __file__, "--rounds", str(arguments.rounds), "--worker", name, str(cores)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            seconds[f"Spark, local[{cores}]"] = min(map(float, output.split()))
        started = time.perf_counter()
        wanted = reference.empty().updated(folder / "lake")
        seconds["numpy, one thread"] = time.perf_counter() - started
        for cores in (1, 2):
            found = Profile.from_json((folder / f"spark{cores}.json").read_bytes())
            same = all((found.columns[n].counts == wanted.columns[n].counts).all() for n in wanted.columns)
            if not same:
                raise SystemExit(f"the counts of Spark on {cores} cores differ from numpy's")
        print(f"{arguments.rows:,} rows x {COLUMNS} numbers in {FILES} files; {os.cpu_count()} cores; counts are equal")
        for engine, took in seconds.items():
            print(f"  {engine:<20} {took:>8.2f} s {arguments.rows * COLUMNS / took / 1e6:>8.1f} million values/s")
        print(f"  one core ÷ two cores {seconds['Spark, local[1]'] / seconds['Spark, local[2]']:.2f}")


if __name__ == "__main__":
    main()
