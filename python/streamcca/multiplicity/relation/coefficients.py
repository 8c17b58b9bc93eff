"""Pearson, Spearman and Kendall: of two vectors, of many rows at once, and with weights."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from streamcca._backend import FloatArray
from streamcca.multiplicity.relation.resampling import IntArray

Coefficient = Literal["pearson", "spearman", "kendall"]
COEFFICIENTS: tuple[Coefficient, ...] = get_args(Coefficient)
# A side whose spread is below so many roundings of its size is constant: means of equal numbers differ by rounding.
_CONSTANT = 64 * float(np.finfo(np.float64).eps)
# Above so many points Kendall's signs (points^2) would not fit; the draws are then spelled out, one by one.
_SIGNS = 1200
_CHUNK = 1 << 22


def constant(x: FloatArray) -> bool:
    """Whether numbers differ by no more than rounding."""
    return bool(np.ptp(x) <= _CONSTANT * np.abs(x).max(initial=0))


def correlation(name: Coefficient, x: FloatArray, y: FloatArray) -> tuple[float | None, str]:
    """Return a coefficient of two vectors, or None and the reason why it has none.

    Examples
    --------
    >>> correlation("pearson", np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0]))
    (None, 'all values of the second quantity are equal')
    """
    for values, which in ((x, "first"), (y, "second")):
        if constant(values):
            return None, f"all values of the {which} quantity are equal"
    return float(correlations_of_rows(name, x[None], y[None])[0]), ""


def correlations_of_rows(name: Coefficient, x: FloatArray, y: FloatArray) -> FloatArray:
    """Return the coefficient of every row of x (B, N) with the same row of y; NaN where a row is constant."""
    import scipy.stats

    if name == "kendall":
        result = np.empty(len(x))
        step = max(1, _CHUNK // x.shape[1] ** 2)
        for first in range(0, len(x), step):
            own = slice(first, first + step)
            s, t = (np.sign(z[own, :, None] - z[own, None, :]) for z in (x, y))
            below = np.sqrt((s * s).sum(axis=(1, 2)) * (t * t).sum(axis=(1, 2)))
            with np.errstate(invalid="ignore", divide="ignore"):
                result[own] = (s * t).sum(axis=(1, 2)) / below
        return result
    if name == "spearman":
        x, y = scipy.stats.rankdata(x, axis=1), scipy.stats.rankdata(y, axis=1)
    return _pearson(x, y, np.ones_like(x))


def _pearson(x: FloatArray, y: FloatArray, w: FloatArray) -> FloatArray:
    total = w.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        a = x - (w * x).sum(axis=1, keepdims=True) / total
        b = y - (w * y).sum(axis=1, keepdims=True) / total
        both, own_a, own_b = (w * a * b).sum(axis=1), (w * a * a).sum(axis=1), (w * b * b).sum(axis=1)
        result = both / np.sqrt(own_a * own_b)
    some = w > 0
    for z in (x, y):
        high = np.where(some, z, -np.inf).max(axis=1, initial=-np.inf)
        low = np.where(some, z, np.inf).min(axis=1, initial=np.inf)
        size = np.where(some, np.abs(z), 0).max(axis=1, initial=0)
        result[~(high - low > _CONSTANT * size)] = np.nan
    clipped: FloatArray = np.clip(result, -1, 1)
    return clipped


def weighted_correlations(
    name: Coefficient, x: FloatArray, y: FloatArray, models: IntArray, pairs: IntArray
) -> FloatArray:
    """Return the coefficient over pairs for every draw of models, each pair repeated by the product of their counts.

    Parameters
    ----------
    x, y : array (P,)
        Values of the pairs.
    models : array (B, M)
        How often each model was drawn.
    pairs : array (P, 2)
        The models of each pair.

    Returns
    -------
    array (B,)
        NaN where a side is constant among the pairs that were drawn.
    """
    result = np.empty(len(models))
    step = max(1, _CHUNK // len(x))
    signs = _signs(x, y) if name == "kendall" and len(x) <= _SIGNS else None
    for first in range(0, len(models), step):
        own = models[first : first + step].astype(np.float64)
        w = own[:, pairs[:, 0]] * own[:, pairs[:, 1]]
        if name == "pearson":
            found = _pearson(np.broadcast_to(x, w.shape), np.broadcast_to(y, w.shape), w)
        elif name == "spearman":
            found = _pearson(_weighted_ranks(x, w), _weighted_ranks(y, w), w)
        elif signs is not None:
            both, own_x, own_y = (((w @ s) * w).sum(axis=1) for s in signs)
            with np.errstate(invalid="ignore", divide="ignore"):
                found = both / np.sqrt(own_x * own_y)
        else:
            found = np.array([_kendall_spelled_out(x, y, row) for row in w])
        result[first : first + step] = found
    return result


def _signs(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    s, t = (np.sign(z[:, None] - z[None, :]) for z in (x, y))
    return s * t, s * s, t * t


def _weighted_ranks(x: FloatArray, w: FloatArray) -> FloatArray:
    """Middle ranks of values that are there w times, up to a constant."""
    values, place = np.unique(x, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(values)))
    sums = np.add.reduceat(w[:, order], starts, axis=1)
    ranks: FloatArray = (np.cumsum(sums, axis=1) - sums / 2)[:, place]
    return ranks


def _kendall_spelled_out(x: FloatArray, y: FloatArray, w: FloatArray) -> float:
    import scipy.stats

    count = w.astype(np.int64)
    return float(scipy.stats.kendalltau(np.repeat(x, count), np.repeat(y, count)).statistic)
