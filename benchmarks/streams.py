"""How soon changes in streams are found, at what rate of false alarms, how fast: `python -m benchmarks.streams`.

Ours beside river's detectors with their defaults and beside a CUSUM that is told both rates, on the same Bernoulli
streams; then the change-point series that ship with river, scored as the Turing Change Point Benchmark does. `--quick`
takes small sizes. river is no dependency:

    pip install --no-deps --target DIRECTORY river && PYTHONPATH=DIRECTORY python -m benchmarks.streams

Without it, river's rows and the series are left out. The defaults of ChangePointSettings `spacing`, `trend`, `strength`
and `shape` were chosen on run_log, occupancy and jfk_passengers; uk_coal_employ had no say. The alternatives of the
e-detector were chosen on simulated streams of other seeds.
"""

from __future__ import annotations

import argparse
import ast
import csv
import importlib.util
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collectors.drift.changepoint import ChangePointDetector, ChangePointSettings
from collectors.drift.detector import DetectorSettings, EDetector

BASE, CHANGE, HORIZON = 0.2, 5000, 8000
RATES = (0.25, 0.3, 0.4)
GOALS = {0.3: 300, 0.4: 110}
Floats = NDArray[np.float64]
# One stream in; the indices of all alarms out.
Detector = Callable[[Floats], list[int]]

SERIES = {
    "run_log": ("run_log", 0.445596),
    "occupancy": ("occupancy", 0.340779),
    "jfk_passengers": ("airline_passengers", 0.723404),
    "uk_coal_employ": ("uk_coal_employment", 0.513274),
}


def ours(stream: Floats) -> list[int]:
    """The e-detector with its defaults: base learned, one-sided, alpha 1e-5."""
    return [alarm.index for alarm in EDetector().update(stream)]


def told_cusum(stream: Floats, better: float = 0.2, worse: float = 0.3, limit: float = math.log(1e4)) -> list[int]:
    """Page's CUSUM with both rates known and no learning; after an alarm from 0."""
    steps = np.where(stream == 1, math.log(worse / better), math.log((1 - worse) / (1 - better)))
    alarms, at, carried = [], 0, 0.0
    while at < len(steps):
        path = carried + np.cumsum(steps[at : at + 16_384])
        values = path - np.minimum.accumulate(np.minimum(path, 0.0))
        over = np.flatnonzero(values >= limit)
        taken = int(over[0]) + 1 if len(over) else len(values)
        at, carried = at + taken, 0.0 if len(over) else float(values[-1])
        if len(over):
            alarms.append(at - 1)
    return alarms


def river_detector(make: Callable[[], Any]) -> Detector:
    """One of river's, a sample at a time; a new one after each alarm of those that do not begin again by themselves."""

    def run(stream: Floats) -> list[int]:
        detector, alarms = make(), []
        for index, value in enumerate(stream.tolist()):
            detector.update(value)
            if detector.drift_detected:
                alarms.append(index)
                detector = make()
        return alarms

    return run


def peers() -> dict[str, Detector]:
    """river's detectors, where river is installed."""
    if importlib.util.find_spec("river") is None:
        return {}
    from river import drift

    return {
        "river ADWIN": river_detector(drift.ADWIN),
        "river PageHinkley": river_detector(drift.PageHinkley),
        "river DDM": river_detector(drift.binary.DDM),
        "river HDDM_A": river_detector(drift.binary.HDDMA),
        "river HDDM_W": river_detector(drift.binary.HDDMW),
    }


def streams_of(rate: float, runs: int, seed: int) -> Iterable[Floats]:
    """Streams whose rate changes after CHANGE samples."""
    for run in range(runs):
        rng = np.random.default_rng([seed, run])
        before, after = rng.random(CHANGE) < BASE, rng.random(HORIZON) < rate
        yield np.concatenate([before, after]).astype(np.float64)


