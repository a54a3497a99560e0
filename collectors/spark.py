"""The profile of a Parquet lake of any size: counted by Spark's workers with the same code, merged on the driver."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from observability.profile import Profile


def profile_of_lake(path: str | Path, reference: Profile, session: Any = None) -> Profile:
    """The profile, in the reference's layout, of all Parquet rows under `path`; counts equal numpy's to the unit.

    `path` is what Spark reads: a folder, a file, an object store's URL. Without a `session` a local one is made and
    stopped. Each partition becomes one profile of a few kilobytes, and they are added up.
    """
    own = session is None
    spark = local_session() if own else session
    try:
        # Event times are nanoseconds, which Spark has no type for: without this it refuses the whole file.
        spark.conf.set("spark.sql.legacy.parquet.nanosAsLong", "true")
        frame = spark.read.option("mergeSchema", "true").option("recursiveFileLookup", "true").parquet(str(path))
        present = [name for name in reference.columns if name in frame.columns]
        # `mapInArrow` takes a dot in a name for a field of a struct, so that columns travel by number.
        numbered = frame.selectExpr(*(f"`{name}` AS c{number}" for number, name in enumerate(present)))
        work = _Partition(reference.empty().to_json(), present)
        parts = numbered.mapInArrow(work, "profile binary").collect()
    finally:
        if own:
            spark.stop()
    total = reference.empty()
    for part in parts:
        total = total + Profile.from_json(bytes(part["profile"]))
    return total


def local_session(threads: int = 1) -> Any:
    """A quiet Spark on this machine, with this Python for its workers."""
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master(f"local[{threads}]")
        .appName("trimtab-profile")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .getOrCreate()
    )
    # PySpark takes the workers' Python from the environment alone, and falls back on any `python3`.
    session.sparkContext.pythonExec = sys.executable
    return session


class _Partition:
    """The work of one partition; carries the layout as JSON, so that it pickles small."""

    def __init__(self, layout: bytes, names: list[str]) -> None:
        self._layout = layout
        self._names = names

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        profile = Profile.from_json(self._layout)
        for batch in batches:
            profile = profile.updated(batch.rename_columns(self._names))
        yield pa.record_batch({"profile": pa.array([profile.to_json()], pa.binary())})
