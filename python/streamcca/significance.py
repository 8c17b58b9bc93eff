"""What chance alone would score: canonical correlations of unrelated representations."""

from __future__ import annotations

import functools
import math

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import InputError

_NODES = 200


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
        side has a single direction, otherwise the mean of Wachter's law, whose mean square
        max(kx, ky) / (n - 1) is exact for every n. Against simulation the mean is 5, 4, 2.5 and 1.3 % of
        itself too high for 2, 3, 5 and 10 directions a side, and less for more or for unequal sides.

    Examples
    --------
    >>> round(null_mean(100, 50, 2000), 4)
    0.2092
    """
    _check("null_mean", kx, ky, n)
    few, many, freedom = min(kx, ky), max(kx, ky), n - 1
    if many >= freedom:
        return 1.0
    if few == 1:  # rho^2 is Beta(many / 2, (freedom - many) / 2)
        half = many / 2
        return math.exp(
            math.lgamma(half + 0.5) - math.lgamma(half) + math.lgamma(freedom / 2) - math.lgamma(freedom / 2 + 0.5)
        )
    return _bulk_mean(few / freedom, many / freedom) + forced_ones(kx, ky, n) / few


def complex_null_mean(kx: int, ky: int, n: float) -> float:
    """Return what unrelated complex representations score, such as Fourier coefficients.

    The squared correlations of complex Gaussian views with f = n - 1 degrees of freedom have the laws of real ones with
    twice as many of everything: one direction the Beta law (many, f - many), many Wachter's law.
    """
    _check("null_mean", kx, ky, n)
    twice = 2 * (n - 1) + 1
    if min(kx, ky) == 1:
        return null_mean(1, 2 * max(kx, ky), twice)
    return null_mean(2 * kx, 2 * ky, twice)


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
