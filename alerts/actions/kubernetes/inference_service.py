"""KServe's traffic: `canaryTrafficPercent` of an InferenceService's predictor (KServe's docs of canary rollouts)."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from alerts.actions.action import ADVANCE, PROMOTE, ROLLBACK
from alerts.actions.hook import Call, Confirmed, HookError, Prepared
from alerts.actions.kubernetes.api_server import ACTION_ANNOTATION, ApiServer, Conflict
from alerts.actions.kubernetes.location import Locate, Location, is_done, waited

GROUP = "serving.kserve.io/v1beta1"
_TRIES = 5


class InferenceServiceHook:
    """Rollback (no traffic for the latest revision), advance (a share of it) and promote (all of it)."""

    def __init__(self, server: ApiServer, locate: Locate, *, ready_seconds: float = 300.0) -> None:
        self._server = server
        self._locate = locate
        self._ready_seconds = ready_seconds
        self._closing = threading.Event()

    def prepare(self, call: Call) -> Prepared:
        found = self._found(self._locate(call))
        before = _seen(found)
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

    def run(self, call: Call) -> Mapping[str, Any]:
        location = self._locate(call)
        path = location.path(GROUP, "inferenceservices")
        for _ in range(_TRIES):
            found = self._found(location)
            if is_done(found, call):
                return {"already": True, **_seen(found)}
            if found["metadata"].get("generation") != call.target["from_generation"]:
                raise HookError(
                    "the InferenceService was changed since it was judged: a newer release is not rolled over"
                )
            body = {
                "metadata": {
                    "resourceVersion": found["metadata"]["resourceVersion"],
                    "annotations": {ACTION_ANNOTATION: call.key},
                },
                "spec": {"predictor": {"canaryTrafficPercent": call.target["percent"]}},
            }
            try:
                return _seen(self._server.merge_patch(path, body))
            except Conflict:
                continue
        raise HookError(f"{path} was changed by others at each of {_TRIES} tries")

    def confirm(self, call: Call) -> Confirmed:
        location = self._locate(call)
        return waited(
            lambda: _settled(self._found(location), call),
            lambda: Confirmed(
                after=_seen(self._found(location)), problem=f"the traffic is not there after {self._ready_seconds:g} s"
            ),
            self._ready_seconds,
            self._closing,
        )

    def close(self) -> None:
        self._closing.set()

    def _found(self, location: Location) -> dict[str, Any]:
        return self._server.get(location.path(GROUP, "inferenceservices"))


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


def _seen(found: Mapping[str, Any]) -> dict[str, Any]:
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


def _settled(found: Mapping[str, Any], call: Call) -> Confirmed | None:
    after, target = _seen(found), call.target
    if not is_done(found, call) or (target and after["percent"] != target["percent"]):
        return Confirmed(after=after, problem="its traffic is not what was set: it was changed again")
    wanted = 100 if target.get("percent") is None else target["percent"]
    latest = after["traffic"].get(target.get("latest"), 0)
    others = 100 - wanted
    kept = others == 0 or call.action != ROLLBACK or after["traffic"].get(target.get("revision"), 0) == others
    return Confirmed(after=after) if after["ready"] and latest == wanted and kept else None
