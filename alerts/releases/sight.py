"""What a release's walk looks at: serving's page of the model, the judge's evidence, counters, the action under way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alerts.actions import Action
from alerts.evidence import FeedPage, Judgement, Outcome, log_weighted_mean, told
from alerts.evidence.totals import Reading
from alerts.evidence.verdict import bounded_exp, voided
from alerts.querier import Sample
from alerts.releases.blessing import Blessing
from alerts.releases.watch import Watched
from observability import names

# Weights are whole steps of 0.0001.
_HALF_A_STEP = 5e-5
ALL = "all"
_ENDS = ("promote", "rollback")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The traffic of a model as serving shows it. `arms` are shares by version: canary, or an experiment's variants."""

    generation: int
    stable: int | None = None
    hold_back: float = 0.0
    release: str = ""
    arms: Mapping[int, float] = field(default_factory=dict)
    experiment: bool = False
    shadows: Mapping[int, float] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()

    @staticmethod
    def of(body: Mapping[str, Any]) -> Page:
        """Of `GET /api/v1/models/{model}`."""
        canary, experiment = body.get("canary"), body.get("experiment")
        arms: dict[int, float] = {}
        if canary:
            arms[int(canary["version"])] = float(canary["weight"])
        for variant in (experiment or {}).get("variants", ()):
            arms[int(variant["version"])] = float(variant["weight"])
        return Page(
            generation=int(body["generation"]),
            stable=body.get("stable"),
            hold_back=float((body.get("hold_back") or {}).get("weight", 0.0)),
            release=str((canary or experiment or {}).get("release", "")),
            arms=arms,
            experiment=bool(experiment),
            shadows={int(one["version"]): float(one["fraction"]) for one in body.get("shadows") or ()},
            history=tuple(body.get("history") or ()),
        )

    def event_of(self, release: str) -> Mapping[str, Any] | None:
        """The last line of the history that ended a release: a promotion or a rollback; None when none did."""
        ends = [one for one in self.history if one.get("release") == release and one.get("event") in _ENDS]
        return ends[-1] if ends else None


def close(one: float | None, other: float) -> bool:
    """Whether two shares are the same in serving's steps."""
    return one is not None and abs(one - other) < _HALF_A_STEP


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The judge's evidence on a release. `doubts` say why nothing may advance now, "" where there is no reason.

    `told` are sentences on labels and predictions.
    """

    outcome: Outcome
    reason: str = ""
    requests: float = 0.0
    errors: float = 0.0
    safety: float = 1.0
    doubts: str = ""
    told: tuple[str, ...] = ()

    @property
    def proved(self) -> bool:
        """Whether the judge has found the release safe."""
        return self.outcome is Outcome.ADVANCE

    @staticmethod
    def of(judgement: Judgement) -> Judged:
        """Of a judgement."""
        evidence, policy = judgement.evidence, judgement.policy
        harm = bounded_exp(log_weighted_mean(evidence.log_harm, policy.shares))
        doubts = ""
        if voided(evidence, policy):
            doubts = "the canary does not get the share of the requests that the router says"
        elif evidence.incident:
            doubts = "too many requests of both versions fail at present"
        elif harm >= policy.suspect:
            doubts = f"there is evidence of harm (e-value {harm:.3g})"
        return Judged(
            outcome=judgement.release.verdict,
            reason=judgement.release.reason,
            requests=judgement.counts.canary_requests,
            errors=judgement.counts.canary_errors,
            safety=evidence.safety,
            doubts=doubts,
            told=tuple(told(judgement.state, evidence)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Everything that a look at a release has found; None is what could not be had, of which nothing follows."""

    now: float
    page: Page | None = None
    judged: Judged | None = None
    readings: Sequence[Reading] | None = None
    labels: FeedPage | None = None
    watched: Watched | None = None
    action: Action | None = None
    blessing: Blessing | None = None


def queries(model: str, version: int, kind: str, *, disagreement: float = 0.0) -> tuple[str, ...]:
    """The expressions whose answers `readings` takes apart, for a step of a kind: shadow, switch or experiment."""
    match kind:
        case "shadow":
            of = f'{{model="{quoted(model)}",shadow="{version}"'
            bucket = f"{names.SHADOW_DIFFERENCE.name}_bucket{of}"
            return (
                f"{names.SHADOW_REQUESTS.name}{of}}}",
                f'{bucket},le="{disagreement:g}"}}',
                f'{bucket},le="+Inf"}}',
            )
        case "switch":
            return (f'{names.INFERENCE_REQUESTS.name}{{model="{quoted(model)}",version="{version}"}}',)
        case "experiment":
            return (f'{names.EXPERIMENT_REQUESTS.name}{{model="{quoted(model)}"}}',)
        case _:
            return ()


def readings(answers: Iterable[Sequence[Sample]]) -> list[Reading]:
    """The answers to `queries` as counters; `arm` is an experiment's variant, `outcome` what is counted."""
    found = []
    for sample in (sample for answer in answers for sample in answer):
        labels = dict(sample.labels)
        series = ",".join(f"{name}={value}" for name, value in sample.labels)
        le = labels.get("le")
        outcome = labels.get("outcome", "") if le is None else ALL if le == "+Inf" else "within"
        try:
            propensity = float(labels.get("propensity", "0"))
        except ValueError:
            continue
        arm = f"{labels.get('release', '')}/{labels.get('version', '')}"
        found.append(Reading(series, arm, min(max(propensity, 0.0), 1.0), outcome, sample.value))
    return found


def quoted(text: str) -> str:
    """A label's value as it stands in an expression."""
    return text.replace("\\", "\\\\").replace('"', '\\"')
