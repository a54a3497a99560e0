"""Abort and undo, promotion, pause and advance of an Argo Rollout, by the patches that its kubectl plugin sends.

Source: argo-rollouts, pkg/kubectl-argo-rollouts/cmd: abort, undo, promote, pause.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from alerts.actions.action import ADVANCE, PAUSE, PROMOTE, ROLLBACK
from alerts.actions.hook import Call, Confirmed, HookError, Prepared
from alerts.actions.kubernetes.api_server import ACTION_ANNOTATION, ApiServer, Conflict
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

GROUP = "argoproj.io/v1alpha1"
REVISION = "rollout.argoproj.io/revision"
HASH_LABEL = "rollouts-pod-template-hash"
_TRIES = 5


class RolloutHook:
    """Rollback (abort, then the stable template), promote, pause and advance of a Rollout."""

    def __init__(self, server: ApiServer, locate: Locate, *, ready_seconds: float = 300.0) -> None:
        self._server = server
        self._locate = locate
        self._ready_seconds = ready_seconds
        self._closing = threading.Event()

    def prepare(self, call: Call) -> Prepared:
        if call.action not in (ROLLBACK, PROMOTE, ADVANCE, PAUSE):
            raise HookError(f"a Rollout can be rolled back, promoted, advanced or paused, not {call.action}")
        location = self._locate(call)
        found = self._found(location)
        before = _seen(found)
        if done := is_done(found, call):
            return Prepared(before=before, target=call.target, done=done)
        if "template" not in found["spec"]:
            return Prepared(before=before, problem="the Rollout takes its template from a workloadRef: undo that one")
        if call.target:
            return Prepared(before=before, target=call.target)
        status = found.get("status") or {}
        in_progress = status.get("stableRS") != status.get("currentPodHash")
        if call.action == ROLLBACK:
            target = self._target(location, found, in_progress)
            return Prepared(
                before=before, target=target, problem="" if target else "there is no revision to go back to"
            )
        if not in_progress:
            return Prepared(before=before, problem=f"no update of the Rollout is in progress: nothing to {call.action}")
        target = {"pod_hash": status.get("currentPodHash"), "from_generation": found["metadata"].get("generation")}
        return Prepared(before=before, target=target)

    def run(self, call: Call) -> Mapping[str, Any]:
        location = self._locate(call)
        path = location.path(GROUP, "rollouts")
        for _ in range(_TRIES):
            found = self._found(location)
            if is_done(found, call):
                return {"already": True, **_seen(found)}
            if found["metadata"].get("generation") != call.target["from_generation"]:
                raise HookError("the Rollout was changed since it was judged: a newer release is not rolled over")
            try:
                self._do(call, location, found)
                return _seen(self._found(location))
            except Conflict:
                continue
        raise HookError(f"{path} was changed by others at each of {_TRIES} tries")

    def confirm(self, call: Call) -> Confirmed:
        location = self._locate(call)
        return waited(
            lambda: _settled(self._found(location), call),
            lambda: Confirmed(
                after=_seen(self._found(location)), problem=f"it is not as it should be after {self._ready_seconds:g} s"
            ),
            self._ready_seconds,
            self._closing,
        )

    def close(self) -> None:
        self._closing.set()

    def _do(self, call: Call, location: Location, found: Mapping[str, Any]) -> None:
        """Status first, since it cannot carry the mark; the patch that marks the action as done comes last."""
        path = location.path(GROUP, "rollouts")
        if call.action == ROLLBACK:
            if call.target["abort"]:
                found = self._status(location, {"abort": True})
            template = self._template(location, found, call.target)
            change: list[dict[str, Any]] = [{"op": "replace", "path": "/spec/template", "value": template}]
            self._server.json_patch(path, [*marked(found, call.key), *change])
            return
        if call.action == PROMOTE:
            found = self._status(location, {"promoteFull": True})
        elif call.action == ADVANCE:
            found = self._status(location, {"pauseConditions": None})
        spec = {PAUSE: {"paused": True}}.get(call.action, {"paused": False} if found["spec"].get("paused") else {})
        metadata = {
            "resourceVersion": found["metadata"]["resourceVersion"], "annotations": {ACTION_ANNOTATION: call.key},
        }  # fmt: skip
        self._server.merge_patch(path, {"metadata": metadata, **({"spec": spec} if spec else {})})

    def _status(self, location: Location, status: Mapping[str, Any]) -> dict[str, Any]:
        """The Rollout after a change of its status: of the subresource, or of itself where there is none."""
        path = location.path(GROUP, "rollouts")
        try:
            return self._server.merge_patch(f"{path}/status", {"status": status})
        except HookError as error:
            if error.result.get("status") != 404:
                raise
            return self._server.merge_patch(path, {"status": status})

    def _found(self, location: Location) -> dict[str, Any]:
        return self._server.get(location.path(GROUP, "rollouts"))

    def _sets(self, location: Location, owner: Mapping[str, Any]) -> list[dict[str, Any]]:
        path = location.path("apps/v1", "replicasets", named=False)
        listed = self._server.get(path, {"labelSelector": selector_of(owner)})
        return [one for one in listed["items"] if owned_by(one, owner)]

    def _target(self, location: Location, found: Mapping[str, Any], in_progress: bool) -> dict[str, Any]:
        status, sets = found.get("status") or {}, self._sets(location, found)
        if in_progress:
            stable = status.get("stableRS")
            candidates = [one for one in sets if (one["metadata"].get("labels") or {}).get(HASH_LABEL) == stable]
        else:
            candidates = [one for one in sets if 0 < _revision(one) < _revision(found)]
        if not candidates:
            return {}
        last = max(candidates, key=_revision)
        template = without_label(last["spec"]["template"], HASH_LABEL)
        return {
            "replica_set": last["metadata"]["name"], "pod_hash": (last["metadata"].get("labels") or {}).get(HASH_LABEL),
            "digest": digest_of(template), "images": images_of(template), "abort": in_progress,
            "from_generation": found["metadata"].get("generation"),
        }  # fmt: skip

    def _template(self, location: Location, found: Mapping[str, Any], target: Mapping[str, Any]) -> dict[str, Any]:
        for one in self._sets(location, found):
            if one["metadata"]["name"] == target["replica_set"]:
                template = without_label(one["spec"]["template"], HASH_LABEL)
                if digest_of(template) != target["digest"]:
                    raise HookError(f"replica set {target['replica_set']} is not what it was when it was chosen")
                return template
        raise HookError(f"replica set {target['replica_set']} is gone: raise the Rollout's revisionHistoryLimit")


def _revision(found: Mapping[str, Any]) -> int:
    text = annotations_of(found).get(REVISION, "0")
    return int(text) if text.isdigit() else 0


def _seen(found: Mapping[str, Any]) -> dict[str, Any]:
    status, template = found.get("status") or {}, found["spec"].get("template") or {}
    return {
        "generation": found["metadata"].get("generation"), "phase": status.get("phase"),
        "stable": status.get("stableRS"), "current": status.get("currentPodHash"), "abort": bool(status.get("abort")),
        "paused": bool(found["spec"].get("paused")), "digest": digest_of(without_label(template, HASH_LABEL)),
        "images": images_of(template),
    }  # fmt: skip


def _settled(found: Mapping[str, Any], call: Call) -> Confirmed | None:
    after = _seen(found)
    if not is_done(found, call):
        return Confirmed(after=after, problem="the Rollout does not carry this action any more: it was changed")
    if call.action == PAUSE:
        return Confirmed(after=after) if after["paused"] else None
    if call.action == ADVANCE:
        return Confirmed(after=after)
    if call.action == ROLLBACK and call.target and after["digest"] != call.target["digest"]:
        return Confirmed(after=after, problem="its pod template is not the target's: it was changed again")
    stable = not call.target or after["stable"] == call.target.get("pod_hash")
    return Confirmed(after=after) if after["phase"] == "Healthy" and stable else None
