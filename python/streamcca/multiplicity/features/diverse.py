"""The features of two models in order of diversity (arXiv 2110.12899)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from streamcca._backend import FloatArray
from streamcca._memory import check_memory
from streamcca.errors import InputError, NonFiniteError
from streamcca.moments import Moments
from streamcca.multiplicity.features.blocks import IntArray
from streamcca.views import check_option

Order = Literal["variance", "cross-covariance", "cross-covariance-descending", "cross-correlation", "pivoted"]

ORDERS: dict[str, str] = {
    "variance": "variance, largest first",
    "cross-covariance": "mean |covariance| with the other model's features, smallest first",
    "cross-covariance-descending": "mean |covariance| with the other model's features, largest first",
    "cross-correlation": "mean |correlation| with the other model's features, smallest first",
    "pivoted": "greedy: the feature of which those before it explain least (pivoted Cholesky of the correlations)",
}
"""What each order means. The paper ranks features by covariance "as diversity" and does not say more; all are ours."""

# Residuals closer than this to the largest are ties; so is everything at the first step.
_TIE = 1e-9


def diversity_order(
    covariance: FloatArray | Moments, split: int | None = None, order: Order = "pivoted", count: int | None = None
) -> IntArray:
    """Return the features of two models side by side, the most diverse first.

    Parameters
    ----------
    covariance : array (p + q, p + q), or Moments of two views
        Covariance of the features of both models; `Moments` (``pairs='all'``) gives it exactly, in one pass.
    split : int, optional
        p, the number of features of the first model; of `Moments`, the width of the first view.
    order : str
        One of `ORDERS`: 'variance', 'cross-covariance', 'cross-covariance-descending', 'cross-correlation' or
        'pivoted'.
    count : int, optional
        Only so many.

    Returns
    -------
    array (count,) of int64
        Column numbers; those of the second model follow those of the first. Equal ones are ordered by variance, the
        largest first, then by number. Features that do not vary (variance exactly 0, which is what
        `Moments` gives them) come last, by number.

    Raises
    ------
    InputError, NonFiniteError
        The matrix is not square, symmetric and finite, or `split` leaves a model without features.

    Notes
    -----
    The paper (arXiv 2110.12899) computes the covariance of every dimension of two concatenated embeddings, ranks
    dimensions by it as "diversity" and speaks of the "highest to lowest covariance"; which covariance of a dimension
    is meant it does not say, so the order is a choice here, named in every result. Means of amounts
    instead of sums keep the wider model from being ranked by its width. 'pivoted' orders like Gram-Schmidt with
    pivoting on the standardized features: the next feature is the one with the largest variance left when those
    before it are regressed out. Where nothing is left (1e-9 of the variance) the remaining ones count as equal.

    Examples
    --------
    >>> import numpy as np
    >>> covariance = np.array([[4.0, 3.9, 0.0], [3.9, 4.0, 0.0], [0.0, 0.0, 1.0]])
    >>> diversity_order(covariance, split=1)
    array([0, 2, 1])
    >>> diversity_order(covariance, split=1, order="variance")
    array([0, 1, 2])
    """
    check_option("order", order, tuple(ORDERS))
    matrix, split = _checked_covariance(covariance, split)
    size = len(matrix)
    if count is not None and (isinstance(count, bool) or not 1 <= count <= size):
        raise InputError(f"count: got {count!r}, expected 1 to {size}, the number of features of both models")
    variance = matrix.diagonal().copy()
    varies = np.flatnonzero(variance > 0)
    constant = np.flatnonzero(variance <= 0)
    if not len(varies):
        return constant[:count].astype(np.int64)
    inside, variance = matrix[np.ix_(varies, varies)], variance[varies]
    if order == "pivoted":
        found = _pivoted(inside, variance, len(varies) if count is None else min(count, len(varies)))
    else:
        found = _sorted(_keys(inside, variance, varies < split, order), variance)
    return np.concatenate([varies[found], constant])[:count].astype(np.int64)


def _checked_covariance(covariance: FloatArray | Moments, split: int | None) -> tuple[FloatArray, int]:
    if isinstance(covariance, Moments):
        if len(covariance.views) != 2:
            raise InputError(
                f"covariance: got moments of {len(covariance.views)} views, expected two: one of each model"
            )
        (a, p), (b, _) = covariance.views.items()
        if split not in (None, p):
            raise InputError(f"split: got {split}, expected {p}, the width of view {a!r}, or none")
        cross = covariance.covariance(a, b)
        return np.block([[covariance.covariance(a), cross], [cross.T, covariance.covariance(b)]]), p
    matrix = np.asarray(covariance, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"covariance: got shape {matrix.shape}, expected a square matrix (p + q, p + q)")
    if not np.isfinite(matrix).all():
        raise NonFiniteError(
            "covariance: got NaN or infinity, expected finite numbers; leave those features or rows out"
        )
    if split is None or isinstance(split, bool) or not 1 <= split < len(matrix):
        raise InputError(
            f"split: got {split!r}, expected the number of features of the first model, 1 to {len(matrix) - 1}"
        )
    scale = np.sqrt(np.abs(matrix.diagonal()))
    if (matrix.diagonal() < 0).any() or (np.abs(matrix - matrix.T) > 1e-8 * np.outer(scale, scale)).any():
        raise InputError(
            "covariance: got a matrix that is not symmetric with a diagonal of at least 0, expected a covariance"
        )
    return matrix, int(split)


def _keys(matrix: FloatArray, variance: FloatArray, of_first: Any, order: str) -> FloatArray:
    """Return what is sorted by, smallest first."""
    if order == "variance":
        return -variance
    if order == "cross-correlation":
        scale = np.sqrt(variance)
        matrix = matrix / scale / scale[:, None]
    keys = np.zeros(len(variance))
    for own in (of_first, ~of_first):
        if own.any() and not own.all():
            keys[own] = np.abs(matrix[np.ix_(own, ~own)]).mean(axis=1)
    return -keys if order == "cross-covariance-descending" else keys


def _sorted(keys: FloatArray, variance: FloatArray) -> IntArray:
    return np.lexsort((np.arange(len(keys)), -variance, keys)).astype(np.int64)


def _pivoted(covariance: FloatArray, variance: FloatArray, count: int) -> IntArray:
    """Pivoted Cholesky factorization of the correlation matrix, column by column; only the order is kept."""
    size = len(variance)
    check_memory(8 * size * count, f"the order of {count} of {size} features", "give count=, or fewer features")
    scale = np.sqrt(variance)
    left = np.ones(size)  # of the variance of each feature, which those chosen do not explain
    rows = np.empty((count, size))
    chosen = np.zeros(size, dtype=bool)
    found: list[int] = []
    for step in range(count):
        most = float(left[~chosen].max())
        if most <= _TIE:
            break
        ties = np.flatnonzero(~chosen & (left >= most - _TIE))
        pivot = int(ties[np.argmax(variance[ties])])  # the first of the largest
        row = covariance[pivot] / (scale * scale[pivot]) - rows[:step, pivot] @ rows[:step]
        row /= np.sqrt(left[pivot])
        rows[step] = row
        chosen[pivot] = True
        found.append(pivot)
        left = np.maximum(left - row**2, 0.0)
    rest = np.flatnonzero(~chosen)
    return np.concatenate([found, rest[_sorted(np.zeros(len(rest)), variance[rest])]])[:count].astype(np.int64)
