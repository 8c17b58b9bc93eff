"""What sample canonical correlations say of the population's: the upward bias taken out."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from streamcca._backend import FloatArray
from streamcca.dimension import checked_correlations
from streamcca.errors import UnderdeterminedError
from streamcca.wishart import HIGHEST_Z, CorrelationDraws

_SEED = 20090
# The map from a population's z^2 to the sample's has slopes between 0 and 1: steps below 2 converge, smooth changes
# of the curve first. To stop early is the regularization. More directions show more of their shape: 7 steps (5 and 20
# directions), 16 (100).
_STEP = 1.2
_STEPS, _MOST_STEPS = 7, 16
# Squares below the least that would stand out of the bulk (Bao et al. 2019) are pooled; of more than 20 directions a
# smaller share.
_POOLED = 20
# A pooled level x whose noise is s becomes x - 1.25 s^2 / x, at least 0. Raw levels are biased upward by 0.4 sqrt(s)
# where nothing is shared; this leaves 0.1 sqrt(s), at the price of half a sqrt(s) for levels about s, which no
# estimator tells from 0.
_SHRUNK = 1.25
# Steepest change of sqrt(x) that a standard error believes, in 1 / sqrt(s): intervals about 0 then cover levels up to
# 1.6 s.
_STEEPEST = 0.65
_COARSE = 200  # more directions are first fitted by a smaller sample of the same shape


@dataclass(frozen=True, repr=False)
class CorrectedCorrelations:
    """Estimates of population canonical correlations.

    Attributes
    ----------
    correlations : array (min(kx, ky),)
        Estimates, decreasing, in [0, 1]. Single ones are as uncertain as those of the sample; those too weak to be told
        apart share one value, which is 0 where the sample shows no more than chance.
    mean : float
        Mean of `correlations`: the similarity that infinitely many rows would show.
    plain_mean : float
        Mean of the sample correlations, biased upward.
    slope : float
        By how much `mean` moves when `plain_mean` does: a standard error of the plain mean, times this, is one of the
        corrected mean.
    standard_error : float
        Standard error of `mean`, if the rows are n independent Gaussian ones.
    kx, ky : int
        Directions of the two views.
    n : float
        Number of rows.
    doubtful : str
        Why the correction may not be worth its error; empty if nothing speaks against it.
    """

    correlations: FloatArray
    mean: float
    plain_mean: float
    slope: float
    standard_error: float
    kx: int
    ky: int
    n: float
    doubtful: str

    def __repr__(self) -> str:
        """Return one line."""
        doubt = f"; doubtful: {self.doubtful}" if self.doubtful else ""
        return (
            f"population mean {self.mean:.4f} +- {self.standard_error:.4f} (sample {self.plain_mean:.4f}), "
            f"n = {self.n:g}, ranks {self.kx} and {self.ky}{doubt}"
        )


def corrected_correlations(correlations: ArrayLike, kx: int, ky: int, n: float) -> CorrectedCorrelations:
    """Take the upward bias out of sample canonical correlations.

    Parameters
    ----------
    correlations : array_like (min(kx, ky),)
        Sample canonical correlations of all kept directions.
    kx, ky : int
        Directions of the two views, kept without a look at the other view.
    n : float
        Number of independent rows, of dependent ones the effective number (it may be fractional); means were taken out.

    Returns
    -------
    CorrectedCorrelations
        Estimates, their mean (similarity), its slope and standard error. The same input gives the same output.

    Raises
    ------
    InputError
        If there are not min(kx, ky) correlations, or some lie outside [0, 1].
    UnderdeterminedError
        If kx + ky > n - 2: nothing is left to tell the correlations from those of noise.

    Notes
    -----
    Indirect inference (Gourieroux, Monfort and Renault 1993, Journal of Applied Econometrics 8): the law of the
    sample correlations of Gaussian views depends on the population's, kx, ky and n alone, so the estimate is the
    population whose samples show on average what was observed. Samples are drawn without rows, from Bartlett factors
    of Wishart matrices with fixed random numbers (`streamcca.wishart`). The fit is a damped fixed point in
    artanh(rho)^2, kept decreasing and stopped early. Squares below sqrt(a b / ((1 - a)(1 - b))), a = kx / (n - 1),
    b = ky / (n - 1), leave no trace of their own in the sample (Bao, Hu, Pan and Zhou 2019, Annals of Statistics 47);
    they are pooled, and their level is shrunk to 0 as far as noise explains it. The standard error is that of the
    linearized fit over the same draws, and by how much the second half of the steps moved the mean.
    docs/statistics.md has what was measured, and where it fails: few rows with weak correlations, which samples
    cannot tell from none.

    Examples
    --------
    >>> rho = [0.68, 0.61, 0.55, 0.5, 0.46, 0.42, 0.39, 0.35, 0.31, 0.28]  # 0.5 each, and the noise of 200 rows
    >>> corrected = corrected_correlations(rho, 10, 10, 200)
    >>> bool(corrected.mean < corrected.plain_mean), len(corrected.correlations)
    (True, 10)
    """
    rho = checked_correlations("corrected_correlations", correlations, kx, ky, n)
    if n - 2 < kx + ky:
        raise UnderdeterminedError(
            f"corrected_correlations: got n = {n:g} rows for kx + ky = {kx + ky} directions; expected at least "
            f"{kx + ky + 2}, as otherwise nothing tells them from noise: take more rows or keep fewer directions"
        )
    few = len(rho)
    z = np.minimum(np.arctanh(np.minimum(rho, 1 - 1e-16)), HIGHEST_Z)
    draws = _draws(kx, ky, n - 1)
    square, halfway, strong = _fit(z**2, kx, ky, n - 1, draws)
    square, halfway = (_meet_mean(each, strong, z, draws) for each in (square, halfway))
    sample = draws.fisher_z(np.sqrt(square))
    noise, spread = _noise(square, strong, sample, draws, 0.1 * _visible(kx, ky, n - 1))
    estimate = np.sqrt(square)
    weights = (1 - np.tanh(estimate) ** 2) / (2 * np.maximum(estimate, 1e-6)) / few  # d mean / d z^2
    if strong < few:
        estimate[strong:], slope = _shrink(float(square[-1]), spread)
        weights[strong:] = slope * (1 - math.tanh(estimate[-1]) ** 2) / few
    unfinished = float((np.tanh(np.sqrt(square)) - np.tanh(np.sqrt(halfway))).mean())
    standard_error = math.hypot(float((noise @ weights).std(ddof=1)), unfinished)
    # What was capped at HIGHEST_Z is as good as unbiased.
    corrected = np.sort(np.where(z < HIGHEST_Z, np.tanh(estimate), rho))[::-1]
    return CorrectedCorrelations(
        correlations=corrected,
        mean=float(corrected.mean()),
        plain_mean=float(rho.mean()),
        slope=standard_error / float(np.tanh(sample).mean(axis=1).std(ddof=1)),
        standard_error=standard_error,
        kx=kx,
        ky=ky,
        n=n,
        doubtful=_doubts(kx, ky, n, standard_error),
    )


def _doubts(kx: int, ky: int, n: float, standard_error: float) -> str:
    if n - 1 < 1.5 * (kx + ky):
        return (
            f"n = {n:g} is less than 1.5 times kx + ky = {kx + ky}, so that noise alone makes most of each correlation"
        )
    if standard_error > 0.05:
        return f"the standard error {standard_error:.2f} says that so few rows cannot tell weak correlations from none"
    return ""


def _visible(kx: int, ky: int, freedom: float) -> float:
    """Return the population rho^2 above which a correlation stands out of the bulk of the sample's (at most 1)."""
    a, b = kx / freedom, ky / freedom
    return min(1.0, math.sqrt(a * b / ((1 - a) * (1 - b))))


