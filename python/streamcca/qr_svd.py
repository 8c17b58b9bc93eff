"""A singular value decomposition whose vectors are as good as the matrix, from LAPACK's, whose vectors are not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streamcca._backend import FloatArray
from streamcca.errors import NumericError

# Turns above are left alone: to first order only small ones are known. One of 2^-17 leaves vectors that are
# orthogonal to 2^-34, and those of the second round to 2^-68.
_LARGEST_TURN = 2.0**-17


@dataclass(frozen=True, eq=False)
class Svd:
    """A = U diag(s) V', s decreasing, and where only LAPACK's word is to be had."""

    u: FloatArray  # (n, d)
    s: FloatArray  # (d,)
    v: FloatArray  # (d, d)
    unpolished: npt.NDArray[np.bool_]  # (d, d): pairs of vectors whose turn was too large
    outside: npt.NDArray[np.bool_]  # (d,): vectors of U that may lie outside of the range


def polished_svd(matrix: FloatArray) -> Svd:
    """Decompose a matrix (n, d) with n >= d.

    LAPACK's dgesdd mixes vectors p and j by up to some 65 roundoffs times s_1 |s_p, s_j| / (s_p^2 - s_j^2), and its U
    is orthogonal to 12 to 90 roundoffs (6 to 40 columns, condition 1e1 to 1e10). Two rounds of what the residuals
    I - U'U, I - V'V and U'AV say about the vectors, to first order, leave 2 and 3 to 18; one-sided Jacobi (dgejsv) was
    in between.

    References
    ----------
    Ogita & Aishima (2020), "Iterative refinement for singular value decomposition based on matrix multiplication",
    Journal of Computational and Applied Mathematics 369; here in one precision.
    """
    u, s, vt = lapack_svd(matrix)
    v = np.ascontiguousarray(vt.T)
    u, outside = _within_range(matrix, u, s, v)
    u, s, v, _ = _turned(matrix, u, v)
    u, s, v, unpolished = _turned(matrix, u, v)
    order = np.argsort(-s, kind="stable")
    return Svd(u[:, order], s[order], v[:, order], unpolished[np.ix_(order, order)], outside[order])


def lapack_svd(matrix: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return thin U, s and V' by divide and conquer, or by QR iterations should that fail.

    Raises
    ------
    NumericError
        Neither converged.
    """
    from scipy.linalg import LinAlgError, svd

    try:
        return svd(matrix, full_matrices=False)  # type: ignore[no-any-return]
    except LinAlgError:
        pass
    try:
        return svd(matrix, full_matrices=False, lapack_driver="gesvd")  # type: ignore[no-any-return]
    except LinAlgError as error:
        raise NumericError(f"the singular values of a factor were not found ({error}); truncate the view") from None


def _within_range(
    matrix: FloatArray, u: FloatArray, s: FloatArray, v: FloatArray
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Return U with what it misses of the range of the matrix, and where that is too large for the first order."""
    if len(u) == len(s):
        return u, np.zeros(len(s), bool)
    missed = matrix @ v
    missed -= u @ (u.T @ missed)  # what U'U - I leaves of it the turns will mend
    missed /= np.where(s > 0, s, 1.0)
    known = np.abs(missed).max(axis=0) < _LARGEST_TURN
    return u + np.where(known, missed, 0.0), ~known


def _turned(
    matrix: FloatArray, u: FloatArray, v: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, npt.NDArray[np.bool_]]:
    """Improve U, s and V once, and say which pairs of vectors were left as they were.

    U (I + F) and V (I + G) shall be orthogonal, F + F' = D = I - U'U and G + G' = E = I - V'V, and diagonalize:
    T + F'S + S G = S for T = U'AV. Off the diagonal these are two equations for F_ij and G_ij.
    """
    t = u.T @ (matrix @ v)
    d, e = np.eye(len(t)) - u.T @ u, np.eye(len(t)) - v.T @ v
    s = np.diag(t) * (1 + (np.diag(d) + np.diag(e)) / 2)
    p, q = t + d * s, t.T + e * s
    gaps = s**2 - (s**2)[:, None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        f, g = (p * s + q * s[:, None]) / gaps, (q * s + p * s[:, None]) / gaps
    small = (np.abs(f) < _LARGEST_TURN) & (np.abs(g) < _LARGEST_TURN)  # on the diagonal neither is a number
    f, g = np.where(small, f, d / 2), np.where(small, g, e / 2)
    return u + u @ f, np.abs(s), v + v @ g, ~small
