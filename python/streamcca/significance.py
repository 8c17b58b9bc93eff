"""What chance alone would score: canonical correlations of unrelated representations."""

from __future__ import annotations

import functools
import math

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import InputError

_NODES = 200
_WAVES = 100


def _check(function: str, kx: int, ky: int, n: float) -> None:
    if kx < 1 or ky < 1 or n < 2:
        raise InputError(f"{function}: got kx = {kx}, ky = {ky}, n = {n}; expected kx, ky >= 1 and n >= 2")


def null_edges(kx: int, ky: int, n: float) -> tuple[float, float]:
    """Return the lowest and highest canonical correlation of large unrelated Gaussian views.

    Parameters
    ----------
    kx, ky : int
        Kept directions of the two views.
    n : float
        Number of rows; means are taken out, so n - 1 degrees of freedom remain.

    Returns
    -------
    (float, float)
        Edges of the bulk of Wachter's law. Correlations of 1 that too few rows force lie outside.

    References
    ----------
    Wachter (1980), "The limiting empirical measure of multiple discriminant ratios", Annals of
    Statistics 8.
    """
    _check("null_edges", kx, ky, n)
    a, b = min(1.0, kx / (n - 1)), min(1.0, ky / (n - 1))
    low = math.sqrt(a * (1 - b)) - math.sqrt(b * (1 - a))
    high = math.sqrt(a * (1 - b)) + math.sqrt(b * (1 - a))
    return abs(low), min(1.0, high)


def forced_ones(kx: int, ky: int, n: float) -> int:
    """Return how many correlations are 1 whatever the data: max(0, kx + ky - (n - 1)), at most min(kx, ky)."""
    return int(max(0, min(kx, ky, kx + ky - (n - 1))))


def wachter_mean(kx: int, ky: int, n: float) -> float:
    """Return the mean of Wachter's law, which `null_mean` approaches for many directions.

    Its mean square max(kx, ky) / (n - 1) is exact for every n; its mean is 5, 4, 2.5, 1.3 and 0.16 % of itself above
    the real one for 2, 3, 5, 10 and 100 directions on both sides, and closer for unequal sides.

    Examples
    --------
    >>> round(wachter_mean(100, 50, 2000), 4)
    0.2092
    """
    _check("wachter_mean", kx, ky, n)
    few, many, freedom = min(kx, ky), max(kx, ky), n - 1
    if many >= freedom:
        return 1.0
    return _bulk_mean(few / freedom, many / freedom) + forced_ones(kx, ky, n) / few


def null_mean(kx: int, ky: int, n: float) -> float:
    """Return the mean canonical correlation that unrelated representations score.

    Parameters
    ----------
    kx, ky : int
        Kept directions of the two views, at least 1.
    n : float
        Number of rows, at least 2.

    Returns
    -------
    float
        Mean over the min(kx, ky) correlations of Gaussian views without any relation: exact if one
        side has a single direction, otherwise the mean of Wachter's law and its corrections for few directions.
        Simulation is met to 0.1 % (2 directions a side; less for more), docs/statistics.md.

    See Also
    --------
    null_interval : how far chance alone spreads.
    null_mean_square : the mean square, exact.

    Examples
    --------
    >>> round(null_mean(100, 50, 2000), 4)
    0.209
    """
    _check("null_mean", kx, ky, n)
    return _null_moments(kx, ky, n)[0]


def null_mean_square(kx: int, ky: int, n: float) -> float:
    """Return the mean squared correlation (Yanai) of unrelated representations, max(kx, ky) / (n - 1).

    Examples
    --------
    >>> null_mean_square(5, 20, 201)
    0.1
    """
    _check("null_mean_square", kx, ky, n)
    return min(1.0, max(kx, ky) / (n - 1))


def null_interval(kx: int, ky: int, n: float, level: float = 0.95) -> tuple[float, float]:
    """Return the range in which chance alone keeps the mean canonical correlation.

    Parameters
    ----------
    kx, ky : int
        Kept directions of the two views, at least 1.
    n : float
        Number of independent Gaussian rows, at least 2.
    level : float
        Probability of the range, between 0 and 1; half of the rest lies on either side.

    Returns
    -------
    (float, float)
        Exact if one side has a single direction. Otherwise the squared mean is taken to have a Beta law with
        `null_mean` and the deviation that linear statistics have in the limit of many directions (which hardly
        depends on the rows: about 0.26 sqrt(upper edge) / min(kx, ky)), corrected for few.

    Raises
    ------
    InputError
        If a size or the level makes no sense.

    Examples
    --------
    >>> [round(edge, 3) for edge in null_interval(5, 5, 200)]
    [0.095, 0.171]
    """
    _check("null_interval", kx, ky, n)
    if not 0 < level < 1:
        raise InputError(f"null_interval: got level = {level}; expected a probability between 0 and 1, such as 0.95")
    import scipy.special

    tail = (1 - level) / 2
    few, many, freedom = min(kx, ky), max(kx, ky), n - 1
    if many >= freedom:
        return 1.0, 1.0
    mean, deviation = _null_moments(kx, ky, n)
    if few == 1:
        a, b, scale, forced = many / 2, (freedom - many) / 2, 1.0, 0.0
    else:
        scale = 1 - min(1.0, max(0.0, kx + ky - freedom) / few)  # the share of correlations that is not forced to be 1
        forced = 1 - scale
        mean, deviation = (mean - forced) / scale, deviation / scale
        square = mean**2 + deviation**2
        spread = 4 * mean**2 * deviation**2 + 2 * deviation**4
        total = square * (1 - square) / spread - 1
        a, b = square * total, (1 - square) * total
    low, high = (forced + scale * math.sqrt(scipy.special.betaincinv(a, b, share)) for share in (tail, 1 - tail))
    return low, high


