"""A release on its way through its policy's steps: the state, and what is asked of the act path in it.

`advance` (progress.py) makes of a walk and what was seen the next walk; what it must ask for follows from the walk
alone (`asked`), under a key that is the same after a crash. So a walk that is saved before it acts acts once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from alerts.actions import PROMOTE, ROLLBACK, STEP
from alerts.evidence import Quality
from alerts.evidence.totals import Total
from alerts.releases.blessing import Blessing
from alerts.releases.policy import (
    CanaryStep,
    ExperimentStep,
    HoldStep,
    ReleasePolicy,
    ShadowStep,
    Step,
    SwitchStep,
    named,
)
from alerts.releases.policy_file import read_policy
from alerts.releases.watch import Watch


class Phase(StrEnum):
    """Where a walk is. The last four end it; in `held` it waits for a person, in `guarding` it has promoted."""

    BLESSING = "blessing"
    ENTERING = "entering"
    WATCHING = "watching"
    LEAVING = "leaving"
    PROMOTING = "promoting"
    ROLLING_BACK = "rolling_back"
    HELD = "held"
    GUARDING = "guarding"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    COMPARED = "compared"
    REFUSED = "refused"


ENDED = frozenset({Phase.PROMOTED, Phase.ROLLED_BACK, Phase.COMPARED, Phase.REFUSED})
ACTING = frozenset({Phase.ENTERING, Phase.LEAVING, Phase.PROMOTING, Phase.ROLLING_BACK})


class Held(StrEnum):
    """What a held walk waits for a person about."""

    GATE = "gate"
    BLESSING = "blessing"
    DEADLINE = "deadline"
    HARM = "harm"
    ACTION = "action"


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """A version's release; times are unix seconds. `step` counts from 0 and stands while the walk is held.

    `release` is serving's name for it once it has traffic, `share` what serving was last told to give the version (a
    weight, or a shadow's fraction), `generation` serving's when that was in force. `mark` are the canary requests at
    the step's begin, below 0 while they are not known; `totals` what was counted since, where the judge does not.
    `baseline` is the version before, `watch` the evidence where the judge has none, `quality` that of labels there,
    `promoted_at` when it was promoted.
    `attempt` numbers what was asked of the act path, `tries` the failures since it was last asked something new.
    """

    id: int = 0
    model: str
    version: int
    policy: ReleasePolicy
    phase: Phase = Phase.BLESSING
    step: int = 0
    began_at: float
    entered_at: float
    ended_at: float | None = None
    release: str = ""
    share: float = 0.0
    shadowed: bool = False
    generation: int = -1
    mark: float = -1.0
    totals: tuple[Total, ...] = ()
    counted: bool = False
    attempt: int = 0
    tries: int = 0
    retry_at: float = 0.0
    held: Held | None = None
    paused: str = ""
    approved: bool = False
    actor: str = ""
    override: str = ""
    reason: str = ""
    blessing: Blessing | None = None
    conclusion: Mapping[str, Any] | None = None
    baseline: int | None = None
    watch: Watch | None = None
    quality: Quality | None = None
    promoted_at: float | None = None

    @property
    def promoted(self) -> bool:
        """Whether the version is stable by now, and watched."""
        return self.promoted_at is not None

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.phase in ENDED

    @property
    def current(self) -> Step:
        """The step that it is at."""
        return self.policy.steps[min(self.step, len(self.policy.steps) - 1)]

    @property
    def live(self) -> bool:
        """Whether the version has traffic, or had it when this was last known."""
        return bool(self.release)

    @property
    def key(self) -> str:
        """Under which the journal has what happens to it."""
        return f"release:{self.model}:{self.id}"

    def to_json(self) -> dict[str, Any]:
        """All fields; `from_json` gives the same walk."""
        body = asdict(replace(self, policy=ReleasePolicy(), blessing=None, watch=None))
        del body["policy"]
        return {
            **body,
            "policy_text": self.policy.text,
            "blessing": None if self.blessing is None else self.blessing.to_json(),
            "watch": None if self.watch is None else self.watch.to_json(),
        }

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> Walk:
        """Of `to_json`."""
        fields = {name: value for name, value in body.items() if name != "policy_text"}
        return Walk(
            **{
                **fields,
                "policy": read_policy(body["policy_text"]),
                "phase": Phase(body["phase"]),
                "held": Held(body["held"]) if body["held"] else None,
                "totals": tuple(Total(**total) for total in body["totals"]),
                "blessing": Blessing.from_json(body["blessing"]) if body["blessing"] else None,
                "watch": Watch.from_json(body["watch"]) if body.get("watch") else None,
                "quality": Quality.from_json(body["quality"]) if body.get("quality") else None,
            }
        )

    def dumped(self) -> str:
        """The walk as text."""
        return json.dumps(self.to_json(), sort_keys=True)

    @property
    def place(self) -> str:
        """Where it is, in a few words."""
        if self.phase is Phase.BLESSING or self.held is Held.BLESSING:
            return "blessing"
        if self.promoted:
            after = self.policy.after_promotion
            share = after.hold_back if after else 0.0
            return f"after promotion, {share * 100:.4g} % held back" if share else "after promotion"
        return f"step {self.step + 1} of {len(self.policy.steps)} ({named(self.current)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a walk asks of the act path; with an actor it is a person who asks."""

    action: str
    key: str
    reason: str
    release: str = ""
    labels: Mapping[str, str]
    actor: str = ""


