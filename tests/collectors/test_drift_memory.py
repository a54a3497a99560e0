"""What a comparison takes for free memory: the least that the machine, the container and the process's limit leave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collectors.drift.memory import _of_container, free_memory

GIGABYTE = 1 << 30


def group(folder: Path, version: int, limit: object, used: int, files: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {files}\n")


@pytest.mark.parametrize("version", [1, 2])
def test_the_narrowest_group_around_a_process_counts(tmp_path: Path, version: int) -> None:
    root, membership = tmp_path / "groups", tmp_path / "membership"
    own = root / ("memory/pod/own" if version == 1 else "pod/own")
    membership.write_text("9:name=systemd:/pod\n4:memory:/pod/own\n" if version == 1 else "0::/pod/own\n")

    assert _of_container(root, membership) == float("inf")
    group(own, version, "max", 5, 0)
    assert _of_container(root, membership) == float("inf")
    group(own, version, 4 * GIGABYTE, 3 * GIGABYTE, GIGABYTE)
    assert _of_container(root, membership) == 2 * GIGABYTE
    group(own.parent, version, 8 * GIGABYTE, 7 * GIGABYTE, 0)
    assert _of_container(root, membership) == GIGABYTE


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    (tmp_path / "membership").write_text("0::/kubepods/elsewhere\n")
    group(tmp_path / "groups", 2, 3 * GIGABYTE, GIGABYTE, 0)

    assert _of_container(tmp_path / "groups", tmp_path / "membership") == 2 * GIGABYTE


def test_it_is_never_more_than_the_machine_has() -> None:
    assert 0 < free_memory() <= psutil.virtual_memory().total


LIMITED = """
import resource, sys
import psutil
from collectors.drift.compare import compare
taken = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (taken + int(sys.argv[3]), resource.RLIM_INFINITY))
found = compare(sys.argv[1], sys.argv[2])
print(found.mode)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("room", "mode"), [(12 << 30, "exact"), (700 << 20, "profile")])
def test_what_a_process_may_not_hold_is_compared_by_profiles(tmp_path: Path, room: int, mode: str) -> None:
    """Its rows would fit into the machine, and not into the limit that the process has."""
    draw = np.random.default_rng(3)
    for name in ("a", "b"):
        numbers = {f"x{column}": draw.normal(size=200_000) for column in range(4)}
        (tmp_path / name).mkdir()
        pq.write_table(pa.table(numbers), tmp_path / name / "0.parquet")
        for part in range(1, 20):
            (tmp_path / name / f"{part}.parquet").hardlink_to(tmp_path / name / "0.parquet")
    sides = [str(tmp_path / name) for name in ("a", "b")]

    done = subprocess.run([sys.executable, "-c", LIMITED, *sides, str(room)], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == mode
