"""Distribution functions in numpy: chi-square, normal, and the limits of Kolmogorov and of Cramér and von Mises."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from collectors.drift.bins import Floats

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
_TINY = 1e-300
_EPSILON = 2.0**-54
# Terms after which a series or fraction has long converged for degrees of freedom up to some tens of millions.
_MOST_TERMS = 200_000

_erfc = np.frompyfunc(math.erfc, 1, 1)
_lgamma = np.frompyfunc(math.lgamma, 1, 1)


def normal_cdf(x: npt.ArrayLike) -> Floats:
    """`P(Z ≤ x)` for a standard normal Z: `erfc(−x / √2) / 2`, accurate in both tails."""
    return np.asarray(_erfc(-np.asarray(x, np.float64) / math.sqrt(2)), np.float64) / 2


def normal_sf(x: npt.ArrayLike) -> Floats:
    """`P(Z > x)` for a standard normal Z."""
    return normal_cdf(-np.asarray(x, np.float64))


def normal_ppf(p: npt.ArrayLike) -> Floats:
    """The standard normal's quantile at `p` (Wichura 1988, algorithm AS 241, about 1e-16); NaN outside 0 … 1."""
    p = np.asarray(p, np.float64)
    q = p - 0.5
    tail = np.where(q < 0, p, 1 - p)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        r = 0.180625 - q * q
        middle = q * _ratio(r, _MIDDLE)
        s = np.sqrt(-np.log(tail))
        outer = np.where(s <= 5, _ratio(s - 1.6, _NEAR_TAIL), _ratio(s - 5, _FAR_TAIL))
        outer = np.where(np.isinf(s), np.inf, outer)
    found = np.where(np.abs(q) <= 0.425, middle, np.where(q < 0, -outer, outer))
    return np.asarray(np.where((p >= 0) & (p <= 1), found, np.nan), np.float64)


def normal_isf(p: npt.ArrayLike) -> Floats:
    """The standard normal's value that is exceeded with probability `p`."""
    return -normal_ppf(p)


def chi2_sf(x: npt.ArrayLike, degrees: npt.ArrayLike) -> Floats:
    """`P(X > x)` for chi-square with `degrees` of freedom: the regularised upper incomplete gamma `Q(degrees/2, x/2)`.

    A series below the mean and Lentz' continued fraction above it (Press et al. 2007, Numerical Recipes, 6.2), with
    Loader's (2000) form of the factor before them: relative error about 1e-13 down to 1e-300. NaN for degrees ≤ 0.
    """
    x, degrees = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(degrees, np.float64))
    return _gamma_tails(degrees / 2, x / 2)[1]


def chi2_cdf(x: npt.ArrayLike, degrees: npt.ArrayLike) -> Floats:
    """`P(X ≤ x)` for chi-square with `degrees` of freedom, accurate near 0 too."""
    x, degrees = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(degrees, np.float64))
    return _gamma_tails(degrees / 2, x / 2)[0]


def chi2_isf(p: npt.ArrayLike, degrees: npt.ArrayLike) -> Floats:
    """The value that chi-square with `degrees` of freedom exceeds with probability `p`; NaN outside 0 … 1.

    Newton's method on the logarithm of the smaller tail, from Wilson & Hilferty's (1931) cube-root approximation.
    """
    p, degrees = np.broadcast_arrays(np.asarray(p, np.float64), np.asarray(degrees, np.float64))
    valid = (p > 0) & (p < 1) & (degrees > 0)
    goal, k = np.where(valid, p, 0.5), np.where(valid, degrees, 1.0)
    upper = goal <= 0.5
    log_goal = np.where(upper, np.log(goal), np.log1p(-goal))
    third = 2 / (9 * k)
    cube = k * (1 - third + np.sqrt(third) * normal_isf(goal)) ** 3
    # The leading term of the lower tail where the cube is not positive.
    small = 2 * np.exp((np.log1p(-goal) + _log_gamma(k / 2 + 1)) * 2 / k)
    x = np.where(cube > 0.1 * k, cube, np.where(upper, np.maximum(cube, 1e-3 * k), np.maximum(small, _TINY)))
    for _ in range(60):
        lower_tail, upper_tail = _gamma_tails(k / 2, x / 2)
        tail = np.where(upper, upper_tail, lower_tail)
        log_density = _log_factor(k / 2, x / 2) - np.log(x)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            step = (np.log(tail) - log_goal) * np.where(upper, 1.0, -1.0) * np.exp(np.log(tail) - log_density)
        # At most halved or tenfold in one step: Newton's first steps may leave the axis.
        moved = np.clip(np.where(np.isfinite(step), x + step, x / 2), x / 2, 10 * x)
        done = np.abs(moved - x) <= 1e-15 * x
        x = moved
        if done.all():
            break
    edge = np.where(p == 1, 0.0, np.where(p == 0, np.inf, np.nan))
    return np.where(valid, x, np.where(degrees > 0, edge, np.nan))


