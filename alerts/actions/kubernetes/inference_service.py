"""KServe's traffic: `canaryTrafficPercent` of an InferenceService's predictor (KServe's docs of canary rollouts)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alerts.actions.action import ADVANCE, PROMOTE, ROLLBACK
from alerts.actions.hook import Call, Confirmed, HookError, Prepared
from alerts.actions.kubernetes.api_server import ACTION_ANNOTATION
from alerts.actions.kubernetes.location import Location, is_done
from alerts.actions.kubernetes.object_hook import ObjectHook


class InferenceServiceHook(ObjectHook):
    """Rollback (no traffic for the latest revision), advance (a share of it) and promote (all of it)."""

    group = "serving.kserve.io/v1beta1"
    resource = "inferenceservices"
    unsettled = "the traffic is not there"

    def prepare(self, call: Call) -> Prepared:
        found = self.found(self._locate(call))
        before = self.seen(found)
        if done := is_done(found, call):
            return Prepared(before=before, target=call.target, done=done)
        target = {"percent": _percent(call), "revision": before["rolled_out"], "latest": before["latest"],
                  "from_generation": found["metadata"].get("generation")}  # fmt: skip
        if call.action == ROLLBACK and not before["rolled_out"]:
            return Prepared(before=before, problem="no revision was ever rolled out: there is none to go back to")
        if call.action == ROLLBACK and before["rolled_out"] == before["latest"]:
            # The bad revision has all the traffic: KServe keeps the one before under this name.
            target["revision"] = before["previous"]
            if not before["previous"]:
                return Prepared(before=before, problem="there is no revision before the one that has all traffic")
        return Prepared(before=before, target=dict(call.target) or target)

    def do(self, call: Call, location: Location, found: Mapping[str, Any]) -> Mapping[str, Any]:
        body = {
            "metadata": {
                "resourceVersion": found["metadata"]["resourceVersion"],
                "annotations": {ACTION_ANNOTATION: call.key},
            },
            "spec": {"predictor": {"canaryTrafficPercent": call.target["percent"]}},
        }
        return self._server.merge_patch(self.path(location), body)

    def overtaken(self, found: Mapping[str, Any], call: Call) -> str:
        return "the InferenceService was changed since it was judged: a newer release is not rolled over"

    def seen(self, found: Mapping[str, Any]) -> dict[str, Any]:
        predictor = ((found.get("status") or {}).get("components") or {}).get("predictor") or {}
        conditions = (found.get("status") or {}).get("conditions") or ()
        return {
            "generation": found["metadata"].get("generation"),
            "percent": found["spec"]["predictor"].get("canaryTrafficPercent"),
            "latest": predictor.get("latestReadyRevision"), "rolled_out": predictor.get("latestRolledoutRevision"),
            "previous": predictor.get("previousRolledoutRevision"),
            "traffic": {one.get("revisionName", ""): one.get("percent", 0) for one in predictor.get("traffic") or ()},
            "ready": any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions),
        }  # fmt: skip

    def settled(self, found: Mapping[str, Any], call: Call) -> Confirmed | None:
        after, target = self.seen(found), call.target
        if not is_done(found, call) or (target and after["percent"] != target["percent"]):
            return Confirmed(after=after, problem="its traffic is not what was set: it was changed again")
        wanted = 100 if target.get("percent") is None else target["percent"]
        latest = after["traffic"].get(target.get("latest"), 0)
        others = 100 - wanted
        kept = others == 0 or call.action != ROLLBACK or after["traffic"].get(target.get("revision"), 0) == others
        return Confirmed(after=after) if after["ready"] and latest == wanted and kept else None


def _percent(call: Call) -> int | None:
    """The share of the latest revision, in per cent; None takes the field away, which gives it all."""
    if call.action == ROLLBACK:
        return 0
    if call.action == PROMOTE:
        return None
    if call.action != ADVANCE:
        raise HookError(f"an InferenceService can be rolled back, advanced or promoted, not {call.action}")
    try:
        share = float(call.labels.get("weight", ""))
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise HookError(f"advance needs a label `weight` from 0 to 1, got {call.labels.get('weight')!r}")
    return round(share * 100)
