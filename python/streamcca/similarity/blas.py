"""Products and decompositions on the BLAS that the native code calls, SciPy's.

NumPy brings a BLAS of its own, whose threads go on spinning after each call; where calls of the two alternate, they
take the cores from each other: all measures of 16 pairs of 256 neurons took 4.7 s on two cores, and 2.1 s on one
thread.
"""

from __future__ import annotations

import numpy as np

from streamcca._backend import FloatArray
from streamcca.blas_threads import few_threads


def product(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return a @ b of two matrices, with neither copied where its rows or columns are contiguous."""
    from scipy.linalg.blas import dgemm

    # BLAS wants columns: (b' a')' is in the order of rows.
    (left, turn_left), (right, turn_right) = _columns(b.T), _columns(a.T)
    with few_threads(max(*a.shape, *b.shape)):
        result: FloatArray = dgemm(1.0, left, right, trans_a=turn_left, trans_b=turn_right).T
    return result


def _columns(matrix: FloatArray) -> tuple[FloatArray, bool]:
    """Return what BLAS reads without a copy, and whether it is to be transposed."""
    return (matrix.T, True) if matrix.flags.c_contiguous and not matrix.flags.f_contiguous else (matrix, False)


def singular_vectors(a: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return u (m, k), the singular values (k,) in falling order, and v' (k, n)."""
    from scipy.linalg import svd

    with few_threads(max(a.shape)):
        u, s, v = svd(a, full_matrices=False, check_finite=False)
    return u, s, v


def inner(a: FloatArray, b: FloatArray) -> float:
    """Return the sum of the products of all entries, added pairwise by NumPy itself, without BLAS."""
    return float(np.sum(a * b))
