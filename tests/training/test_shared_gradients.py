"""Gradients averaged in shared memory are those of gloo, equal in all ranks; where memory cannot be shared all know."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from training.barrier import can_meet_in_memory
from training.shared_memory import opened
from training.supervisor import Limits, Supervisor
from training.watch import HangLimits


def compared(folder: Path, world_size: int) -> list[dict[str, Any]]:
    supervisor = Supervisor(
        "tests.training.toy_replicas:compare", world_size=world_size, folder=folder, model="toy",
        limits=Limits(restarts=0, hang=HangLimits(step=300.0, first=300.0)), echo=None,
    )  # fmt: skip
    result = supervisor.run()
    assert result.outcome == "completed", result.reason
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world_size)]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_gradients_are_those_of_gloo_and_all_know_where_one_rank_has_no_memory_to_share(
    tmp_path: Path, world_size: int
) -> None:
    for said in compared(tmp_path, world_size):
        assert said["finite"]
        assert said["equal in all ranks"]
        # Of two terms the order does not matter; of three the last bits of bfloat16 may differ.
        assert said["same bits"] if world_size == 2 else said["distance"] < 0.1
        assert said["bits by collectives"]
        assert said["distance in parts"] < 1e-6
        # So many steps, and passes through parts; three ranks meet twice each time, and nobody by collectives.
        begun, ended = said["waits"][0]
        assert begun == ended == (12 if world_size == 2 else 24) * can_meet_in_memory()
        assert said["waits"][1] == [begun, ended]
        (seconds, behind), after = said["communication"]
        assert 0 < seconds < 60
        assert behind == 0
        assert after is None
        assert said["left"] == []
        assert said["apart"]
        assert said["few rows"]


def test_only_the_memory_that_is_meant_isopened(tmp_path: Path) -> None:
    ours = os.memfd_create("trimtab-gradients")
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    try:
        for descriptor in (ours, other):
            os.truncate(descriptor, 4096)
            os.pwrite(descriptor, (77).to_bytes(8, "little"), 0)

        region = opened(os.getpid(), ours, 77, size=4096)
        assert region is not None
        assert region[0] == 77
        assert opened(os.getpid(), ours, 78, size=4096) is None
        assert opened(os.getpid(), other, 77, size=4096) is None
        assert opened(2**22 + 5, ours, 77, size=4096) is None
        assert opened(os.getpid(), -1, 77, size=4096) is None
    finally:
        os.close(ours)
        os.close(other)
