"""How a release goes on: a pure function of the walk and of what a look has found.

Harm first, then what people did, then whether the step has proved what it must. What could not be looked at, and what
nobody has asked yet, leads nowhere: a share of traffic rises only on requests that this step has seen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from alerts.actions import Action, ActionState
from alerts.evidence import Outcome, Segment, log_evidence, log_rate_safety, rate_interval
from alerts.evidence.totals import Total, add_up
from alerts.evidence.verdict import bounded_exp
from alerts.releases.blessing import Known
from alerts.releases.policy import CanaryStep, ExperimentStep, HoldStep, ShadowStep, SwitchStep, named
from alerts.releases.sight import ALL, Judged, Page, Seen, close
from alerts.releases.walk import ACTING, Held, Phase, Walk
from observability import names

_TRIES = 3
_FIRST_WAIT_SECONDS = 5.0


def advance(walk: Walk, seen: Seen) -> Walk:
    """The walk after a look at it. It is the same one where nothing follows from what was seen."""
    if walk.ended:
        return walk
    if walk.phase is Phase.BLESSING:
        return _blessed(walk, seen)
    walk = _counted(walk, seen)
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
    if needs(walk, seen):
        return _late(walk, seen)
    return onwards(walk, seen, "")


def needs(walk: Walk, seen: Seen) -> list[str]:
    """What the step that is watched still lacks, in words; nothing when it may go on."""
    since = seen.now - walk.entered_at
    match walk.current:
        case HoldStep(seconds=seconds):
            return [f"{seconds - since:.0f} s more"] if seconds is not None and since < seconds else []
        case ShadowStep() as step:
            lacking = _shadow_needs(walk, step, seen)
        case CanaryStep() as step:
            lacking = _canary_needs(walk, step, seen)
        case SwitchStep() as step:
            lacking = _switch_needs(walk, step, seen)
        case ExperimentStep() as step:
            return _experiment_needs(walk, step, seen)
    if since < walk.current.min_seconds:
        lacking.append(f"{walk.current.min_seconds - since:.0f} s more")
    if not lacking and seen.page is None:
        lacking.append("serving to answer: what is in force is not known")
    return lacking


def onwards(walk: Walk, seen: Seen, who: str) -> Walk:
    """From a step that is done to the next, to the promotion or to the end; `who` lets it, "" is the evidence."""
    because = f"{who} let it go on" if who else "the step has seen what it needs"
    if isinstance(walk.current, ShadowStep) and walk.phase is not Phase.LEAVING:
        return _begun(walk, seen, Phase.LEAVING, f"the shadow ends: {because}")
    if isinstance(walk.current, ExperimentStep):
        return replace(
            _begun(walk, seen, Phase.LEAVING, "the experiment is over: all traffic goes to stable"),
            conclusion=compared(walk),
        )
    last = walk.step + 1 == len(walk.policy.steps)
    if isinstance(walk.current, SwitchStep):
        return _over(walk, seen, Phase.PROMOTED, because)
    following = None if last else walk.policy.steps[walk.step + 1]
    gives_traffic = last or not isinstance(following, HoldStep | ShadowStep)
    if gives_traffic and (seen.page is None or (walk.policy.frozen(seen.now) and not who)):
        return walk
    if last:
        return _begun(walk, seen, Phase.PROMOTING, f"all steps are done: {because}")
    return enter(replace(walk, step=walk.step + 1), seen, f"{named(walk.current)}: {because}")


def enter(walk: Walk, seen: Seen, reason: str) -> Walk:
    """At the begin of the walk's step."""
    walk = replace(walk, totals=(), counted=False, mark=-1.0, entered_at=seen.now)
    if not isinstance(walk.current, HoldStep):
        return _begun(walk, seen, Phase.ENTERING, reason)
    if walk.current.seconds is None:
        return _held(walk, Held.GATE, f"a person must approve it: {reason}")
    return replace(walk, phase=Phase.WATCHING, held=None, reason=reason)


def waits_for_thaw(walk: Walk, now: float) -> bool:
    """Whether a freeze is what the walk waits for, should nothing else be lacking."""
    return walk.phase is Phase.WATCHING and walk.policy.frozen(now)


def rolled(walk: Walk, seen: Seen, reason: str) -> Walk:
    """On the way back: all traffic to stable."""
    if not walk.live and not walk.shadowed:
        return _over(walk, seen, Phase.ROLLED_BACK, reason)
    return _begun(walk, seen, Phase.ROLLING_BACK, reason)