def _draws(kx: int, ky: int, freedom: float) -> CorrelationDraws:
    few = min(kx, ky)
    make = _kept_draws if few <= _COARSE else CorrelationDraws
    return make(kx, ky, freedom, min(400, max(8, 6000 // few)), _SEED)


@functools.lru_cache(maxsize=4)
def _kept_draws(kx: int, ky: int, freedom: float, count: int, seed: int) -> CorrelationDraws:
    return CorrelationDraws(kx, ky, freedom, count, seed)


def _fit(
    target: FloatArray, kx: int, ky: int, freedom: float, draws: CorrelationDraws
) -> tuple[FloatArray, FloatArray, int]:
    """Return population z^2 whose samples show z^2 = target on average, also halfway, and how many are not pooled."""
    few = len(target)
    count = _some(few)
    pooled = min(1.0, _POOLED / few) * _visible(kx, ky, freedom)
    if few > _COARSE:
        # The curve of many directions hardly depends on their number, at the same kx / f and ky / f.
        thin = _COARSE // 2
        share = thin / few
        middles = (np.arange(thin) + 0.5) / share - 0.5
        coarse_x, coarse_y = round(kx * share), round(ky * share)
        coarse = CorrelationDraws(coarse_x, coarse_y, freedom * share, _some(thin), _SEED)
        start, before, _ = _fit(np.interp(middles, np.arange(few), target), coarse_x, coarse_y, freedom * share, coarse)
        square, halfway = (np.interp(np.arange(few), middles, each) for each in (start, before))
        steps, half = 4, -1
    else:
        nothing = float((draws.fisher_z(np.zeros(few), count) ** 2).mean())
        square = np.full(few, max(0.0, float(target.mean()) - nothing))
        halfway, steps = square, _steps(few)
        half = steps // 2
    strong = 0
    for step in range(steps):
        if step == half:
            halfway = square
        shown = (draws.fisher_z(np.sqrt(square), count) ** 2).mean(axis=0)
        free = _decreasing(square + _STEP * (target - shown))
        strong = int(np.count_nonzero(free > pooled))
        if strong < few:
            free[strong:] = free[strong:].mean()
        square = np.maximum(free, 0.0)
    return square, halfway, strong


def _steps(few: int) -> int:
    return min(_MOST_STEPS, round(_STEPS * math.sqrt(max(1.0, few / 20))))


def _some(few: int) -> int:
    """Return the number of draws that the steps of a fit average over."""
    return min(200, max(2, 1000 // few))


def _shrink(level: float, noise: float) -> tuple[float, float]:
    """Return the root of a pooled level of z^2, shrunk by its standard deviation, and the root's slope."""
    steepest = _STEEPEST / math.sqrt(noise)
    shrunk = level - _SHRUNK * noise**2 / level if level > 0 else 0.0
    if shrunk <= 0:
        return 0.0, steepest
    return math.sqrt(shrunk), min(steepest, (1 + _SHRUNK * (noise / level) ** 2) / (2 * math.sqrt(shrunk)))


def _decreasing(values: FloatArray) -> FloatArray:
    """Return the closest decreasing sequence (pool adjacent violators)."""
    means: list[float] = []
    counts: list[int] = []
    for value in values:
        mean, count = float(value), 1
        while means and means[-1] < mean:
            mean = (mean * count + means[-1] * counts[-1]) / (count + counts[-1])
            count += counts.pop()
            means.pop()
        means.append(mean)
        counts.append(count)
    result: FloatArray = np.repeat(means, counts)
    return result


def _meet_mean(square: FloatArray, strong: int, z: FloatArray, draws: CorrelationDraws) -> FloatArray:
    """Scale z^2, so that the samples show the mean correlation that was observed.

    The fit of z^2 is unbiased in z^2; its root is not, and the mean correlation is what matters. Where a pooled rest is
    0, as less than chance was seen there, this is the mean of the others: the noise of the rest must not move them.
    """
    count = len(square) if square[-1] > 0 else strong
    if not count:
        return square

    def excess(factor: float) -> float:
        sample = draws.fisher_z(np.sqrt(square * factor))
        return float((np.tanh(sample[:, :count]).mean(axis=0) - np.tanh(z[:count])).mean())

    here, there = 1.0, 1.05
    off = excess(here)
    for _ in range(2):
        moved = excess(there)
        slope = (moved - off) / (there - here) if there != here else 0.0
        if slope <= 0:
            break
        here, off, there = there, moved, min(2.0, max(0.3, there - moved / slope))
    return square * there


def _noise(
    square: FloatArray, strong: int, sample: FloatArray, draws: CorrelationDraws, floor: float
) -> tuple[FloatArray, float]:
    """Return how the fit, linearized, moves z^2 in each draw (draws x few), and the pooled level's own noise.

    The Jacobian's columns of weak correlations are taken at z^2 = floor, as random slopes at 0 average out slowly.
    """
    few = len(square)
    jacobian = draws.jacobian(np.sqrt(np.maximum(square, floor)), max(1, _some(few) // 2))
    moved = sample**2 - (sample**2).mean(axis=0)
    noise: FloatArray = np.zeros_like(moved)
    for _ in range(_steps(few)):
        noise += _STEP * (moved - noise @ jacobian.T)
        if strong < few:
            noise[:, strong:] = noise[:, strong:].mean(axis=1, keepdims=True)
    spread = 0.0
    if strong < few:
        # The pooled level's own noise, without what the strong ones give and take; few rows and draws leave the slope
        # unsure.
        own = max(0.1, float(jacobian[strong:, strong:].sum(axis=1).mean()))
        spread = float(moved[:, strong:].mean(axis=1).std(ddof=1)) / own
    return noise, spread
