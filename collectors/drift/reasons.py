"""Why a column is said to have drifted or not, in words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from collectors.drift.comparison import Sides, share_of
from collectors.drift.judged import AutoVerdict

_SAID = {
    "no_values": "the current table has no values",
    "no_reference_values": "the reference has no values",
    "too_few_rows": "too few rows to judge",
    "within_threshold": "within threshold",
    "constant": "one value in both tables",
    "missing_changed": "",
    "drifted": "drifted",
}


def plain(drifted: bool) -> str:
    """What is said of a column with values enough on both sides, and nothing else to tell."""
    return "drifted" if drifted else "within threshold"


def is_plain(reason: str) -> bool:
    """Whether a reason says no more than the verdict does."""
    return reason in ("", plain(True)) or bool(re.fullmatch(rf"{plain(False)}( \(by its [^;]*\))?", reason))


def told(
    automatic: AutoVerdict,
    drifted: bool | None,
    count: Sides[int],
    rows: Sides[int],
    infinite: Sides[int],
    infinite_changed: bool,
    notes: Sequence[str] = (),
) -> str:
    """All that there is to say; `drifted` is what the method found, None where it could not judge."""
    if not count.reference and not count.current:
        said = [f"neither table has a {'finite ' if infinite.reference or infinite.current else ''}value"]
    elif count.reference and not count.current and infinite.current:
        said = ["the current table has no finite values"]
    elif count.current and not count.reference and infinite.reference:
        said = ["the reference has no finite values"]
    elif drifted is None and count.reference and count.current:
        said = ["not judged by this method"]
    elif drifted is None or automatic.reason in ("too_few_rows", "constant"):
        said = ["drifted" if drifted else _SAID[automatic.reason]]
    else:
        said = [plain(drifted)]
    if automatic.part is not None and drifted is not None:
        said[0] += f" (by its {automatic.part})"
    if automatic.missing_changed:
        said.append(f"missing went from {automatic.reference_missing:.1%} to {automatic.window_missing:.1%}")
    if infinite.reference or infinite.current:
        before, now = share_of(infinite.reference, rows.reference), share_of(infinite.current, rows.current)
        change = f"went from {before:.2%} to {now:.2%}" if infinite_changed else f"{before:.2%} and {now:.2%}"
        said.append(f"infinite {change}")
    return "; ".join([*(word for word in said if word), *notes])
