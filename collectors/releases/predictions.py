"""Predictions of a release's two arms by bin and logged probability, so that a shift of either shows.

The bins are the quantiles of the first predictions of both arms together, looked at without their arms: then whose a
prediction is has the logged probability still, and no reference is needed, which may be old. What is counted is made
durable with the log position that it stands for, so that a restart counts no batch twice and none is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from collectors.computed import Value
from collectors.parts import Part
from collectors.routed import Routing
from observability import names

# Bins of numbers and, the last, of predictions that are none.
BINS = 12
# Predictions that the bins are made of; they are counted, too.
_POOLED = 500
_RELEASES = 3
_ARMS = ("canary", "stable")

Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class _Counted:
    """One release's predictions. Until there are bins they wait in `pool`: (arm, canary's probability, values)."""

    candidate: str = ""
    baseline: str = ""
    edges: list[float] | None = None
    pool: list[tuple[str, float, list[float | None]]] = field(default_factory=list)
    counts: list[tuple[str, float, list[int]]] = field(default_factory=list)

    def add(self, arm: str, propensity: float, values: Floats) -> None:
        if self.edges is None:
            # JSON has no NaN.
            waiting = [value if math.isfinite(value) else None for value in values.tolist()]
            self.pool.append((arm, propensity, waiting))
            if sum(len(part) for _, _, part in self.pool) >= _POOLED:
                pool, self.pool = self.pool, []
                self.edges = edges_of(np.concatenate([np.array(part, np.float64) for _, _, part in pool]))
                for pooled_arm, pooled_propensity, part in pool:
                    self._count(pooled_arm, pooled_propensity, np.array(part, np.float64))
        else:
            self._count(arm, propensity, values)

    def _count(self, arm: str, propensity: float, values: Floats) -> None:
        places = np.searchsorted(np.array(self.edges), values, side="right")
        places[~np.isfinite(values)] = BINS - 1
        found = np.bincount(places, minlength=BINS)
        for known_arm, known_propensity, counts in self.counts:
            if (known_arm, known_propensity) == (arm, propensity):
                counts[:] = (np.array(counts) + found).tolist()
                return
        self.counts.append((arm, propensity, found.tolist()))

    def values(self, model: str, release: str) -> list[Value]:
        if not self.candidate or not self.baseline:
            return []
        common = {"model": model, "release": release, "candidate": self.candidate, "baseline": self.baseline}
        return [
            Value(
                names.RELEASE_PREDICTIONS,
                {**common, "arm": arm, "propensity": f"{propensity:g}", "bin": str(place)},
                float(count),
            )
            for arm, propensity, counts in self.counts
            for place, count in enumerate(counts)
            if count
        ]


def edges_of(values: Floats) -> list[float]:
    """At most `BINS` - 2 edges: between few distinct values, else at the quantiles. `values` may hold no number."""
    finite = np.unique(values[np.isfinite(values)])
    if not len(finite):
        return []
    if len(finite) == 1:
        return [float(finite[0]), float(np.nextafter(finite[0], np.inf))]
    if len(finite) < BINS - 1:
        return ((finite[1:] + finite[:-1]) / 2).tolist()  # type: ignore[no-any-return]
    shares = np.arange(1, BINS - 1) / (BINS - 1)
    return np.unique(np.quantile(values[np.isfinite(values)], shares)).tolist()  # type: ignore[no-any-return]


class ReleasePredictions:
    """The counts of the last releases of each model. Not thread-safe."""

    def __init__(self) -> None:
        self._models: dict[str, dict[str, _Counted]] = {}
        self._changed: set[str] = set()

    def add(self, part: Part) -> None:
        """Counts the rows of a version; those of no release, and those not routed by chance, are none of its."""
        events, predictions = part.events, part.predictions
        if predictions is None or events.column("release").null_count == events.num_rows:
            return
        found = part.routed
        answered = pc.equal(events.column("outcome"), "ok").to_numpy() & found.first
        for code, routing in enumerate(found.routings):
            if routing.arm in _ARMS and routing.by_chance:
                values = predictions[answered & (found.codes == code)]
                if len(values):
                    self._count(part.model, part.version, routing, values)

    def take_changed(self) -> tuple[dict[str, bytes], dict[str, list[Value]]]:
        """The states and samples of the models that changed since the last call."""
        changed, self._changed = self._changed, set()
        states = {model: msgspec.json.encode(self._models[model]) for model in changed}
        return states, {model: self.values(model) for model in changed}

    def changed_again(self, models: Sequence[str]) -> None:
        """What was taken did not become durable: it is given out again."""
        self._changed.update(models)

    def restore(self, states: Mapping[str, bytes]) -> None:
        """Takes over what `take_changed` gave before a restart."""
        for model, body in states.items():
            self._models[model] = msgspec.json.decode(body, type=dict[str, _Counted])

    def models(self) -> list[str]:
        """The models that have counts."""
        return list(self._models)

    def values(self, model: str) -> list[Value]:
        """The samples of a model's latest release."""
        releases = self._models.get(model, {})
        return releases[next(reversed(releases))].values(model, next(reversed(releases))) if releases else []

    def _count(self, model: str, version: str, routing: Routing, values: Floats) -> None:
        releases = self._models.setdefault(model, {})
        counted = releases.get(routing.release)
        if counted is None:
            counted = releases[routing.release] = _Counted()
            while len(releases) > _RELEASES:
                del releases[next(iter(releases))]
        if routing.arm == "canary":
            counted.candidate, propensity = version, routing.propensity
        else:
            counted.baseline, propensity = version, 1.0 - routing.propensity
        # Weights are whole steps of 0.0001.
        counted.add(routing.arm, round(propensity, 4), values)
        self._changed.add(model)


__all__ = ["BINS", "ReleasePredictions", "edges_of"]
