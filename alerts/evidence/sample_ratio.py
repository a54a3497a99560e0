"""Whether the arms got the shares that the router says: a split that is off voids every comparison of them.

Requests go missing when one arm loses, repeats or redirects some of them, and then those that are left are not alike.
Source: Lindon & Malek, NeurIPS 2022 (there for any number of arms), and Fabijan et al., KDD 2019, for what it finds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

from alerts.evidence.native_sums import native_sums

# So many requests the prior counts for: the test is most sensitive where about as many have come, as in `savvi`.
PRIOR = 100.0


def log_split_evidence(segments: Iterable[tuple[float, float, float]], prior: float = PRIOR) -> float:
    """Log e-value against "each request went to the canary with the logged probability", two-sided.

    `segments` are (propensity rho, canary requests, stable requests). Each has a Beta(k rho, k (1 - rho)) mixture of
    likelihood ratios, `ln B(k rho + c, k (1 - rho) + s) - ln B(k rho, k (1 - rho)) - c ln rho - s ln (1 - rho)`;
    segments are apart in time, so that their product is an e-process. Under sticky routing count units by their first
    request. Infinite when a request went where none could go. ValueError for an impossible probability or count.
    """
    routed, impossible = [], False
    for row in segments:
        rho, canary, stable = row
        if not 0.0 <= rho <= 1.0 or canary < 0 or stable < 0:
            raise ValueError(f"propensity is a probability and counts are at least 0, got {rho}, {canary}, {stable}")
        if 0.0 < rho < 1.0:
            routed.append(row)
        elif stable if rho else canary:
            impossible = True
    if impossible:
        return math.inf
    native = native_sums()
    if native is not None and len(routed) <= native.MOST:
        return math.fsum(native.split_terms(routed, prior))
    return math.fsum([_log_beta_binomial(rho, canary, stable, prior) for rho, canary, stable in routed])


def _log_beta_binomial(rho: float, canary: float, stable: float, prior: float) -> float:
    a, b = prior * rho, prior * (1.0 - rho)
    lgamma = math.lgamma
    after = lgamma(a + canary) + lgamma(b + stable) - lgamma(prior + canary + stable)
    return after - _at_first(a, b) - canary * math.log(rho) - stable * math.log1p(-rho)


@lru_cache(maxsize=1024)
def _at_first(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
