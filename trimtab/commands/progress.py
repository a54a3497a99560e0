"""How far a training is, on one line of the terminal; nothing where nobody looks."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from observability import Metrics, names

_EACH_SECONDS = 0.2


@contextmanager
def training_progress(metrics: Metrics, what: str) -> Iterator[None]:
    """Shows steps, loss and rate of the run that fills `metrics`, until it ends, where standard error is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    ended = threading.Event()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as line:
        task = line.add_task(what)

        def follow() -> None:
            while not ended.wait(_EACH_SECONDS):
                line.update(task, description=f"{what}  {described(metrics)}")

        follower = threading.Thread(target=follow, name="progress", daemon=True)
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join()


def described(metrics: Metrics) -> str:
    """Steps, loss and samples a second as they are now, what is known of them."""
    found: dict[str, float] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            if sample.name in (names.TRAINING_STEPS.name, names.TRAINING_LOSS.name, names.TRAINING_THROUGHPUT.name):
                found[sample.name] = sample.value
    steps, loss, rate = (
        found.get(metric.name) for metric in (names.TRAINING_STEPS, names.TRAINING_LOSS, names.TRAINING_THROUGHPUT)
    )
    parts = ["no step yet" if not steps else f"step {steps:,.0f}"]
    parts += [] if loss is None else [f"loss {loss:.4f}"]
    parts += [] if not rate else [f"{rate:,.0f} samples/s"]
    return " · ".join(parts)
