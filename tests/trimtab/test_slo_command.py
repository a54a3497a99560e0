"""`trimtab slo`: rules, reports and checks of files of objectives, and what it says when it cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

SLO = """apiVersion: trimtab/v1
kind: SLO
metadata: {name: delay}
spec:
  service: flights
  indicator: {latency: {model: flight_delay, threshold: 250ms}}
  timeWindow: [{duration: 28d, isRolling: true}]
  objectives: [{target: 0.999}]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    written = tmp_path / "slo.yaml"
    written.write_text(SLO)
    return written


def test_rules_are_generated_from_a_file_and_written_where_it_is_said(trimtab: Run, path: Path, tmp_path: Path) -> None:
    printed = trimtab("slo", "generate", path, "--interval", "30s")
    written = trimtab("slo", "generate", path, "--interval", "30s", "--output", tmp_path / "rules.yml")

    assert (printed.exit_code, written.exit_code) == (0, 0)
    assert "> 13.44" in printed.stdout
    assert (tmp_path / "rules.yml").read_text() == printed.stdout
    assert trimtab("rules", "check", tmp_path / "rules.yml").exit_code == 0


def test_what_is_wrong_in_a_file_is_said_with_its_line(trimtab: Run, path: Path) -> None:
    path.write_text(SLO.replace("target", "gaol"))

    checked, asked = trimtab("slo", "check", path), trimtab("slo", "check", path, "--json")
    refused = trimtab("slo", "generate", path)

    assert checked.exit_code == asked.exit_code == refused.exit_code == 1
    assert "slo.yaml:8:17: error: unknown field 'gaol'" in checked.stdout
    assert json.loads(asked.stdout)[0]["line"] == 8
    assert refused.stdout == ""
    assert "slo.yaml:8" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--at", "yesterday"], "unix seconds or a time like"),
        (["--url", "http://127.0.0.1:1"], "is it running?"),
        (["--header", "Bearer"], "Authorization: Bearer TOKEN"),
    ],
)
def test_a_report_that_cannot_be_made_says_why(trimtab: Run, path: Path, arguments: list[str], words: str) -> None:
    found = trimtab("slo", "report", path, *arguments)

    assert (found.exit_code, found.stdout) == (1, "")
    assert words in found.stderr
    assert found.stderr.count("127.0.0.1") <= 1
