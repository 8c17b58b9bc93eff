"""Measures formed from covariances alone, each with its slopes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import InputError, UnderdeterminedError
from streamcca.similarity.blas import inner, product, singular_vectors
from streamcca.similarity.covariances import FULL, SAFETY, Formed, PairCovariance, ViewCovariance

# Draws of unrelated views whose mean is a chance level that has no formula, as long as they are small.
_DRAWS = 16


def cka(pair: PairCovariance) -> Formed:
    """Linear CKA |Sxy|^2 / (|Sxx| |Syy|), which is the RV coefficient."""
    x, y, cross = pair.x, pair.y, pair.cross
    size = x.norm * y.norm
    value = inner(cross, cross) / size
    null = min(1.0, x.trace * y.trace / size / (pair.rows - 1))
    slopes = (-value / x.norm**2 * x.matrix, -value / y.norm**2 * y.matrix, 2 / size * cross)
    return Formed(value, lambda: null, *slopes)


def adjusted_rv(pair: PairCovariance) -> Formed:
    """RV of standardized neurons from squared correlations adjusted for the number of rows (Mayer et al. 2011)."""
    n = pair.rows
    if n < 4:
        raise InputError(f"adjusted_rv: got {n} rows, expected at least 4")
    inflation = (n - 1) / (n - 2)
    scales = [_inverse_deviations(view) for view in (pair.x, pair.y)]
    both = [view.matrix * np.outer(s, s) for view, s in zip((pair.x, pair.y), scales, strict=True)]
    cross = pair.cross * np.outer(*scales)
    live = [int(np.count_nonzero(s)) for s in scales]

    def adjusted(correlations: FloatArray, count: int) -> float:
        return count - inflation * (count - inner(correlations, correlations))

    xx, yy = (adjusted(own, count * count) for own, count in zip(both, live, strict=True))
    for own, view in ((xx, pair.x), (yy, pair.y)):
        # The diagonal alone gives the number of neurons.
        if not own > 0:
            raise InputError(
                f"view {view.name!r}: its {n} rows leave nothing of its own correlations after adjusting; add rows"
            )
    xy = adjusted(cross, live[0] * live[1])
    size = np.sqrt(xx * yy)
    value = xy / size
    # Slopes with regard to correlations; then to covariances, whose diagonals scale everything.
    gc = 2 * inflation / size * cross
    gx, gy = (-value / own * inflation * r for own, r in ((xx, both[0]), (yy, both[1])))
    turn_x = -0.5 * ((gc * cross).sum(axis=1) + 2 * (gx * both[0]).sum(axis=1)) * scales[0] ** 2
    turn_y = -0.5 * ((gc * cross).sum(axis=0) + 2 * (gy * both[1]).sum(axis=1)) * scales[1] ** 2
    return Formed(
        float(value),
        lambda: 0.0,
        gx * np.outer(scales[0], scales[0]) + np.diag(turn_x),
        gy * np.outer(scales[1], scales[1]) + np.diag(turn_y),
        gc * np.outer(*scales),
    )


def _inverse_deviations(view: ViewCovariance) -> FloatArray:
    variances = np.diag(view.matrix)
    live = variances > view.relative * view.raw
    return np.divide(1.0, np.sqrt(np.where(live, variances, 1.0)), where=live, out=np.zeros(view.width))


def procrustes(pair: PairCovariance) -> Formed:
    """Nuclear norm of Sxy over sqrt(tr Sxx tr Syy); also the normalized Bures similarity of the Gram matrices."""
    x, y = pair.x, pair.y
    u, s, v = pair.cross_svd
    size = np.sqrt(x.trace * y.trace)
    value = min(1.0, float(s.sum()) / size)
    # Where singular values are below the error its norm decides: |S + E|_* - |S|_* <= |E|_*.
    noise = max(x.relative, y.relative) * np.sqrt(x.raw.max() * y.raw.sum() + y.raw.max() * x.raw.sum())
    return Formed(
        value,
        lambda: min(1.0, null_nuclear(x.eigenvalues, y.eigenvalues, pair.rows) / size),
        -value / (2 * x.trace) * np.eye(x.width),
        -value / (2 * y.trace) * np.eye(y.width),
        product(u, v) / size,
        float(np.sum(s < noise)) * noise / size,
    )


def null_nuclear(x: FloatArray, y: FloatArray, rows: int) -> float:
    """Return the mean nuclear norm of the cross-covariance of unrelated Gaussian views with these sample eigenvalues.

    Their left singular vectors are two independent frames of n - 1 dimensions, each equally likely in every position,
    whatever the eigenvalues.
    """
    roots = []
    for values in (x, y):
        kept = np.sort(np.maximum(values, 0))[::-1][: rows - 1]
        roots.append(np.sqrt(kept[kept > 1e-12 * kept[0]]))
    few, many = sorted(roots, key=lambda side: (len(side), side[0]))
    rng = np.random.default_rng(0)
    norms = []
    for _ in range(max(1, min(_DRAWS, 10**6 // (len(few) * len(many))))):
        drawn = _product_of_frames(len(few), len(many), rows - 1, rng) * few[:, None] * many
        # Half of the digits are plenty for a mean of draws.
        norms.append(np.sqrt(np.maximum(np.linalg.eigvalsh(drawn @ drawn.T), 0)).sum())
    return float(np.mean(norms))


def _product_of_frames(p: int, q: int, dimensions: int, rng: np.random.Generator) -> FloatArray:
    """Draw U'V (p, q) of two independent random orthonormal frames of `dimensions`.

    The first p rows G of a Gaussian matrix times the inverse of its triangular factor; the other rows enter that by
    their own factor alone, whose law is Bartlett's.
    """
    from scipy.linalg import solve_triangular

    top, rest = rng.standard_normal((p, q)), dimensions - p
    if rest >= q:
        others = np.triu(rng.standard_normal((q, q)), 1)
        others[np.diag_indices(q)] = np.sqrt(rng.chisquare(rest - np.arange(q)))
    else:
        others = rng.standard_normal((rest, q))
    factor = np.linalg.qr(np.concatenate([top, others]), mode="r")
    drawn: FloatArray = solve_triangular(factor, top.T, trans="T", check_finite=False).T
    return drawn


def linear_regression(pair: PairCovariance, predicted: str) -> Formed:
    """Share of the variance of one view that a linear map of the other explains: tr(Syx Sxx^-1 Sxy) / tr Syy."""
    if predicted == "x":
        turned = linear_regression(replace(pair, x=pair.y, y=pair.x, cross=pair.cross.T), "y")
        return replace(turned, x=turned.y, y=turned.x, cross=turned.cross.T)
    x, y = pair.x, pair.y
    white = x.whitening
    k = white.shape[1]
    if k >= pair.rows - 1:
        raise UnderdeterminedError(
            f"linear_regression: {pair.rows} rows are too few for {k} directions of view {x.name!r}: anything would be "
            "predicted without error; add rows"
        )
    explained = product(white.T, pair.cross)
    solved = product(white, explained)  # Sxx^-1 Sxy
    value = min(1.0, inner(explained, explained) / y.trace)
    # Second order: the error of Sxx, relative to the smallest direction, acts once more on what it changed.
    relative_error = x.relative * len(x.raw) * x.condition
    return Formed(
        value,
        lambda: k / (pair.rows - 1),
        -product(solved, solved.T) / y.trace,
        -value / y.trace * np.eye(y.width),
        2 / y.trace * solved,
        min(1.0, float(SAFETY * relative_error**2)),
    )


def shape(pair: PairCovariance, alpha: float) -> Formed:
    """Cosine of the angle between partly whitened shapes X (a I + (1 - a) Sxx^-1/2) (Williams et al. 2021).

    Each view has mean variance 1 over its directions first, so that the mixture does not depend on units. a = 1 is
    Procrustes, a = 0 the sum of canonical correlations over sqrt(kx ky).
    """
    x, y = _PartlyWhite(pair.x, alpha), _PartlyWhite(pair.y, alpha)
    projected = product(product(x.vectors.T, pair.cross), y.vectors)
    u, s, v = singular_vectors(projected * np.outer(x.weights, y.weights))
    size = np.sqrt(x.trace * y.trace)
    value = min(1.0, float(s.sum()) / size)
    polar = product(u, v) / size
    return Formed(
        value,
        lambda: min(1.0, null_nuclear(x.weights**2 * x.values, y.weights**2 * y.values, pair.rows) / size),
        x.slope(product(polar * y.weights, projected.T), value),
        y.slope(product(polar.T * x.weights, projected), value),
        product(product(x.vectors * x.weights, polar), (y.vectors * y.weights).T),
    )


class _PartlyWhite:
    """The map a I + (1 - a) (S / m)^-1/2 of one view, m its mean variance, in the coordinates of its directions."""

    def __init__(self, view: ViewCovariance, alpha: float) -> None:
        self._alpha = alpha
        rank = min(view.truncated(FULL, 0).native.rank, view.rows - 1)
        self.values, self.vectors = view.eigenvalues[:rank], view.eigenvectors[:, :rank]
        if not self.values[-1] > 0:
            keep = self.values > 0
            self.values, self.vectors = self.values[keep], self.vectors[:, keep]
        self._mean = float(self.values.mean())
        self.weights = alpha + (1 - alpha) * np.sqrt(self._mean / self.values)
        self.trace = float(np.sum(self.weights**2 * self.values))

    def slope(self, wanted: FloatArray, value: float) -> FloatArray:
        """Slope of the cosine with regard to this covariance; `wanted` is that with regard to the map.

        Daleckii & Krein: the map turns by divided differences of its function of the eigenvalues, which here need no
        difference.
        """
        a, root, mean = self._alpha, np.sqrt(self.values), np.sqrt(self._mean)
        divided = -(1 - a) * mean / (np.outer(root, root) * np.add.outer(root, root))
        white = a * root + (1 - a) * mean
        turned = divided * (wanted + wanted.T) / 2
        turned[np.diag_indices_from(turned)] -= value / (2 * self.trace) * white * a / root
        of_mean = float(np.diag(wanted) @ (0.5 * (1 - a) / (mean * root)))
        of_mean -= value / (2 * self.trace) * float(white.sum()) * (1 - a) / mean
        turned[np.diag_indices_from(turned)] += of_mean / len(root)
        return product(product(self.vectors, turned), self.vectors.T)
