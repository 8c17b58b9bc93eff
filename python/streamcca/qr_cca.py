"""CCA of two views from the triangular factor of their rows, without forming a covariance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from streamcca._backend import FloatArray, TruncatedView
from streamcca.errors import InputError, NumericError, StreamCCAWarning
from streamcca.kept import KeptView
from streamcca.moments import NonFinite
from streamcca.pairing import Measure, result_of
from streamcca.qr import QRMoments
from streamcca.qr_bounds import Variates, bounds_of
from streamcca.qr_svd import lapack_svd
from streamcca.qr_truncate import Cut, cut_view
from streamcca.results import CCAResult
from streamcca.sources import accumulate_pair, two_views
from streamcca.subspace import Rule, Truncated

PRECISION = "float64 (QR)"


@dataclass(frozen=True)
class QRCut:
    """One view, cut, in the form that this module and the checks of `streamcca.pairing` take."""

    cut: Cut
    truncated: Truncated
    kept: KeptView


def qr_compare(
    moments: QRMoments,
    a: str,
    b: str,
    rule: Rule,
    *,
    measure: Measure,
    side: str = "",
    allow_underdetermined: bool = False,
    allow_inaccurate: bool = False,
) -> tuple[CCAResult, list[StreamCCAWarning]]:
    """CCA of two views of `QRMoments`; returns the result and the warnings that belong to it.

    The rows of both views, centered, are Q times columns of one triangular factor. With U the kept left singular
    vectors of a view's columns, Q U are its scores, and since Q has orthonormal columns the canonical correlations are
    the singular values of Ux' Uy.

    Parameters
    ----------
    moments : QRMoments
        The factor of the rows of at least these two views.
    a, b : str
        The views x and y.
    rule : Rule
        What is kept of each. 'full' scales the neurons to unit variance and keeps what stands above rounding.
    measure : 'svcca', 'cca' or 'pwcca'
        Name in the result; the shares follow from `side`.
    side : str
        Whose neurons weigh the correlations (PWCCA), 'x' or 'y'; '' weighs all alike.
    allow_underdetermined, allow_inaccurate : bool
        As in `svcca`.

    Returns
    -------
    CCAResult, list of StreamCCAWarning
        ``precision`` is 'float64 (QR)'. Bounds follow u * kappa (docs/numerics.md, "The QR route").

    Raises
    ------
    InputError
        A view is unknown, constant or not finite, or lacks the rank asked for.
    UnderdeterminedError, AccuracyError
        As in `svcca`.

    References
    ----------
    Bjorck & Golub (1973), "Numerical methods for computing angles between linear subspaces", Mathematics of
    Computation 27; Golub & Zha (1994), "Perturbation analysis of the canonical correlations of matrix pairs", Linear
    Algebra and its Applications 210.

    Examples
    --------
    >>> from streamcca.subspace import Rule
    >>> x = np.vander(np.linspace(1.0, 2.0, 50), 8)
    >>> m = QRMoments({"x": 8, "y": 1})
    >>> m.update(x=x, y=np.exp(x[:, 6:7]))
    >>> result, notes = qr_compare(m, "x", "y", Rule("rank", 7, 1), measure="svcca")
    >>> bool(1 - 1e-9 < result.mean <= 1)
    True
    """
    for name in (a, b):
        moments.columns(name)  # which refuses what there is not, before anything is decomposed
    x, y = qr_cut(moments, a, rule, rule.x), qr_cut(moments, b, rule, rule.y)
    moments._check_ddof(1)
    return qr_correlate(
        x,
        y,
        measure=measure,
        side=side,
        allow_underdetermined=allow_underdetermined,
        allow_inaccurate=allow_inaccurate,
    )


def qr_correlate(
    x: QRCut,
    y: QRCut,
    *,
    measure: Measure,
    side: str = "",
    allow_underdetermined: bool = False,
    allow_inaccurate: bool = False,
) -> tuple[CCAResult, list[StreamCCAWarning]]:
    """Compare two views that are cut; see `qr_compare`."""
    variates = _variates(x.cut, y.cut)
    shares = _shares(x.cut, y.cut, variates, side)
    bounds = bounds_of(x.cut, y.cut, variates, shares, side)
    root = (x.truncated.n - 1) ** 0.5
    numbers = {
        "mean": float(shares @ variates.correlations),
        "mean_error_bound": bounds.mean,
        "shares_error_bound": bounds.shares,
        "correlations": variates.correlations,
        "correlation_error_bounds": bounds.correlations,
        "shares": shares,
        "x_weights": x.cut.in_neurons(variates.x / x.cut.singular_values[:, None]) * root,
        "y_weights": y.cut.in_neurons(variates.y / y.cut.singular_values[:, None]) * root,
    }
    result, notes = result_of(
        x.truncated,
        y.truncated,
        numbers,
        measure=measure,
        side=side,
        allow_underdetermined=allow_underdetermined,
        allow_inaccurate=allow_inaccurate,
        remedy="truncate more",
    )
    result = replace(result, strategy="qr", x_mean=x.kept.mean, x_kept=x.kept, y_mean=y.kept.mean, y_kept=y.kept)
    return result, notes


def qr_cut(moments: QRMoments, view: str, rule: Rule, value: float) -> QRCut:
    """Cut one view of `QRMoments`; `value` is the rule's value for its side."""
    columns = moments.columns(view)
    try:
        cut = cut_view(moments.factor(), columns, rule.name, value)
    except (InputError, NumericError) as error:
        raise type(error)(f"view {view!r}: {error}") from None
    moments._check_ddof(1)
    # It has all of a native truncated view that the checks look at.
    native = cast(TruncatedView, cut)
    kept = _kept(moments, view, cut)
    return QRCut(cut, Truncated(view, rule, native, moments.n, moments.rows, PRECISION), kept)


