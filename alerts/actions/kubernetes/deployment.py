"""The undo of a Deployment, as `kubectl rollout undo` does it: the pod template of the revision before.

Source: kubectl, pkg/polymorphichelpers/rollback.go.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from alerts.actions.action import ROLLBACK
from alerts.actions.hook import Call, Confirmed, HookError, Prepared
from alerts.actions.kubernetes.api_server import ApiServer, Conflict
from alerts.actions.kubernetes.location import (
    Locate,
    Location,
    annotations_of,
    digest_of,
    images_of,
    is_done,
    marked,
    owned_by,
    selector_of,
    waited,
    without_label,
)

GROUP = "apps/v1"
REVISION = "deployment.kubernetes.io/revision"
HASH_LABEL = "pod-template-hash"
_TRIES = 5


class DeploymentHook:
    """Rollback of a Deployment. The key is written onto it in the same patch, which proves the effect."""

    def __init__(self, server: ApiServer, locate: Locate, *, ready_seconds: float = 300.0) -> None:
        self._server = server
        self._locate = locate
        self._ready_seconds = ready_seconds
        self._closing = threading.Event()

    def prepare(self, call: Call) -> Prepared:
        if call.action != ROLLBACK:
            raise HookError(f"a Deployment can only be rolled back, not {call.action}")
        location = self._locate(call)
        found = self._found(location)
        before = _seen(found)
        if done := is_done(found, call):
            return Prepared(before=before, target=call.target, done=done)
        if found["spec"].get("paused"):
            return Prepared(before=before, problem="the Deployment is paused: resume it, or undo it by hand")
        target = dict(call.target) or self._target(location, found)
        if not target:
            return Prepared(before=before, problem="there is no revision before this one to go back to")
        return Prepared(before=before, target=target)

    def run(self, call: Call) -> Mapping[str, Any]:
        location = self._locate(call)
        path = location.path(GROUP, "deployments")
        for _ in range(_TRIES):
            found = self._found(location)
            if is_done(found, call):
                return {"already": True, **_seen(found)}
            generation = call.target["from_generation"]
            if found["metadata"].get("generation") != generation:
                raise HookError(
                    f"the Deployment was changed since it was judged (generation {found['metadata'].get('generation')},"
                    f" not {generation}): a newer release is not rolled over"
                )
            template = self._template(location, found, call.target)
            operations = [*marked(found, call.key), {"op": "replace", "path": "/spec/template", "value": template}]
            try:
                return _seen(self._server.json_patch(path, operations))
            except Conflict:
                continue  # its status moves all the time: read it again
        raise HookError(f"{path} was changed by others at each of {_TRIES} tries")

    def confirm(self, call: Call) -> Confirmed:
        location = self._locate(call)
        return waited(
            lambda: _settled(self._found(location), call),
            lambda: Confirmed(
                after=_seen(self._found(location)), problem=f"its pods are not ready after {self._ready_seconds:g} s"
            ),
            self._ready_seconds,
            self._closing,
        )

    def close(self) -> None:
        self._closing.set()

    def _found(self, location: Location) -> dict[str, Any]:
        return self._server.get(location.path(GROUP, "deployments"))

    def _sets(self, location: Location, owner: Mapping[str, Any]) -> list[dict[str, Any]]:
        path = location.path(GROUP, "replicasets", named=False)
        listed = self._server.get(path, {"labelSelector": selector_of(owner)})
        return [one for one in listed["items"] if owned_by(one, owner)]

    def _target(self, location: Location, found: Mapping[str, Any]) -> dict[str, Any]:
        current = _revision(found)
        earlier = [one for one in self._sets(location, found) if 0 < _revision(one) < current]
        if not earlier:
            return {}
        last = max(earlier, key=_revision)
        template = without_label(last["spec"]["template"], HASH_LABEL)
        return {
            "replica_set": last["metadata"]["name"], "revision": _revision(last), "digest": digest_of(template),
            "images": images_of(template), "from_generation": found["metadata"].get("generation"),
        }  # fmt: skip

    def _template(self, location: Location, found: Mapping[str, Any], target: Mapping[str, Any]) -> dict[str, Any]:
        for one in self._sets(location, found):
            if one["metadata"]["name"] == target["replica_set"]:
                template = without_label(one["spec"]["template"], HASH_LABEL)
                if digest_of(template) != target["digest"]:
                    raise HookError(f"replica set {target['replica_set']} is not what it was when it was chosen")
                return template
        raise HookError(f"replica set {target['replica_set']} is gone: raise the Deployment's revisionHistoryLimit")


def _revision(found: Mapping[str, Any]) -> int:
    text = annotations_of(found).get(REVISION, "0")
    return int(text) if text.isdigit() else 0


def _seen(found: Mapping[str, Any]) -> dict[str, Any]:
    template = found["spec"]["template"]
    return {
        "generation": found["metadata"].get("generation"),
        "resource_version": found["metadata"]["resourceVersion"],
        "revision": _revision(found),
        "digest": digest_of(without_label(template, HASH_LABEL)),
        "images": images_of(template),
    }


def _settled(found: Mapping[str, Any], call: Call) -> Confirmed | None:
    status, wanted = found.get("status") or {}, found["spec"].get("replicas", 1)
    after = _seen(found)
    if not is_done(found, call):
        return Confirmed(after=after, problem="the Deployment does not carry this action any more: it was changed")
    if call.target and after["digest"] != call.target["digest"]:
        return Confirmed(after=after, problem="its pod template is not the target's: it was changed again")
    for condition in status.get("conditions") or ():
        if condition.get("type") == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded":
            return Confirmed(after=after, problem=f"it does not progress: {condition.get('message')}")
    seen = (status.get("observedGeneration") or 0) >= (found["metadata"].get("generation") or 0)
    ready = status.get("updatedReplicas", 0) >= wanted and status.get("availableReplicas", 0) >= wanted
    gone = status.get("replicas", 0) <= max(status.get("updatedReplicas", 0), wanted)
    return (
        Confirmed(after={**after, "available": status.get("availableReplicas", 0)}) if seen and ready and gone else None
    )
