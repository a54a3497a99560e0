"""MLflow's alias, against a server with the registry's REST API as it is documented."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from alerts.actions import Call, HookError
from alerts.actions.mlflow import MlflowAliasHook
from tests.loopback import Quiet, served

PROMOTE = Call(key="promote:toy:toy-2", action="promote", model="toy", labels={"candidate": "2"})
ROLLBACK = Call(key="rollback:toy:toy-2", action="rollback", model="toy")


@dataclass
class Registry:
    url: str = ""
    aliases: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, str] = field(default_factory=lambda: {"1": "READY", "2": "READY"})
    moves: list[str] = field(default_factory=list)

    def answer(self, verb: str, path: str, fields: dict[str, str]) -> tuple[int, dict[str, Any]]:
        if fields.get("name") != "toy":
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": f"Registered Model {fields} not found"}
        call = (verb, path.removeprefix("/api/2.0/mlflow/"))
        if call == ("GET", "registered-models/alias"):
            version = self.aliases.get(fields["alias"])
            if version is None:
                message = f"Registered model alias {fields['alias']} not found."
                return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": message}
            return 200, {"model_version": {"name": "toy", "version": version}}
        if call == ("POST", "registered-models/alias"):
            self.aliases[fields["alias"]] = fields["version"]
            self.moves.append(fields["version"])
            return 200, {}
        if call == ("GET", "registered-models/get"):
            tags = [{"key": key, "value": value} for key, value in self.tags.items()]
            return 200, {"registered_model": {"name": "toy", **({"tags": tags} if tags else {})}}
        if call == ("POST", "registered-models/set-tag"):
            self.tags[fields["key"]] = fields["value"]
            return 200, {}
        if call == ("GET", "model-versions/get"):
            if fields["version"] not in self.statuses:
                return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Model Version not found"}
            found = {"version": fields["version"], "status": self.statuses[fields["version"]], "run_id": "r"}
            return 200, {"model_version": found}
        return 404, {"error_code": "ENDPOINT_NOT_FOUND", "message": f"No API found for {call}"}


@pytest.fixture
def registry() -> Iterator[Registry]:
    state = Registry()

    class Handler(Quiet):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            self._send(*state.answer("GET", url.path, dict(parse_qsl(url.query))))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._send(*state.answer("POST", self.path, json.loads(body)))

        def _send(self, code: int, answer: dict[str, Any]) -> None:
            self.send_body(code, json.dumps(answer).encode())

    with served(Handler) as state.url:
        yield state


def acted(hook: MlflowAliasHook, call: Call) -> Any:
    prepared = hook.prepare(call)
    assert (prepared.problem, prepared.done, prepared.person) == ("", "", "")
    whole = replace(call, target=prepared.target)
    hook.run(whole)
    assert hook.prepare(whole).done
    return hook.confirm(whole)


def test_an_alias_is_promoted_and_rolled_back_to_the_last_good_version(registry: Registry) -> None:
    registry.aliases["champion"] = "1"
    hook = MlflowAliasHook(registry.url, "champion")

    assert acted(hook, PROMOTE).after == {"version": "2", "last_good": "1"}
    assert acted(hook, ROLLBACK).after == {"version": "1", "last_good": "1"}
    assert registry.moves == ["2", "1"]


def test_a_move_that_was_cut_short_is_gone_on_with(registry: Registry) -> None:
    registry.aliases["champion"] = "1"
    hook = MlflowAliasHook(registry.url, "champion")
    whole = replace(PROMOTE, target=hook.prepare(PROMOTE).target)
    registry.tags["trimtab.last_good.champion"] = "1"  # the first step was done, then the process died
    registry.aliases["champion"] = "2"  # and the second

    again = hook.prepare(whole)
    assert (again.done, again.problem, again.person) == ("", "", "")
    hook.run(whole)
    assert hook.confirm(whole).problem == ""
    assert registry.tags["trimtab.last_good.champion"] == "1"


def test_what_stands_against_a_move_is_said(registry: Registry) -> None:
    hook = MlflowAliasHook(registry.url, "champion")
    assert "no version is known to be the last good" in hook.prepare(ROLLBACK).problem
    assert "no label `candidate`" in hook.prepare(replace(PROMOTE, labels={})).problem
    registry.statuses["2"] = "PENDING_REGISTRATION"
    assert hook.prepare(PROMOTE).problem == "version 2 is PENDING_REGISTRATION"
    registry.statuses["2"] = "READY"
    whole = replace(PROMOTE, target=hook.prepare(PROMOTE).target)
    registry.aliases["champion"] = "7"
    assert "somebody moved the alias to version 7" in hook.prepare(whole).person
    with pytest.raises(HookError, match="RESOURCE_DOES_NOT_EXIST"):
        hook.prepare(replace(ROLLBACK, model="absent"))
    with pytest.raises(HookError, match="not retrain"):
        hook.prepare(replace(ROLLBACK, action="retrain"))