def delays(detector: Detector, rate: float, runs: int) -> tuple[float, float, int, int]:
    """Median and 95th percentile of the samples from the change to the alarm; how many missed it, and were early.

    A run with an alarm before the change is left out, and counted as early.
    """
    found, early = [], 0
    for stream in streams_of(rate, runs, 1):
        alarms = detector(stream)
        if alarms and alarms[0] < CHANGE:
            early += 1
            continue
        found.append(alarms[0] - CHANGE + 1 if alarms else math.inf)
    if not found:
        return math.nan, math.nan, 0, early
    ordered = sorted(found)
    late = ordered[min(len(ordered) - 1, math.ceil(0.95 * len(ordered)) - 1)]
    return ordered[len(ordered) // 2], late, sum(map(math.isinf, found)), early


def false_alarms(detector: Detector, samples: int, length: int) -> tuple[int, float]:
    """False alarms in streams of `length` without a change, and millions of updates a processor second."""
    alarms, spent = 0, 0.0
    for run in range(max(1, samples // length)):
        stream = (np.random.default_rng([2, run]).random(length) < BASE).astype(np.float64)
        started = time.process_time()
        alarms += len(detector(stream))
        spent += time.process_time() - started
    return alarms, max(1, samples // length) * length / spent / 1e6


def bernoulli(quick: bool) -> None:
    """The table of delays and false alarms."""
    runs, null = (60, 2_000_000) if quick else (400, 60_000_000)
    few, little = (20, 100_000) if quick else (100, 1_000_000)
    print(f"Bernoulli {BASE} → rate after {CHANGE:,} samples; median (95 %) delay, missed within {HORIZON:,}, early\n")
    heads = "".join(f"{f'→ {rate}':>30}" for rate in RATES)
    print(f"{'detector':<28}{heads}{'ARL (95 % interval)':>34}{'M updates/s':>13}")
    rows: dict[str, tuple[Detector, int, int]] = {
        "e-detector, base learned": (ours, runs, null),
        "CUSUM told both, ln 10,000": (told_cusum, runs, null),
        "CUSUM told both, ln 2,250": (lambda stream: told_cusum(stream, limit=math.log(2250)), runs, null),
    }
    rows |= {name: (detector, few, little) for name, detector in peers().items()}
    for name, (detector, count, samples) in rows.items():
        cells = []
        for rate in RATES:
            median, late, missed, early = delays(detector, rate, count)
            cells.append(f"{median:>10.0f} ({late:.0f}), {missed}, {early} of {count}".rjust(30))
        alarms, speed = false_alarms(detector, samples, min(samples, 1_000_000))
        print(f"{name:<28}{''.join(cells)}{run_length(samples, alarms):>34}{speed:>13.2f}", flush=True)
    print("\ngoals: 300 and 110 samples; ARL at least 100,000 (guaranteed on average over Jeffreys' prior of the rate;")
    print("measured above for 0.2, the base learned anew after every alarm); at least 5 M updates/s")
    print("\nfalse alarms with the base learned, other rates (ARL and 95 % interval):")
    for rate in (0.01, 0.05, 0.5, 0.9):
        samples, alarms = null // 6, 0
        for run in range(max(1, samples // 1_000_000)):
            stream = np.random.default_rng([3, run]).random(min(samples, 1_000_000)) < rate
            alarms += len(EDetector().update(stream.astype(np.float64)))
        print(f"  rate {rate:<6}{run_length(samples, alarms):>34}")
    many(quick)


def run_length(samples: int, alarms: int) -> str:
    """Samples a false alarm, with a 95 % interval of the Poisson count (Byar's approximation)."""
    if not alarms:
        return f"> {samples / 3:,.0f} (no alarm)"
    low = alarms * (1 - 1 / (9 * alarms) - 1.96 / (3 * math.sqrt(alarms))) ** 3
    above = alarms + 1
    high = above * (1 - 1 / (9 * above) + 1.96 / (3 * math.sqrt(above))) ** 3
    return f"{samples / alarms:,.0f} ({samples / high:,.0f} to {samples / low:,.0f})"


def many(quick: bool) -> None:
    """Short runs as streams of one detector: the early part of a stream, where the base is least known."""
    streams, length, rounds = 100, 20_000, 2 if quick else 10
    alarms, spent = 0, 0.0
    for run in range(rounds):
        values = (np.random.default_rng([4, run]).random((length, streams)) < BASE).astype(np.float64)
        detector = EDetector(streams)
        started = time.process_time()
        alarms += len(detector.update(values))
        spent += time.process_time() - started
    samples = streams * length * rounds
    print(f"\n{streams * rounds:,} fresh streams of {length:,}: ARL {run_length(samples, alarms)},", end=" ")
    print(f"{samples / spent / 1e6:.1f} M updates/s over {streams} streams at once")
    for kind, block in (("normal", 1), ("normal", 100), ("evalue", 1)):
        detector = EDetector(1, DetectorSettings(kind=kind, block=block))  # type: ignore[arg-type]
        values = np.random.default_rng(5).random(1_000_000)
        started = time.process_time()
        detector.update(values)
        print(f"{kind}, blocks of {block}: {1 / (time.process_time() - started):.1f} M updates/s")


def true_positives(truth: set[int], changes: set[int], margin: int) -> int:
    """Change points of `truth` with one of `changes` within the margin; each is used once, the nearest."""
    left, count = set(changes), 0
    for point in sorted(truth):
        near = [(abs(point - change), change) for change in left if abs(point - change) <= margin]
        if near:
            left.remove(min(near)[1])
            count += 1
    return count


def f1_score(annotations: Mapping[str, list[int]], changes: Iterable[int], margin: int = 5) -> float:
    """F1 of van den Burg & Williams 2020, "An evaluation of change point detection algorithms", section 3.2.

    Precision against the union of all annotators, recall as their mean; the start of the series is a change point
    everywhere.
    """
    predicted = {0, *changes}
    truths = [{0, *points} for points in annotations.values()]
    precision = true_positives(set().union(*truths), predicted, margin) / len(predicted)
    recall = sum(true_positives(truth, predicted, margin) / len(truth) for truth in truths) / len(truths)
    return 2 * precision * recall / (precision + recall)


def covering(annotations: Mapping[str, list[int]], changes: Iterable[int], length: int) -> float:
    """Mean over annotators of the segments' greatest Jaccard index, by length (the same paper, section 3.1)."""

    def segments(points: Iterable[int]) -> list[tuple[int, int]]:
        bounds = [0, *sorted(set(points) - {0}), length]
        return list(pairwise(bounds))

    found, scores = segments(changes), []
    for points in annotations.values():
        score = 0.0
        for low, high in segments(points):
            overlaps = (
                (min(high, b) - max(low, a)) / (max(high, b) - min(low, a))
                for a, b in found
                if min(high, b) > max(low, a)
            )
            score += (high - low) * max(overlaps)
        scores.append(score / length)
    return sum(scores) / len(scores)


def load(folder: Path, name: str) -> tuple[Floats, dict[str, list[int]]]:
    """A series (time, dimensions) and its annotations, from river's files."""
    with (folder / f"{name}.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    source = (folder / f"{name}.py").read_text()
    annotations = re.search(r"annotations=(\{.*?\}),\s*filename", source, re.S)
    if annotations is None:
        raise SystemExit(f"{folder / name}.py has no annotations where they were in river 0.26")
    return np.array([[float(value) for value in row[1:]] for row in rows]), ast.literal_eval(annotations.group(1))


def change_points() -> None:
    """The table of scores on the series that ship with river."""
    spec = importlib.util.find_spec("river")
    if spec is None or spec.origin is None:
        print("\nriver is not installed: no change-point series (the module's docstring says how to get it)")
        return
    folder = Path(spec.origin).parent / "drift" / "datasets"
    print("\nChange points, F1 (margin 5) / covering; 'live': as reported when found, 'final': the last segmentation")
    print(f"{'series':<16}{'zero':>8}{'published':>12}{'final':>16}{'live':>16}{'median delay':>14}{'µs/sample':>11}")
    for name, (file, published) in SERIES.items():
        values, annotations = load(folder, file)
        zero = f1_score(annotations, [])
        if abs(zero - published) > 1e-6:
            raise SystemExit(f"the metric is wrong: {name} without change points scores {zero}, published {published}")
        detector = ChangePointDetector(values.shape[1])
        started = time.process_time()
        reports = detector.update(values)
        spent = (time.process_time() - started) / len(values) * 1e6
        live = [report.since for report in reports]
        delay = float(np.median([report.index - report.since + 1 for report in reports]))
        scores = [
            f"{f1_score(annotations, c):.3f}/{covering(annotations, c, len(values)):.3f}"
            for c in (detector.changes, live)
        ]
        print(f"{name:<16}{zero:>8.4f}{published:>12.6f}{scores[0]:>16}{scores[1]:>16}{delay:>14.0f}{spent:>11.0f}")
    print("goals: at least 0.80 on run_log and occupancy, at least zero on jfk_passengers (final)")
    print("F1 (final) around the default spacing of 200: ", end="")
    for spacing in (50.0, 100.0, 300.0, 500.0):
        cells = []
        for file, _ in SERIES.values():
            values, annotations = load(folder, file)
            detector = ChangePointDetector(values.shape[1], ChangePointSettings(spacing=spacing))
            detector.update(values)
            cells.append(f"{f1_score(annotations, detector.changes):.3f}")
        print(f"{spacing:.0f}: {' '.join(cells)}", end="; ")
    print()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="small sizes: about a minute")
    arguments = parser.parse_args()
    change_points()
    print()
    bernoulli(arguments.quick)


if __name__ == "__main__":
    main()