def _kept(moments: QRMoments, view: str, cut: Cut) -> KeptView:
    """Return means and kept directions for a result; columns of the factor are deviations times sqrt(n - 1)."""
    columns = moments.columns(view)
    variances = np.square(moments.factor().centered[: columns.stop, columns]).sum(axis=0) / (moments.n - 1)
    basis = cut.right * cut.scale[:, None], cut.eigenvalues / (moments.n - 1)
    return KeptView(moments.mean(view), variances, own=basis)


def _variates(x: Cut, y: Cut) -> Variates:
    depth = min(len(x.left), len(y.left))  # below, one of both is zero
    u, rho, vt = lapack_svd(x.left[:depth].T @ y.left[:depth])
    v = vt.T
    # Signs are arbitrary; the largest x weight of every variate is made positive, so that runs can be compared.
    weights = x.right @ (u / x.singular_values[:, None])
    largest = np.take_along_axis(weights, np.abs(weights).argmax(axis=0)[None], axis=0)[0]
    signs = np.where(largest < 0, -1.0, 1.0)
    return Variates(np.clip(rho, 0.0, 1.0), u * signs, v * signs)


def _shares(x: Cut, y: Cut, variates: Variates, side: str) -> FloatArray:
    """Weights of the mean: all alike, or sum_j |cov(h_i, z_j)| of one side's neurons (Morcos, Raghu & Bengio 2018)."""
    m = len(variates.correlations)
    if not side:
        return np.full(m, 1.0 / m)
    loadings = x.loadings(variates.x) if side == "x" else y.loadings(variates.y)
    sizes = np.abs(loadings).sum(axis=0)
    result: FloatArray = sizes / sizes.sum()
    return result


def qr_moments_of(
    data: tuple[Any, ...], *, nonfinite: NonFinite = "raise", progress: Any = "auto"
) -> tuple[QRMoments, str, str]:
    """Return `QRMoments` and the names of two views, for everything that the measures accept as data.

    Parameters
    ----------
    data
        ``(moments, 'a', 'b')``, or ``(moments,)`` if these `QRMoments` have two views; ``(X, Y)``, arrays (n, d),
        memory maps or paths of ``.npy`` files; or ``(batches,)``, an iterable of pairs of arrays.
    nonfinite, progress
        As in `svcca`.
    """
    if data and isinstance(data[0], QRMoments):
        return two_views(data[0], data[1:])
    return accumulate_pair(QRMoments, data, progress, nonfinite=nonfinite), "x", "y"
