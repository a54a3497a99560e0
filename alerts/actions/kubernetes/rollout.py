"""Abort and undo, promotion, pause and advance of an Argo Rollout, by the patches that its kubectl plugin sends.

Source: argo-rollouts, pkg/kubectl-argo-rollouts/cmd: abort, undo, promote, pause.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alerts.actions.action import ADVANCE, PAUSE, PROMOTE, ROLLBACK
from alerts.actions.hook import Call, Confirmed, HookError, Prepared
from alerts.actions.kubernetes.api_server import ACTION_ANNOTATION
from alerts.actions.kubernetes.location import Location, digest_of, images_of, is_done, marked, without_label
from alerts.actions.kubernetes.object_hook import TemplateHook


class RolloutHook(TemplateHook):
    """Rollback (abort, then the stable template), promote, pause and advance of a Rollout."""

    group = "argoproj.io/v1alpha1"
    resource = "rollouts"
    kind = "Rollout"
    revision_annotation = "rollout.argoproj.io/revision"
    hash_label = "rollouts-pod-template-hash"
    unsettled = "it is not as it should be"

    def prepare(self, call: Call) -> Prepared:
        if call.action not in (ROLLBACK, PROMOTE, ADVANCE, PAUSE):
            raise HookError(f"a Rollout can be rolled back, promoted, advanced or paused, not {call.action}")
        location = self._locate(call)
        found = self.found(location)
        before = self.seen(found)
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

    def overtaken(self, found: Mapping[str, Any], call: Call) -> str:
        return "the Rollout was changed since it was judged: a newer release is not rolled over"

    def do(self, call: Call, location: Location, found: Mapping[str, Any]) -> Mapping[str, Any]:
        self._change(call, location, found)
        return self.found(location)

    def _change(self, call: Call, location: Location, found: Mapping[str, Any]) -> None:
        """Status first, since it cannot carry the mark; the patch that marks the action as done comes last."""
        path = self.path(location)
        if call.action == ROLLBACK:
            if call.target["abort"]:
                found = self._status(location, {"abort": True})
            template = self.template(location, found, call.target)
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
        path = self.path(location)
        try:
            return self._server.merge_patch(f"{path}/status", {"status": status})
        except HookError as error:
            if error.result.get("status") != 404:
                raise
            return self._server.merge_patch(path, {"status": status})

    def _target(self, location: Location, found: Mapping[str, Any], in_progress: bool) -> dict[str, Any]:
        status, sets = found.get("status") or {}, self.sets(location, found)
        if in_progress:
            stable = status.get("stableRS")
            candidates = [one for one in sets if (one["metadata"].get("labels") or {}).get(self.hash_label) == stable]
        else:
            candidates = [one for one in sets if 0 < self.revision(one) < self.revision(found)]
        if not candidates:
            return {}
        last = max(candidates, key=self.revision)
        template = without_label(last["spec"]["template"], self.hash_label)
        return {
            "replica_set": last["metadata"]["name"],
            "pod_hash": (last["metadata"].get("labels") or {}).get(self.hash_label),
            "digest": digest_of(template), "images": images_of(template), "abort": in_progress,
            "from_generation": found["metadata"].get("generation"),
        }  # fmt: skip

    def seen(self, found: Mapping[str, Any]) -> dict[str, Any]:
        status, template = found.get("status") or {}, found["spec"].get("template") or {}
        return {
            "generation": found["metadata"].get("generation"), "phase": status.get("phase"),
            "stable": status.get("stableRS"), "current": status.get("currentPodHash"),
            "abort": bool(status.get("abort")),
            "paused": bool(found["spec"].get("paused")), "digest": digest_of(without_label(template, self.hash_label)),
            "images": images_of(template),
        }  # fmt: skip

    def settled(self, found: Mapping[str, Any], call: Call) -> Confirmed | None:
        after = self.seen(found)
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