def kolmogorov_sf(x: npt.ArrayLike) -> Floats:
    """`P(K > x)` for Kolmogorov's (1933) limit of `√n D`: `2 Σ (−1)^(k−1) exp(−2k²x²)`, or its theta transform."""
    x = np.asarray(x, np.float64)
    k = np.arange(1, 13, dtype=np.float64)
    at = np.where(x > 0, x, 1.0)[..., None]
    signs = np.where(k % 2 == 1, 2.0, -2.0)
    with np.errstate(under="ignore"):
        far = np.sum(signs * np.exp(-2 * (k * at) ** 2), axis=-1)
        near = math.sqrt(2 * math.pi) / at[..., 0] * np.sum(np.exp(-(((2 * k - 1) * math.pi / at) ** 2) / 8), axis=-1)
    found = np.clip(np.where(at[..., 0] > 1, far, 1 - near), 0, 1)
    return np.asarray(np.where(np.isnan(x), np.nan, np.where(x > 0, found, 1.0)), np.float64)


def cramer_von_mises_sf(x: npt.ArrayLike) -> Floats:
    """`P(W² > x)` for the limit of Cramér–von Mises' statistic, by Smirnov's (1936) alternating integrals.

    `(2/π) Σ (−1)^(k−1) ∫ √(−u / sin u) exp(−xu²/2) du / u` over `(2k−1)π … 2kπ`. Both ends are singular like
    Chebyshev's weight, which Gauss–Chebyshev nodes take exactly; the far tail keeps a relative accuracy of 1e-12.
    """
    x = np.asarray(x, np.float64)
    flat = np.array([_cramer_von_mises_tail(float(value)) for value in x.ravel()], np.float64)
    return flat.reshape(x.shape)


def _cramer_von_mises_tail(x: float) -> float:
    if math.isnan(x):
        return math.nan
    if x < 0.003:  # The distribution function is below 1e-17 there.
        return 1.0
    terms = math.ceil(math.sqrt(80 / x) / (2 * math.pi)) + 1
    nodes = 64 + 16 * math.ceil(math.sqrt(x))
    angle = (2 * np.arange(1, nodes + 1) - 1) * (math.pi / (2 * nodes))
    # Distances from the interval's lower end, and −sin u from its nearer end, without cancellation.
    above = math.pi * np.cos(angle / 2) ** 2
    weight = np.sin(angle) / np.sqrt(np.sin(np.minimum(above, math.pi * np.sin(angle / 2) ** 2)))
    u = (2 * np.arange(1, terms + 1)[:, None] - 1) * math.pi + above
    with np.errstate(under="ignore"):
        integrals = np.sum(weight * np.exp(-x * u * u / 2) / np.sqrt(u), axis=1) * (math.pi / nodes) * (math.pi / 2)
    signs = np.where(np.arange(terms) % 2 == 0, 1.0, -1.0)
    return float(min(max(2 / math.pi * np.sum(signs * integrals), 0.0), 1.0))


def _gamma_tails(a: Floats, x: Floats) -> tuple[Floats, Floats]:
    """Regularised lower and upper incomplete gamma, `P(a, x)` and `Q(a, x)`."""
    lower, upper = np.full(a.shape, np.nan), np.full(a.shape, np.nan)
    known = (a > 0) & ~np.isnan(x)
    outside = known & (x <= 0)
    lower[outside], upper[outside] = 0.0, 1.0
    endless = known & np.isposinf(x)
    lower[endless], upper[endless] = 1.0, 0.0
    inside = known & (x > 0) & ~np.isinf(x)
    below = inside & (x < a + 1)
    above = inside & ~below
    if below.any():
        lower[below] = np.minimum(_lower_series(a[below], x[below]), 1.0)
        upper[below] = 1 - lower[below]
    if above.any():
        upper[above] = np.minimum(_upper_fraction(a[above], x[above]), 1.0)
        lower[above] = 1 - upper[above]
    return lower, upper


