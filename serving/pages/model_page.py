"""A model as the control API describes it: its policy, its versions and where they are, its history."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from serving.peers import View
from serving.registry import ModelVersion
from serving.routing.traffic import Policy

_POLICY_FIELDS = (
    "model", "generation", "stable", "previous", "canary", "shadow", "sticky", "shadows", "standby", "rules",
    "hold_back",
)  # fmt: skip


def model_page(
    policy: Policy,
    versions: Sequence[ModelVersion],
    history: Sequence[Mapping[str, Any]],
    loaded: Collection[int],
    *,
    replica: int,
    views: Mapping[int, View],
) -> dict[str, Any]:
    """`loaded` are the versions in memory here, `replica` this one's number, `views` the other replicas."""
    body = policy.to_json()
    held = {replica: set(loaded)} | {number: _loaded(view, policy.model) for number, view in views.items()}
    everywhere = set.intersection(*held.values())
    page = {
        **{name: body[name] for name in _POLICY_FIELDS},
        "experiment": policy.experiment and {k: v for k, v in body["experiment"].items() if k != "runs"},
        "versions": [
            {
                "version": v.version, "digest": v.digest, "state": _state(v.version, policy, everywhere),
                "created_at": v.created_at, "metrics": v.metrics, "lineage": v.lineage,
            }
            for v in versions
        ],
        "history": list(history),
    }  # fmt: skip
    if views:
        page["replicas"] = [
            {
                "replica": number,
                "generation": views[number].generations.get(policy.model) if number in views else policy.generation,
                "loaded": sorted(numbers),
            }
            for number, numbers in sorted(held.items())
        ]
    return page


def _loaded(view: View, model: str) -> set[int]:
    """The versions that another replica has in memory."""
    return {number for (name, number), status in view.statuses.items() if name == model and status.state == "READY"}


def _state(number: int, policy: Policy, loaded: Collection[int]) -> str:
    roles: dict[int | None, str] = {
        policy.canary.version if policy.canary else None: "canary",
        **{variant.version: variant.arm for variant in (policy.experiment.variants if policy.experiment else ())},
        **{shadow.version: "shadow" for shadow in policy.shadows},
        **{rule.version: "forced" for rule in policy.rules},
        policy.standby: "standby",
        policy.previous: "previous",
        policy.stable: "stable",
    }
    if number in roles:
        return roles[number]
    return "loaded" if number in loaded else "registered"
