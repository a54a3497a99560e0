"""What people decide on a release: approve, pause, resume, abort; functions of the walk and of what is in force."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from alerts.releases.guard import concluded, promoted
from alerts.releases.policy import CanaryStep
from alerts.releases.progress import enter, onwards, rolled
from alerts.releases.sight import Seen
from alerts.releases.walk import ACTING, Held, Phase, Walk


@dataclass(frozen=True, slots=True)
class Deed:
    """What a person does to a release: approve, pause, resume or abort; who, and why.

    `override` is why an open blessing does not matter, of those who approve; None takes the reason for it.
    """

    name: Literal["approve", "pause", "resume", "abort"]
    actor: str
    reason: str = ""
    override: str | None = None


class NotNow(ValueError):
    """What a person asks for does not fit to where the release is."""


def decided(walk: Walk, seen: Seen, deed: Deed) -> Walk:
    """The walk after what a person did. Raises NotNow."""
    match deed.name:
        case "approve":
            return approved(walk, seen, deed.actor, deed.reason if deed.override is None else deed.override)
        case "pause":
            return paused(walk, deed.actor, deed.reason)
        case "resume":
            return resumed(walk, seen, deed.actor)
        case "abort":
            return aborted(walk, seen, deed.actor, deed.reason)


def approved(walk: Walk, seen: Seen, actor: str, override: str = "") -> Walk:
    """A person lets a held release go on. Raises NotNow.

    A watch after the promotion ends. A blessing that is open needs a reason to be overridden. From a deadline it goes
    on to the next step: that is this person's decision, not the evidence's. Proved harm is not approved.
    """
    _not_over(walk)
    if walk.phase is Phase.GUARDING and seen.page is not None:
        return concluded(replace(walk, actor=actor, paused=""), seen, actor)
    if walk.phase is not Phase.HELD or walk.held is None:
        raise NotNow(f"the release waits for nobody: it is {walk.phase.value} at {walk.place}")
    if walk.held is Held.HARM:
        raise NotNow("harm is proved: abort the release, or promote the version by hand if you must")
    if seen.page is None:
        raise NotNow("serving does not answer, so what is in force is not known: try again later")
    decided = replace(walk, actor=actor, paused="")
    if walk.held is Held.BLESSING:
        if not override:
            raise NotNow("the blessing is open: give the reason to override it (--override REASON)")
        if walk.blessing is not None and not walk.blessing.may_be_overridden:
            raise NotNow(f"a version that does not load or answer cannot be released: {walk.blessing.reason}")
        return enter(replace(decided, override=override), seen, f"{actor} overrode the blessing: {override}")
    if walk.held is Held.ACTION:
        return resumed(decided, seen, actor)
    return onwards(decided, seen, actor)


def paused(walk: Walk, actor: str, reason: str = "") -> Walk:
    """A person stops the walk where it is; proved harm still rolls it back. Raises NotNow."""
    _not_over(walk)
    if walk.paused:
        raise NotNow(f"it is paused already: {walk.paused}")
    return replace(walk, paused=f"{actor} paused it" + (f": {reason}" if reason else ""))


def resumed(walk: Walk, seen: Seen, actor: str) -> Walk:
    """The walk goes on from what is in force; what its step needs is counted anew. Raises NotNow.

    A weight that a person set stands: the walk goes on at the last step that gives no more than that.
    """
    _not_over(walk)
    if not walk.paused and not (walk.phase is Phase.HELD and walk.held in (Held.ACTION, Held.DEADLINE)):
        raise NotNow(f"it is not paused: it is {walk.phase.value} at {walk.place}")
    if walk.held is Held.GATE or walk.held is Held.BLESSING or walk.held is Held.HARM:
        return replace(walk, paused="")  # held it stays: what it waits for is an approval
    if walk.phase is Phase.BLESSING:
        return replace(walk, paused="")
    if seen.page is None:
        raise NotNow("serving does not answer, so what is in force is not known: try again later")
    if walk.phase is Phase.GUARDING or (walk.promoted and walk.phase in ACTING):
        return replace(walk, paused="")
    walk = replace(walk, paused="", held=None, actor=actor)
    page = seen.page
    if walk.promoted:
        return promoted(walk, seen, f"{actor} let it go on")
    if not walk.live:
        shared = page.shadows.get(walk.version, 0.0)
        if walk.shadowed and shared > 0:
            return _watched(replace(walk, share=shared), seen)
        return enter(replace(walk, shadowed=False, share=0.0), seen, f"{actor} let it go on")
    if page.release != walk.release and page.stable != walk.version:
        return rolled(walk, seen, f"release {walk.release} is no longer in progress at serving")
    if not isinstance(walk.current, CanaryStep) and page.arms.get(walk.version, 0.0) in (0.0, walk.share):
        return _watched(walk, seen) if walk.phase not in ACTING else walk
    share = page.arms.get(walk.version, 0.0)
    steps = walk.policy.steps
    reached = [n for n, step in enumerate(steps) if isinstance(step, CanaryStep) and step.weight <= share + 5e-5]
    first = next((n for n, step in enumerate(steps) if isinstance(step, CanaryStep)), walk.step)
    if not reached:
        return enter(replace(walk, step=first, share=share), seen, f"{actor} let it go on")
    return _watched(replace(walk, step=reached[-1], share=share), seen)


def aborted(walk: Walk, seen: Seen, actor: str, reason: str = "") -> Walk:
    """All traffic goes back to stable, at a person's word. Raises NotNow."""
    _not_over(walk)
    why = f"{actor} aborted it" + (f": {reason}" if reason else "")
    return rolled(replace(walk, actor=actor, approved=True, paused=""), seen, why)


def _watched(walk: Walk, seen: Seen) -> Walk:
    assert seen.page is not None
    return replace(
        walk, phase=Phase.WATCHING, entered_at=seen.now, mark=-1.0, totals=(), counted=False, watch=None, tries=0,
        generation=seen.page.generation,
    )  # fmt: skip


def _not_over(walk: Walk) -> None:
    if walk.ended:
        raise NotNow(f"the release is over: {walk.phase.value} ({walk.reason})")