def complex_null_mean(kx: int, ky: int, n: float) -> float:
    """Return what unrelated complex representations score, such as Fourier coefficients.

    The squared correlations of complex Gaussian views with f = n - 1 degrees of freedom have a Beta law for one
    direction, (many, f - many), that of a real one with twice as many of everything, and Wachter's law of (kx, ky, f)
    for many. The first correction for few directions that real views need vanishes for complex ones.
    """
    _check("null_mean", kx, ky, n)
    if min(kx, ky) == 1:
        return null_mean(1, 2 * max(kx, ky), 2 * (n - 1) + 1)
    return wachter_mean(2 * kx, 2 * ky, 2 * (n - 1) + 1)


@functools.lru_cache(maxsize=4096)
def _null_moments(kx: int, ky: int, n: float) -> tuple[float, float]:
    """Return mean and standard deviation of the mean canonical correlation of unrelated Gaussian views."""
    few, many, freedom = float(min(kx, ky)), float(max(kx, ky)), n - 1
    if many >= freedom:
        return 1.0, 0.0
    if few + many > freedom:  # the angles of the complements are the same, but for right angles and forced ones
        free = freedom - many
        mean, deviation = _free_moments(free, freedom - few, freedom)
        return 1 - (1 - mean) * free / few, deviation * free / few
    return _free_moments(few, many, freedom)


def _free_moments(few: float, many: float, freedom: float) -> tuple[float, float]:
    """Moments of the mean correlation where none is forced to be 1, few + many <= freedom.

    Beyond Wachter's law, linear statistics of p = few correlations are sum f(r_i) = p E[f] + correction + noise. In
    Chebyshev coefficients f_k of f(r) = sqrt(r) on the support [A, B], the correction is (f(A) + f(B)) / 4 - f_0 / 2
    and the noise's variance sum k f_k^2 / 2, which is Johansson (1998) for real matrices; the one is exact for f = r
    and r^2. What is left at a support that touches 0, of relative order log(p) / p^2, was fitted to simulations of 1
    <= p <= 10 and 0 <= many - few <= 5 (4e4 to 3e5 draws; docs/statistics.md).
    """
    if few <= 1:  # rho^2 is Beta(many / 2, (freedom - many) / 2)
        half = many / 2
        mean = math.exp(
            math.lgamma(half + 0.5) - math.lgamma(half) + math.lgamma(freedom / 2) - math.lgamma(freedom / 2 + 0.5)
        )
        return mean, math.sqrt(max(0.0, many / freedom - mean**2))
    a, b = few / freedom, many / freedom
    outer, inner = math.sqrt(b * (1 - a)), math.sqrt(a * (1 - b))
    low, high = outer - inner, min(1.0, outer + inner)
    nodes, weights = _gauss_legendre()
    t = (nodes + 1) * (math.pi / 2)
    root = np.sqrt((high**2 + low**2) / 2 + (high**2 - low**2) / 2 * np.cos(t))
    waves = np.cos(np.outer(np.arange(_WAVES), t)) @ (weights * root)  # f_k, but f_0 twice over
    correction = (low + high) / 4 - float(waves[0]) / 4
    gap = many - few
    rest = 0.029 * math.log1p(0.71 * few * many * (gap + 0.174) ** -2.3) / few**2
    mean = (_bulk_mean(a, b) + correction / few) / (1 - rest)
    deviation = math.sqrt(float(np.sum(np.arange(1, _WAVES) * waves[1:] ** 2)) / 2) / few
    return mean, deviation / (1 + 0.12 / ((few + 1) * (1 + gap / 5)))


@functools.cache
def _gauss_legendre() -> tuple[FloatArray, FloatArray]:
    return np.polynomial.legendre.leggauss(_NODES)


def _bulk_mean(few: float, many: float) -> float:
    """Integral of rho over the continuous part of Wachter's law, for shares few <= many < 1.

    Density of r = rho^2 per correlation: sqrt((r - r0)(r1 - r)) / (2 pi few r (1 - r)). With rho = sin(phi),
    the edges at `low` and `high`, rho times the density becomes
    sqrt(sin(high - phi) sin(high + phi) sin(phi - low) sin(phi + low)) / (pi few cos(phi)), which stays smooth where an
    edge touches 0 or 1. phi = middle + radius cos(t) takes the square roots at the edges away, and Gauss' rule in t
    converges exponentially.
    """
    outer, inner = math.sqrt(many * (1 - few)), math.sqrt(few * (1 - many))
    low, high = math.asin(outer - inner), math.asin(min(1.0, outer + inner))
    nodes, weights = _gauss_legendre()
    t = (nodes + 1) * (math.pi / 2)
    phi = (high + low) / 2 + (high - low) / 2 * np.cos(t)
    upper, lower = np.sin(high - phi) * np.sin(high + phi), np.sin(phi - low) * np.sin(phi + low)
    values = np.sqrt(upper * lower) / (math.pi * few * np.cos(phi))
    return float(np.sum(weights * values * np.sin(t)) * (high - low) / 2 * (math.pi / 2))
