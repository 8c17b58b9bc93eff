"""Intervals of shares and of what is drawn."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from streamcca._backend import FloatArray

Interval = tuple[float, float]


def or_none(value: float | FloatArray) -> float | None:
    """Return a number, or None for NaN."""
    return float(value) if math.isfinite(value) else None


def wilson(successes: int, n: int, level: float) -> Interval:
    """Wilson's score interval of a binomial share (Wilson 1927): never empty, never beyond [0, 1].

    Examples
    --------
    >>> tuple(round(end, 4) for end in wilson(0, 10, 0.95))
    (0.0, 0.2775)
    """
    from scipy.special import ndtri

    z = float(ndtri(0.5 + level / 2))
    share = successes / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (max(0.0, middle - half) if successes else 0.0, min(1.0, middle + half) if successes < n else 1.0)


def percentiles(draws: ArrayLike, level: float) -> Interval | None:
    """Return the middle part of draws; those that are NaN say nothing, and None is returned if all are."""
    values = np.asarray(draws, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)
