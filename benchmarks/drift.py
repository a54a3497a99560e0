"""Drift of two tables: ours, Evidently's preset, its `ValueDrift` alone and scipy alone, in processor seconds.

    python benchmarks/drift.py                        # small: about a minute
    python benchmarks/drift.py --rows 1000000         # the full size: about ten minutes, most of it Evidently's
    python benchmarks/drift.py --only profiles --columns 1000    # two saved profiles of a thousand columns

Every way answers the same question on the same columns, in one process, data in memory (as pandas has it for Evidently,
as Arrow has it for us; scipy gets numpy arrays). Before anything is timed, scores are compared with Evidently's.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ["DO_NOT_TRACK"] = "1"
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import pyarrow as pa
from scipy import stats
from scipy.spatial.distance import jensenshannon

from collectors.drift.auto import auto_verdicts
from collectors.drift.compare import compare, saved_profile
from collectors.drift.inputs import opened
from observability.profile import Profile

warnings.simplefilter("ignore")


def numbers(rows: int, columns: int, seed: int) -> pa.Table:
    random = np.random.default_rng(seed)
    return pa.table({f"n{i}": random.normal(seed * 0.01 * i, 1 + i / 10, rows) for i in range(columns)})


def categories(rows: int, columns: int, seed: int) -> pa.Table:
    random = np.random.default_rng(seed)
    found = {}
    for i in range(columns):
        size = 10 + 10 * i
        labels = pa.array([f"category_{n}" for n in range(size)])
        codes = np.minimum(random.integers(0, size, rows), random.integers(0, size + seed, rows))
        found[f"c{i}"] = pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), labels)
    return pa.table(found)


def as_text(table: pa.Table) -> pa.Table:
    return pa.table({name: table.column(name).cast(pa.string()) for name in table.schema.names})


def spent(work: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Processor seconds of all threads, the least of some repeats, and the last answer."""
    best, answer = float("inf"), None
    for _ in range(repeats):
        started = time.process_time()
        answer = work()
        best = min(best, time.process_time() - started)
    return best, answer


def evidently(before: pa.Table, now: pa.Table, numeric: bool, preset: bool) -> dict[str, float]:
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift
    from evidently.presets import DataDriftPreset

    names = before.schema.names
    definition = DataDefinition(
        numerical_columns=names if numeric else [], categorical_columns=[] if numeric else names
    )
    frames = [(as_text(table) if not numeric else table).to_pandas() for table in (now, before)]
    datasets = [Dataset.from_pandas(frame, data_definition=definition) for frame in frames]
    metrics = [DataDriftPreset()] if preset else [ValueDrift(column=name) for name in names]
    answer = Report(metrics).run(*datasets).dict()
    return {
        metric["config"]["column"]: float(metric["value"])
        for metric in answer["metrics"]
        if metric["config"]["type"] == "evidently:metric_v2:ValueDrift"
    }


def scipy_numbers(before: pa.Table, now: pa.Table) -> None:
    for name in before.schema.names:
        a, b = before.column(name).to_numpy(), now.column(name).to_numpy()
        stats.wasserstein_distance(a, b) / a.std()


def scipy_categories(before: pa.Table, now: pa.Table) -> None:
    for name in before.schema.names:
        one, two = (table.column(name).to_pandas().value_counts() for table in (before, now))
        keys = one.index.union(two.index)
        jensenshannon(one.reindex(keys).to_numpy(), two.reindex(keys).to_numpy())


def line(what: str, seconds: float, ours: float, goal: str = "") -> None:
    print(f"  {what:<52} {seconds:10.3f} CPU s {seconds / ours:10.1f} x ours {goal}", flush=True)


