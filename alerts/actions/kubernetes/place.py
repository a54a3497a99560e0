"""Where an action's object is: `deployments/NAMESPACE/NAME`, with `{model}` filled in; and the hook for its kind."""

from __future__ import annotations

import re
from dataclasses import dataclass

from alerts.actions.action import ROLLBACK, SCALE
from alerts.actions.hook import Call, HookError, VerifyingHook
from alerts.actions.kubernetes.api_server import ApiServer
from alerts.actions.kubernetes.deployment import DeploymentHook
from alerts.actions.kubernetes.inference_service import InferenceServiceHook
from alerts.actions.kubernetes.location import Location
from alerts.actions.kubernetes.rollout import RolloutHook
from alerts.actions.kubernetes.scale import ScaleHook

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_KINDS = ("deployments", "rollouts", "inferenceservices")


@dataclass(frozen=True, slots=True)
class Place:
    """The kind of the object, its namespace and its name; both may hold `{model}`."""

    kind: str
    namespace: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Place:
        """The place of `KIND/NAMESPACE/NAME`. Raises ValueError."""
        parts = text.split("/")
        if len(parts) != 3 or parts[0] not in _KINDS or not all(parts):
            raise ValueError(
                f"a Kubernetes object is KIND/NAMESPACE/NAME with KIND of {', '.join(_KINDS)}, got {text!r}"
            )
        return cls(*parts)

    def of(self, call: Call) -> Location:
        """Where the object of a call is. Raises HookError for a model whose name is none in Kubernetes."""
        filled = [part.replace("{model}", call.model) for part in (self.namespace, self.name)]
        for part in filled:
            if not _NAME.fullmatch(part):
                raise HookError(f"{part!r} is no name in Kubernetes: lower-case letters, digits, - and . are")
        return Location(*filled)


def kubernetes_hook(
    server: ApiServer,
    place: str,
    *,
    action: str = ROLLBACK,
    ready_seconds: float = 300.0,
    min_replicas: int = 1,
    max_replicas: int = 10,
) -> VerifyingHook:
    """The hook for an action on an object named `KIND/NAMESPACE/NAME`. Raises ValueError."""
    parsed = Place.parse(place)
    if action == SCALE:
        if parsed.kind != "deployments":
            raise ValueError(f"only deployments/NAMESPACE/NAME can be scaled, got {place!r}")
        limits = {"min_replicas": min_replicas, "max_replicas": max_replicas}
        return ScaleHook(server, parsed.of, ready_seconds=ready_seconds, **limits)
    if parsed.kind == "deployments":
        return DeploymentHook(server, parsed.of, ready_seconds=ready_seconds)
    if parsed.kind == "rollouts":
        return RolloutHook(server, parsed.of, ready_seconds=ready_seconds)
    return InferenceServiceHook(server, parsed.of, ready_seconds=ready_seconds)
