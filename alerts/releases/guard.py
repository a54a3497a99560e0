"""A walk after its promotion: a part of the requests is held back, the version is watched, and then let go."""

from __future__ import annotations

import math
from dataclasses import replace

from alerts.durations import format_duration
from alerts.evidence.verdict import bounded_exp
from alerts.releases.policy import AfterPromotion
from alerts.releases.sight import Page, Seen, close
from alerts.releases.turns import begun, over
from alerts.releases.walk import Phase, Walk
from alerts.releases.watch import Beside, Watch


def promoted(walk: Walk, seen: Seen, reason: str) -> Walk:
    """The version is stable: what the policy wants after that."""
    after = walk.policy.after_promotion
    if after is None:
        return over(walk, seen, Phase.PROMOTED, reason)
    walk = replace(
        walk, promoted_at=seen.now, share=1.0, watch=None, totals=(), counted=False, mark=-1.0, reason=reason
    )  # fmt: skip
    return begun(walk, seen, Phase.ENTERING, reason) if after.hold_back else guarding(walk, seen)


def guarding(walk: Walk, seen: Seen) -> Walk:
    """From now on it is watched."""
    beside = Beside.HOLD_BACK if _after(walk).hold_back else Beside.USUAL
    return replace(
        walk, phase=Phase.GUARDING, held=None, tries=0, retry_at=0.0, entered_at=seen.now, watch=Watch(beside=beside)
    )  # fmt: skip


def guarded(walk: Walk, seen: Seen) -> Walk:
    """After a look that found nothing against it: at the end of the time the hold-back ends."""
    if seen.now - walk.entered_at < _after(walk).seconds or seen.page is None:
        return walk
    return concluded(walk, seen, "")


def concluded(walk: Walk, seen: Seen, who: str) -> Walk:
    """The watch ends; `who` says so, "" is the policy."""
    because = (
        f"{who} ended the watch"
        if who
        else f"its {format_duration(round(_after(walk).seconds))} are over without an alarm"
    )
    because += f": {standing(walk)}"
    if _after(walk).hold_back:
        return begun(walk, seen, Phase.LEAVING, because)
    return over(walk, seen, Phase.PROMOTED, because)


def alarm(walk: Walk) -> str:
    """Why the version goes back, "" while nothing is proved."""
    watch, policy = walk.watch, walk.policy.verdict
    if watch is None or watch.log_evidence(policy) < math.log(_after(walk).threshold):
        return ""
    return f"it became worse after its promotion ({standing(walk)})"


def standing(walk: Walk) -> str:
    """What the watch has found, in words."""
    watch, after = walk.watch, _after(walk)
    if watch is None or not watch.begun:
        return "nothing is counted yet"
    found = bounded_exp(watch.log_evidence(walk.policy.verdict))
    return f"{watch.why(walk.policy.verdict)}; evidence {found:.3g} of {after.threshold:.3g}"


def at_serving(walk: Walk, seen: Seen, page: Page) -> Walk | None:
    """What became of a promoted version at serving, by whomever; None where nothing follows."""
    wrong = differs(walk, page)
    if wrong:
        return None if walk.phase is Phase.ROLLING_BACK else over(walk, seen, Phase.PROMOTED, f"{wrong}: no watch more")
    if walk.phase is Phase.LEAVING and not page.hold_back:
        return over(walk, seen, Phase.PROMOTED, walk.reason)
    kept = walk.phase is Phase.GUARDING or walk.phase is Phase.HELD
    if kept and not close(page.hold_back, _after(walk).hold_back):
        why = f"{page.hold_back * 100:.4g} % of the requests are held back, not {_after(walk).hold_back * 100:.4g} %"
        return over(walk, seen, Phase.PROMOTED, f"{why}: somebody changed it")
    return replace(walk, generation=page.generation) if kept else None


def differs(walk: Walk, page: Page) -> str:
    """Why the version is not the one to watch any more, "" while it is."""
    if page.stable != walk.version:
        return f"version {page.stable} is stable, not {walk.version}"
    return f"release {page.release} has begun" if page.release else ""


def _after(walk: Walk) -> AfterPromotion:
    assert walk.policy.after_promotion is not None
    return walk.policy.after_promotion
