"""One line on how far a training is, from its own metrics."""

from __future__ import annotations

import pytest

from observability import Metrics, TrainingMonitor
from trimtab.commands.progress import described, training_progress


def test_the_line_says_what_is_known() -> None:
    metrics = Metrics()
    assert described(metrics) == "no step yet"

    with TrainingMonitor("m", run="1", metrics=metrics, drain_seconds=0.0) as monitor:
        for _ in range(3):
            monitor.start()
            monitor.end(100, loss=0.25)
        monitor.drain()
        shown = described(metrics)

    assert shown.startswith("step 3 · loss 0.2500 · ")
    assert shown.endswith(" samples/s")


def test_nothing_is_written_where_nobody_looks(capfd: pytest.CaptureFixture[str]) -> None:
    with training_progress(Metrics(), "training m"):
        pass

    assert capfd.readouterr() == ("", "")
