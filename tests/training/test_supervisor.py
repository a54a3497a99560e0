"""The supervisor of ranks: kills, hangs and errors on purpose, and the same weights in the end."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from observability import names
from observability.metrics import Metrics
from observability.wall_time import CAUSES
from tests.training.forks import forked
from training.callables import resolve
from training.faults import Fault, Faults
from training.ledger import Attempt
from training.supervisor import LEDGER, Limits, Supervisor, given_up
from training.warm import WarmError
from training.watch import HangLimits
from training.zygote import ForkError, check_forkable

pytestmark = pytest.mark.slow


def supervisor(
    folder: Path, *, steps: int, faults: Faults | None = None, limits: Limits | None = None, **more: Any
) -> Supervisor:
    arguments = {"steps": steps, "every": 10, "faults": (faults or Faults()).to_json()}
    return Supervisor(
        "tests.training.toy_run:fit",
        world_size=2,
        folder=folder,
        model="toy",
        arguments=arguments,
        limits=limits,
        echo=None,
        **more,
    )


def undisturbed(steps: int) -> list[float]:
    """The weights of the same training in one process, with both ranks' gradients averaged by hand."""
    torch.manual_seed(0)
    network = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    for step in range(steps):
        found = []
        for rank in range(2):
            inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(step * 2 + rank))
            optimizer.zero_grad()
            (network(inputs) - inputs.sum(1, keepdim=True)).square().mean().backward()
            found.append([parameter.grad for parameter in network.parameters()])
            for parameter in network.parameters():
                parameter.grad = None
        for parameter, first, second in zip(network.parameters(), *found, strict=True):
            assert first is not None
            assert second is not None
            parameter.grad = (first + second) / 2
        optimizer.step()
    weights: list[float] = network.weight.flatten().tolist()
    return weights


def weights(folder: Path) -> list[float]:
    return [float(word) for word in (folder / "weights.txt").read_text().split()]


def test_a_run_survives_kill_stop_and_error_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    faults = Faults(
        (Fault("kill", 1, 15, 0), Fault("stop", 0, 37, 1), Fault("error", 1, 44, 2), Fault("kill", 0, 51, 3))
    )
    metrics = Metrics()
    limits = Limits(hang=HangLimits(step=5.0, first=60.0))

    result = supervisor(tmp_path, steps=60, faults=faults, limits=limits, metrics=metrics).run()

    assert result.outcome == "completed", result.reason
    assert [(one.cause, one.rank) for one in result.attempts] == [
        ("killed", 1), ("hang", 0), ("error", 1), ("killed", 0), ("completed", -1),
    ]  # fmt: skip
    assert [one.resumed for one in result.attempts] == [0, 10, 30, 40, 50]
    hang = result.attempts[1].reason
    assert "rank 0 shows no life" in hang
    assert "of step 37" in hang
    assert "no stacks of rank 0 (T (stopped))" in hang
    assert "all_reduce" in (tmp_path / "attempt-0001" / "rank-1.stacks").read_text()
    assert "InjectedError: injected at step 44" in result.attempts[2].reason
    assert weights(tmp_path) == undisturbed(60)

    wall = result.attempts[-1].ended - result.attempts[0].began
    assert set(result.wall) == set(CAUSES)
    assert math.fsum(result.wall.values()) == pytest.approx(wall, abs=1e-6)
    assert min(result.wall.values()) >= -1e-6
    assert result.wall["repeated"] > 0
    assert 0 < result.goodput < 1

    def value(metric: names.Metric, suffix: str = "", **labels: str) -> float | None:
        return metrics.registry.get_sample_value(metric.name + suffix, {"model": "toy", **labels})

    assert value(names.TRAINING_RESTARTS, cause="killed") == 2
    assert value(names.TRAINING_RESTARTS, cause="hang") == 1
    assert value(names.TRAINING_STEPS) == 15 + (37 - 10) + (44 - 30) + (51 - 40) + 10
    assert value(names.TRAINING_GOODPUT, run="run") == pytest.approx(result.goodput)
    assert value(names.TRAINING_RANK_UP, run="run", rank="1") == 0
    recovery = value(names.TRAINING_RECOVERY, run="run")
    assert recovery is not None
    assert 0 < recovery < 60


def attempts(*ends: tuple[str, str, int]) -> list[Attempt]:
    return [
        Attempt(attempt=number, began=number, ended=number + 1, cause=cause, reason=reason, safe=safe)
        for number, (cause, reason, safe) in enumerate(ends)
    ]


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        ([("killed", "k", 10), ("killed", "k", 20), ("killed", "k", 30), ("killed", "k", 40)], ""),
        ([("killed", "k", 10), ("killed", "k", 10), ("hang", "h", 0)], ""),
        ([("killed", "k", 10), ("killed", "k", 10), ("hang", "h", 0), ("killed", "z", 10)], "z; 3 attempts in a row"),
        ([("error", "E", 0), ("error", "E", 0)], "E; the same error ended 2 attempts"),
        ([("error", "E", 10), ("error", "E", 20)], ""),
        ([("error", "E", 0), ("error", "F", 0)], ""),
        ([("killed", "k", n) for n in range(1, 7)], "k; 5 restarts are the limit"),
    ],
)
def test_a_run_is_given_up_when_it_gets_nowhere(ended: list[tuple[str, str, int]], said: str) -> None:
    found = given_up(attempts(*ended), Limits(restarts=5))
    assert found.startswith(said)
    assert bool(found) == bool(said)