def compared(walk: Walk) -> dict[str, Any]:
    """Requests and failures of an experiment's two versions, with the range of the error rate of each (95 %)."""
    found = {}
    for name, (requests, errors) in (
        ("candidate", _arm(walk, candidate=True)),
        ("stable", _arm(walk, candidate=False)),
    ):
        low, high = rate_interval(min(errors, requests), requests)
        found[name] = {"requests": requests, "errors": errors, "error_rate": {"low": low, "high": high}}
    return {**found, "harm": bounded_exp(_experiment_harm(walk))}


# --- before traffic --------------------------------------------------------------------------------------------------
def _blessed(walk: Walk, seen: Seen) -> Walk:
    if walk.paused:
        return walk
    if walk.policy.blessing is not None and seen.blessing is None:
        return walk
    if seen.page is None:
        return walk
    walk = replace(walk, blessing=seen.blessing)
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
        return _over(walk, seen, Phase.REFUSED, f"not blessed: {walk.blessing.reason}")
    return _held(walk, Held.BLESSING, f"the blessing is open: {walk.blessing.reason}")


# --- what happens beside it ------------------------------------------------------------------------------------------
def _at_serving(walk: Walk, seen: Seen) -> Walk | None:
    """What became of the release at serving, by whomever; a change by hand pauses the walk."""
    page = seen.page
    if page is None or page.generation == walk.generation or (not walk.live and not walk.shadowed):
        return None
    if walk.live:
        line = page.event_of(walk.release)
        if line is not None and (walk.phase is not Phase.ROLLING_BACK or line["event"] == "rollback"):
            phase = Phase.PROMOTED if line["event"] == "promote" else Phase.ROLLED_BACK
            own = walk.phase is (Phase.PROMOTING if phase is Phase.PROMOTED else Phase.ROLLING_BACK)
            by = f"{line.get('event')} by {line.get('actor') or 'serving'}: {line.get('reason') or 'no reason given'}"
            why = walk.reason if own else by
            return _over(walk, seen, phase, why)
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
    elif walk.phase in (Phase.WATCHING, Phase.HELD):
        why = _counted_harm(walk)
    if not why:
        return None
    if walk.policy.on_failure == "hold":
        return _held(walk, Held.HARM, why)
    return rolled(walk, seen, why)


def _counted_harm(walk: Walk) -> str:
    risk = walk.policy.verdict.alpha
    match walk.current:
        case ShadowStep() as step:
            pairs, failed, differing = _pairs(walk)
            low, _ = rate_interval(failed, pairs + failed, risk)
            if low > step.max_failed_ratio:
                return (
                    f"{failed:.0f} of {pairs + failed:.0f} copies failed, more than {step.max_failed_ratio:g} for sure"
                )
            if step.max_disagreement_ratio is not None:
                low, _ = rate_interval(min(differing, pairs), pairs, risk)
                if low > step.max_disagreement_ratio:
                    return f"{differing:.0f} of {pairs:.0f} answers differ by more than {step.disagreement:g}"
        case SwitchStep():
            requests, errors = _requests(walk)
            low, _ = rate_interval(errors, requests, risk)
            if low > walk.policy.verdict.max_error_rate and errors >= walk.policy.verdict.minimum_errors:
                limit = walk.policy.verdict.max_error_rate
                return f"{errors:.0f} of {requests:.0f} requests failed, more than {limit:g} for sure"
        case ExperimentStep():
            harm = bounded_exp(_experiment_harm(walk))
            if harm >= 1.0 / risk and _arm(walk, candidate=True)[1] >= walk.policy.verdict.minimum_errors:
                return f"harm is proved (e-value {harm:.3g}): the version fails more often than stable"
    return ""


# --- acting ----------------------------------------------------------------------------------------------------------
def _acted(walk: Walk, seen: Seen) -> Walk:
    action = seen.action
    if action is None:
        return walk
    if action.state is ActionState.DONE:
        return _done(walk, action, seen)
    if action.state is ActionState.REJECTED:
        return _held(walk, Held.ACTION, f"{action.actor} forbade {action.action} (action {action.id})")
    if action.state is not ActionState.FAILED:
        return walk
    why = str((action.result or {}).get("error") or "it failed")
    if walk.tries + 1 >= _TRIES:
        return _held(walk, Held.ACTION, f"{action.action} failed {_TRIES} times, the last: {why}")
    if seen.page is None:
        return walk
    if walk.phase is not Phase.ROLLING_BACK and (wrong := _differs(walk, seen.page)):
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
            return _over(walk, seen, Phase.PROMOTED, walk.reason)
        case Phase.ROLLING_BACK:
            return _over(walk, seen, Phase.ROLLED_BACK, walk.reason)
        case Phase.LEAVING if isinstance(walk.current, ExperimentStep):
            return _over(walk, seen, Phase.COMPARED, walk.reason)
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


