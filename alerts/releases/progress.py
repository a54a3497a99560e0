"""How a release goes on: a pure function of the walk and of what a look has found.

Harm first, then what people did, then whether the step has proved what it must. What could not be looked at, and what
nobody has asked yet, leads nowhere: a share of traffic rises only on requests that this step has seen.
"""

from __future__ import annotations

from dataclasses import replace

from alerts.actions import Action, ActionState
from alerts.evidence import Outcome
from alerts.releases import guard
from alerts.releases.blessing import Known
from alerts.releases.policy import CanaryStep, ExperimentStep, HoldStep, ShadowStep, SwitchStep, named
from alerts.releases.sight import Page, Seen, close
from alerts.releases.step_evidence import compared, counted, counted_harm, needs, proved
from alerts.releases.turns import begun, held, over
from alerts.releases.walk import ACTING, Held, Phase, Walk

_TRIES = 3
_FIRST_WAIT_SECONDS = 5.0


def advance(walk: Walk, seen: Seen) -> Walk:
    """The walk after a look at it. It is the same one where nothing follows from what was seen."""
    if walk.ended:
        return walk
    if walk.phase is Phase.BLESSING:
        return _blessed(walk, seen)
    walk = counted(walk, seen)
    gone = _at_serving(walk, seen)
    if gone is not None:
        return gone
    harmed = _harmed(walk, seen)
    if harmed is not None:
        return harmed
    if walk.phase in ACTING:
        return _acted(walk, seen)
    if walk.paused or walk.phase is Phase.HELD:
        return walk
    if walk.promoted:
        return guard.guarded(walk, seen)
    if needs(walk, seen):
        return _late(walk, seen)
    return onwards(walk, seen, "")


def onwards(walk: Walk, seen: Seen, who: str) -> Walk:
    """From a step that is done to the next, to the promotion or to the end; `who` lets it, "" is the evidence."""
    because = f"{who} let it go on" if who else "the step has seen what it needs"
    if isinstance(walk.current, ShadowStep) and walk.phase is not Phase.LEAVING:
        return begun(walk, seen, Phase.LEAVING, f"the shadow ends: {because}")
    if isinstance(walk.current, ExperimentStep):
        return replace(
            begun(walk, seen, Phase.LEAVING, "the experiment is over: all traffic goes to stable"),
            conclusion=compared(walk),
        )
    last = walk.step + 1 == len(walk.policy.steps)
    if isinstance(walk.current, SwitchStep):
        return guard.promoted(walk, seen, because)
    following = None if last else walk.policy.steps[walk.step + 1]
    gives_traffic = last or not isinstance(following, HoldStep | ShadowStep)
    if gives_traffic and (seen.page is None or (walk.policy.frozen(seen.now) and not who)):
        return walk
    if last:
        return begun(walk, seen, Phase.PROMOTING, f"all steps are done: {because}")
    return enter(replace(walk, step=walk.step + 1), seen, f"{named(walk.current)}: {because}")


def enter(walk: Walk, seen: Seen, reason: str) -> Walk:
    """At the begin of the walk's step."""
    walk = replace(walk, totals=(), counted=False, mark=-1.0, watch=None, quality=None, entered_at=seen.now)
    if not isinstance(walk.current, HoldStep):
        return begun(walk, seen, Phase.ENTERING, reason)
    if walk.current.seconds is None:
        return held(walk, Held.GATE, f"a person must approve it: {reason}")
    return replace(walk, phase=Phase.WATCHING, held=None, reason=reason)


def rolled(walk: Walk, seen: Seen, reason: str) -> Walk:
    """On the way back: all traffic to stable."""
    if not walk.live and not walk.shadowed:
        return over(walk, seen, Phase.ROLLED_BACK, reason)
    return begun(walk, seen, Phase.ROLLING_BACK, reason)


# --- before traffic --------------------------------------------------------------------------------------------------
def _blessed(walk: Walk, seen: Seen) -> Walk:
    if walk.paused:
        return walk
    if walk.policy.blessing is not None and seen.blessing is None:
        return walk
    if seen.page is None:
        return walk
    walk = replace(walk, blessing=seen.blessing, baseline=seen.page.stable)
    verdict = Known.PASSED if walk.blessing is None else walk.blessing.verdict
    if verdict is Known.PASSED or (walk.override and walk.blessing is not None and walk.blessing.may_be_overridden):
        why = "no blessing is asked for" if walk.blessing is None else f"blessed: {walk.blessing.reason}"
        if verdict is not Known.PASSED:
            why = (
                f"{walk.actor} overrode the blessing ({walk.override}): {walk.blessing.reason if walk.blessing else ''}"
            )
        if walk.policy.frozen(seen.now) and not isinstance(walk.current, ShadowStep | HoldStep):
            return replace(walk, reason=f"{why}; frozen until the freeze is over")
        return enter(walk, seen, why)
    assert walk.blessing is not None
    if verdict is Known.FAILED:
        return over(walk, seen, Phase.REFUSED, f"not blessed: {walk.blessing.reason}")
    return held(walk, Held.BLESSING, f"the blessing is open: {walk.blessing.reason}")