def _lower_series(a: Floats, x: Floats) -> Floats:
    """`x^a e^−x / Γ(a+1) · Σ x^n / ((a+1) … (a+n))`: all terms positive."""
    term, total = np.ones_like(x), np.ones_like(x)
    for n in range(1, _MOST_TERMS):
        term = term * (x / (a + n))
        total += term
        if (term <= _EPSILON * total).all():
            break
    with np.errstate(under="ignore"):
        return np.asarray(np.exp(_log_factor(a, x) - np.log(a)) * total, np.float64)


def _upper_fraction(a: Floats, x: Floats) -> Floats:
    b = x + 1 - a
    c = np.full_like(x, 1 / _TINY)
    d = 1 / b
    found = d.copy()
    for n in range(1, _MOST_TERMS):
        numerator = -n * (n - a)
        b = b + 2
        d = numerator * d + b
        d = 1 / np.where(np.abs(d) < _TINY, _TINY, d)
        c = b + numerator / c
        c = np.where(np.abs(c) < _TINY, _TINY, c)
        change = d * c
        found = found * change
        if (np.abs(change - 1) <= 4 * _EPSILON).all():
            break
    with np.errstate(under="ignore"):
        return np.asarray(np.exp(_log_factor(a, x)) * found, np.float64)


def _log_factor(a: Floats, x: Floats) -> Floats:
    """`ln(x^a e^−x / Γ(a))` in Loader's saddle-point form, without the cancellation of the three large terms."""
    shift = (x - a) / a
    near = np.abs(shift) < 0.5
    deviance = a * np.where(near, shift - np.log1p(np.where(near, shift, 0.0)), shift - np.log(x / a))
    return np.asarray(0.5 * np.log(a) - _HALF_LOG_TWO_PI - stirling_error(a) - deviance, np.float64)


def stirling_error(n: Floats) -> Floats:
    """`ln Γ(n+1) − [(n + ½) ln n − n + ½ ln 2π]` for n > 0 (Loader 2000, Fast and Accurate Binomials)."""
    n = np.asarray(n, np.float64)
    small = n < 16
    large = np.where(small, 16.0, n)
    inverse = 1 / (large * large)
    found = (1 / 12 - inverse * (1 / 360 - inverse * (1 / 1260 - inverse * (1 / 1680 - inverse / 1188)))) / large
    if small.any():
        few = np.where(small, n, 1.0)
        exact = np.asarray(_lgamma(few + 1), np.float64) - ((few + 0.5) * np.log(few) - few + _HALF_LOG_TWO_PI)
        found = np.where(small, exact, found)
    return np.asarray(found, np.float64)


def _log_gamma(x: Floats) -> Floats:
    """`ln Γ(x)` for x > 0."""
    return np.asarray((x - 0.5) * np.log(x) - x + _HALF_LOG_TWO_PI + stirling_error(x), np.float64)


def _ratio(x: Floats, coefficients: tuple[tuple[float, ...], tuple[float, ...]]) -> Floats:
    top, bottom = coefficients
    return np.asarray(np.polyval(top, x) / np.polyval(bottom, x), np.float64)


# Wichura's coefficients, highest power first.
_MIDDLE = (
    (
        2509.0809287301226727,
        33430.575583588128105,
        67265.770927008700853,
        45921.953931549871457,
        13731.693765509461125,
        1971.5909503065514427,
        133.14166789178437745,
        3.387132872796366608,
    ),
    (
        5226.495278852854561,
        28729.085735721942674,
        39307.89580009271061,
        21213.794301586595867,
        5394.1960214247511077,
        687.1870074920579083,
        42.313330701600911252,
        1.0,
    ),
)
_NEAR_TAIL = (
    (
        7.7454501427834140764e-4,
        0.0227238449892691845833,
        0.24178072517745061177,
        1.27045825245236838258,
        3.64784832476320460504,
        5.7694972214606914055,
        4.6303378461565452959,
        1.42343711074968357734,
    ),
    (
        1.05075007164441684324e-9,
        5.475938084995344946e-4,
        0.0151986665636164571966,
        0.14810397642748007459,
        0.68976733498510000455,
        1.6763848301838038494,
        2.05319162663775882187,
        1.0,
    ),
)
_FAR_TAIL = (
    (
        2.01033439929228813265e-7,
        2.71155556874348757815e-5,
        0.0012426609473880784386,
        0.026532189526576123093,
        0.29656057182850489123,
        1.7848265399172913358,
        5.4637849111641143699,
        6.6579046435011037772,
    ),
    (
        2.04426310338993978564e-15,
        1.4215117583164458887e-7,
        1.8463183175100546818e-5,
        7.868691311456132591e-4,
        0.0148753612908506148525,
        0.13692988092273580531,
        0.59983220655588793769,
        1.0,
    ),
)
