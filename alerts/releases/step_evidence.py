"""What a step has counted, what it still lacks, and whether that is harm or proof: functions of a walk and a look."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from alerts.evidence import (
    Check,
    Segment,
    log_evidence,
    log_rate_safety,
    log_weighted_mean,
    rate_interval,
)
from alerts.evidence.totals import Total, add_up
from alerts.evidence.verdict import bounded_exp
from alerts.releases.policy import CanaryStep, ExperimentStep, HoldStep, ShadowStep, SwitchStep
from alerts.releases.sight import ALL, Judged, Seen
from alerts.releases.step_labels import log_harm, shadow_harm, shadow_needs, with_labels
from alerts.releases.walk import Phase, Walk
from alerts.releases.watch import Beside, Watch
from observability import names


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


def compared(walk: Walk) -> dict[str, Any]:
    """Requests and failures of an experiment's two versions, with the range of the error rate of each (95 %)."""
    found = {}
    for name, (requests, errors) in (
        ("candidate", _arm(walk, candidate=True)),
        ("stable", _arm(walk, candidate=False)),
    ):
        low, high = rate_interval(min(errors, requests), requests)
        found[name] = {"requests": requests, "errors": errors, "error_rate": {"low": low, "high": high}}
    return {**found, "harm": bounded_exp(_experiment_harm(walk)), "slower": bounded_exp(_slower(walk)),
            **({} if walk.quality is None else {"labels": walk.quality.words()})}  # fmt: skip


def counted_harm(walk: Walk) -> str:
    verdict = walk.policy.verdict
    risk = verdict.alpha
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
            return shadow_harm(walk)
        case SwitchStep() as step:
            requests, errors = _requests(walk)
            share = verdict.shares.get(Check.LATENCY, 0.0)
            low, _ = rate_interval(errors, requests, max(risk * (1.0 - share), 1e-300))
            if low > verdict.max_error_rate and errors >= verdict.minimum_errors:
                return f"{errors:.0f} of {requests:.0f} requests failed, more than {verdict.max_error_rate:g} for sure"
            # Of an e-detector, which an alarm within so many looks is false of with the looks over the threshold.
            if _slower(walk) + math.log(share or 1e-300) >= math.log(max(step.deadline_seconds, 1.0) / risk):
                return f"it became slower with the switch: {_why_slower(walk)}"
        case ExperimentStep():
            harms: dict[str, float] = {Check.ERRORS: _experiment_harm(walk), Check.LATENCY: _slower(walk),
                                       Check.QUALITY: log_harm(walk)}  # fmt: skip
            if _arm(walk, candidate=True)[1] < verdict.minimum_errors:
                harms[Check.ERRORS] = min(harms[Check.ERRORS], 0.0)
            harm = log_weighted_mean(harms, verdict.shares)
            if harm >= -math.log(risk):
                whys = {
                    Check.ERRORS: "the version fails more often than stable",
                    Check.LATENCY: _why_slower(walk),
                    Check.QUALITY: "" if walk.quality is None else walk.quality.words(),
                }
                why = whys[Check(max(harms, key=lambda check: harms[check]))]
                return f"harm is proved (e-value {bounded_exp(harm):.3g}): {why}"
    return ""


def proved(walk: Walk, seen: Seen) -> bool:
    """Whether the release is proved safe and this step has seen requests of it."""
    if isinstance(walk.current, SwitchStep):
        requests, errors = _requests(walk)
        safety = log_rate_safety(errors, requests, walk.policy.verdict.max_error_rate)
        return requests > 0 and bounded_exp(safety) >= 1.0 / walk.policy.verdict.beta
    judged = seen.judged
    if not isinstance(walk.current, CanaryStep) or judged is None or walk.mark < 0:
        return False
    return judged.proved and not judged.doubts and judged.requests > walk.mark


def counted(walk: Walk, seen: Seen) -> Walk:
    """With what was counted since: the canary's requests at the step's begin, or the step's own counters."""
    if walk.phase is Phase.WATCHING and walk.mark < 0 and seen.judged is not None and walk.live:
        walk = replace(walk, mark=seen.judged.requests)
    walk = with_labels(_watched(walk, seen), seen)
    # Harm may show while it is held, too.
    if walk.phase not in (Phase.WATCHING, Phase.HELD) or walk.promoted or seen.readings is None:
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
    lacking += shadow_needs(walk, step)
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


def beside(walk: Walk) -> Beside | None:
    """What a walk's version is compared with by a watch of its own; None where the judge does it, or nobody."""
    if walk.phase is Phase.GUARDING or (walk.phase is Phase.HELD and walk.promoted):
        return None if walk.watch is None else walk.watch.beside
    if walk.phase not in (Phase.WATCHING, Phase.HELD) or walk.baseline in (None, walk.version):
        return None
    match walk.current:
        case SwitchStep():
            return Beside.USUAL
        case ExperimentStep(sticky=""):  # of units that keep their arm no request says anything by itself
            return Beside.VARIANT
        case _:
            return None


def _watched(walk: Walk, seen: Seen) -> Walk:
    """With what the watch has seen."""
    kind = beside(walk)
    if kind is None or seen.watched is None:
        return walk
    watch = walk.watch or Watch(beside=kind)
    return replace(walk, watch=watch.after(seen.watched, walk.policy.verdict, sticky=bool(walk.policy.sticky)))


def _slower(walk: Walk) -> float:
    """Log evidence of the watch that the version's answers take longer."""
    harm = {} if walk.watch is None else walk.watch.log_harm(walk.policy.verdict)
    return harm.get(Check.LATENCY, 0.0)


def _why_slower(walk: Walk) -> str:
    return "" if walk.watch is None else walk.watch.slower


def _experiment_harm(walk: Walk) -> float:
    """Log e-value that the version fails more often than stable, where the router gave it its share by chance."""
    _, failed = _arm(walk, candidate=True)
    _, others = _arm(walk, candidate=False)
    return log_evidence([Segment(walk.share, failed, failed + others)], tolerance=walk.policy.verdict.tolerance)
