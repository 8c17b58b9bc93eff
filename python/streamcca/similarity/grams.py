"""Measures formed from n x n matrices: how alike the samples are to each other, whatever the width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import InputError, UnderdeterminedError
from streamcca.gram import Gram, ViewGram
from streamcca.similarity.covariances import SAFETY, check_range, spectral_error
from streamcca.similarity.formed import null_nuclear

_UNIT = 2.0**-53


@dataclass(frozen=True)
class OfGrams:
    """A number formed from Gram matrices, what rounding does to it, and what unrelated views score."""

    value: float
    error_bound: float
    null: Callable[[], float]


def _roundoff(size: int) -> float:
    return 16 * _UNIT * float(np.sqrt(size))


def _alignment(
    kernels: tuple[FloatArray, FloatArray], names: tuple[str, str]
) -> tuple[float, tuple[FloatArray, FloatArray]]:
    """<K, L> / (|K| |L|) and its slopes with regard to K and L."""
    k, m = kernels
    kk, mm, km = float(np.vdot(k, k)), float(np.vdot(m, m)), float(np.vdot(k, m))
    for own, view in ((kk, names[0]), (mm, names[1])):
        _check_varies(own, view)
    size = np.sqrt(kk * mm)
    value = km / size
    return value, (m / size - k * (value / kk), k / size - m * (value / mm))


def _check_varies(squared: float, view: str) -> None:
    if not squared > 0:
        raise InputError(f"view {view!r}: every neuron is constant over the rows; leave the view out")


def _deviation(view: ViewGram, slope: FloatArray) -> float:
    """Of <slope, E>, E symmetric with entries of deviation e sqrt(r_s r_t)."""
    e, _, r = view.rounding
    return float(e * np.sqrt(2 * (r @ slope**2 @ r)))


def cka(g: Gram, a: str, b: str, *, debiased: bool = False) -> OfGrams:
    """Linear CKA; debiased by Song's estimators of its three terms."""
    x, y = g.view(a), g.view(b)
    kernels = (x.matrix, y.matrix)
    if debiased:
        kernels = (u_centered(x.matrix), u_centered(y.matrix))
        for kernel, view, name in zip(kernels, (x, y), (a, b), strict=True):
            check_debiased(float(np.vdot(kernel, kernel)), float(np.vdot(view.matrix, view.matrix)), name, g.n)
    value, slopes = _alignment(kernels, (a, b))
    bound = SAFETY * float(np.hypot(_deviation(x, slopes[0]), _deviation(y, slopes[1]))) + _roundoff(g.n)
    return OfGrams(value, bound, lambda: 0.0 if debiased else _null_alignment(*kernels))


def _null_alignment(k: FloatArray, m: FloatArray) -> float:
    """Mean over all permutations of the rows of one view: tr K tr L / (n - 1) / (|K| |L|), exactly."""
    size = (len(k) - 1) * np.linalg.norm(k) * np.linalg.norm(m)
    return min(1.0, float(np.trace(k) * np.trace(m) / size))


def u_centered(matrix: FloatArray) -> FloatArray:
    """Return the matrix whose inner products are Song's unbiased estimates, times n (n - 3)."""
    n = len(matrix)
    if n < 4:
        raise InputError(f"debiased: got {n} rows, expected at least 4")
    result = matrix - np.diag(np.diag(matrix))
    sums = result.sum(axis=0) / (n - 2)
    result -= sums[:, None]
    result -= sums[None, :] - sums.sum() / (n - 1)
    np.fill_diagonal(result, 0)
    return result


def check_debiased(own: float, whole: float, view: str, rows: int) -> None:
    """Refuse a view whose unbiased term, a sum of squares in exact arithmetic, is nothing but rounding of `whole`."""
    if not own > 1e-12 * whole:
        raise InputError(
            f"view {view!r}: its {rows} rows are as far from each other as chance would have it, so that the debiased "
            "estimate divides by zero; add rows"
        )


