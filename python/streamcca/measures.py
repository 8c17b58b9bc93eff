"""Measures that need no canonical correlations: linear CKA and orthogonal Procrustes, from moments or Gram matrices."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import InputError
from streamcca.gram import Gram
from streamcca.moments import Moments
from streamcca.pairing import Progress
from streamcca.passes import PairPasses
from streamcca.plan import Strategy
from streamcca.qr import QRMoments
from streamcca.routes import WITHOUT_CORRELATIONS, choose, collect
from streamcca.row_sums import RowSums

# Standard deviations of rounding that a bound covers, as for correlations.
_SAFETY = 8.0
# Draws of unrelated views whose mean is the chance level of Procrustes, as long as they are small.
_DRAWS = 16


@dataclass(frozen=True, eq=False, repr=False)
class SimilarityResult:
    """One number about two views, with the reasons to trust it.

    Attributes
    ----------
    measure : str
        'cka', 'debiased cka' or 'procrustes'.
    mean : float
        The similarity: 1 for views that are alike. The biased ones lie in [0, 1]; debiased CKA estimates one that does,
        and can miss by its sampling error.
    error_bound : float
        How far rounding can have moved it: eight deviations, to first order.
    null_mean : float
        What unrelated Gaussian views with these spectra and as many rows score on average.
    n : int or float
        Number of rows; with weights, their sum.
    width_x, width_y : int
        Neurons of each view.
    precision : str
        Type in which products were formed.
    strategy : 'covariance' or 'gram'
        The route that the number came by.
    """

    measure: str
    mean: float
    error_bound: float
    null_mean: float
    n: int | float
    width_x: int
    width_y: int
    precision: str
    strategy: str

    @property
    def distance(self) -> float:
        """1 - mean."""
        return 1 - self.mean

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def __float__(self) -> float:
        return self.mean

    def __repr__(self) -> str:
        return (
            f"{self.measure} {self.mean:.6f} +- {self.error_bound:.1e} (chance {self.null_mean:.4f}), "
            f"widths {self.width_x} and {self.width_y}, n={self.n}"
        )


def cka(
    *data: Any,
    debiased: bool = False,
    precision: str = "auto",
    nonfinite: Literal["raise"] = "raise",
    threads: int | None = None,
    progress: Progress = "auto",
    strategy: Strategy = "auto",
    folder: str | os.PathLike[str] | None = None,
) -> SimilarityResult:
    """Linear centered kernel alignment: how alike the similarities of samples are in two views.

    ``|Sxy|_F^2 / (|Sxx|_F |Syy|_F)``, exact in one pass over the rows; no minibatch approximation.

    Parameters
    ----------
    *data
        As in `svcca`: moments (or a `Gram`) and two view names, two arrays or ``.npy`` paths, or an iterable of pairs.
        ``debiased=True`` needs the rows themselves, or a `Gram`: moments do not hold what it sums.
    debiased : bool
        Estimate CKA of infinitely many rows by Song's unbiased estimators of its three terms (Nguyen et al. 2021,
        equations 4 and 5) instead of that of these rows, which for few rows is near 1 whatever the views.
    precision, nonfinite, threads, progress, strategy, folder
        As in `svcca`.

    Returns
    -------
    SimilarityResult

    Raises
    ------
    InputError
        The data cannot be used; a view is constant; fewer than 4 rows, or too few for a positive estimate of a view's
        own term (``debiased=True``).

    References
    ----------
    Kornblith, Norouzi, Lee & Hinton (2019), "Similarity of Neural Network Representations Revisited", arXiv 1905.00414.
    Song, Smola, Gretton, Bedo & Borgwardt (2012), JMLR 13. Nguyen, Raghu & Kornblith (2021), arXiv 2010.15327.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((500, 20))
    >>> round(cka(x, 3 * x @ np.linalg.qr(rng.standard_normal((20, 20)))[0]).mean, 9)
    1.0
    >>> y = rng.standard_normal((500, 400))
    >>> round(cka(x, y).mean, 2), round(abs(cka(x, y, debiased=True).mean), 2)
    (0.13, 0.0)
    """
    if nonfinite != "raise":
        raise InputError(f"nonfinite: got {nonfinite!r}, expected 'raise'; leave rows with NaN out before")
    accumulate = {"precision": precision, "nonfinite": nonfinite, "threads": threads, "progress": progress}
    data, way = choose(data, WITHOUT_CORRELATIONS, strategy, rule=None, progress=progress)
    sums: RowSums | None = None
    if debiased and way == "covariance" and not isinstance(data[0], Moments):
        sums = RowSums()
        data = _watched(data, sums)
    state, a, b = collect(data, way, folder, accumulate)
    assert not isinstance(state, QRMoments)  # noqa: S101 - none of these ways
    if isinstance(state, Gram):
        return _cka_of_grams(state, a, b, debiased)
    if not debiased:
        return _cka_of_moments(state, a, b)
    if sums is None:
        raise InputError(
            "debiased: got moments, which do not hold the sums that it needs; give the rows themselves: arrays, paths "
            "or batches"
        )
    return _debiased_of_moments(state, a, b, sums)


def procrustes(
    *data: Any,
    precision: str = "auto",
    nonfinite: str = "raise",
    threads: int | None = None,
    progress: Progress = "auto",
    strategy: Strategy = "auto",
    folder: str | os.PathLike[str] | None = None,
) -> SimilarityResult:
    """Orthogonal Procrustes similarity: how well one view can be rotated onto the other.

    With both views centered and scaled to unit Frobenius norm, ``mean`` is ``|X'Y|_*``, the nuclear norm. Ding's
    distance is ``2 * result.distance``, the shape distance of Williams et al. its square root, and the angle between
    the shapes ``arccos(result.mean)``.

    Parameters
    ----------
    *data
        As in `svcca`: moments (or a `Gram`) and two view names, two arrays or ``.npy`` paths, or an iterable of pairs.
    precision, nonfinite, threads, progress, strategy, folder
        As in `svcca`.

    Returns
    -------
    SimilarityResult

    Raises
    ------
    InputError
        The data cannot be used; a view is constant.

    References
    ----------
    Ding, Denain & Steinhardt (2021), "Grounding Representation Similarity with Statistical Testing", arXiv 2108.01661.
    Williams, Kunz, Kornblith & Linderman (2021), arXiv 2110.14739.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((500, 20))
    >>> round(procrustes(x, 3 * x @ np.linalg.qr(rng.standard_normal((20, 20)))[0]).mean, 9)
    1.0
    """
    accumulate = {"precision": precision, "nonfinite": nonfinite, "threads": threads, "progress": progress}
    refusals = {"gram": "" if nonfinite == "raise" else "nonfinite: strategy='gram' takes 'raise' only"}
    data, way = choose(data, WITHOUT_CORRELATIONS, strategy, rule=None, progress=progress, refusals=refusals)
    state, a, b = collect(data, way, folder, accumulate)
    assert not isinstance(state, QRMoments)  # noqa: S101 - none of these ways
    if isinstance(state, Gram):
        return _procrustes_of_grams(state, a, b)
    return _procrustes_of_moments(state, a, b)


def _watched(data: tuple[Any, ...], sums: RowSums) -> tuple[Any, ...]:
    """Let `sums` see every batch on its way; arrays and files become batches."""
    passes = PairPasses(data)

    def watched() -> Iterator[tuple[Any, Any]]:
        try:
            for x, y in passes.batches():
                sums.add(x, y)
                yield x, y
        finally:
            passes.close()

    return (watched(),)


# ---------------------------------------------------------------------- CKA


def _check_varies(squared: float, view: str) -> None:
    if not squared > 0:
        raise InputError(f"view {view!r}: every neuron is constant over the rows; leave the view out")


def _cka_of_moments(m: Moments, a: str, b: str) -> SimilarityResult:
    (x, (ex, _, rx)), (y, (ey, _, ry)) = m._covariance(a, a), m._covariance(b, b)
    cross = m.covariance(a, b)
    xx, yy, xy = (float(np.vdot(v, v)) for v in (x, y, cross))
    _check_varies(xx, a)
    _check_varies(yy, b)
    value = xy / np.sqrt(xx * yy)
    # First order: of |Sxy|^2 / (|Sxx| |Syy|) with errors of deviation e sqrt(r_i r_j) in each entry; those of Sxx and
    # Syy are symmetric, so that each acts twice.
    of_cross = 2 * max(ex, ey) * np.sqrt(rx @ cross**2 @ ry) / np.sqrt(xx * yy)
    own = [value * e * np.sqrt(2 * (r @ v**2 @ r)) / size for e, r, v, size in ((ex, rx, x, xx), (ey, ry, y, yy))]
    bound = _SAFETY * float(np.sqrt(of_cross**2 + own[0] ** 2 + own[1] ** 2)) + _roundoff(m.views[a] + m.views[b])
    null = float(np.trace(x) * np.trace(y) / np.sqrt(xx * yy) / (m.rows - 1))
    return _result("cka", value, bound, min(1.0, null), m, a, b)


def _cka_of_grams(g: Gram, a: str, b: str, debiased: bool) -> SimilarityResult:
    x, y = g.view(a), g.view(b)
    k, m = (_u_centered(v.matrix) if debiased else v.matrix for v in (x, y))
    xx, yy, xy = float(np.vdot(k, k)), float(np.vdot(m, m)), float(np.vdot(k, m))
    if debiased:
        _check_debiased(xx, x.matrix, a, g.n)
        _check_debiased(yy, y.matrix, b, g.n)
    _check_varies(xx, a)
    _check_varies(yy, b)
    value = xy / np.sqrt(xx * yy)
    parts = []
    for (e, _, r), own, other, size in ((x.rounding, k, m, xx), (y.rounding, m, k, yy)):
        slope = other / np.sqrt(xx * yy) - own * (value / size)
        parts.append(e * np.sqrt(2 * (r @ slope**2 @ r)))
    bound = _SAFETY * float(np.hypot(*parts)) + _roundoff(g.n)
    traces = [float(np.trace(v.matrix)) for v in (x, y)]
    null = 0.0 if debiased else min(1.0, traces[0] * traces[1] / np.sqrt(xx * yy) / (g.n - 1))
    return _result("debiased cka" if debiased else "cka", value, bound, null, g, a, b)


def _u_centered(matrix: FloatArray) -> FloatArray:
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


def _check_debiased(own: float, products: FloatArray, view: str, rows: int) -> None:
    """Refuse a view whose unbiased term, a sum of squares in exact arithmetic, is nothing but rounding."""
    if not own > 1e-12 * float(np.vdot(products, products)):
        raise InputError(
            f"view {view!r}: its {rows} rows are as far from each other as chance would have it, so that the debiased "
            "estimate divides by zero; add rows"
        )


def _debiased_of_moments(m: Moments, a: str, b: str, sums: RowSums) -> SimilarityResult:
    n = m.rows
    if n < 4:
        raise InputError(f"debiased: got {n} rows, expected at least 4")
    means = (m.mean(a), m.mean(b))
    x, y = sums.offsets(means)
    about = {
        (0, 0): m._covariance(a, a, ddof=0)[0] * n + n * np.outer(x, x),
        (1, 1): m._covariance(b, b, ddof=0)[0] * n + n * np.outer(y, y),
        (0, 1): m.covariance(a, b, ddof=0) * n + n * np.outer(x, y),
    }
    hsic = {pair: sums.hsic(about[pair], means, *pair, n) for pair in about}
    for i, view in ((0, a), (1, b)):
        _check_debiased(hsic[i, i] * n * (n - 3), about[i, i], view, n)
    size = np.sqrt(hsic[0, 0] * hsic[1, 1])
    value = hsic[0, 1] / size
    # Rounding enters through |C|^2 alone: the other sums are float64.
    rounding = {v: m._covariance(v, v, ddof=0)[1] for v in (a, b)}
    noise = {}
    for (i, j), c in about.items():
        (ei, _, ri), (ej, _, rj) = rounding[(a, b)[i]], rounding[(a, b)[j]]
        twice = np.sqrt(2) if i == j else 1.0
        noise[i, j] = 2 * twice * max(ei, ej) * n * np.sqrt(ri @ c**2 @ rj) / (n * (n - 3))
    own = [value * noise[i, i] / (2 * hsic[i, i]) for i in (0, 1)]
    bound = _SAFETY * float(np.sqrt((noise[0, 1] / size) ** 2 + own[0] ** 2 + own[1] ** 2))
    return _result("debiased cka", value, bound + _roundoff(n), 0.0, m, a, b)


# ---------------------------------------------------------------------- Procrustes


def _procrustes_of_moments(m: Moments, a: str, b: str) -> SimilarityResult:
    (x, (ex, _, rx)), (y, (ey, _, ry)) = m._covariance(a, a), m._covariance(b, b)
    traces = float(np.trace(x)), float(np.trace(y))
    _check_varies(traces[0], a)
    _check_varies(traces[1], b)
    u, s, v = np.linalg.svd(m.covariance(a, b), full_matrices=False)
    size = np.sqrt(traces[0] * traces[1])
    value = float(s.sum() / size)
    # d |S|_* = tr(V U' dS), to first order; traces are sums of variances.
    of_cross = max(ex, ey) * np.sqrt(rx @ (u @ v) ** 2 @ ry) / size
    own = [value / 2 * e * np.sqrt(2 * float(r @ r)) / t for e, r, t in ((ex, rx, traces[0]), (ey, ry, traces[1]))]
    first = _SAFETY * float(np.sqrt(of_cross**2 + own[0] ** 2 + own[1] ** 2))
    # Where singular values are below the error its norm decides: |S + E|_* - |S|_* <= |E|_*.
    lost = s < max(ex, ey) * np.sqrt(rx.max() * ry.sum() + ry.max() * rx.sum())
    second = float(lost.sum()) * max(ex, ey) * np.sqrt(rx.max() * ry.sum() + ry.max() * rx.sum()) / size
    spectra = [np.linalg.eigvalsh(v).astype(np.float64) for v in (x, y)]
    null = _null_nuclear(spectra[0], spectra[1], m.rows) / size
    bound = first + second + _roundoff(sum(m.views.values()))
    return _result("procrustes", min(1.0, value), bound, min(1.0, null), m, a, b)


def _procrustes_of_grams(g: Gram, a: str, b: str) -> SimilarityResult:
    halves, spectra, errors = [], [], []
    for name in (a, b):
        view = g.view(name)
        values, vectors = np.linalg.eigh(view.matrix)
        # More directions than neurons, or than rows less the mean, are rounding.
        rank = min(view.width, g.n - 1)
        values, vectors = np.maximum(values[-rank:], 0), vectors[:, -rank:]
        _check_varies(float(values.sum()), name)
        halves.append(vectors * np.sqrt(values))
        spectra.append(values)
        errors.append(view.rounding)
    size = float(np.sqrt(spectra[0].sum() * spectra[1].sum()))
    s = np.linalg.svd(halves[0].T @ halves[1], compute_uv=False)
    value = float(s.sum()) / size
    # A root moves by |E| / (2 sqrt(lambda)), and by no more than sqrt(|E|) where that is large (Powers & Stoermer).
    moved = [_root_moved(values, e, r) for values, (e, _, r) in zip(spectra, errors, strict=True)]
    norms = [np.sqrt(values.sum()) for values in spectra]
    bound = float(moved[0] * norms[1] + moved[1] * norms[0]) / size
    null = _null_nuclear(spectra[0], spectra[1], g.n) / size
    return _result("procrustes", min(1.0, value), bound + _roundoff(g.n), min(1.0, null), g, a, b)


def _root_moved(values: FloatArray, e: float, raw: FloatArray) -> float:
    """Bound how far errors of deviation e sqrt(r_s r_t) move the square root of a matrix, in the Frobenius norm."""
    norm = 3 * 2 * e * np.sqrt(raw.max() * raw.sum()) + 8 * 2.0**-53 * np.sqrt(len(values)) * values.max()
    each = np.minimum(norm / (2 * np.sqrt(np.maximum(values, np.finfo(float).tiny))), np.sqrt(norm))
    return float(np.linalg.norm(each))


def _null_nuclear(x: FloatArray, y: FloatArray, rows: int) -> float:
    """Return the mean nuclear norm of the cross-covariance of unrelated Gaussian views with these eigenvalues."""
    roots = [np.sqrt(np.maximum(v, 0)[np.maximum(v, 0) > 1e-12 * v.max()][-(rows - 1) :]) for v in (x, y)]
    size = len(roots[0]) * len(roots[1])
    rng = np.random.default_rng(0)
    norms = []
    for _ in range(max(1, min(_DRAWS, 10**6 // size))):
        noise = rng.standard_normal((len(roots[0]), len(roots[1]))) * roots[0][:, None] * roots[1]
        norms.append(np.linalg.svd(noise, compute_uv=False).sum())
    return float(np.mean(norms) / np.sqrt(rows - 1))


def _roundoff(size: int) -> float:
    return 16 * 2.0**-53 * float(np.sqrt(size))


def _result(
    measure: str, value: float, bound: float, null: float, state: Moments | Gram, a: str, b: str
) -> SimilarityResult:
    return SimilarityResult(
        measure=measure,
        mean=float(value),
        error_bound=float(min(1.0, bound)),
        null_mean=float(null),
        n=state.n,
        width_x=state.views[a],
        width_y=state.views[b],
        precision=state.precision,
        strategy="gram" if isinstance(state, Gram) else "covariance",
    )