def _begun(walk: Walk, seen: Seen, phase: Phase, reason: str) -> Walk:
    """A phase that acts, on what serving shows now."""
    generation = walk.generation if seen.page is None else seen.page.generation
    return replace(
        walk, phase=phase, held=None, reason=reason, attempt=walk.attempt + 1, tries=0, retry_at=0.0,
        entered_at=seen.now, generation=generation,
    )  # fmt: skip


def _held(walk: Walk, what: Held, reason: str) -> Walk:
    return replace(walk, phase=Phase.HELD, held=what, reason=reason)


def _over(walk: Walk, seen: Seen, phase: Phase, reason: str) -> Walk:
    return replace(walk, phase=phase, held=None, paused="", reason=reason, ended_at=seen.now)


def _late(walk: Walk, seen: Seen) -> Walk:
    """At the deadline: what the policy says then. To go on needs the proof all the same."""
    step = walk.current
    if isinstance(step, HoldStep | ExperimentStep) or seen.now - walk.entered_at < step.deadline_seconds:
        return walk
    lacking = ", ".join(needs(walk, seen))
    why = f"the {step.deadline_seconds:g} s of the step are over; it still needed {lacking}"
    if step.on_deadline == "rollback":
        return rolled(walk, seen, why)
    if step.on_deadline == "advance" and _proved(walk, seen):
        return onwards(walk, seen, "")
    return _held(walk, Held.DEADLINE, why)


def _proved(walk: Walk, seen: Seen) -> bool:
    """Whether the release is proved safe and this step has seen requests of it."""
    if isinstance(walk.current, SwitchStep):
        requests, errors = _requests(walk)
        safety = log_rate_safety(errors, requests, walk.policy.verdict.max_error_rate)
        return requests > 0 and bounded_exp(safety) >= 1.0 / walk.policy.verdict.beta
    judged = seen.judged
    if not isinstance(walk.current, CanaryStep) or judged is None or walk.mark < 0:
        return False
    return judged.proved and not judged.doubts and judged.requests > walk.mark


# --- evidence of a step ----------------------------------------------------------------------------------------------
def _counted(walk: Walk, seen: Seen) -> Walk:
    """With what was counted since: the canary's requests at the step's begin, or the step's own counters."""
    if walk.phase is Phase.WATCHING and walk.mark < 0 and seen.judged is not None and walk.live:
        walk = replace(walk, mark=seen.judged.requests)
    # Harm may show while it is held, too.
    if walk.phase not in (Phase.WATCHING, Phase.HELD) or seen.readings is None:
        return walk
    if isinstance(walk.current, CanaryStep | HoldStep):
        return walk
    if not walk.counted:  # what stood there before the step is not the step's
        begun = tuple(Total(r.series, r.arm, r.propensity, r.outcome, r.value, 0.0) for r in seen.readings)
        return replace(walk, totals=begun, counted=True)
    totals = tuple(add_up(walk.totals, seen.readings))
    return walk if totals == walk.totals else replace(walk, totals=totals)


def _shadow_needs(walk: Walk, step: ShadowStep, seen: Seen) -> list[str]:
    pairs, failed, differing = _pairs(walk)
    lacking = []
    if seen.readings is None:
        lacking.append("the store to answer: what was compared is not known")
    if pairs < step.min_pairs:
        lacking.append(f"{step.min_pairs - pairs:.0f} more compared pairs ({pairs:.0f} of {step.min_pairs})")
    _, high = rate_interval(failed, pairs + failed)
    if high > step.max_failed_ratio:
        lacking.append(
            f"more copies, to know that at most {step.max_failed_ratio:g} fail ({failed:.0f} of {pairs + failed:.0f} "
            f"did, which leaves up to {high:.3g})"
        )
    if step.max_disagreement_ratio is not None:
        _, high = rate_interval(min(differing, pairs), pairs)
        if high > step.max_disagreement_ratio:
            lacking.append(
                f"more pairs, to know that at most {step.max_disagreement_ratio:g} differ by {step.disagreement:g} "
                f"({differing:.0f} of {pairs:.0f} did, which leaves up to {high:.3g})"
            )
    return lacking


