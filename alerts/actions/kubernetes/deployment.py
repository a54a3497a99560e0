"""The undo of a Deployment, as `kubectl rollout undo` does it: the pod template of the revision before.

Source: kubectl, pkg/polymorphichelpers/rollback.go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alerts.actions.action import ROLLBACK
from alerts.actions.hook import Call, Confirmed, HookError, Prepared
from alerts.actions.kubernetes.location import Location, digest_of, images_of, is_done, marked, without_label
from alerts.actions.kubernetes.object_hook import TemplateHook


class DeploymentHook(TemplateHook):
    """Rollback of a Deployment."""

    group = "apps/v1"
    resource = "deployments"
    kind = "Deployment"
    revision_annotation = "deployment.kubernetes.io/revision"
    hash_label = "pod-template-hash"
    unsettled = "its pods are not ready"

    def prepare(self, call: Call) -> Prepared:
        if call.action != ROLLBACK:
            raise HookError(f"a Deployment can only be rolled back, not {call.action}")
        location = self._locate(call)
        found = self.found(location)
        before = self.seen(found)
        if done := is_done(found, call):
            return Prepared(before=before, target=call.target, done=done)
        if found["spec"].get("paused"):
            return Prepared(before=before, problem="the Deployment is paused: resume it, or undo it by hand")
        target = dict(call.target) or self._target(location, found)
        if not target:
            return Prepared(before=before, problem="there is no revision before this one to go back to")
        return Prepared(before=before, target=target)

    def do(self, call: Call, location: Location, found: Mapping[str, Any]) -> Mapping[str, Any]:
        template = self.template(location, found, call.target)
        operations = [*marked(found, call.key), {"op": "replace", "path": "/spec/template", "value": template}]
        return self._server.json_patch(self.path(location), operations)

    def overtaken(self, found: Mapping[str, Any], call: Call) -> str:
        return (
            f"the Deployment was changed since it was judged (generation {found['metadata'].get('generation')},"
            f" not {call.target['from_generation']}): a newer release is not rolled over"
        )

    def _target(self, location: Location, found: Mapping[str, Any]) -> dict[str, Any]:
        current = self.revision(found)
        earlier = [one for one in self.sets(location, found) if 0 < self.revision(one) < current]
        if not earlier:
            return {}
        last = max(earlier, key=self.revision)
        template = without_label(last["spec"]["template"], self.hash_label)
        return {
            "replica_set": last["metadata"]["name"], "revision": self.revision(last), "digest": digest_of(template),
            "images": images_of(template), "from_generation": found["metadata"].get("generation"),
        }  # fmt: skip

    def seen(self, found: Mapping[str, Any]) -> dict[str, Any]:
        template = found["spec"]["template"]
        return {
            "generation": found["metadata"].get("generation"),
            "resource_version": found["metadata"]["resourceVersion"],
            "revision": self.revision(found),
            "digest": digest_of(without_label(template, self.hash_label)),
            "images": images_of(template),
        }

    def settled(self, found: Mapping[str, Any], call: Call) -> Confirmed | None:
        status, wanted = found.get("status") or {}, found["spec"].get("replicas", 1)
        after = self.seen(found)
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
            Confirmed(after={**after, "available": status.get("availableReplicas", 0)})
            if seen and ready and gone
            else None
        )
