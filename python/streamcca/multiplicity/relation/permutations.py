"""Permutation tests: of two vectors, and of two matrices of the same models (Mantel)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from streamcca._backend import FloatArray
from streamcca.errors import InputError
from streamcca.multiplicity.relation.coefficients import Coefficient, correlation
from streamcca.multiplicity.relation.resampling import IntArray, pairs_within
from streamcca.views import check_option

Alternative = Literal["two-sided", "greater", "less"]
# A permuted statistic counts as reaching the observed one when it misses it by rounding only.
_SAME = 1e-12
_CHUNK = 1 << 22


@dataclass(frozen=True)
class PermutationTest:
    """A permutation test.

    Attributes
    ----------
    statistic : float or None
        The coefficient observed; None where it is not defined.
    p : float or None
        Share of permutations that reach it, the one observed among them: never 0. None where there is no test.
    permutations : int
        How many were looked at; all there are if `exact`.
    exact : bool
        Whether all were gone through; else they were drawn, and p is (1 + those that reach it) / (1 + drawn).
    alternative : 'two-sided', 'greater' or 'less'
        'two-sided' compares absolute values.
    kind : str
        What was permuted.
    reason : str
        Why there is none.
    """

    statistic: float | None
    p: float | None
    permutations: int
    exact: bool
    alternative: str
    kind: str
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dict(vars(self))


def permutation_test(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    coefficient: Coefficient = "pearson",
    alternative: Alternative = "two-sided",
    permutations: int = 9999,
    seed: int = 0,
) -> PermutationTest:
    """Test whether two vectors go together, by permuting one of them.

    Parameters
    ----------
    x, y : array (N,)
    coefficient : 'pearson' or 'spearman'
    alternative : 'two-sided', 'greater' or 'less'
    permutations : int
        So many are drawn, if there are more; else all are gone through.
    seed : int

    Returns
    -------
    PermutationTest

    Examples
    --------
    >>> permutation_test([1, 2, 3, 4], [1, 3, 5, 8], alternative="greater").p  # 1 of 24
    0.041666666666666664
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise InputError(f"permutation_test: got shapes {a.shape} and {b.shape}, expected two vectors of one length")
    options = _checked(coefficient, alternative)
    one = np.zeros(len(a), dtype=np.int64)
    kind = "groups permuted"
    if len(a) < 3:
        reason = f"{len(a)} points, at least 3 are needed"
        return PermutationTest(None, None, 0, False, options[1], kind, reason)
    u, v, observed, reason = _scores(a, b, coefficient)
    if observed is None:
        return PermutationTest(None, None, 0, False, options[1], kind, reason)
    orders, exact = _orders(one, permutations, seed)
    found = np.concatenate([v[order] @ u for order in orders])
    return _result(observed, found, exact, alternative, kind)


