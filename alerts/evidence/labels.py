"""Quality by labels as late as they come: what a release's labelled predictions have come to.

The labels of a feed are numbered; those up to `read` are counted, so that none counts twice, whatever restarts. The
loss and its tolerance are those that the evidence began with: a bet does not change its terms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from alerts.evidence.losses import Loss, Unfit
from alerts.evidence.quality import ArmsBet, Bet, paired
from alerts.evidence.verdict import VerdictPolicy, bounded_exp


@dataclass(frozen=True, slots=True)
class Labelled:
    """A labelled prediction; `propensity` is the probability of the canary at its request.

    Of a shadow's it is the candidate's, and `other` what the stable version answered to the same request.
    """

    number: int
    canary: bool
    propensity: float
    prediction: float
    label: float
    other: float | None = None


@dataclass(frozen=True, slots=True)
class Losses:
    """Labels of a version, and the sum of their losses."""

    labels: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float:
        """0 without labels."""
        return self.total / self.labels if self.labels else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """The losses of candidate and stable version, and the bets on them. `begun` makes one that has seen nothing.

    Of pairs there is a bet that the candidate is worse by more than the tolerance, `pairs`, and one that it is not,
    `safe`; of two arms the first only, `arms`. Losses are shares of the loss' bound. `unfit` are labelled predictions
    that the loss says nothing of.
    """

    loss: Loss
    tolerance: float
    read: int = 0
    candidate: Losses = Losses()
    stable: Losses = Losses()
    unfit: int = 0
    pairs: Bet | None = None
    safe: Bet | None = None
    arms: ArmsBet | None = None

    @staticmethod
    def begun(policy: VerdictPolicy, *, of_pairs: bool, read: int = 0) -> Quality | None:
        """Nothing counted yet; None where the policy names no loss."""
        loss = policy.labelled_loss
        if loss is None:
            return None
        tolerance = policy.quality_tolerance / loss.bound
        return Quality(
            loss=loss, tolerance=tolerance, read=read,
            pairs=paired(tolerance) if of_pairs else None,
            # That -d is above -tolerance on average: a bet that nobody wins with a candidate that is worse by it.
            safe=paired(-tolerance) if of_pairs else None,
            arms=None if of_pairs else ArmsBet(tolerance=tolerance),
        )  # fmt: skip

    @property
    def log_harm(self) -> float:
        """Log e-value that the candidate is worse by more than the tolerance."""
        bet = self.pairs or self.arms
        return bet.log_wealth if bet is not None else 0.0

    @property
    def log_safety(self) -> float:
        """Log e-value that it is not; 0 of two arms."""
        return self.safe.log_wealth if self.safe is not None else 0.0

    def after(self, rows: Iterable[Labelled]) -> Quality:
        """With further labels; those that are counted already are left out."""
        candidate, stable, read, unfit = self.candidate, self.stable, self.read, self.unfit
        differences: list[float] = []
        parts: list[tuple[float, bool, float]] = []
        for row in rows:
            if row.number <= read:
                continue
            read = row.number
            try:
                loss = self.loss(row.prediction, row.label)
                beside = None if row.other is None else self.loss(row.other, row.label)
            except Unfit:
                unfit += 1
                continue
            if self.pairs is not None and beside is not None:
                candidate, stable = _plus(candidate, loss), _plus(stable, beside)
                differences.append(loss - beside)
            elif self.arms is not None and beside is None and 0.0 < row.propensity < 1.0:
                parts.append((loss, row.canary, row.propensity))
                if row.canary:
                    candidate = _plus(candidate, loss)
                else:
                    stable = _plus(stable, loss)
        return replace(
            self, read=read, candidate=candidate, stable=stable, unfit=unfit,
            pairs=None if self.pairs is None else self.pairs.after(differences),
            safe=None if self.safe is None else self.safe.after([-d for d in differences]),
            arms=None if self.arms is None else self.arms.after(parts),
        )  # fmt: skip

    def words(self) -> str:
        """What was found, in one sentence without its end."""
        bound = self.loss.bound
        what = "pairs have" if self.pairs is not None else "predictions of the candidate have"
        beside = "" if self.pairs is not None else f" (and {self.stable.labels} of the stable version)"
        unfit = f"; the loss says nothing of {self.unfit} further ones" if self.unfit else ""
        safety = f", that it is not {bounded_exp(self.log_safety):.3g}" if self.safe is not None else ""
        return (
            f"{self.candidate.labels} {what} labels{beside}: the mean {self.loss.name} loss of the candidate is "
            f"{self.candidate.mean * bound:.4g}, of the stable version {self.stable.mean * bound:.4g} (e-value that it "
            f"is worse by more than {self.tolerance * bound:g}: {bounded_exp(self.log_harm):.3g}{safety}){unfit}"
        )

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> Quality:
        """Of the object that `dataclasses.asdict` gives. TypeError or KeyError for what is none."""
        bets = {name: None if body[name] is None else Bet(**body[name]) for name in ("pairs", "safe")}
        arms = None if body["arms"] is None else ArmsBet(**body["arms"])
        return Quality(
            loss=Loss(**body["loss"]), tolerance=body["tolerance"], read=body["read"], unfit=body["unfit"],
            candidate=Losses(**body["candidate"]), stable=Losses(**body["stable"]), arms=arms, **bets,
        )  # fmt: skip


def _plus(losses: Losses, loss: float) -> Losses:
    return Losses(losses.labels + 1, losses.total + loss)
