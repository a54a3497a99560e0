"""More or fewer pods of a Deployment, as `kubectl scale` does it, within limits.

The number is written in one patch with the action's mark, and not through the scale subresource, which cannot hold a
mark: only so a crash in between can tell whether it was done.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from alerts.actions.action import SCALE
from alerts.actions.hook import Call, Confirmed, HookError, Prepared
from alerts.actions.kubernetes.api_server import ApiServer
from alerts.actions.kubernetes.location import Locate, Location, is_done, marked
from alerts.actions.kubernetes.object_hook import ObjectHook

_WANTED = re.compile(r"(?P<how>[+x-]?)(?P<number>\d{1,6}(\.\d{1,3})?)")


class ScaleHook(ObjectHook):
    """Scale of a Deployment to the label `replicas`: a number, `+2`, `-1` or `x1.5`; without it one more."""

    group = "apps/v1"
    resource = "deployments"
    unsettled = "its pods are not ready"

    def __init__(
        self,
        server: ApiServer,
        locate: Locate,
        *,
        ready_seconds: float = 300.0,
        min_replicas: int = 1,
        max_replicas: int = 10,
    ) -> None:
        if not 0 <= min_replicas <= max_replicas:
            raise ValueError(f"min_replicas {min_replicas} must be from 0 to max_replicas {max_replicas}")
        super().__init__(server, locate, ready_seconds=ready_seconds)
        self._limits = (min_replicas, max_replicas)

    def prepare(self, call: Call) -> Prepared:
        if call.action != SCALE:
            raise HookError(f"this hook scales a Deployment and cannot {call.action} it")
        found = self.found(self._locate(call))
        before = self.seen(found)
        if done := is_done(found, call):
            return Prepared(before=before, target=call.target, done=done)
        if call.target:
            return Prepared(before=before, target=call.target)
        now = int(before["replicas"])
        try:
            wanted = wanted_replicas(call.labels.get("replicas", "") or "+1", now)
        except ValueError as error:
            return Prepared(before=before, problem=str(error))
        least, most = self._limits
        wanted = min(max(wanted, least), most)
        if wanted == now:
            return Prepared(before=before, problem=f"it has {now} pods, and {least} to {most} are allowed")
        generation = found["metadata"].get("generation")
        undo = {"replicas": str(now)}
        return Prepared(before=before, target={"replicas": wanted, "from_generation": generation, "undo": undo})

    def do(self, call: Call, location: Location, found: Mapping[str, Any]) -> Mapping[str, Any]:
        add = {"op": "add", "path": "/spec/replicas", "value": call.target["replicas"]}
        return self._server.json_patch(self.path(location), [*marked(found, call.key), add])

    def overtaken(self, found: Mapping[str, Any], call: Call) -> str:
        return (
            f"the Deployment was changed since it was looked at (generation {found['metadata'].get('generation')}, not "
            f"{call.target['from_generation']}): its number of pods may be another's decision"
        )

    def seen(self, found: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "generation": found["metadata"].get("generation"),
            "replicas": found["spec"].get("replicas", 1),
            "available": (found.get("status") or {}).get("availableReplicas", 0),
        }

    def settled(self, found: Mapping[str, Any], call: Call) -> Confirmed | None:
        after, status = self.seen(found), found.get("status") or {}
        if after["replicas"] != call.target["replicas"]:
            problem = f"it was set to {after['replicas']} pods meanwhile: does an autoscaler own their number?"
            return Confirmed(after=after, problem=problem)
        seen = (status.get("observedGeneration") or 0) >= (found["metadata"].get("generation") or 0)
        there = after["available"] >= after["replicas"] and status.get("replicas", 0) <= after["replicas"]
        return Confirmed(after=after) if seen and there else None


def wanted_replicas(text: str, now: int) -> int:
    """The number of pods that a label asks for, `now` being what there is. Raises ValueError."""
    found = _WANTED.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"the label replicas is {text!r}; give a number, or +2, -1, x1.5")
    how, number = found["how"], float(found["number"])
    if how != "x" and number != int(number):
        raise ValueError(f"the label replicas is {text!r}; only a factor (x1.5) may have a fraction")
    return {"": int(number), "+": now + int(number), "-": now - int(number), "x": math.ceil(now * number - 1e-9)}[how]
