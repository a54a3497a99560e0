"""Failures: is a release worse than the version beside it, is it good enough, and which proof of that does not count.

Everything is a function of counts, hence replayable, and a natural logarithm, since an e-value overflows a float within
minutes. The evidence of harm is `segments.log_evidence` of failures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import msgspec
import numpy as np

from alerts.evidence.native_sums import native_sums
from alerts.evidence.segments import Floats, Numbers, Segment, log_mean_exp, log_ratio_safety

SAFE_RATES: Floats = np.array([0.0, 0.0, 0.1, 0.3, 0.5, 0.5])  # relative to the largest rate still called safe

# Failures of the last minute or so say whether an incident is on.
INCIDENT_SECONDS = 60.0
# Failures that may come at once and count as proof of safety.
BURST = 20.0
# Deviations beyond which chance is no explanation.
_DEVIATIONS = 3.0


def log_rate_safety(errors: float, requests: float, max_rate: float, grid: Floats = SAFE_RATES) -> float:
    """Log e-value against "the canary's error rate is at least `max_rate`", from all of its requests.

    A uniform mixture of Bernoulli likelihood ratios of smaller rates (`grid` times `max_rate`) against `max_rate`; the
    likelihood ratio is monotone, so it holds for every larger rate too. It works without a single error: at 1 % about
    600 clean requests reach 100. ValueError for an impossible rate or impossible counts.
    """
    if not 0.0 < max_rate < 1.0:
        raise ValueError(f"max_rate is a probability within (0, 1), got {max_rate}")
    if not 0 <= errors <= requests:
        raise ValueError(f"errors must lie within requests, got {errors} of {requests}")
    clean = requests - errors
    on_errors, on_clean = _rate_bets(grid.tobytes(), max_rate)
    native = native_sums()
    if native is not None and len(on_clean) <= native.MOST:
        return native.rate_mixture(errors, clean, on_errors, on_clean)
    if not errors:  # 0 times infinity is no number
        return log_mean_exp([clean * good for good in on_clean])
    return log_mean_exp([errors * bad + clean * good for bad, good in zip(on_errors, on_clean, strict=True)])


def log_safety(
    segments: Sequence[Segment], errors: float, requests: float, *, max_rate: float, max_ratio: float
) -> float:
    """Log e-value against "the canary fails at `max_rate` or more, and at `max_ratio` times the stable rate or more".

    The mean of the two e-processes of rate and ratio, which is one for the meeting of their hypotheses: a release is
    proved safe when it fails seldom, or no more often than its neighbour does. `segments` are the `calm` failures.
    """
    return mean_safety(log_rate_safety(errors, requests, max_rate), log_ratio_safety(segments, max_ratio))


def mean_safety(absolute: float, relative: float) -> float:
    """The logarithm of the mean of two e-values, by their logarithms."""
    highest, lowest = max(absolute, relative), min(absolute, relative)
    return highest + math.log1p(math.exp(lowest - highest)) - math.log(2.0)


class Recent(msgspec.Struct, frozen=True):
    """Requests and failures of both arms of late: those of `INCIDENT_SECONDS` ago count 1/e. `at` is unix seconds.

    `allowance` is how many failures may still count as proof of safety: it grows with the requests.
    """

    at: float = 0.0
    requests: float = 0.0
    errors: float = 0.0
    allowance: float = BURST

    def incident(self, rate: float) -> bool:
        """Whether more requests fail of late than `rate`, beyond chance."""
        return _beyond(self.errors, self.requests, rate)


def calm(
    recent: Recent, at: float, requests: float, errors: float, *, normal_rate: float, incident_rate: float
) -> tuple[Recent, float]:
    """How much a look's failures count as proof that the canary fails no more often than its neighbour, 0 to 1.

    When a common cause fails both arms, hundreds of failures come at once, evenly: proof within seconds that the canary
    is no worse, and worth nothing, since they say what the cause does and not what the candidate does. So nothing of a
    look counts while more than `incident_rate` fails, in it or of late, and never more failures than requests at
    `normal_rate` make, besides `BURST`. Both depend on the sum of the arms alone; given that, whose each failure is
    stays as probable as it was, so that what is left is an e-process still: its factors are likelihood ratios to a
    power that was known before (Jensen). `recent` goes in as it was before the look and comes back as it is after.
    """
    kept = math.exp(-max(at - recent.at, 0.0) / INCIDENT_SECONDS)
    late_requests, late_errors = recent.requests * kept + requests, recent.errors * kept + errors
    allowance = recent.allowance + normal_rate * requests
    if not errors:
        share = 1.0
    elif _beyond(errors, requests, incident_rate) or _beyond(late_errors, late_requests, incident_rate):
        share = 0.0
    else:
        share = min(1.0, allowance / errors)
    return Recent(at, late_requests, late_errors, min(allowance - share * errors, BURST)), share


def _beyond(errors: float, requests: float, rate: float) -> bool:
    expected = rate * requests
    return errors > expected + _DEVIATIONS * math.sqrt(expected) + 1.0


@lru_cache(maxsize=64)
def _rate_bets(grid: bytes, max_rate: float) -> tuple[Numbers, Numbers]:
    """What a failure and a success add to each log likelihood ratio."""
    rates = [share * max_rate for share in np.frombuffer(grid).tolist()]
    failure = tuple(math.log(rate / max_rate) if rate else -math.inf for rate in rates)
    return failure, tuple(math.log1p(-rate) - math.log1p(-max_rate) for rate in rates)