# --- what happens beside it ------------------------------------------------------------------------------------------
def _at_serving(walk: Walk, seen: Seen) -> Walk | None:
    """What became of the release at serving, by whomever; a change by hand pauses the walk."""
    page = seen.page
    if page is None or page.generation == walk.generation or (not walk.live and not walk.shadowed):
        return None
    if walk.live:
        line = page.event_of(walk.release)
        known = walk.promoted and line is not None and line["event"] == "promote"
        if line is not None and not known and (walk.phase is not Phase.ROLLING_BACK or line["event"] == "rollback"):
            phase = Phase.PROMOTED if line["event"] == "promote" else Phase.ROLLED_BACK
            own = walk.phase is (Phase.PROMOTING if phase is Phase.PROMOTED else Phase.ROLLING_BACK)
            by = f"{line.get('event')} by {line.get('actor') or 'serving'}: {line.get('reason') or 'no reason given'}"
            why = walk.reason if own else by
            if own and phase is Phase.PROMOTED:
                return guard.promoted(walk, seen, why)
            return over(walk, seen, phase, why)
    if walk.promoted:
        return guard.at_serving(walk, seen, page)
    if walk.phase in ACTING:
        return None  # what is under way may be what changed it
    wrong = _differs(walk, page)
    if not wrong:
        return replace(walk, generation=page.generation)
    if walk.paused:
        return None
    return replace(walk, paused=f"{wrong}: somebody changed it, and that stands", entered_at=seen.now)


def _differs(walk: Walk, page: Page) -> str:
    share = f"{walk.share * 100:.4g} %"
    if not walk.live:
        found = page.shadows.get(walk.version, 0.0)
        return "" if close(found, walk.share) else f"the shadow gets {found * 100:.4g} % of the requests, not {share}"
    if isinstance(walk.current, SwitchStep):
        return "" if page.stable == walk.version else f"version {page.stable} is stable, not {walk.version}"
    if page.release != walk.release:
        return f"release {walk.release} is no longer in progress at serving"
    found = page.arms.get(walk.version, 0.0)
    return (
        ""
        if close(found, walk.share)
        else f"version {walk.version} gets {found * 100:.4g} % of the requests, not {share}"
    )


def _harmed(walk: Walk, seen: Seen) -> Walk | None:
    """Proved harm, in every state that can have it; who paused a release has not said that it may harm."""
    if walk.phase is Phase.ROLLING_BACK or walk.held is Held.HARM:
        return None
    why = ""
    if walk.live and seen.judged is not None and seen.judged.outcome is Outcome.ROLLBACK:
        why = seen.judged.reason or "harm is proved"
    elif walk.promoted:
        why = guard.alarm(walk)
    elif walk.phase in (Phase.WATCHING, Phase.HELD):
        why = counted_harm(walk)
    if not why:
        return None
    if walk.policy.on_failure == "hold":
        return held(walk, Held.HARM, why)
    return rolled(walk, seen, why)


# --- acting ----------------------------------------------------------------------------------------------------------
def _acted(walk: Walk, seen: Seen) -> Walk:
    action = seen.action
    if action is None:
        return walk
    if action.state is ActionState.DONE:
        return _done(walk, action, seen)
    if action.state is ActionState.REJECTED:
        return held(walk, Held.ACTION, f"{action.actor} forbade {action.action} (action {action.id})")
    if action.state is not ActionState.FAILED:
        return walk
    why = str((action.result or {}).get("error") or "it failed")
    if walk.tries + 1 >= _TRIES:
        return held(walk, Held.ACTION, f"{action.action} failed {_TRIES} times, the last: {why}")
    if seen.page is None:
        return walk
    if walk.phase is not Phase.ROLLING_BACK and not walk.promoted and (wrong := _differs(walk, seen.page)):
        return replace(walk, paused=f"{wrong}: somebody changed it, and that stands")
    return replace(
        walk,
        attempt=walk.attempt + 1,
        tries=walk.tries + 1,
        retry_at=seen.now + _FIRST_WAIT_SECONDS * 2.0**walk.tries,
        generation=seen.page.generation,
    )


def _done(walk: Walk, action: Action, seen: Seen) -> Walk:
    after = (action.result or {}).get("after") or {}
    generation = after.get("generation", walk.generation)
    match walk.phase:
        case Phase.PROMOTING:
            return guard.promoted(replace(walk, generation=generation), seen, walk.reason)
        case Phase.ENTERING if walk.promoted:
            return guard.guarding(replace(walk, generation=generation), seen)
        case Phase.LEAVING if walk.promoted:
            return over(walk, seen, Phase.PROMOTED, walk.reason)
        case Phase.ROLLING_BACK:
            return over(walk, seen, Phase.ROLLED_BACK, walk.reason)
        case Phase.LEAVING if isinstance(walk.current, ExperimentStep):
            return over(walk, seen, Phase.COMPARED, walk.reason)
        case Phase.LEAVING:
            walk = replace(walk, shadowed=False, share=0.0, generation=generation)
            return onwards(walk, seen, "") if seen.page is not None else walk
        case _:
            pass
    step = walk.current
    fresh = not walk.live  # a new release's requests are all this step's
    judged = seen.judged
    mark = 0.0 if fresh else judged.requests if judged is not None else -1.0
    share = {ShadowStep: "fraction", CanaryStep: "weight", ExperimentStep: "weight"}.get(type(step))
    return replace(
        walk,
        phase=Phase.WATCHING,
        entered_at=seen.now,
        generation=generation,
        share=getattr(step, share) if share else 1.0,
        shadowed=isinstance(step, ShadowStep),
        release=walk.release if isinstance(step, ShadowStep) else str(after.get("release") or walk.release),
        mark=mark,
        tries=0,
        retry_at=0.0,
    )


def _late(walk: Walk, seen: Seen) -> Walk:
    """At the deadline: what the policy says then. To go on needs the proof all the same."""
    step = walk.current
    if isinstance(step, HoldStep | ExperimentStep) or seen.now - walk.entered_at < step.deadline_seconds:
        return walk
    lacking = ", ".join(needs(walk, seen))
    why = f"the {step.deadline_seconds:g} s of the step are over; it still needed {lacking}"
    if step.on_deadline == "rollback":
        return rolled(walk, seen, why)
    if step.on_deadline == "advance" and proved(walk, seen):
        return onwards(walk, seen, "")
    return held(walk, Held.DEADLINE, why)