def bench(title: str, before: pa.Table, now: pa.Table, numeric: bool, peers: bool, goal: float, repeats: int) -> None:
    print(f"\n{title}: {before.num_rows:,} against {now.num_rows:,} rows x {len(before.schema)} columns", flush=True)
    ours, found = spent(lambda: compare(before, now, method="evidently"), repeats)
    line("ours, Evidently's tests and scores, and all others", ours, ours)
    auto, _ = spent(lambda: compare(before, now), repeats)
    line("ours, calibrated", auto, ours)
    saved = Profile.from_json(saved_profile(before))
    counted, _ = spent(lambda: compare(saved, now), repeats)
    line("ours, against a saved profile", counted, ours)
    alone, _ = spent(lambda: (scipy_numbers if numeric else scipy_categories)(before, now))
    line("scipy's (pandas') Wasserstein or Jensen–Shannon alone", alone, ours)
    if not peers:
        return
    for name, preset in (("Evidently, ValueDrift alone", False), ("Evidently, DataDriftPreset", True)):
        theirs, scores = spent(lambda preset=preset: evidently(before, now, numeric, preset))
        furthest = max(abs(scores[column] - found.columns[column].score) for column in scores)
        line(name, theirs, ours, f"(goal {goal:.0f})" if preset else "")
        print(f"    furthest score from ours: {furthest:.1e}; against a saved profile {theirs / counted:.0f} x")
        assert furthest <= 1e-9, "the scores must be Evidently's"


def bench_profiles(rows: int, columns: int, repeats: int) -> None:
    """Two profiles of many columns; scipy gets the rows themselves, and only some of the columns."""
    before, now = numbers(rows, columns, 0), numbers(rows, columns, 1)
    first = Profile.of(before)
    second = first.empty().updated(now)
    print(f"\nTwo profiles of {columns:,} numeric columns (of {rows:,} rows each)", flush=True)
    ours = {}
    for method in ("auto", "psi", "ks", "wasserstein"):
        ours[method], found = spent(lambda method=method: compare(first, second, method=method), repeats)
        assert len(found.columns) == columns
        print(f"  ours, method {method:<39} {1000 * ours[method]:10.1f} CPU ms (goal 50 for 1,000)", flush=True)
    read, _ = spent(lambda: dict(compare(first, second).columns), repeats)
    print(f"  ours, and every column's statistics read             {1000 * read:10.1f} CPU ms")
    text, _ = spent(lambda: compare(first, second).json_text(), repeats)
    print(f"  ours, and all of it as JSON                          {1000 * text:10.1f} CPU ms (goal 50)")
    verdicts, _ = spent(lambda: auto_verdicts(first, second), repeats)
    print(f"  ours, the calibrated verdicts alone                  {1000 * verdicts:10.1f} CPU ms")
    sample = before.schema.names[:: max(columns // 20, 1)]
    for name, work in (("ks_2samp", stats.ks_2samp), ("wasserstein_distance", stats.wasserstein_distance)):
        pairs = [(before.column(column).to_numpy(), now.column(column).to_numpy()) for column in sample]
        alone, _ = spent(lambda work=work, pairs=pairs: [work(*pair) for pair in pairs])
        whole = alone * columns / len(sample)
        told = f"scipy {name} on the rows, from {len(sample)} columns"
        print(f"  {told:<52} {1000 * whole:10.1f} CPU ms {whole / ours['auto']:10.1f} x ours", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["numeric", "dictionary", "text", "unequal", "profiles"], action="append")
    parser.add_argument("--no-peers", action="store_true", help="Leave Evidently out.")
    options = parser.parse_args()
    rows, columns, chosen = options.rows, options.columns, options.only or ["numeric", "dictionary", "text", "unequal"]
    if "profiles" in chosen:
        bench_profiles(rows, columns, max(options.repeats, 10))
    if chosen == ["profiles"]:
        return
    if not options.no_peers:
        import evidently as _  # noqa: F401  # its import is not what is measured
    if "numeric" in chosen:
        bench("Numeric", numbers(rows, columns, 0), numbers(rows, columns, 1), True, not options.no_peers, 100,
              options.repeats)  # fmt: skip
    if "unequal" in chosen:
        bench("Numeric, unequal", numbers(rows, columns, 0), numbers(rows * 3 // 10, columns, 1), True,
              not options.no_peers, 100, options.repeats)  # fmt: skip
    first, second = categories(rows, columns, 0), categories(rows, columns, 1)
    if "dictionary" in chosen:
        bench("Categorical, dictionary-encoded", first, second, False, not options.no_peers, 200, options.repeats)
    if "text" in chosen:
        bench("Categorical, raw strings", as_text(first), as_text(second), False, not options.no_peers, 40,
              options.repeats)  # fmt: skip
    assert opened(first, "the reference").rows == rows


if __name__ == "__main__":
    main()
