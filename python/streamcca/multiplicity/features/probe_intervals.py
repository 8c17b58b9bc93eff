"""How sure the accuracy of probes is: over test rows, and over random draws of features."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from streamcca._backend import FloatArray


class Estimate(NamedTuple):
    """A mean, its standard error, and an interval for what it estimates."""

    value: float
    error: float
    low: float
    high: float


def crossed_mean(values: FloatArray, level: float) -> tuple[float, float, float]:
    """Return mean, standard error and degrees of freedom of scores (draws, rows) that share draws and rows.

    All draws are judged on the same rows, so draw and row are crossed random effects; the variance of the grand mean
    is (MS_draws + MS_rows - MS_rest) / (draws rows), the estimate of the analysis of variance, and not below what it
    would be if one of the two had no effect of its own. Degrees of freedom are Satterthwaite's. A single draw leaves
    rows only.
    """
    draws, rows = values.shape
    mean = float(values.mean())
    by_row, by_draw = values.mean(axis=0), values.mean(axis=1)
    freedom_rows = max(rows - 1, 1)
    of_rows = draws * float(np.sum((by_row - mean) ** 2)) / freedom_rows
    if draws == 1:
        return mean, math.sqrt(of_rows / rows), float(freedom_rows)
    of_draws = rows * float(np.sum((by_draw - mean) ** 2)) / (draws - 1)
    # A sum of squares less its parts: no array of the size of `values`.
    squares = sum(float(np.sum((line - mean) ** 2)) for line in values)
    rest = max(0.0, squares - of_rows * freedom_rows - of_draws * (draws - 1)) / ((draws - 1) * freedom_rows)
    total = max(of_draws, of_rows, of_draws + of_rows - rest)
    if total <= 0.0:
        return mean, 0.0, float(freedom_rows)
    scatter = of_draws**2 / (draws - 1) + of_rows**2 / freedom_rows + rest**2 / ((draws - 1) * freedom_rows)
    freedom = total**2 / scatter if scatter > 0 else freedom_rows
    return mean, math.sqrt(total / (draws * rows)), max(freedom, min(draws - 1.0, freedom_rows))


def _student(freedom: float, level: float) -> float:
    import scipy.special  # late, and not scipy.stats, which takes half a second to import

    return float(scipy.special.stdtrit(freedom, 0.5 + level / 2))


def accuracy_estimate(values: FloatArray, level: float) -> Estimate:
    """Return the accuracy of scores in [0, 1] (draws, rows), with Wilson's interval for as many rows as the error says.

    Wilson's score interval stays inside [0, 1] and does not vanish where every row is right. The number of rows that
    would give this standard error stands in for n, and Student's quantile for the normal one.
    """
    mean, error, freedom = crossed_mean(values, level)
    n = values.shape[1]
    spread = mean * (1 - mean)
    n_effective = min(float(values.size), spread / error**2) if error > 0 else float(n)
    z2 = _student(freedom, level) ** 2
    middle = (mean + z2 / (2 * n_effective)) / (1 + z2 / n_effective)
    half = math.sqrt(z2 * (spread / n_effective + z2 / (4 * n_effective**2))) / (1 + z2 / n_effective)
    return Estimate(mean, error, max(0.0, middle - half), min(1.0, middle + half))


def difference_estimate(values: FloatArray, level: float) -> Estimate:
    """Return the mean of differences in [-1, 1] (draws, rows), with Student's interval.

    Where no row shows any difference, the interval holds what n rows would hide with a probability of (1 - level) / 2.
    """
    mean, error, freedom = crossed_mean(values, level)
    if error == 0.0:
        half = -math.expm1(math.log((1 - level) / 2) / values.shape[1])
    else:
        half = error * _student(freedom, level)
    return Estimate(mean, error, max(-1.0, mean - half), min(1.0, mean + half))