def _canary_needs(walk: Walk, step: CanaryStep, seen: Seen) -> list[str]:
    judged = seen.judged
    if judged is None:
        return ["the judge to see a request of the canary"]
    lacking = []
    requests = judged.requests - walk.mark if walk.mark >= 0 else 0.0
    if requests < step.min_requests:
        lacking.append(f"{step.min_requests - requests:.0f} more requests ({requests:.0f} of {step.min_requests})")
    if judged.doubts:
        lacking.append(f"that to end: {judged.doubts}")
    if not _proof_suffices(walk, step, judged):
        wanted = walk.policy.proof(step)
        wanted = max(wanted, 1.0 / walk.policy.verdict.beta) if _last_traffic(walk) else wanted
        lacking.append(f"proof that it is safe (e-value {judged.safety:.3g} of {wanted:g})")
    return lacking


def _proof_suffices(walk: Walk, step: CanaryStep, judged: Judged) -> bool:
    # Nothing is promoted unless it is proved safe, whatever the step asks for.
    if step.min_e_value is None or _last_traffic(walk):
        return judged.proved
    return judged.proved or judged.safety >= step.min_e_value


def _last_traffic(walk: Walk) -> bool:
    return all(isinstance(step, HoldStep) for step in walk.policy.steps[walk.step + 1 :])


def _switch_needs(walk: Walk, step: SwitchStep, seen: Seen) -> list[str]:
    if seen.readings is None:
        return ["the store to answer: what the version did is not known"]
    requests, errors = _requests(walk)
    lacking = []
    if requests < step.min_requests:
        lacking.append(f"{step.min_requests - requests:.0f} more requests ({requests:.0f} of {step.min_requests})")
    rate, wanted = walk.policy.verdict.max_error_rate, walk.policy.proof(step)
    safety = bounded_exp(log_rate_safety(errors, requests, rate))
    if safety < wanted:
        lacking.append(f"proof that it fails less often than {rate:g} (e-value {safety:.3g} of {wanted:g})")
    return lacking


def _experiment_needs(walk: Walk, step: ExperimentStep, seen: Seen) -> list[str]:
    since, (requests, _) = seen.now - walk.entered_at, _arm(walk, candidate=True)
    if (step.seconds and since >= step.seconds) or (step.requests and requests >= step.requests):
        return []
    left = [f"{step.seconds - since:.0f} s more"] if step.seconds else []
    if step.requests:
        left.append(f"{step.requests - requests:.0f} more requests ({requests:.0f} of {step.requests})")
    return [" or ".join(left)]


def _pairs(walk: Walk) -> tuple[float, float, float]:
    """Compared pairs, copies that failed or could not be compared, pairs that differ too much."""
    sums: dict[str, float] = {}
    for total in walk.totals:
        sums[total.outcome] = sums.get(total.outcome, 0.0) + total.total
    failed = sums.get("failed", 0.0) + sums.get("incomparable", 0.0)
    return sums.get("compared", 0.0), failed, max(sums.get(ALL, 0.0) - sums.get("within", 0.0), 0.0)


def _requests(walk: Walk) -> tuple[float, float]:
    """Requests that the version answered or failed, and those that it failed."""
    counts = [(total.outcome, total.total) for total in walk.totals if total.outcome in ("ok", *names.FAULTS)]
    return sum(count for _, count in counts), sum(count for outcome, count in counts if outcome in names.FAULTS)


def _arm(walk: Walk, *, candidate: bool) -> tuple[float, float]:
    """Requests and failures of one version of the experiment."""
    own = f"{walk.release}/{walk.version}"
    mine = [
        total for total in walk.totals if total.arm.startswith(f"{walk.release}/") and (total.arm == own) == candidate
    ]
    return sum(total.total for total in mine), sum(total.total for total in mine if total.outcome == "error")


def _experiment_harm(walk: Walk) -> float:
    """Log e-value that the version fails more often than stable, where the router gave it its share by chance."""
    _, failed = _arm(walk, candidate=True)
    _, others = _arm(walk, candidate=False)
    return log_evidence([Segment(walk.share, failed, failed + others)], tolerance=walk.policy.verdict.tolerance)
