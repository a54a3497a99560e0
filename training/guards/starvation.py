"""The guard against data starvation: steps that mostly wait for their data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StarvationRule:
    """The loop starves when in each of `looks` looks in a row it waited for data more than `share` of its time."""

    share: float = 0.5
    looks: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.share < 1 or self.looks < 1:
            raise ValueError(f"share {self.share} and looks {self.looks}: in (0, 1) and at least 1")


@dataclass(frozen=True, slots=True)
class StarvationState:
    """Looks in a row at which the loop starved."""

    in_a_row: int = 0


@dataclass(frozen=True, slots=True)
class Starvation:
    """The share of the time since the last look that went to waiting for data."""

    share: float
    looks: int

    @property
    def reason(self) -> str:
        """In words."""
        return f"{self.share:.0%} of the time goes to waiting for data, at {self.looks} looks in a row"


def judge_waits(
    rule: StarvationRule, state: StarvationState, waited: float, total: float
) -> tuple[StarvationState, Starvation | None]:
    """Takes in the seconds that steps waited and took since the last look; tells of starvation when it begins."""
    starves = total > 0 and waited > rule.share * total
    in_a_row = state.in_a_row + 1 if starves else 0
    found = Starvation(waited / total, in_a_row) if in_a_row == rule.looks else None
    return StarvationState(in_a_row), found
