"""An alias in MLflow's model registry, moved by its REST API: promote gives it the candidate, rollback the last good.

What is last good is a tag of the registered model, `trimtab.last_good.ALIAS`, written before the alias moves.
Source: MLflow, docs of the REST API 2.0, registered models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from alerts.actions.action import PROMOTE, ROLLBACK
from alerts.actions.hook import Call, Confirmed, HookAway, HookError, Prepared

_API = "/api/2.0/mlflow"


class MlflowAliasHook:
    """Moves `alias` of the registered model `model` (`{model}` is filled in). Promote needs the label `candidate`."""

    def __init__(
        self, url: str, alias: str, *, model: str = "{model}", token: str = "", timeout_seconds: float = 30.0
    ) -> None:
        self._url = url.rstrip("/")
        self._alias = alias
        self._model = model
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(timeout=timeout_seconds, headers=headers)

    def prepare(self, call: Call) -> Prepared:
        if call.action not in (PROMOTE, ROLLBACK):
            raise HookError(f"an alias of MLflow can be promoted or rolled back, not {call.action}")
        name = self._name(call)
        tags, current = self._registered(name), self._aliased(name)
        last_good, done_by = tags.get(self._last_good), tags.get(self._done)
        before = {"version": current, "last_good": last_good}
        target = dict(call.target) or self._target(call, current, last_good)
        if done_by == call.key and call.target and current == target["version"]:
            return Prepared(before=before, target=target, done=f"the tag {self._done} is {call.key}")
        wanted = target.get("version")
        if not wanted:
            problem = (
                "the alert has no label `candidate` that names the version" if call.action == PROMOTE
                else f"the registered model has no tag {self._last_good}: no version is known to be the last good one"
            )  # fmt: skip
            return Prepared(before=before, problem=problem)
        if call.target and current not in (wanted, target["from_version"]):
            return Prepared(before=before, target=target, person=f"somebody moved the alias to version {current}")
        if not call.target and current == wanted:
            return Prepared(
                before=before, problem=f"the alias is at version {wanted} already: nothing to {call.action}"
            )
        version = self._version(name, wanted)
        problem = "" if version.get("status", "READY") == "READY" else f"version {wanted} is {version['status']}"
        digest = version.get("run_id") or version.get("source") or ""
        return Prepared(before=before, target={"digest": digest, **target}, problem=problem)

    def run(self, call: Call) -> Mapping[str, Any]:
        """Every step sets what it sets, so that all of them may be done again."""
        name, target = self._name(call), call.target
        if call.action == PROMOTE and target["from_version"]:
            self._tag(name, self._last_good, target["from_version"])
        self._request("POST", "registered-models/alias",
                      {"name": name, "alias": self._alias, "version": target["version"]})  # fmt: skip
        self._tag(name, self._done, call.key)
        return {"alias": self._alias, "version": target["version"]}

    def confirm(self, call: Call) -> Confirmed:
        name = self._name(call)
        current = self._aliased(name)
        after = {"version": current, "last_good": self._registered(name).get(self._last_good)}
        wanted = call.target.get("version")
        if wanted and current != wanted:
            return Confirmed(after=after, problem=f"the alias {self._alias} is at version {current}, not {wanted}")
        return Confirmed(after=after)

    def close(self) -> None:
        """Nothing runs on."""

    @property
    def _last_good(self) -> str:
        return f"trimtab.last_good.{self._alias}"

    @property
    def _done(self) -> str:
        return f"trimtab.action.{self._alias}"

    def _name(self, call: Call) -> str:
        return self._model.replace("{model}", call.model)

    def _target(self, call: Call, current: str, last_good: str | None) -> dict[str, Any]:
        version = call.labels.get("candidate", "") if call.action == PROMOTE else last_good or ""
        return {"version": version, "from_version": current}

    def _aliased(self, name: str) -> str:
        """The version of the alias, "" when there is none."""
        found = self._request("GET", "registered-models/alias", {"name": name, "alias": self._alias}, missing=True)
        return str(found["model_version"]["version"]) if found else ""

    def _registered(self, name: str) -> dict[str, str]:
        found = self._request("GET", "registered-models/get", {"name": name}) or {}
        tags = found["registered_model"].get("tags") or ()
        return {tag["key"]: tag.get("value", "") for tag in tags}

    def _version(self, name: str, version: str) -> dict[str, Any]:
        found = self._request("GET", "model-versions/get", {"name": name, "version": version}) or {}
        return dict(found["model_version"])

    def _tag(self, name: str, key: str, value: str) -> None:
        self._request("POST", "registered-models/set-tag", {"name": name, "key": key, "value": value})

    def _request(
        self, method: str, path: str, fields: Mapping[str, str], *, missing: bool = False
    ) -> dict[str, Any] | None:
        """The answer; None for what does not exist, if it may be `missing`. Raises HookError, HookAway."""
        what = f"{method} {self._url}{_API}/{path}"
        given: dict[str, Any] = {"params": fields} if method == "GET" else {"json": fields}
        try:
            answer = self._client.request(method, f"{self._url}{_API}/{path}", **given)
        except httpx.HTTPError as error:
            raise HookAway(f"{what}: no answer: {error!r}") from error
        try:
            body = answer.json()
        except ValueError:
            body = {}
        if answer.is_success and isinstance(body, dict):
            return body
        code, said = str(body.get("error_code", "")), str(body.get("message", answer.text))[:300]
        # An alias that is not set is INVALID_PARAMETER_VALUE in MLflow 2 and RESOURCE_DOES_NOT_EXIST in 3.
        absent = code == "RESOURCE_DOES_NOT_EXIST" or (
            code == "INVALID_PARAMETER_VALUE" and "not found" in said.lower()
        )
        if missing and absent:
            return None
        if answer.status_code == 429 or answer.status_code >= 500:
            raise HookAway(f"{what} answered {answer.status_code}: {said}")
        raise HookError(f"{what} answered {answer.status_code} {code}: {said}", {"status": answer.status_code})