def asked(walk: Walk, now: float) -> Ask | None:
    """What is to be asked now; None where nothing is, a person paused the walk, or the next try must wait."""
    if now < walk.retry_at or (walk.paused and walk.phase is not Phase.ROLLING_BACK):
        return None
    return wish(walk)


def wish(walk: Walk) -> Ask | None:
    """The action that the walk's phase needs; None where it needs none.

    A promotion and a rollback have the key that alerts give them, so that both are one action.
    """
    if walk.phase not in ACTING:
        return None
    again = f":{walk.attempt}" if walk.tries else ""
    common = {"candidate": str(walk.version), "walk": str(walk.id), "generation": str(walk.generation)}
    if walk.phase is Phase.PROMOTING:
        return Ask(
            action=PROMOTE, key=f"promote:{walk.model}:{walk.release}{again}", reason=walk.reason,
            release=walk.release, labels=common,
        )  # fmt: skip
    if walk.phase is Phase.ROLLING_BACK and walk.live:
        return Ask(
            action=ROLLBACK, key=f"rollback:{walk.model}:{walk.release}{again}", reason=walk.reason,
            release=walk.release, labels=common, actor=walk.actor if walk.approved else "",
        )  # fmt: skip
    what = "end" if walk.phase is Phase.ROLLING_BACK else walk.phase.value
    step = "promoted" if walk.promoted else walk.step
    return Ask(
        action=STEP,
        key=f"step:{walk.model}:{walk.id}:{step}:{what}:{walk.attempt}",
        reason=walk.reason,
        release=walk.release,
        labels={**common, **_traffic(walk)},
        actor=walk.actor if walk.approved and walk.phase is Phase.ROLLING_BACK else "",
    )


def _traffic(walk: Walk) -> dict[str, str]:
    """What serving is to be told."""
    if walk.promoted:
        share = walk.policy.after_promotion.hold_back if walk.policy.after_promotion else 0.0
        share = share if walk.phase is Phase.ENTERING else 0.0
        return {"traffic": "hold_back", "share": f"{share:g}", "sticky": walk.policy.sticky}
    if walk.phase is Phase.ENTERING:
        match walk.current:
            case ShadowStep(fraction=fraction):
                return {"traffic": "shadow", "share": f"{fraction:g}"}
            case CanaryStep(weight=weight):
                return {"traffic": "canary", "share": f"{weight:g}", "sticky": walk.policy.sticky}
            case ExperimentStep(weight=weight, sticky=sticky):
                return {"traffic": "experiment", "share": f"{weight:g}", "sticky": sticky}
            case SwitchStep():
                return {"traffic": "switch", "share": "1"}
            case HoldStep():
                raise AssertionError("a hold sets no traffic")
    ends = "experiment" if isinstance(walk.current, ExperimentStep) else "shadow"
    return {"traffic": ends, "share": "0"}
