"""How good the flight-delay models are, when retraining pays, and how far the seasons drift; on the real flights.

For each end of a replay from 1 March: a uniform sample of labelled requests, the last fifth of its days held out, a
challenger that starts warm from version 1, and the gate's verdict. Then the PSI of each feature by window of ten days.

    python benchmarks/flights_quality.py [--rows 40000] [--seed 7]
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import sys
import tempfile
import time
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from observability import TrainingMonitor
from training import Gate, TabularTask, TrainConfig, split_recent
from training.candidate import Candidate, fit_candidate
from training.data import Rows, encode_rows, labelled, predict
from training.evaluate import score
from trimtab.demo import flights
from trimtab.demo.model import flight_delay_task

ENDS = ("2013-04-01", "2013-05-16", "2013-06-16", "2013-07-01", "2013-07-16", "2013-08-01", "2013-09-01")
BINS = 20


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=40_000)
    arguments.add_argument("--seed", type=int, default=7)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    task, config = flight_delay_task(), TrainConfig(seed=options.seed)
    with tempfile.TemporaryDirectory() as folder:
        table = flights.load_flights(Path(folder))
        champion = first_version(task, table, config)
        for end in ENDS:
            challenge(task, sample(between(table, "2013-03-01", end), options), end, champion, config)
    drift(table)


def first_version(task: TabularTask, table: pa.Table, config: TrainConfig) -> Candidate:
    """Trains version 1 on January and February less the last fifth of the days, and prints the gate's numbers."""
    split = split_recent(labelled(task, between(table, "2013-01-01", "2013-03-01")), task.group, 0.2)
    candidates = []
    for seed in (config.seed, config.seed + 1, config.seed + 2):
        began = time.perf_counter()
        candidate = fitted(task, split.train, dataclasses.replace(config, seed=seed))
        seconds = time.perf_counter() - began
        rows = encode_rows(task, candidate.vocabularies, split.held_out)
        labels, probabilities = rows.labels.double().numpy(), predict(candidate.network, rows.inputs)
        scores, gate = score(labels, probabilities), Gate().against_base_rate(labels, probabilities, rows.groups)
        print(
            f"v1 seed {seed}: log loss {scores.log_loss:.4f}, base rate's {scores.base_rate_log_loss:.4f}, "
            f"AUC {scores.roc_auc:.4f}, ECE {scores.calibration_error:.3f}; difference {gate.difference:+.4f} at most "
            f"{gate.upper_bound:+.4f}, {'passed' if gate.passed else 'REFUSED'}; trained in {seconds:.1f} s",
            flush=True,
        )
        candidates.append(candidate)
    return candidates[0]


def challenge(task: TabularTask, table: pa.Table, end: str, champion: Candidate, config: TrainConfig) -> None:
    """Retrains on the requests before `end` and prints what the gate says, warm and anew."""
    split = split_recent(labelled(task, table), task.group, 0.2)
    weights = dict(champion.network.state_dict())
    for start in ("warm", "new"):
        began = time.perf_counter()
        warm = {"vocabularies": champion.vocabularies, "weights": weights} if start == "warm" else {}
        candidate = fitted(task, split.train, config, **warm)
        seconds = time.perf_counter() - began
        labels, before = on(task, champion, split.held_out)
        rows = encode_rows(task, candidate.vocabularies, split.held_out)
        after = predict(candidate.network, rows.inputs)
        gate = Gate().against_champion(labels, after, before, rows.groups)
        base = score(labels, after).base_rate_log_loss
        print(
            f"end {end} {start}: champion {gate.rival_log_loss:.4f}, challenger {gate.candidate_log_loss:.4f}, "
            f"base rate's {base:.4f}; difference {gate.difference:+.4f} at most "
            f"{gate.upper_bound:+.4f} over {gate.groups} days: "
            f"{'passed' if gate.passed else 'refused'}; {seconds:.1f} s",
            flush=True,
        )


def drift(table: pa.Table) -> None:
    """Prints the PSI of each feature against January and February, less its null expectation (B-1)(1/n + 1/N)."""
    reference, day = between(table, "2013-01-01", "2013-03-01"), dt.date(2013, 3, 1)
    print("window     rows  " + " ".join(f"{name[:9]:>9}" for name in flights.FEATURES) + "  share > 0.25")
    while day < dt.date(2013, 9, 1):
        until = day + dt.timedelta(days=10)
        window = between(table, day.isoformat(), until.isoformat())
        values = [psi(reference.column(name), window.column(name)) for name in flights.FEATURES]
        share = np.mean([value > 0.25 for value in values])
        print(f"{day} {window.num_rows:5d}  " + " ".join(f"{value:9.3f}" for value in values) + f"  {share:.2f}")
        day = until


def psi(reference: pa.ChunkedArray, window: pa.ChunkedArray) -> float:
    """Population stability index over equal-mass bins of the reference (or its categories), half a count in each."""
    expected, found = counted(reference, reference), counted(reference, window)
    cells = len(expected)
    p, q = (expected + 0.5) / (expected.sum() + cells / 2), (found + 0.5) / (found.sum() + cells / 2)
    return float(((q - p) * np.log(q / p)).sum() - (cells - 1) * (1 / found.sum() + 1 / expected.sum()))


def counted(reference: pa.ChunkedArray, values: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_string(reference.type):
        categories = pc.unique(reference)
        places = pc.fill_null(pc.index_in(values, value_set=categories.cast(pa.string())), len(categories)).to_numpy()
        return np.bincount(places, minlength=len(categories) + 1)
    known = reference.drop_null().to_numpy()
    edges = np.unique(np.quantile(known, np.linspace(0, 1, BINS + 1)[1:-1]))
    return np.bincount(np.searchsorted(edges, values.drop_null().to_numpy(), side="right"), minlength=len(edges) + 1)


def fitted(task: TabularTask, rows: pa.Table, config: TrainConfig, **warm: object) -> Candidate:
    with TrainingMonitor(task.model, run="benchmark") as monitor, tempfile.TemporaryDirectory() as folder:
        return fit_candidate(task, rows, config, monitor, out=Path(folder), **warm)  # type: ignore[arg-type]


def on(task: TabularTask, candidate: Candidate, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    rows: Rows = encode_rows(task, candidate.vocabularies, table)
    return rows.labels.double().numpy(), predict(candidate.network, rows.inputs)


def sample(table: pa.Table, options: argparse.Namespace) -> pa.Table:
    generator = np.random.default_rng(options.seed)
    return table.take(np.sort(generator.choice(len(table), min(options.rows, len(table)), replace=False)))


def between(table: pa.Table, since: str, until: str) -> pa.Table:
    day = table.column(flights.GROUP)
    return table.filter(pc.and_(pc.greater_equal(day, since), pc.less(day, until)))


if __name__ == "__main__":
    main()