# ---------------------------------------------------------------------- eigenvectors


def _decomposed(view: ViewGram, name: str) -> tuple[FloatArray, FloatArray, float]:
    """Eigenvalues and eigenvectors of as many directions as there can be, and the norm of the matrix's error."""
    values, vectors = np.linalg.eigh(view.matrix)
    rank = min(view.width, len(values) - 1)
    values, vectors = np.maximum(values[-rank:], 0), vectors[:, -rank:]
    _check_varies(float(values.sum()), name)
    return values, vectors, spectral_error(view.rounding[0], view.rounding[2], float(values[-1]))


def procrustes(g: Gram, a: str, b: str) -> OfGrams:
    """Nuclear norm of X'Y over |X| |Y|: that of the product of the matrices' roots."""
    halves, spectra, moved = [], [], []
    for name in (a, b):
        values, vectors, norm = _decomposed(g.view(name), name)
        halves.append(vectors * np.sqrt(values))
        spectra.append(values)
        # A root moves by |E| / (2 sqrt(lambda)), and by no more than sqrt(|E|) where that is large (Powers & Stoermer).
        steps = np.minimum(norm / (2 * np.sqrt(np.maximum(values, np.finfo(float).tiny))), float(np.sqrt(norm)))
        moved.append(float(np.linalg.norm(steps)))
    size = float(np.sqrt(spectra[0].sum() * spectra[1].sum()))
    s = np.linalg.svd(halves[0].T @ halves[1], compute_uv=False)
    norms = [np.sqrt(values.sum()) for values in spectra]
    bound = float(moved[0] * norms[1] + moved[1] * norms[0]) / size + _roundoff(g.n)
    return OfGrams(
        min(1.0, float(s.sum()) / size),
        bound,
        lambda: min(1.0, null_nuclear(spectra[0], spectra[1], g.n) / size),
    )


def linear_regression(g: Gram, a: str, b: str, predicted: str) -> OfGrams:
    """Share of tr Y'Y inside the space of the other view's scores."""
    own, other = (a, b) if predicted == "x" else (b, a)
    values, vectors, norm = _decomposed(g.view(other), other)
    kept = values > max(norm, values[-1] * 1e-14)
    rank = int(kept.sum())
    if rank >= g.n - 1:
        raise UnderdeterminedError(
            f"linear_regression: {g.n} rows are too few for {rank} directions of view {other!r}: anything would be "
            "predicted without error; add rows"
        )
    scores, view = vectors[:, kept], g.view(own)
    trace = float(np.trace(view.matrix))
    _check_varies(trace, own)
    value = float(np.vdot(scores, view.matrix @ scores)) / trace
    # The projector turns by |E| / lambda at most on each side; the traces' own errors are those of sums of variances.
    slope = (scores @ scores.T - value * np.eye(g.n)) / trace
    bound = min(1.0, 2 * norm / float(values[kept][0])) + SAFETY * _deviation(view, slope) + _roundoff(g.n)
    return OfGrams(min(1.0, value), min(1.0, bound), lambda: rank / (g.n - 1))


# ---------------------------------------------------------------------- distances between samples


def _squared_distances(view: ViewGram) -> FloatArray:
    diagonal = np.diag(view.matrix)
    result: FloatArray = np.maximum(diagonal[:, None] + diagonal - 2 * view.matrix, 0)
    np.fill_diagonal(result, 0)
    return result


def _deviation_of_distances(view: ViewGram, slope: FloatArray) -> float:
    """As `_deviation`, where `slope` is with regard to squared distances g_ss + g_tt - 2 g_st."""
    of_gram = -2 * slope
    np.fill_diagonal(of_gram, 2 * (slope.sum(axis=1) - np.diag(slope)))
    return _deviation(view, of_gram)


