"""Frozen against online on the flights of 2013: `python benchmarks/online_flights.py [--rates 1e-4,1e-3]`.

Version 1 learns January and February. From March on every day is predicted by the frozen version and by learners that
have learned the days before it (never a flight of the same day), then the day is learned, in the order of its schedule.
The constant knows each month's own share of late flights, which nobody can know before.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import pyarrow.compute as pc
import torch

from observability import TrainingMonitor
from training.candidate import fit_candidate
from training.data import encode_rows, labelled, predict
from training.evaluate import clustered_mean, row_log_loss, student_t_quantile
from training.online import OnlineConfig, OnlineLearner
from training.train_config import TrainConfig
from trimtab.demo.flights import GROUP, load_flights
from trimtab.demo.model import flight_delay_task


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rates", default="1e-5,1e-4,1e-3")
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--cache", type=Path, default=Path(".trimtab/cache"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    task = flight_delay_task()
    table = labelled(task, load_flights(given.cache))
    past = table.filter(pc.less(table.column(GROUP), "2013-03-01"))
    future = table.filter(pc.greater_equal(table.column(GROUP), "2013-03-01"))
    with TrainingMonitor(task.model, run="benchmark", drain_seconds=0) as monitor:
        first = fit_candidate(task, past, TrainConfig(seed=given.seed), monitor, out=Path())
    rows = encode_rows(task, first.vocabularies, future)
    labels, days = rows.labels.double().numpy(), rows.groups.astype(str)
    frozen = predict(first.network, rows.inputs)
    results: dict[str, object] = {"rows": len(labels), "seed": given.seed}
    losses = {"frozen": row_log_loss(labels, frozen), "constant": _constant(labels, days)}
    learners: dict[str, dict[str, float]] = {}
    for rate in given.rates.split(","):
        losses[f"online {rate}"], learners[rate] = _online(first.network, rows, days, float(rate))
    months = {"all": np.ones(len(labels), bool)}
    months |= {month: np.char.startswith(days, month) for month in sorted({day[:7] for day in days})}
    results["log_loss"] = {
        month: {name: round(float(loss[chosen].mean()), 4) for name, loss in losses.items()}
        for month, chosen in months.items()
    }
    results["less than frozen"] = {
        name: _bound(loss - losses["frozen"], days) for name, loss in losses.items() if name.startswith("online")
    }
    results["learners"] = learners
    print(json.dumps(results, indent=1))


def _online(
    network: torch.nn.Module, rows: object, days: np.ndarray, rate: float
) -> tuple[np.ndarray, dict[str, float]]:
    """Log loss of each row, predicted the day before it could be learned."""
    learner = OnlineLearner(copy.deepcopy(network), OnlineConfig(learning_rate=rate, publish_every=0))
    labels = rows.labels.double().numpy()
    losses, began, drifts = np.empty(len(labels)), time.process_time(), 0
    for day in sorted(set(days.tolist())):
        chosen = np.flatnonzero(days == day)
        at = torch.from_numpy(chosen)
        inputs = tuple(column[at] for column in rows.inputs)
        losses[chosen] = row_log_loss(labels[chosen], predict(learner.network.eval(), inputs))
        for start in range(0, len(at), learner.config.batch_rows):
            part = slice(start, start + learner.config.batch_rows)
            drifts += learner.step(tuple(column[part] for column in inputs), rows.labels[at[part]]).drifted
    spent = time.process_time() - began
    return losses, {
        "rollbacks": learner.rollbacks,
        "drifts": drifts,
        "rows a processor second": round(len(labels) / spent),
    }


def _constant(labels: np.ndarray, days: np.ndarray) -> np.ndarray:
    months = np.array([day[:7] for day in days])
    share = {month: labels[months == month].mean() for month in set(months.tolist())}
    return row_log_loss(labels, np.array([share[month] for month in months]))


def _bound(difference: np.ndarray, days: np.ndarray) -> dict[str, float]:
    """Mean difference and its 95 % interval, days being what is independent."""
    mean, error = clustered_mean(difference, days)
    reach = student_t_quantile(0.975, len(set(days.tolist())) - 1) * error
    return {"mean": round(mean, 4), "low": round(mean - reach, 4), "high": round(mean + reach, 4)}


if __name__ == "__main__":
    main()
