"""Slow answers in extended precision (80-bit floats, 64-bit mantissas). Nothing of streamcca is used."""

from __future__ import annotations

import numpy as np

LONG = np.longdouble
# 2000 times finer than float64 is what the tests need; where long doubles are plain doubles they say nothing.
AVAILABLE = np.finfo(LONG).eps < 2e-19


def centered(x, weights=None):
    """Rows less their mean, times the roots of the weights."""
    x = np.asarray(x).astype(LONG)
    w = np.ones(len(x), LONG) if weights is None else np.asarray(weights).astype(LONG)
    return (x - w @ x / w.sum()) * np.sqrt(w)[:, None]


def orthonormal(x):
    """Q and R of Gram and Schmidt, each column twice."""
    x = np.array(x, LONG)
    q, r = np.zeros_like(x), np.zeros((x.shape[1], x.shape[1]), LONG)
    for j in range(x.shape[1]):
        v = x[:, j].copy()
        for _ in range(2):
            h = q[:, :j].T @ v
            v -= q[:, :j] @ h
            r[:j, j] += h
        r[j, j] = np.sqrt(v @ v)
        q[:, j] = v / r[j, j]
    return q, r


def svd(a):
    """U, s and V of a square or tall matrix, by one-sided Jacobi rotations from NumPy's V on."""
    v = orthonormal(np.linalg.svd(a.astype(float))[2].T)[0]
    g = a @ v
    d = g.shape[1]
    for _ in range(30):
        worst = 0.0
        for i in range(d - 1):
            for j in range(i + 1, d):
                p, q, c = g[:, i] @ g[:, i], g[:, j] @ g[:, j], g[:, i] @ g[:, j]
                if p == 0 or q == 0 or abs(c) <= 1e-19 * np.sqrt(p * q):
                    continue
                worst = max(worst, float(abs(c) / np.sqrt(p * q)))
                zeta = (q - p) / (2 * c)
                t = (1 if zeta >= 0 else -1) / (abs(zeta) + np.sqrt(1 + zeta * zeta))
                cos = 1 / np.sqrt(1 + t * t)
                for m in (g, v):
                    m[:, [i, j]] = m[:, [i, j]] @ np.array([[cos, cos * t], [-cos * t, cos]], LONG)
        if worst < 1e-17:
            break
    else:
        raise AssertionError("Jacobi rotations did not converge")
    s = np.sqrt((g * g).sum(axis=0))
    order = np.argsort(-s)
    return g[:, order] / np.where(s > 0, s, 1)[order], s[order], v[:, order]


def left_vectors(x, rule="full", value=None, weights=None):
    """Orthonormal basis (n, k) of the kept directions of a view of full rank."""
    q, r = orthonormal(centered(x, weights))
    if rule == "full":
        return q
    u, s, _ = svd(r)
    if rule == "rank":
        k = value
    else:
        parts = s**2 if rule == "variance" else s
        k = int(np.argmax(np.cumsum(parts) / parts.sum() >= value)) + 1
    return q @ u[:, :k]


def correlations(x, y, rule="full", value=None, weights=None):
    """Canonical correlations, and both ranks."""
    pair = value if isinstance(value, tuple) else (value, value)
    ux, uy = left_vectors(x, rule, pair[0], weights), left_vectors(y, rule, pair[1], weights)
    core = ux.T @ uy
    rho = svd(core if core.shape[0] >= core.shape[1] else core.T)[1]
    return rho, ux.shape[1], uy.shape[1]


def planted(rng, n, rho, widths, kappa):
    """Two views with exactly these correlations (to rounding of their entries), mixed to a condition, and the truth.

    The rows are rounded to float64 after mixing, which moves the correlations by some u kappa; so the truth is that of
    the rounded rows.
    """
    rho = np.asarray(rho)
    k = len(rho)
    basis = np.linalg.qr(np.hstack([np.ones((n, 1)), rng.standard_normal((n, sum(widths)))]))[0][:, 1:]
    x = basis[:, : widths[0]]
    y = np.hstack(
        [x[:, :k] * rho + basis[:, widths[0] : widths[0] + k] * np.sqrt(1 - rho**2), basis[:, widths[0] + k :]]
    )

    def mix(v):
        d = v.shape[1]
        u, w = (np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in range(2))
        return v @ (u * kappa ** -np.linspace(0, 1, d)) @ w

    return mix(x), mix(y)
