"""`trimtab ranks`: one page of metrics for the ranks of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from observability.names import PHASES
from observability.step_ring import StepRing
from trimtab.cli import cli


def test_the_command_prints_the_page_or_says_what_is_wrong(tmp_path: Path) -> None:
    ring = StepRing.create(tmp_path / "attempt-0000" / "rank-0.ring", model="mine", run="r")
    for step in range(5):
        ring.write(step, step, 1000, 4, [100] * len(PHASES))
    printed = CliRunner().invoke(cli, ["ranks", str(tmp_path), "--once"])
    missing = CliRunner().invoke(cli, ["ranks", str(tmp_path / "nowhere"), "--once"])

    assert printed.exit_code == 0
    assert 'training_steps_total{model="mine"} 5.0' in printed.stdout.splitlines()
    assert missing.exit_code == 2
    assert "does not exist" in missing.stderr


@pytest.mark.parametrize("port", ["0", "x"])
def test_a_port_that_is_none_is_refused(tmp_path: Path, port: str) -> None:
    assert CliRunner().invoke(cli, ["ranks", str(tmp_path), "--port", port]).exit_code == 2