def mantel(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    pairs: IntArray | None = None,
    strata: npt.ArrayLike | None = None,
    coefficient: Coefficient = "pearson",
    alternative: Alternative = "two-sided",
    permutations: int = 9999,
    seed: int = 0,
) -> PermutationTest:
    """Test whether two matrices of the same models go together, by permuting the models of one (Mantel 1967).

    Parameters
    ----------
    x, y : array (M, M)
        Symmetric; a number for every two models.
    pairs : array (P, 2), optional
        The pairs that are looked at; by default all of the models that may move. They must go over into each other
        under the permutations.
    strata : array (M,) of int, optional
        Models are permuted within strata only; models of stratum -1 stay where they are, and out.
    coefficient, alternative, permutations, seed
        As in `permutation_test`; ranks, if wanted, are formed once, before permuting.

    Returns
    -------
    PermutationTest

    References
    ----------
    Mantel (1967), "The detection of disease clustering and a generalized regression approach", Cancer Research 27.

    Examples
    --------
    >>> x = np.abs(np.subtract.outer([0.0, 1, 5, 7], [0.0, 1, 5, 7]))
    >>> mantel(x, x**2, alternative="greater").exact
    True
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    options = _checked(coefficient, alternative)
    own = np.zeros(len(a), dtype=np.int64) if strata is None else np.asarray(strata, dtype=np.int64)
    if a.ndim != 2 or a.shape != b.shape or a.shape[0] != a.shape[1] or own.shape != a.shape[:1]:
        raise InputError(
            f"mantel: got shapes {a.shape} and {b.shape} and {len(own)} strata, expected two matrices of the models"
        )
    chosen = pairs_within(np.flatnonzero(own >= 0)) if pairs is None else pairs
    kind = "models permuted" if len(np.unique(own[own >= 0])) < 2 else "models permuted within their groups"
    if len(chosen) < 3:
        reason = f"{len(chosen)} pairs, at least 3 are needed"
        return PermutationTest(None, None, 0, False, options[1], kind, reason)
    i, j = chosen[:, 0], chosen[:, 1]
    u, values, observed, reason = _scores(a[i, j], b[i, j], coefficient)
    if observed is None:
        return PermutationTest(None, None, 0, False, options[1], kind, reason)
    v = np.full(a.shape, np.nan)
    v[i, j] = v[j, i] = values
    step = max(1, _CHUNK // len(chosen))
    found = []
    orders, exact = _orders(own, permutations, seed)
    for some in orders:
        for first in range(0, len(some), step):
            order = some[first : first + step]
            found.append(v[order[:, i], order[:, j]] @ u)
    reached = np.concatenate(found)
    if not np.isfinite(reached).all():
        raise InputError("mantel: pairs do not go over into each other under the permutations; name others, or strata")
    return _result(observed, reached, exact, alternative, kind)


def _checked(coefficient: Any, alternative: Any) -> tuple[str, str]:
    check_option("coefficient", coefficient, ("pearson", "spearman"))
    check_option("alternative", alternative, ("two-sided", "greater", "less"))
    return coefficient, alternative


def _scores(x: FloatArray, y: FloatArray, name: Coefficient) -> tuple[FloatArray, FloatArray, float | None, str]:
    """Centered vectors of length 1, of values or ranks: their product is the coefficient."""
    import scipy.stats

    value, reason = correlation(name, x, y)
    if value is None:
        return x, y, None, reason
    if name == "spearman":
        x, y = scipy.stats.rankdata(x), scipy.stats.rankdata(y)
    u, v = x - x.mean(), y - y.mean()
    u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
    return u, v, float(u @ v), ""


def _orders(strata: IntArray, permutations: int, seed: int) -> tuple[Iterator[IntArray], bool]:
    """Blocks (B, M) of permutations within strata: all of them, or so many drawn ones."""
    parts = [np.flatnonzero(strata == k) for k in np.unique(strata[strata >= 0])]
    exact = math.prod(math.factorial(len(part)) for part in parts) <= permutations
    return (_all_orders(len(strata), parts) if exact else _drawn_orders(len(strata), parts, permutations, seed)), exact


def _all_orders(models: int, parts: list[IntArray]) -> Iterator[IntArray]:
    for orders in itertools.product(*(itertools.permutations(part) for part in parts)):
        row = np.arange(models)
        for part, order in zip(parts, orders, strict=True):
            row[part] = order
        yield row[None]


def _drawn_orders(models: int, parts: list[IntArray], permutations: int, seed: int) -> Iterator[IntArray]:
    rng = np.random.default_rng(seed)
    for first in range(0, permutations, 1024):
        rows = np.tile(np.arange(models), (min(1024, permutations - first), 1))
        for part in parts:
            rows[:, part] = rng.permuted(np.tile(part, (len(rows), 1)), axis=1)
        yield rows


def _result(observed: float, found: FloatArray, exact: bool, alternative: Alternative, kind: str) -> PermutationTest:
    if alternative == "two-sided":
        reach = np.abs(found) >= abs(observed) - _SAME
    elif alternative == "greater":
        reach = found >= observed - _SAME
    else:
        reach = found <= observed + _SAME
    count = int(reach.sum())
    p = count / len(found) if exact else (1 + count) / (1 + len(found))
    return PermutationTest(observed, p, len(found), exact, alternative, kind)
