"""What histograms of a release have counted since the look before, over restarts of the server."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from alerts.evidence.exceedances import Slow, exceedances
from alerts.evidence.totals import CANARY

Cumulative = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Histogram:
    """One series of a histogram as it reads now: `bounds` in seconds without `+Inf`, `cumulative` one longer."""

    series: str
    arm: str
    propensity: float
    bounds: Cumulative
    cumulative: Cumulative


def histograms(buckets: Iterable[tuple[str, str, float, str, float]]) -> list[Histogram]:
    """Of (series, arm, propensity, le, value), in any order; those without a bucket `+Inf` are left out."""
    found: dict[tuple[str, str, float], dict[float, float]] = {}
    for series, arm, propensity, le, value in buckets:
        try:
            bound = float(le)
        except ValueError:
            continue
        found.setdefault((series, arm, propensity), {})[bound] = value
    made = []
    for (series, arm, propensity), values in sorted(found.items()):
        bounds = sorted(values)
        if bounds[-1] == math.inf:
            made.append(
                Histogram(series, arm, propensity, tuple(bounds[:-1]), tuple(values[bound] for bound in bounds))
            )
    return made


def grown(
    now: Sequence[Histogram], before: Mapping[str, Cumulative]
) -> tuple[Cumulative, tuple[Slow, ...], dict[str, Cumulative]]:
    """The bounds, requests in all and above each since `before`, and what to give as `before` at the next look.

    A series that fell was restarted from 0, one that is absent keeps its values. Series with other bounds than the
    first one's are left out: two servers that run different releases of Trimtab.
    """
    last = dict(before)
    bounds = now[0].bounds if now else ()
    canary: dict[float, list[float]] = {}
    stable: dict[float, list[float]] = {}
    for histogram in now:
        known = last.get(histogram.series, ())
        if histogram.bounds != bounds or (known and len(known) != len(histogram.cumulative)):
            continue
        values = histogram.cumulative
        fell = not known or any(a < b for a, b in zip(values, known, strict=True))
        more = values if fell else tuple(a - b for a, b in zip(values, known, strict=True))
        last[histogram.series] = values
        arm = canary if histogram.arm == CANARY else stable
        # Behind the bounds all requests, which exceed none.
        sums = arm.setdefault(histogram.propensity, [0.0] * (len(bounds) + 1))
        for place, count in enumerate((*exceedances(more), more[-1])):
            sums[place] += count
    zeros = [0.0] * (len(bounds) + 1)
    slow = []
    for propensity in sorted({*canary, *stable}):
        (*mine, asked), (*others, asked_others) = canary.get(propensity, zeros), stable.get(propensity, zeros)
        slow.append(Slow(propensity, tuple(mine), tuple(others), asked, asked_others))
    return bounds, tuple(part for part in slow if part.canary_requests or part.stable_requests), last
