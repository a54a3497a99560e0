"""What a case found against what it expected: exactly equal or, if asked for, within the last bit."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence

from alerts.labels import Labels
from alerts.rule_tests.document import ExpectedAlert
from alerts.templates.printing import exponent_text, quoted

Samples = Sequence[tuple[Labels, float]]


def same_alerts(expected: Sequence[ExpectedAlert], got: Sequence[ExpectedAlert]) -> bool:
    """Whether the alerts are the same, in any order."""
    return _sorted(expected) == _sorted(got)


def same_samples(expected: Samples, got: Samples, *, fuzzy: bool) -> bool:
    """Whether the samples are the same, in any order. As in promtool NaN equals nothing."""
    pairs = zip(sorted(expected, key=_labels), sorted(got, key=_labels), strict=False)
    return len(expected) == len(got) and all(
        want[0] == have[0] and _same(want[1], have[1], fuzzy=fuzzy) for want, have in pairs
    )


def alerts_text(alerts: Sequence[ExpectedAlert]) -> str:
    """Alerts as promtool shows them."""
    if not alerts:
        return "[]"
    lines = ["["]
    for place, alert in enumerate(_sorted(alerts)):
        end = "," if place < len(alerts) - 1 else ""
        lines += [f"    {place}:", f"      Labels:{labels_text(alert.labels)}"]
        lines += [f"      Annotations:{labels_text(alert.annotations)}{end}"]
    return "\n".join([*lines, "]"])


def samples_text(samples: Samples) -> str:
    """Samples as promtool shows them."""
    return (
        ", ".join(f"{labels_text(labels)} {_number(value)}" for labels, value in sorted(samples, key=_labels)) or "nil"
    )


def difference(expected: str, got: str) -> str:
    """The lines that differ, with - before what was expected and + before what came."""
    lines = difflib.unified_diff(expected.splitlines(), got.splitlines(), "expected", "got", lineterm="", n=1)
    return "\n".join(lines)


def labels_text(labels: Labels) -> str:
    """A label set in braces."""
    return "{" + ", ".join(f"{name}={quoted(value)}" for name, value in labels) + "}"


def _sorted(alerts: Sequence[ExpectedAlert]) -> list[ExpectedAlert]:
    return sorted(alerts, key=lambda alert: (alert.labels, alert.annotations))


def _labels(sample: tuple[Labels, float]) -> Labels:
    return sample[0]


def _same(left: float, right: float, *, fuzzy: bool) -> bool:
    return left == right or (fuzzy and right in (math.nextafter(left, -math.inf), math.nextafter(left, math.inf)))


def _number(value: float) -> str:
    return exponent_text(value).upper() if math.isfinite(value) else exponent_text(value)
