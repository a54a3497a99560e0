"""A release in words: where it is, what it waits for and needs, and what a person may do about it."""

from __future__ import annotations

from alerts.actions import Action, ActionState
from alerts.durations import format_duration
from alerts.releases.guard import standing
from alerts.releases.policy import HoldStep, named
from alerts.releases.sight import Seen
from alerts.releases.step_evidence import needs
from alerts.releases.walk import ACTING, Held, Phase, Walk

_MEND = {
    Held.GATE: "`trimtab releases approve {model}` lets it go on, `abort` takes it back",
    Held.BLESSING: "`trimtab releases approve {model} --override REASON` releases it all the same, `abort` ends it",
    Held.DEADLINE: (
        "`trimtab releases resume {model}` waits for evidence anew, `approve` goes on without, `abort` takes it back"
    ),
    Held.HARM: "the policy says hold: `trimtab releases abort {model}` takes it back",
    Held.ACTION: "`trimtab releases resume {model}` tries again, `abort` takes it back",
}


def explained(walk: Walk, seen: Seen) -> list[str]:
    """Sentences; `seen` is the last look at it."""
    told = [f"Release {walk.id} of {walk.model}: version {walk.version} is {_state(walk)}, at {walk.place}."]
    if walk.ended:
        told[0] = f"Release {walk.id} of {walk.model}: version {walk.version} is {walk.phase.value.replace('_', ' ')}."
        return [*told, f"Why: {walk.reason}.", *_compared(walk), *_of_labels(walk, seen)]
    told.append(f"Here since {_ago(seen.now - walk.entered_at)}: {walk.reason}.")
    if walk.paused:
        told.append(f"Paused: {walk.paused}. `trimtab releases resume {walk.model}` goes on from what is in force.")
    elif walk.phase is Phase.HELD and walk.held is not None:
        told.append(f"It waits for a person: {_MEND[walk.held].format(model=walk.model)}.")
    elif walk.phase is Phase.BLESSING:
        told.append("Serving loads the version and tries it; no request reaches it yet.")
    elif walk.phase in ACTING:
        told.append(_acting(walk, seen))
    elif walk.phase is Phase.GUARDING:
        told += _guarding(walk, seen)
    else:
        lacking = needs(walk, seen)
        told += [f"It still needs {need}." for need in lacking]
        told += _of_labels(walk, seen)
        if not lacking:
            frozen = walk.policy.frozen(seen.now)
            told.append("It has what it needs" + (", and waits for the freeze to end." if frozen else "."))
        told += _deadline(walk, seen)
    if seen.page is None and walk.phase is not Phase.HELD:
        told.append("Serving does not answer at present: nothing follows from that.")
    if walk.promoted:
        return told
    rest = walk.policy.steps[walk.step + 1 :]
    told.append(f"After this: {', '.join([*(named(step) for step in rest), _end(walk)])}.")
    return told


def _of_labels(walk: Walk, seen: Seen) -> list[str]:
    """What labels and predictions say of it."""
    own = [] if walk.quality is None else [f"Of its labels: {walk.quality.words()}."]
    return [*own, *(seen.judged.told if seen.judged is not None else ())]


def _state(walk: Walk) -> str:
    return "paused" if walk.paused else walk.phase.value.replace("_", " ")


def _acting(walk: Walk, seen: Seen) -> str:
    action = seen.action
    if action is None:
        wait = walk.retry_at - seen.now
        return f"It is tried again in {wait:.0f} s." if wait > 0 else "Its action is about to be asked for."
    return f"Action {action.id} ({action.action}) is {action.state.value}: {_mended(action)}."


def _mended(action: Action) -> str:
    if action.state in (ActionState.WAITING, ActionState.ADVISED):
        return f"{action.reason}; `trimtab actions approve {action.id}` lets it run"
    return action.reason


def _deadline(walk: Walk, seen: Seen) -> list[str]:
    limit = getattr(walk.current, "deadline_seconds", None)
    if limit is None or isinstance(walk.current, HoldStep):
        return []
    left = walk.entered_at + limit - seen.now
    then = {"hold": "it is held for a person", "rollback": "it is rolled back",
            "advance": "it goes on if it is proved safe, and is held if not"}  # fmt: skip
    return [f"In {_ago(max(left, 0.0))} its time is over; then {then[getattr(walk.current, 'on_deadline', 'hold')]}."]


def _end(walk: Walk) -> str:
    kinds = {type(step).__name__ for step in walk.policy.steps}
    if "ExperimentStep" in kinds:
        return "all traffic back to stable"
    end = "the end" if "SwitchStep" in kinds else "promotion"
    after = walk.policy.after_promotion
    return f"{end}, and {format_duration(round(after.seconds))} of watching it" if after else end


def _guarding(walk: Walk, seen: Seen) -> list[str]:
    after = walk.policy.after_promotion
    assert after is not None
    what = "nothing is held back, so it is compared with what the version before did"
    if after.hold_back:
        what = f"{after.hold_back * 100:.4g} % of the requests stay with version {walk.baseline}"
    left = _ago(max(walk.entered_at + after.seconds - seen.now, 0.0))
    return [
        f"It is promoted and watched for {left} more: {what}.",
        f"So far: {standing(walk)}.",
        f"`trimtab releases approve {walk.model}` ends the watch, `abort` takes the version back.",
    ]


def _compared(walk: Walk) -> list[str]:
    if not walk.conclusion:
        return []
    lines = []
    for name in ("candidate", "stable"):
        arm = walk.conclusion[name]
        low, high = arm["error_rate"]["low"], arm["error_rate"]["high"]
        lines.append(
            f"The {name} failed {arm['errors']:.0f} of {arm['requests']:.0f} requests: {low:.3g} to {high:.3g} (95 %)."
        )
    return lines


def _ago(seconds: float) -> str:
    return format_duration(round(max(seconds, 0.0)))
