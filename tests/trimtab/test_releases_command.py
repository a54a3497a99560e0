"""`trimtab releases`: checks and simulates files, and asks the alerts service for the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from trimtab.commands import releases as module
from trimtab.commands.releases import releases

ROW: dict[str, Any] = {
    "id": 1, "model": "m", "version": 2, "phase": "held", "paused": "", "place": "step 1 of 1 (hold for a person)",
    "began_at": 0.0, "ended_at": None, "reason": "a person must approve it", "blessing": None,
    "explanation": ["It waits for a person."], "journal": [{"time": 0.0, "body": {"told": "held"}}],
}  # fmt: skip


def run(*arguments: str) -> Any:
    return CliRunner().invoke(releases, list(arguments), catch_exceptions=False)


def test_a_file_is_checked_and_what_is_wrong_has_its_place(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("models: {m: {steps: [{canary: {weight: 0.1}}]}}\n")
    bad.write_text("models: {m: {steps: [{canary: {weight: 10}}]}}\n")

    found = run("check", str(good))
    assert (found.exit_code, "m: canary with 10 % of the requests" in found.output) == (0, True)
    found = run("check", str(good), str(bad))
    assert found.exit_code == 1
    assert f"{bad}:1:40: error: weight is 10" in found.output


def test_a_policy_is_simulated(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("models: {m: {steps: [{canary: {weight: 0.5}}]}}\n")

    found = run("simulate", str(file), "--error-ratio", "0.5", "--duration", "2m", "--json")
    assert json.loads(found.output)["phase"] == "rolled_back"
    assert "rolled back" in run("simulate", str(file), "--error-ratio", "0.5", "--duration", "2m").output
    assert run("simulate", str(file), "--error-ratio", "2").exit_code == 1
    assert "give --model" in run("simulate", str(file), "--model", "x").output


def test_people_decide_by_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, Any]] = []

    def call(settings: Any, method: str, url: str, body: Any = None) -> Any:
        asked.append((method, url.partition("/api/v1/")[2], body))
        return {"releases": [ROW], "error": ""} if url.endswith("limit=20") else ROW

    monkeypatch.setattr(module, "call", call)
    assert "step 1 of 1" in run("list").output
    assert "It waits for a person." in run("show", "m").output
    assert "version 2" in run("start", "m", "2", "--actor", "ada").output
    for deed, more in (
        ("approve", ("--override", "why")),
        ("pause", ()),
        ("resume", ("--reason", "on call is back")),
        ("abort", ("--reason", "no")),
        ("approve", ("--reason", "seen")),
    ):
        assert run(deed, "m", "--actor", "ada", *more).exit_code == 0

    assert asked[2] == (
        "POST", "releases", {"model": "m", "version": 2, "reason": "", "override": "", "actor": "ada"},
    )  # fmt: skip
    assert [url for _, url, _ in asked[3:]] == [
        f"releases/m/{deed}" for deed in ("approve", "pause", "resume", "abort", "approve")
    ]
    assert asked[3][2] == {"actor": "ada", "reason": "why"}
    assert asked[5][2] == {"actor": "ada", "reason": "on call is back"}
    assert asked[7][2] == {"actor": "ada", "reason": "seen", "override": ""}
