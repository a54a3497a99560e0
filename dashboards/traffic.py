"""Who gets a model's traffic, read from the policy that serving shows: one list for every page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Share:
    """A version's part: `weight` (0..1) of the requests, or of copies of them for a shadow.

    `role` is stable, canary, variant or shadow; a variant's `name` says which it is.
    """

    version: str
    role: str
    name: str
    weight: float
    release: str | None = None

    @property
    def answers(self) -> bool:
        """Whether callers get its answers: a shadow's nobody gets."""
        return self.role != "shadow"


def shares(policy: Mapping[str, Any]) -> list[Share]:
    """All that get requests or copies of them, those that answer first; nothing while no version serves."""
    if not policy.get("stable"):
        return []
    found: list[Share] = []
    canary, experiment = policy.get("canary"), policy.get("experiment")
    if isinstance(experiment, Mapping):
        found = [
            Share(str(one["version"]), "variant", f"variant {one['name']}", float(one["weight"]))
            for one in experiment["variants"]
        ]
    else:
        weight = float(canary["weight"]) if isinstance(canary, Mapping) else 0.0
        found.append(Share(str(policy["stable"]), "stable", "stable", 1 - weight))
        if isinstance(canary, Mapping):
            found.append(Share(str(canary["version"]), "canary", "canary", weight, canary.get("release")))
    # Older servers name one shadow only.
    shadows = policy.get("shadows") or ([policy["shadow"]] if policy.get("shadow") else [])
    found += [Share(str(one["version"]), "shadow", "shadow", float(one.get("fraction") or 0)) for one in shadows]
    return found
