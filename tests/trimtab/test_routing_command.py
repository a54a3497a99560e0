"""`trimtab models experiment | switch | route`: what they ask of the server, and what they refuse."""

from __future__ import annotations

import getpass
from typing import Any

import pytest
from click.testing import CliRunner

from trimtab.commands import routing
from trimtab.commands.models import models


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """The calls that the commands make, in place of a server."""
    calls: list[tuple[str, Any]] = []

    def call(_settings: Any, method: str, url: str, body: Any, key: str) -> Any:
        assert method == "POST"
        assert key
        calls.append((url.rpartition("/api/v1/models/")[2], body))
        return {}

    monkeypatch.setattr(routing, "call", call)
    return calls


@pytest.mark.parametrize(
    ("words", "path", "body"),
    [
        (
            ["experiment", "m", "--variant", "a=1:0.25", "--variant", "b=2:0.75", "--sticky", "user"],
            "m/experiment",
            {"variants": [{"name": "a", "version": 1, "weight": 0.25}, {"name": "b", "version": 2, "weight": 0.75}],
             "sticky": "user"},
        ),
        (["experiment", "m", "--end"], "m/experiment", {"end": True}),
        (["switch", "m", "--version", "3", "--prepare"], "m/switch", {"version": 3, "prepare": True}),
        (["switch", "m"], "m/switch", {"prepare": False}),
        (
            ["route", "m", "--rule", "x-qa", "yes", "2", "--rule", "x-team", "beta-*", "canary"],
            "m/route",
            {"rules": [{"header": "x-qa", "equals": "yes", "version": 2},
                       {"header": "x-team", "prefix": "beta-", "variant": "canary"}]},
        ),
        (["route", "m", "--clear"], "m/route", {"rules": []}),
        (["promote", "m"], "m/promote", {}),
        (["promote", "m", "2"], "m/promote", {"version": "2"}),
        (["promote", "m", "--version", "2"], "m/promote", {"version": "2"}),
    ],
)  # fmt: skip
def test_a_command_is_one_control_call(
    asked: list[tuple[str, Any]], words: list[str], path: str, body: dict[str, Any]
) -> None:
    result = CliRunner().invoke(models, words)

    assert result.exit_code == 0, result.output
    assert asked == [(path, {**body, "reason": "by hand", "actor": getpass.getuser()})]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["experiment", "m"], "at least twice, or --end"),
        (["experiment", "m", "--variant", "a=one:0.5"], "NAME=VERSION:WEIGHT, such as"),
        (["switch", "m", "--prepare"], "--prepare needs --version"),
        (["route", "m"], "or --clear"),
    ],
)
def test_a_command_that_says_too_little_is_refused(asked: list[tuple[str, Any]], words: list[str], reason: str) -> None:
    result = CliRunner().invoke(models, words)

    assert (result.exit_code, asked) == (1, [])
    assert reason in result.output
