"""Sample canonical correlations of Gaussian views with given population correlations, drawn without any rows."""

from __future__ import annotations

import numpy as np

from streamcca._backend import FloatArray

# Correlations above tanh(6) = 0.99999 hardly fluctuate, and would spoil the small eigenvalues beside them.
HIGHEST_Z = 6.0
_CHUNK = 2e6  # numbers in a temporary


def _bartlett(rng: np.random.Generator, count: int, size: int, freedom: float) -> FloatArray:
    """Return upper triangular R with R'R ~ Wishart(freedom, I); freedom > size - 1 need not be whole."""
    factor = np.triu(rng.standard_normal((count, size, size)), 1)
    diagonal = np.arange(size)
    factor[:, diagonal, diagonal] = np.sqrt(rng.chisquare(freedom - diagonal, (count, size)))
    return factor


class CorrelationDraws:
    """Draws of the sample canonical correlations that one set of random numbers gives for any population.

    With X = Q T (f x q, the wider side), Y = X R + E S for R = diag(rho), S = sqrt(1 - R^2), the squared sample
    correlations are s^2 / (1 + s^2), s the singular values of G U^-1. Here G = Q'Y S^-1 = T R S^-1 + Z, and U'U ~
    Wishart(f - q) is what Q leaves of the noise. T enters by its first p columns, whose triangle is that of a
    Wishart(f) matrix (Bartlett 1933), and the q - p rows of G below it, pure noise, by their Wishart(q - p) sum of
    squares. So a draw costs O(p^3) whatever n, f = n - 1 may be fractional, and the same random numbers make the
    curve a smooth function of the population.

    Parameters
    ----------
    kx, ky : int
        Directions of the two views.
    freedom : float
        Degrees of freedom n - 1, more than kx + ky - 1.
    count : int
        Number of draws.
    seed : int
        Seed of the draws.
    """

    def __init__(self, kx: int, ky: int, freedom: float, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        few, many = min(kx, ky), max(kx, ky)
        self.count = count
        self._inverse = np.linalg.inv(_bartlett(rng, count, few, freedom - many))
        self._signal = _bartlett(rng, count, few, freedom)
        self._noise = rng.standard_normal((count, few, few)) @ self._inverse
        rest = many - few
        below = _bartlett(rng, count, few, rest) if rest >= few else rng.standard_normal((count, rest, few))
        below = below @ self._inverse
        self._below = below.transpose(0, 2, 1) @ below

    def _chunks(self, count: int | None) -> list[slice]:
        """Return slices of the first `count` draws, small enough for the temporaries of a batch."""
        count = self.count if count is None else min(count, self.count)
        size = max(1, int(_CHUNK / self._noise[0].size))
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def _whitened(self, z: FloatArray, draws: slice) -> tuple[FloatArray, FloatArray]:
        w = self._signal[draws] @ (np.sinh(z)[:, None] * self._inverse[draws]) + self._noise[draws]
        return w, w.transpose(0, 2, 1) @ w + self._below[draws]

    def fisher_z(self, z: FloatArray, count: int | None = None) -> FloatArray:
        """Return artanh of the sample correlations (count x few, rows decreasing) for population artanh(rho) = z."""
        ratios = np.concatenate([np.linalg.eigvalsh(self._whitened(z, draws)[1]) for draws in self._chunks(count)])
        result: FloatArray = np.arcsinh(np.sqrt(np.maximum(ratios[:, ::-1], 0.0)))
        return result

    def jacobian(self, z: FloatArray, count: int | None = None) -> FloatArray:
        """Return d E[zs_i^2] / d (z_j^2) over the draws (few x few), zs the sample's Fisher z; z > 0."""
        total = np.zeros((len(z), len(z)))
        chunks = self._chunks(count)
        for draws in chunks:
            w, square = self._whitened(z, draws)
            ratios, vectors = np.linalg.eigh(square)
            ratios, vectors = np.maximum(ratios[:, ::-1], 1e-300), vectors[:, :, ::-1]
            left = self._signal[draws].transpose(0, 2, 1) @ (w @ vectors)
            right = self._inverse[draws] @ vectors
            slopes = 2 * (left * right).transpose(0, 2, 1)  # d ratio_i / d sinh(z_j)
            outer = np.arcsinh(np.sqrt(ratios)) / np.sqrt(ratios * (1 + ratios))  # d zs^2 / d ratio
            total += (outer[:, :, None] * slopes).sum(0)
        result: FloatArray = total / chunks[-1].stop * (np.cosh(z) / (2 * z))
        return result
