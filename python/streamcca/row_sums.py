"""What debiased CKA sums over single rows beside their moments: squared lengths, and rows weighted by them."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamcca._backend import FloatArray
from streamcca.passes import bits_of, widened

# Rows are widened to float64, this many bytes of them at a time.
_CHUNK_BYTES = 16 << 20


class RowSums:
    """Sums over the rows of two views in float64, relative to the mean of the first rows.

    With a_i = |x_i|^2 and b_i = |y_i|^2, x and y relative to their shifts: a, b and their products, x and y weighted by
    a and by b.
    """

    def __init__(self) -> None:
        self._shifts: list[FloatArray] = []
        self._lengths = np.zeros(2)
        self._products = np.zeros((2, 2))
        # [view][by which lengths]
        self._weighted: list[list[FloatArray]] = []

    def add(self, x: Any, y: Any) -> None:
        """Add one batch of both views."""
        bits = [bits_of(rows, f"view {name!r}") for rows, name in ((x, "x"), (y, "y"))]
        count = min(len(array) for array, _ in bits)
        if not count:
            return
        if not self._shifts:
            self._shifts = [widened(array, dtype, np.float64).mean(axis=0) for array, dtype in bits]
            self._weighted = [[np.zeros_like(shift) for _ in range(2)] for shift in self._shifts]
        step = max(1, _CHUNK_BYTES // (8 * max(array.shape[1] for array, _ in bits)))
        for first in range(0, count, step):
            rows = [
                widened(array[first : first + step], dtype, np.float64) - shift
                for (array, dtype), shift in zip(bits, self._shifts, strict=True)
            ]
            squares = np.stack([np.einsum("ij,ij->i", view, view) for view in rows])
            self._lengths += squares.sum(axis=1)
            self._products += squares @ squares.T
            for view, sums in zip(rows, self._weighted, strict=True):
                for total, lengths in zip(sums, squares, strict=True):
                    total += lengths @ view

    def offsets(self, means: tuple[FloatArray, FloatArray]) -> list[FloatArray]:
        """Return the means of all rows relative to the shifts."""
        return [mean - shift for mean, shift in zip(means, self._shifts, strict=True)]

    def hsic(self, products: FloatArray, means: tuple[FloatArray, FloatArray], i: int, j: int, n: int) -> float:
        """Return Song's unbiased HSIC of views i and j of n rows; `products` is their X'Y about the shifts.

        With K = XX' and L = YY', zeros on their diagonals: tr(KL) = |X'Y|^2 - sum a_i b_i, 1'K1 = |s|^2 - sum a_i and
        1'KL1 = s'X'Y t - s' sum x_i b_i - t' sum y_i a_i + sum a_i b_i.
        """
        offsets = self.offsets(means)
        s, t, both = n * offsets[i], n * offsets[j], self._products[i, j]
        trace = float(np.vdot(products, products)) - both
        ones = (s @ s - self._lengths[i]) * (t @ t - self._lengths[j])
        mixed = s @ products @ t - s @ self._weighted[i][j] - t @ self._weighted[j][i] + both
        return float((trace + ones / ((n - 1) * (n - 2)) - 2 / (n - 2) * mixed) / (n * (n - 3)))

    def rounding(self, products: FloatArray, means: tuple[FloatArray, FloatArray], i: int, j: int, n: int) -> float:
        """Bound what float64 does to `hsic`: sums that cancel, and means that are rounded at their own size.

        Each term's size times sqrt(d) roundoffs, and its slope times how far the means can be off.
        """
        unit = 2.0**-53
        s, t = (n * offset for offset in (self.offsets(means)[i], self.offsets(means)[j]))
        off = [n * 4 * unit * float(np.linalg.norm(np.abs(means[k]) + np.abs(self._shifts[k]))) for k in (i, j)]
        size, left, right = (float(np.linalg.norm(part)) for part in (products, s, t))
        a, b, both = float(self._lengths[i]), float(self._lengths[j]), float(self._products[i, j])
        by = [float(np.linalg.norm(self._weighted[i][j])), float(np.linalg.norm(self._weighted[j][i]))]
        ones, mixed = (left**2 + a) * (right**2 + b), left * size * right + left * by[0] + right * by[1] + both
        terms = size**2 + both + ones / ((n - 1) * (n - 2)) + 2 / (n - 2) * mixed
        # `products` holds n times the product of both means.
        moved = 2 * size * (off[0] * right + off[1] * left) / n
        moved += 2 * (off[0] * left * (right**2 + b) + off[1] * right * (left**2 + a)) / ((n - 1) * (n - 2))
        moved += 2 / (n - 2) * (off[0] * (2 * size * right + by[0]) + off[1] * (2 * size * left + by[1]))
        roundoffs = 8 * unit * float(np.sqrt(max(products.shape) + n))
        return (roundoffs * terms + moved) / (n * (n - 3))
