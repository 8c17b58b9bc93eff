"""How many canonical correlations are more than chance."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from streamcca._backend import FloatArray
from streamcca.errors import InputError, UnderdeterminedError

_LOWEST_DEVIATE, _HIGHEST_DEVIATE = -9.0, 12.0  # F1(-9) is 1e-14


@dataclass(frozen=True, repr=False)
class SignificantCorrelations:
    """How many canonical correlations stand out of chance, by two sequential tests.

    Attributes
    ----------
    count : int
        Significant correlations by Bartlett's test: it asks whether *all* the remaining ones are zero.
    count_largest_root : int
        Significant correlations by the largest-root test: it asks whether the *next* one alone could be the largest of
        unrelated views. Better at a few strong ones among many, blind to many weak ones.
    p_values, p_values_largest_root : array (min(kx, ky),)
        Entry i: of the test that the correlations after the first i are zero. Those after the first that is not below
        `level` serve as description only.
    level : float
        Level of each test.
    kx, ky : int
        Directions of the two views.
    n : float
        Number of rows.
    doubtful : str
        Why the p-values cannot be trusted; empty if nothing speaks against them but what cannot be seen here:
        rows that are not independent, or far from Gaussian.
    """

    count: int
    count_largest_root: int
    p_values: FloatArray
    p_values_largest_root: FloatArray
    level: float
    kx: int
    ky: int
    n: float
    doubtful: str

    def __repr__(self) -> str:
        """Return one line."""
        doubt = f"; doubtful: {self.doubtful}" if self.doubtful else ""
        return (
            f"{self.count} of {len(self.p_values)} correlations significant at {self.level:g} (largest-root test: "
            f"{self.count_largest_root}), n = {self.n:g}{doubt}"
        )


def checked_correlations(
    function: str, correlations: ArrayLike | Sequence[float], kx: int, ky: int, n: float
) -> FloatArray:
    """Return correlations as a decreasing float64 array, or say what is wrong with them, kx, ky or n."""
    values: FloatArray = np.asarray(correlations, dtype=np.float64)
    few = min(kx, ky)
    if few < 1 or values.shape != (few,):
        raise InputError(
            f"{function}: got correlations of shape {values.shape} for kx = {kx}, ky = {ky}; expected one for "
            f"each of the min(kx, ky) = {few} pairs: pass all correlations of a result and its rank_x and rank_y"
        )
    if not (np.all(values >= 0) and np.all(values <= 1)):
        raise InputError(f"{function}: got correlations outside [0, 1]; expected canonical correlations")
    if not math.isfinite(n) or kx + ky > n - 1:
        raise UnderdeterminedError(
            f"{function}: got n = {n:g} rows for kx + ky = {kx + ky} directions; expected more than {kx + ky + 1}, as "
            "otherwise some correlations are 1 by construction: take more rows or keep fewer directions"
        )
    return np.sort(values)[::-1]


def significant_correlations(
    correlations: ArrayLike, kx: int, ky: int, n: float, level: float = 0.05
) -> SignificantCorrelations:
    """Count the canonical correlations that are more than chance.

    Parameters
    ----------
    correlations : array_like (min(kx, ky),)
        Sample canonical correlations.
    kx, ky : int
        Directions of the two views, fixed beforehand: directions that a truncation chose without looking at the other
        view are.
    n : float
        Number of independent rows (of dependent ones, the effective number); means were taken out.
    level : float
        Level of each test.

    Returns
    -------
    SignificantCorrelations
        Counts and p-values of two sequential tests, which stop at the first correlation that is not significant.

    Raises
    ------
    InputError
        If shapes or values make no sense.
    UnderdeterminedError
        If kx + ky > n - 1.

    Notes
    -----
    Bartlett's statistic for the correlations after the first i is -(f - i - (kx + ky + 1) / 2 + sum_{j<=i} 1 / rho_j^2)
    sum_{j>i} log(1 - rho_j^2), f = n - 1, with the factor of Lawley (1959) and Glynn and Muirhead (1978). The usual
    chi-square law with (kx - i)(ky - i) degrees of freedom rejects unrelated views too often where kx and ky are not
    far below n (7 % of the time at level 5 % for 20 against 20 in 100 rows), so the statistic is referred to a
    shifted gamma law that has the exact first three cumulants of Wilks' Lambda, a product of Beta variables.

    The largest-root test refers logit(rho_i+1^2) of kx - i and ky - i directions in f - i degrees of freedom to the
    Tracy-Widom law of order 1, centered and scaled as by Johnstone (2008), whose center is the upper edge of
    Wachter's law in finite-size form; one direction against any has its exact Beta law. The test is conservative
    after the first correlation.

    References
    ----------
    Bartlett (1947), "The general canonical correlation distribution" (Annals of Mathematical Statistics 18). Lawley
    (1959),
    "Tests of significance in canonical analysis" (Biometrika 46). Johnstone (2008), "Multivariate analysis and Jacobi
    ensembles: largest eigenvalue, Tracy-Widom limits and rates of convergence" (Annals of Statistics 36). Ferrari and
    Spohn (2005) and Bornemann (2010) for the Tracy-Widom law as a Fredholm determinant.

    Examples
    --------
    >>> significant_correlations([0.9, 0.5, 0.1, 0.05], 4, 6, 200)
    2 of 4 correlations significant at 0.05 (largest-root test: 2), n = 200
    """
    rho = checked_correlations("significant_correlations", correlations, kx, ky, n)
    if not 0 < level < 1:
        raise InputError(
            f"significant_correlations: got level = {level}; expected a probability between 0 and 1, as 0.05"
        )
    bartlett = _bartlett_p_values(rho, kx, ky, n - 1)
    root = _largest_root_p_values(rho, kx, ky, n - 1)
    return SignificantCorrelations(
        count=_leading(bartlett < level),
        count_largest_root=_leading(root < level),
        p_values=bartlett,
        p_values_largest_root=root,
        level=level,
        kx=kx,
        ky=ky,
        n=n,
        doubtful=_doubts(rho, kx, ky, n, _leading(bartlett < level)),
    )


def _leading(significant: np.ndarray) -> int:
    return len(significant) if significant.all() else int(np.argmin(significant))


def _doubts(rho: FloatArray, kx: int, ky: int, n: float, count: int) -> str:
    if n - 1 - kx - ky < 0.1 * (kx + ky):
        return (
            f"n = {n:g} is hardly above kx + ky = {kx + ky}, where every correlation is large and tests have no power"
        )
    few = len(rho)
    edge = kx * ky / ((n - 1 - kx) * (n - 1 - ky))
    # Bao, Hu, Pan and Zhou (2019): population correlations below edge^(1/4) leave no outlier in the sample.
    visible = math.sqrt(math.sqrt(edge)) if edge < 1 else 1.0
    if few > 1 and 0 < count < few and visible > 0.5:
        return f"population correlations below {visible:.2f} do not stand out among so many directions and so few rows"
    return ""


def _bartlett_p_values(rho: FloatArray, kx: int, ky: int, freedom: float) -> FloatArray:
    import scipy.special

    few, many = min(kx, ky), max(kx, ky)
    order = np.arange(few)
    with np.errstate(divide="ignore"):
        logs = -np.log1p(-(rho**2))
        excess = np.concatenate([[0.0], np.cumsum(1 / rho**2 - 1)[:-1]])  # infinite after a correlation of 0
    rest = np.cumsum(logs[::-1])[::-1]
    statistic = np.where(np.isfinite(excess), rest, 0.0)
    statistic *= 1 + np.where(np.isfinite(excess), excess, 0.0) / (freedom - (kx + ky + 1) / 2)
    # -log Lambda of p - i and q - i directions in f - i degrees of freedom is a sum of -log Beta((f - q - j) / 2, .),
    # j < p - i
    cumulants = []
    for m in range(3):
        error = (-1) ** (m + 1) * scipy.special.polygamma(m, (freedom - many - order) / 2)
        total = (-1) ** (m + 1) * scipy.special.polygamma(m, (freedom - order) / 2)
        cumulants.append(np.cumsum(error)[::-1] - np.cumsum(total[::-1])[::-1])
    mean, variance, third = cumulants
    shape = 4 * variance**3 / third**2
    scale = third / (2 * variance)
    p_values: FloatArray = scipy.special.gammaincc(shape, np.maximum(0.0, (statistic - mean) / scale + shape))
    return p_values


def _largest_root_p_values(rho: FloatArray, kx: int, ky: int, freedom: float) -> FloatArray:
    import scipy.special

    few, many = min(kx, ky), max(kx, ky)
    order = np.arange(few)
    p, q, f = few - order, many - order, freedom - order
    error = f - q
    with np.errstate(divide="ignore"):
        logit = np.log(rho**2) - np.log1p(-(rho**2))
    # Johnstone's p is the size of the matrices, m their error's and n their hypothesis' degrees of freedom
    gamma = 2 * np.arcsin(np.sqrt((np.minimum(p, q) - 0.5) / (f - 1)))
    phi = 2 * np.arcsin(np.sqrt((np.maximum(p, q) - 0.5) / (f - 1)))
    center = 2 * np.log(np.tan((phi + gamma) / 2))
    scale = (16 / (f - 1) ** 2 / (np.sin(phi + gamma) ** 2 * np.sin(phi) * np.sin(gamma))) ** (1 / 3)
    p_values: FloatArray = tracy_widom_upper((logit - center) / scale)
    p_values[-1] = scipy.special.betainc(error[-1] / 2, q[-1] / 2, 1 - rho[-1] ** 2)
    return p_values


def tracy_widom_upper(deviate: FloatArray) -> FloatArray:
    """Return 1 - F1, the upper tail of the Tracy-Widom law of order 1 (real matrices), to about 1e-6 of itself.

    F1(s) is the Fredholm determinant of 1 - K on (0, inf), K(x, y) = Ai((x + y) / 2 + s) / 2 (Ferrari and Spohn 2005),
    by Gauss' rule (Bornemann 2010); beyond s = 12, where it is 1e-13 and its digits end, the tail goes on as exp(-2/3
    s^(3/2)).
    """
    log_tail = _tracy_widom_spline()
    inside = np.clip(deviate, _LOWEST_DEVIATE, _HIGHEST_DEVIATE)
    beyond = np.maximum(deviate, _HIGHEST_DEVIATE) ** 1.5 - _HIGHEST_DEVIATE**1.5
    result: FloatArray = np.minimum(1.0, np.exp(log_tail(inside) - beyond * (2 / 3)))
    return result


@functools.cache
def _tracy_widom_spline() -> Callable[[FloatArray], FloatArray]:
    import scipy.interpolate
    import scipy.special

    nodes, weights = np.polynomial.legendre.leggauss(24)  # 40 change nothing above 1e-14
    grid = np.arange(_LOWEST_DEVIATE, _HIGHEST_DEVIATE + 0.05, 0.1)
    half = (16.0 - grid) / 2  # Ai(16) is 4e-20
    x = (nodes + 1) * half[:, None]
    root = np.sqrt(weights * half[:, None])
    kernel = scipy.special.airy((x[:, :, None] + x[:, None, :]) / 2 + grid[:, None, None])[0] / 2
    upper = 1 - np.linalg.det(np.eye(24) - root[:, :, None] * kernel * root[:, None, :])
    spline: Callable[[FloatArray], FloatArray] = scipy.interpolate.CubicSpline(grid, np.log(upper))
    return spline
