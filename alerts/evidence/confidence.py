"""Confidence sequences: how large a rate, a mean or a whole distribution is, at every time at once.

They say in a verdict what the counts are worth; verdicts themselves rest on e-processes. Sources: Howard, Ramdas,
McAuliffe & Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences", Annals of Statistics 49(2), 2021;
Howard & Ramdas, "Sequential estimation of quantiles", Bernoulli 28(3), 2022. The numbers equal those of the authors'
`confseq`.
"""

from __future__ import annotations

import math
from functools import lru_cache

from scipy.optimize import brentq, minimize_scalar

# The widths are best after about so many observations.
TUNED_FOR = 1000.0
_TUNED_ALPHA = 0.05


@lru_cache(maxsize=4096)
def rate_interval(
    events: float, trials: float, alpha: float = 0.05, tuned_for: float = TUNED_FOR
) -> tuple[float, float]:
    """Lower and upper end of a rate, (0, 1) without trials. ValueError for impossible counts.

    All rates that the two-sided beta-binomial mixture does not refute at `alpha`.
    """
    if not 0 <= events <= trials:
        raise ValueError(f"events must lie within trials, got {events} of {trials}")
    if trials == 0:
        return 0.0, 1.0
    limit, share = -math.log(alpha), events / trials

    def excess(rate: float) -> float:
        scale = rate * (1.0 - rate)
        off = events - trials * rate
        rho = _rho(scale * tuned_for, _TUNED_ALPHA)
        return log_beta_binomial(off, scale * trials, rho, rate, 1.0 - rate) - limit

    tiny = 1e-12
    inside = min(max(share, tiny), 1.0 - tiny)
    low = float(brentq(excess, tiny, inside)) if events > 0 and excess(tiny) > 0 else 0.0
    high = float(brentq(excess, inside, 1.0 - tiny)) if events < trials and excess(1.0 - tiny) > 0 else 1.0
    return low, high


def log_beta_binomial(s: float, v: float, rho: float, g: float, h: float) -> float:
    """Logarithm of the two-sided beta-binomial mixture of a sum `s` of steps in [-g, h], with intrinsic time `v`."""
    r = max(rho - g * h, 1e-3 * g * h)
    return (
        v / (g * h) * math.log(g + h)
        - (v + h * s) / (h * (g + h)) * math.log(g)
        - (v - g * s) / (g * (g + h)) * math.log(h)
        + _log_beta((r + v - g * s) / (g * (g + h)), (r + v + h * s) / (h * (g + h)))
        - _log_beta(r / (g * (g + h)), r / (h * (g + h)))
    )


def beta_binomial_bound(v: float, alpha: float, tuned_v: float, g: float, h: float) -> float:
    """The sum that the mixture above refutes at `alpha` at intrinsic time `v`, tuned for the time `tuned_v`."""
    rho, limit = _rho(tuned_v, _TUNED_ALPHA), -math.log(alpha)
    most = v / g * (1.0 - 1e-12)
    return float(brentq(lambda s: log_beta_binomial(s, v, rho, g, h) - limit, 0.0, most))


def log_normal_mixture(s: float, v: float, tuned_v: float, alpha: float = _TUNED_ALPHA) -> float:
    """Logarithm of the one-sided normal mixture of a sum `s` with intrinsic time `v` (variance so far)."""
    rho = _rho(tuned_v, 2.0 * alpha)
    normal = 0.5 * math.erfc(-s / math.sqrt(2.0 * (v + rho)))
    return 0.5 * math.log(4.0 * rho / (v + rho)) + s * s / (2.0 * (v + rho)) + math.log(normal)


def normal_bound(v: float, alpha: float, tuned_v: float) -> float:
    """The sum that the one-sided normal mixture refutes at `alpha` at intrinsic time `v`."""
    limit = -math.log(alpha)
    top = 10.0 * math.sqrt((v + tuned_v) * (limit + 1.0))
    return float(brentq(lambda s: log_normal_mixture(s, v, tuned_v) - limit, 0.0, top))


def distribution_band(observations: float, alpha: float = 0.05, first: float = 1.0) -> float:
    """Half the width of a band around an empirical distribution function, at all values, from `first` observations on.

    `0.85 sqrt((ln(1 + ln(t / m)) + C) / t)`, Howard & Ramdas 2022, Theorem 2. ValueError before `first`.
    """
    if observations < first or first <= 0:
        raise ValueError(f"the band begins at {first} observations, got {observations}")
    iterated = math.log1p(math.log(observations / first))
    return 0.85 * math.sqrt((iterated + _lil_constant(alpha)) / observations)


@lru_cache(maxsize=64)
def _lil_constant(alpha: float) -> float:
    """C for the factor 0.85, such that the chance to leave the band is `alpha`: 8.123 at 5 %, 9.284 at 1 %.

    inf over eta in (1, A^2 C / 2) of `4 exp(-gamma C) (1 + 1 / ((gamma - 1) ln eta))`,
    `gamma = 2 / eta (A - sqrt(2 (eta - 1) / C))^2`.
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha is a probability within (0, 1), got {alpha}")

    def chance(constant: float) -> float:
        def at(eta: float) -> float:
            gamma = 2.0 / eta * max(0.85 - math.sqrt(2.0 * (eta - 1.0) / constant), 0.0) ** 2
            if gamma <= 1.0 or eta <= 1.0:
                return 1e9 * (2.0 - gamma)
            return 4.0 * math.exp(-gamma * constant) * (1.0 + 1.0 / ((gamma - 1.0) * math.log(eta)))

        return float(minimize_scalar(at, bounds=(1.0 + 1e-9, 1.3), method="bounded", options={"xatol": 1e-12}).fun)

    return float(brentq(lambda constant: chance(constant) - alpha, 5.5, 200.0))


def _rho(tuned_v: float, alpha: float) -> float:
    """The mixture's precision that is best at intrinsic time `tuned_v`: Howard et al. 2021, Proposition 3."""
    twice = 2.0 * math.log(1.0 / alpha)
    return tuned_v / (twice + math.log1p(twice))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
