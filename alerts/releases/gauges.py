"""Releases as metrics: the step each model's latest is at, for how long, and its state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from alerts.evidence import Check
from alerts.evidence.verdict import bounded_exp
from alerts.labels import labels_of
from alerts.querier import Sample
from alerts.releases.walk import Phase, Walk
from observability import names
from observability.metrics import Metrics

FAMILIES = (names.RELEASE_STEP, names.RELEASE_STEP_AGE, names.RELEASE_STATE, names.RELEASES_ENDED)
PAUSED = "paused"
_STATES = (*(phase.value for phase in Phase), PAUSED)


WATCH_GROUP = "after-promotion"
# What the shipped rules take for proof.
_PROOF = 100.0


def watch_samples(walks: Iterable[Walk]) -> list[Sample]:
    """The evidence of the watches after promotions, scaled so that 100 is an alarm, whatever its average time."""
    found = []
    for walk in walks:
        after, watch = walk.policy.after_promotion, walk.watch
        if walk.promoted and after is not None and watch is not None:
            value = bounded_exp(watch.log_evidence(walk.policy.verdict)) * _PROOF / after.threshold
            labels = {
                "__name__": names.CANARY_EVIDENCE.name, "model": walk.model, "release": walk.release,
                "candidate": str(walk.version), "baseline": str(walk.baseline or ""),
                "check": Check.AFTER_PROMOTION.value, "hypothesis": "harm",
            }  # fmt: skip
            found.append(Sample(labels_of(labels), value))
    return found


class Gauges:
    """Shows the latest walk of each model."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.shown: dict[str, str] = {}

    def show(self, walks: Sequence[Walk], now: float) -> None:
        """`walks` are the newest first."""
        for model in {walk.model for walk in walks}:
            walk = next(walk for walk in walks if walk.model == model)
            candidate = str(walk.version)
            if self.shown.get(model, candidate) != candidate:
                self._forget(model, self.shown[model])
            self.shown[model] = candidate
            self._metrics[names.RELEASE_STEP].labels(model, candidate).set(_number(walk))
            age = max((walk.ended_at or now) - walk.entered_at, 0.0)
            self._metrics[names.RELEASE_STEP_AGE].labels(model, candidate).set(age)
            state = PAUSED if walk.paused else walk.phase.value
            for one in _STATES:
                self._metrics[names.RELEASE_STATE].labels(model, candidate, one).set(float(one == state))

    def ended(self, walk: Walk) -> None:
        """Count the end of a release."""
        self._metrics[names.RELEASES_ENDED].labels(walk.model, walk.phase.value).inc()

    def _forget(self, model: str, candidate: str) -> None:
        self._metrics[names.RELEASE_STEP].remove(model, candidate)
        self._metrics[names.RELEASE_STEP_AGE].remove(model, candidate)
        for one in _STATES:
            self._metrics[names.RELEASE_STATE].remove(model, candidate, one)


def _number(walk: Walk) -> int:
    return 0 if walk.phase in (Phase.BLESSING, Phase.REFUSED) else walk.step + 1 + walk.promoted
