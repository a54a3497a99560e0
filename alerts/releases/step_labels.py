"""What labels say of the steps that the judge does not judge: of a shadow's pairs, and of an experiment's arms."""

from __future__ import annotations

from dataclasses import replace

from alerts.evidence import Quality
from alerts.evidence.verdict import bounded_exp
from alerts.releases.policy import ExperimentStep, ShadowStep
from alerts.releases.sight import Seen
from alerts.releases.walk import Phase, Walk
from collectors.releases import feed_of


def feed(walk: Walk) -> str:
    """The feed of the labels that the step counts itself; "" where the judge does, or the policy names no loss."""
    if not walk.policy.verdict.loss or walk.promoted or walk.phase not in (Phase.WATCHING, Phase.HELD):
        return ""
    match walk.current:
        case ShadowStep():
            return feed_of(str(walk.version))
        case ExperimentStep(sticky=""):  # of units that keep their arm no request says anything by itself
            return walk.release
        case _:
            return ""


def with_labels(walk: Walk, seen: Seen) -> Walk:
    """With the labels that have come since. A shadow's from before the step are not the step's."""
    if seen.labels is None or not feed(walk):
        return walk
    of_pairs = isinstance(walk.current, ShadowStep)
    quality = walk.quality
    if quality is None:
        read = seen.labels.end if of_pairs else 0
        quality = Quality.begun(walk.policy.verdict, of_pairs=of_pairs, read=read)
    if quality is None:
        return walk
    quality = quality.after(seen.labels.labelled(str(walk.version)))
    return walk if quality == walk.quality else replace(walk, quality=quality)


def log_harm(walk: Walk) -> float:
    """Log e-value that the version's predictions are worse than the policy tolerates."""
    return 0.0 if walk.quality is None else walk.quality.log_harm


def shadow_harm(walk: Walk) -> str:
    """Why a shadow's pairs prove harm; "" while they do not."""
    harm = bounded_exp(log_harm(walk))
    if walk.quality is None or harm < 1.0 / walk.policy.verdict.alpha:
        return ""
    return f"harm is proved (e-value {harm:.3g}): {walk.quality.words()}"


def shadow_needs(walk: Walk, step: ShadowStep) -> list[str]:
    """What a shadow's labels still lack, in words."""
    if not step.min_labels:
        return []
    labels = 0 if walk.quality is None else walk.quality.candidate.labels
    proof = 1.0 if walk.quality is None else bounded_exp(walk.quality.log_safety)
    wanted, lacking = 1.0 / walk.policy.verdict.beta, []
    if labels < step.min_labels:
        lacking.append(f"{step.min_labels - labels} more labelled pairs ({labels} of {step.min_labels})")
    if proof < wanted:
        tolerance = walk.policy.verdict.quality_tolerance
        lacking.append(
            f"proof by labels that it is not worse by more than {tolerance:g} (e-value {proof:.3g} of {wanted:g})"
        )
    return lacking