def rbf_cka(g: Gram, a: str, b: str, *, bandwidth: float = 0.5) -> OfGrams:
    """CKA of kernels exp(-d^2 / (2 s^2)), s the median distance of two samples times `bandwidth`."""
    kernels: list[FloatArray] = []
    pulls: list[FloatArray] = []
    for name in (a, b):
        squared = _squared_distances(g.view(name))
        median = float(np.median(np.sqrt(squared[np.triu_indices(g.n, 1)])))
        if not median > 0:
            raise InputError(f"view {name!r}: more than half of its rows are the same; rbf_cka needs rows that differ")
        scale = 2 * (bandwidth * median) ** 2
        kernels.append(np.exp(-squared / scale))
        pulls.append(-kernels[-1] / scale)
    centered = (_double_centered(kernels[0]), _double_centered(kernels[1]))
    value, slopes = _alignment(centered, (a, b))
    deviations = [
        _deviation_of_distances(g.view(name), _double_centered(slope) * pull)
        for name, slope, pull in zip((a, b), slopes, pulls, strict=True)
    ]
    bound = SAFETY * float(np.linalg.norm(deviations)) + _roundoff(g.n)
    return OfGrams(value, bound, lambda: _null_alignment(*centered))


def _double_centered(matrix: FloatArray) -> FloatArray:
    sums = matrix.mean(axis=0)
    result: FloatArray = matrix - sums - matrix.mean(axis=1)[:, None] + sums.mean()
    return result


def rsa(g: Gram, a: str, b: str, *, correlation: str = "spearman") -> OfGrams:
    """Correlation of the Euclidean distances of all pairs of samples, by ranks or as they are."""
    from scipy.stats import rankdata

    upper = np.triu_indices(g.n, 1)
    sides, errors = [], []
    for name in (a, b):
        view = g.view(name)
        squared = _squared_distances(view)[upper]
        e, _, r = view.rounding
        noise = 2 * SAFETY * e * (r[upper[0]] + r[upper[1]]) + _roundoff(1) * float(squared.max(initial=0.0))
        if not float(np.ptp(squared)) > 4 * float(noise.max()):
            raise InputError(
                f"view {name!r}: all samples are equally far from each other; rsa has nothing to correlate"
            )
        if correlation == "spearman":
            numbers = rankdata(squared)
            ordered = np.sort(squared)
            # Ranks can change where distances tie within their errors.
            moved = np.searchsorted(ordered, squared + 2 * noise, "right") - np.searchsorted(
                ordered, squared - 2 * noise
            )
            change = moved.astype(np.float64) - 1
        else:
            numbers = np.sqrt(squared)
            change = np.minimum(noise / np.maximum(2 * numbers, np.finfo(float).tiny), np.sqrt(noise))
        numbers = numbers - numbers.mean()
        norm = float(np.linalg.norm(numbers))
        sides.append(numbers / norm)
        errors.append(float(np.linalg.norm(change)) / norm)
    value = float(sides[0] @ sides[1])
    return OfGrams(value, min(1.0, sum(errors) + _roundoff(g.n)), lambda: 0.0)


# name: how it is formed, and which options of `similarity` it takes
FORMS: dict[str, tuple[Callable[..., OfGrams], tuple[str, ...]]] = {
    "cka": (cka, ()),
    "debiased_cka": (lambda g, a, b: cka(g, a, b, debiased=True), ()),
    "procrustes": (procrustes, ()),
    "regression_x": (lambda g, a, b: linear_regression(g, a, b, "x"), ()),
    "regression_y": (lambda g, a, b: linear_regression(g, a, b, "y"), ()),
    "rbf_cka": (rbf_cka, ("bandwidth",)),
    "rsa": (rsa, ("correlation",)),
}


def form(name: str, g: Gram, a: str, b: str, options: dict[str, Any]) -> OfGrams:
    """Form one of `FORMS`."""
    for view in (a, b):
        check_range(view, float(np.trace(g.view(view).matrix)))
    function, takes = FORMS[name]
    return function(g, a, b, **{key: options[key] for key in takes if options.get(key) is not None})
