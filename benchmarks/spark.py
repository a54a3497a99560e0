"""Spark's profile of Parquet: `python benchmarks/spark.py [--rows 8000000]`. One core, two cores, and numpy alone.

The workers read row groups themselves ("files"), or get the rows from the JVM ("rows": what a table that is not Parquet
on this machine costs). Wall seconds, as it is the time that must fall with the cores, and processor seconds of the JVM
and all workers; sessions are started and warmed up before the clock runs, and the rounds take turns. The peer is
`Profile.updated` of the same files in one process. All counts are compared.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Run as a script, this folder comes first on the path, and this file would pass for another of its name.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from collectors.spark import local_session, profile_of_frame, profile_of_lake  # noqa: E402
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


def counted_by_spark(folder: Path, cores: int) -> None:
    """Run in a process of its own: a JVM's cores are chosen once. Counts each time a line names the way."""
    reference = Profile.from_json((folder / "reference.json").read_bytes())
    session = local_session(cores)
    for path in ("lake/0.parquet", "lake"):
        profile_of_frame(session.read.parquet(str(folder / path)), reference)
        profile_of_lake(folder / path, reference, session)
    print("ready", flush=True)
    for way in map(str.strip, sys.stdin):
        before, started = processor_seconds(), time.perf_counter()
        if way == "files":
            found = profile_of_lake(folder / "lake", reference, session)
        else:
            found = profile_of_frame(session.read.parquet(str(folder / "lake")), reference)
        wall, processor = time.perf_counter() - started, processor_seconds() - before
        (folder / f"{way}{cores}.json").write_bytes(found.to_json())
        print(wall, processor, flush=True)
    session.stop()


def processor_seconds() -> float:
    """Of this process, the JVM and its Python workers."""
    everybody = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(times.user + times.system for times in (process.cpu_times() for process in everybody))


def answer(process: subprocess.Popen[str], line: str = "") -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    if line:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    found = process.stdout.readline()
    if not found:
        raise SystemExit("a Spark process ended early")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", nargs=2, metavar=("FOLDER", "CORES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        counted_by_spark(Path(arguments.worker[0]), int(arguments.worker[1]))
        return
    with tempfile.TemporaryDirectory(prefix="trimtab-spark-") as name:
        folder = Path(name)
        (folder / "lake").mkdir()
        reference = write(folder, arguments.rows)
        (folder / "reference.json").write_bytes(reference.to_json())
        started = {
            cores: subprocess.Popen(
                [sys.executable, __file__, "--worker", name, str(cores)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )
            for cores in (1, 2)
        }  # fmt: skip
        for process in started.values():
            answer(process)
        found: dict[str, list[tuple[float, float]]] = {}
        for _ in range(arguments.rounds):
            for way in ("files", "rows"):
                for cores, process in started.items():
                    wall, processor = map(float, answer(process, way).split())
                    found.setdefault(f"Spark, {way}, local[{cores}]", []).append((wall, processor))
            began, before = time.perf_counter(), time.process_time()
            wanted = reference.empty().updated(folder / "lake")
            found.setdefault("numpy, one thread", []).append(
                (time.perf_counter() - began, time.process_time() - before)
            )
        for process in started.values():
            process.communicate()
        for way in ("files", "rows"):
            for cores in started:
                profile = Profile.from_json((folder / f"{way}{cores}.json").read_bytes())
                if any((profile.columns[n].counts != wanted.columns[n].counts).any() for n in wanted.columns):
                    raise SystemExit(f"the counts of Spark on {cores} cores differ from numpy's")
    print(f"{arguments.rows:,} rows x {COLUMNS} numbers in {FILES} files; {os.cpu_count()} cores; counts are equal")
    print(f"  {'median of ' + str(arguments.rounds) + ' rounds':<26} wall s   CPU s   million values/s")
    wall_of: dict[str, float] = {}
    for engine, rounds in found.items():
        wall_of[engine], processor = (statistics.median(column) for column in zip(*rounds, strict=True))
        rate = arguments.rows * COLUMNS / wall_of[engine] / 1e6
        print(f"  {engine:<26} {wall_of[engine]:>6.2f} {processor:>7.2f} {rate:>10.1f}")
    for way in ("files", "rows"):
        ratios = [
            one[0] / two[0]
            for one, two in zip(found[f"Spark, {way}, local[1]"], found[f"Spark, {way}, local[2]"], strict=True)
        ]
        print(f"  {way}: one core ÷ two cores {statistics.median(ratios):.2f} (each round its own)")


if __name__ == "__main__":
    main()
