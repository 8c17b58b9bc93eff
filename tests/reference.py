"""Slow, obvious answers in float64 NumPy on the whole data, or in exact rationals. Nothing of streamcca is used."""

from __future__ import annotations

from fractions import Fraction

import numpy as np


def covariance(x, y=None, weights=None, ddof=1):
    """Two passes: means first."""
    x = np.asarray(x, dtype=np.float64)
    y = x if y is None else np.asarray(y, dtype=np.float64)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=np.float64)
    mean_x, mean_y = w @ x / w.sum(), w @ y / w.sum()
    return ((x - mean_x) * w[:, None]).T @ (y - mean_y) / (w.sum() - ddof)


def exact_covariance_entry(x, y, ddof=1):
    """Covariance of two columns in exact rational arithmetic, rounded once at the end."""
    a, b = [Fraction(float(v)) for v in x], [Fraction(float(v)) for v in y]
    n = len(a)
    return float((sum(p * q for p, q in zip(a, b, strict=True)) - sum(a) * sum(b) / n) / (n - ddof))


def kept_rank(s, rule, value):
    """Number of directions that a rule keeps of the singular values s."""
    parts = {"variance": s**2, "nuclear": s}[rule]
    shares = np.cumsum(parts) / parts.sum()
    return int(np.argmax(shares >= value)) + 1


def left_vectors(x, rule="full", value=None):
    """Orthonormal basis (n, k) of the kept part of a view, by SVD of the full centered matrix."""
    x = np.asarray(x, dtype=np.float64)
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    if rule == "full":
        k = int(np.sum(s > s[0] * max(x.shape) * np.finfo(float).eps))
    elif rule == "rank":
        k = value
    else:
        k = kept_rank(s, rule, value)
    return u[:, :k]


def correlations(x, y, rule="full", value=None):
    """Canonical correlations and both ranks: singular values of Ux' Uy (Bjorck & Golub)."""
    ux, uy = left_vectors(x, rule, value), left_vectors(y, rule, value)
    rho = np.clip(np.linalg.svd(ux.T @ uy, compute_uv=False), 0, 1)
    return rho, ux.shape[1], uy.shape[1]


def pwcca(x, y, side="x"):
    """Weighted mean of correlations after Morcos et al. 2018, from the variates themselves."""
    if side == "y":
        return pwcca(y, x)
    x, y = (np.asarray(v, dtype=np.float64) - np.mean(v, axis=0) for v in (x, y))
    qx, qy = left_vectors(x), left_vectors(y)
    u, rho, _ = np.linalg.svd(qx.T @ qy, full_matrices=False)
    variates = qx @ u
    weights = np.abs(variates.T @ x).sum(axis=1)
    return float(weights @ rho / weights.sum())


def lowpass(x, size):
    """Trigonometric polynomial of the frequencies up to size / 2 of maps (n, c, ...), on a smaller grid."""
    x = np.asarray(x, dtype=np.float64)
    for axis, new in enumerate(size, start=2):
        old = x.shape[axis]
        if new == old:
            continue
        f = np.arange(-(new // 2), new // 2 + 1)
        amplitudes = np.exp(-2j * np.pi * np.outer(f, np.arange(old)) / old) / old
        waves = np.exp(2j * np.pi * np.outer(np.arange(new), f) / new)
        matrix = waves @ amplitudes
        assert np.abs(matrix.imag).max() < 1e-12
        x = np.moveaxis(np.tensordot(matrix.real, x, axes=(1, axis)), 0, axis)
    return x


def frequency_correlations(x, y, rule="full", value=None):
    """Dictionaries from each frequency to its canonical correlations and both ranks, by complex SVD of whole data."""
    size = tuple(min(a, b) for a, b in zip(x.shape[2:], y.shape[2:], strict=True))
    axes = tuple(range(2, x.ndim))
    x, y = (np.fft.fftn(lowpass(v, size), axes=axes) for v in (x, y))
    rho, ranks = {}, {}
    for f in np.ndindex(*size):
        bases = []
        for v in (x, y):
            rows = v[(slice(None), slice(None), *f)]
            u, s, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
            if rule == "full":
                k = int(np.sum(s > 1e-10 * s[0]))
            else:
                k = value if rule == "rank" else kept_rank(s, rule, value)
            bases.append(u[:, :k])
        rho[f] = np.clip(np.linalg.svd(bases[0].conj().T @ bases[1], compute_uv=False), 0, 1)
        ranks[f] = bases[0].shape[1], bases[1].shape[1]
    return rho, ranks