def _noted(path: Path) -> int:
    """Steps in checkpoints, as the supervisor last noted them."""
    return int(json.loads(path.read_text())["safe"]) if path.exists() else 0


def supervise(folder: Path) -> None:
    """A run without an end, in a process of its own."""
    supervisor(folder, steps=1_000_000).run()


def test_a_full_disk_is_named_as_the_cause_in_the_ledger_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt ends otherwise, as processes do whose pages cannot be had."""
    monkeypatch.setattr("training.disk._LEAST_BYTES", 1 << 62)
    faults = Faults((Fault("kill", 0, 3, 0), Fault("error", 1, 3, 1), Fault("kill", 1, 3, 2)))

    ended = supervisor(tmp_path, steps=5, faults=faults).run()

    full = f"; the disk of {tmp_path} is full: less than 1 MiB is left"
    assert (ended.outcome, len(ended.attempts)) == ("failed", 3)
    assert ended.reason == f"rank 1 was killed by SIGKILL{full}; 3 attempts in a row saved nothing new"
    written = [json.loads(line)["reason"] for line in (tmp_path / LEDGER).read_text().splitlines()]
    assert all(reason.endswith(full) for reason in written)


def test_ranks_that_are_gone_before_there_is_a_handle_of_them_have_ended_as_others_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(process: int) -> int:
        raise ProcessLookupError(process)

    monkeypatch.setattr("training.warm.os.pidfd_open", gone)

    assert supervisor(tmp_path, steps=10).run().outcome == "completed"


def test_a_run_goes_on_after_its_supervisor_was_killed(tmp_path: Path) -> None:
    process = forked(supervise, tmp_path)
    until = time.monotonic() + 240
    while not _noted(tmp_path / "ledger.now.json"):
        assert time.monotonic() < until, "no checkpoint came, or none was noted"
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join()
    until = time.monotonic() + 120
    while ranks := _ranks_of(tmp_path):
        assert time.monotonic() < until, f"ranks {ranks} outlived their supervisor"
        time.sleep(0.02)
    saved = max(int(path.stem.partition("-")[2]) for path in (tmp_path / "checkpoints").glob("*.ckpt"))

    run = supervisor(tmp_path, steps=saved + 10)
    result = run.run()

    assert result.outcome == "completed", result.reason
    assert result.attempts[-1].resumed == saved
    assert result.attempts[-1].attempt == 1
    assert weights(tmp_path) == undisturbed(saved + 10)
    attempts = [json.loads(line) for line in (tmp_path / LEDGER).read_text().splitlines()]
    assert [one["cause"] for one in attempts] == ["supervisor", "completed"]
    assert attempts[0]["safe"] > 0
    assert sum(result.wall.values()) == pytest.approx(attempts[1]["ended"] - attempts[0]["began"])
    assert result.wall["productive"] > 0
    assert not (tmp_path / "ledger.now.json").exists()


def test_a_ledger_that_cannot_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / LEDGER).mkdir()
    (tmp_path / "ledger.now.partial").mkdir()

    result = supervisor(tmp_path, steps=20, faults=Faults((Fault("kill", 1, 15, 0),))).run()

    assert [one.cause for one in result.attempts] == ["killed", "completed"]
    assert "attempt 0 could not be written down" in caplog.text
    assert "the attempt could not be noted" in caplog.text


def test_what_cannot_be_forked_or_called_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(WarmError, match="ForkError: threads run before the ranks are forked: early"):
        supervisor(tmp_path, steps=1, prepare="tests.training.toy_run:threaded").run()
    assert not list(tmp_path.glob("attempt-*"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tests.training.toy_run", "write module:function"),
        ("tests.training.toy_run:absent", "cannot be imported: .* no attribute 'absent'"),
        ("no_such_module:f", "cannot be imported: No module named 'no_such_module'"),
        ("math:pi", "is a float, which cannot be called"),
    ],
)
def test_a_wrong_name_says_what_is_wrong(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(name)


def test_threads_are_named_that_a_fork_would_lose() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="sampler")
    thread.start()
    try:
        with pytest.raises(ForkError, match="sampler"):
            check_forkable()
    finally:
        stop.set()
        thread.join()


def _ranks_of(folder: Path) -> list[int]:
    """Processes that have a file of the run open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            names = [os.readlink(link) for link in (process / "fd").iterdir()]
        except OSError:
            continue
        if any(name.startswith(str(folder)) for name in names):
            found.append(int(process.name))
    return found
