"""CCA of two views from the triangular factor of their rows, without forming a covariance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from streamcca._backend import FloatArray, TruncatedView
from streamcca.cca import REFUSE_ABOVE, WARN_ABOVE, Measure, _check_rows, _condition
from streamcca.errors import AccuracyError, AccuracyWarning, InputError, NumericError, StreamCCAWarning
from streamcca.qr import QRMoments
from streamcca.qr_bounds import Bounds, Variates, bounds_of
from streamcca.qr_svd import lapack_svd
from streamcca.qr_truncate import Cut, cut_view
from streamcca.results import CCAResult, Truncation
from streamcca.significance import null_mean
from streamcca.subspace import Rule, Truncated

PRECISION = "float64 (QR)"


@dataclass(frozen=True)
class _Side:
    """One view, cut, in the form that this module and the checks of `streamcca.cca` take."""

    cut: Cut
    truncated: Truncated


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
    x, y = _side(moments, a, rule, rule.x), _side(moments, b, rule, rule.y)
    moments._check_ddof(1)
    kx, ky, rows = x.cut.rank, y.cut.rank, moments.rows
    notes = _check_rows(x.truncated, y.truncated, rows, allow_underdetermined)
    variates = _variates(x.cut, y.cut)
    shares = _shares(x.cut, y.cut, variates, side)
    bounds = bounds_of(x.cut, y.cut, variates, shares, side)
    # Each rank that could as well be one higher or lower moves one correlation by at most 1.
    uncertain = x.truncated.uncertain_ranks + y.truncated.uncertain_ranks
    bound = min(1.0, bounds.mean + bounds.shares + uncertain * float(shares.max()))
    notes += _check_accuracy(x, y, bounds, bound, allow_inaccurate)
    root = (moments.n - 1) ** 0.5
    result = CCAResult(
        measure=measure,
        mean=float(shares @ variates.correlations),
        correlations=variates.correlations,
        rank_x=kx,
        rank_y=ky,
        n=moments.n,
        rows=rows,
        width_x=x.cut.width,
        width_y=y.cut.width,
        truncation=Truncation(rule, x.cut.share, y.cut.share, x.cut.margin, y.cut.margin, uncertain == 0),
        error_bound=bound,
        correlation_error_bounds=bounds.correlations,
        null_mean=null_mean(kx, ky, rows),
        x_weights=x.cut.in_neurons(variates.x / x.cut.singular_values[:, None]) * root,
        y_weights=y.cut.in_neurons(variates.y / y.cut.singular_values[:, None]) * root,
        shares=shares,
        side=side,
        condition_x=_condition(x.truncated),
        condition_y=_condition(y.truncated),
        numerical_rank_x=x.cut.numerical_rank,
        numerical_rank_y=y.cut.numerical_rank,
        ridge=0.0,
        precision=PRECISION,
        warnings=tuple(str(note) for note in notes),
    )
    return result, notes


def _side(moments: QRMoments, view: str, rule: Rule, value: float) -> _Side:
    try:
        cut = cut_view(moments.factor(), moments.columns(view), rule.name, value)
    except (InputError, NumericError) as error:
        raise type(error)(f"view {view!r}: {error}") from None
    # It has all of a native truncated view that the checks look at.
    native = cast(TruncatedView, cut)
    return _Side(cut, Truncated(view, rule, native, moments.n, moments.rows, PRECISION))


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


def _check_accuracy(x: _Side, y: _Side, bounds: Bounds, bound: float, allow_inaccurate: bool) -> list[StreamCCAWarning]:
    """Refuse or note what limits the digits, by the rules of `streamcca.cca`, with what helps here."""
    uncertain = [side.truncated for side in (x, y) if side.truncated.uncertain_ranks]
    cut = [side for side in uncertain if not side.rule.keeps_all]
    names = f"views {x.truncated.view!r} and {y.truncated.view!r}"
    amount = bound if cut else bounds.mean
    if amount > REFUSE_ABOVE and not allow_inaccurate:
        raise AccuracyError(
            f"{names}: rounding may have moved the mean by {amount:.1e}, more than {REFUSE_ABOVE:g}"
            f"{', since it decides the rank' if cut else ''}; truncate more, or pass allow_inaccurate=True"
        )
    notes = [
        StreamCCAWarning(f"view {side.view!r}: {side.constant_neurons} constant neurons are left out")
        for side in (x.truncated, y.truncated)
        if side.rule.name == "full" and side.constant_neurons
    ]
    if bounds.mean > WARN_ABOVE:
        notes.append(AccuracyWarning(f"rounding may have moved the mean by up to {bounds.mean:.1e}; truncate more"))
    notes += [AccuracyWarning(_why_uncertain(side)) for side in uncertain]
    if bounds.shares > WARN_ABOVE:
        notes.append(
            AccuracyWarning(
                "correlations that tie within rounding leave their variates, hence the projection weights, "
                f"undetermined: the mean could differ by up to {bounds.shares:.1e}"
            )
        )
    return notes


def _why_uncertain(side: Truncated) -> str:
    native: Any = side.native
    if side.rule.keeps_all:
        return (
            f"view {side.view!r}: numerical rank {native.numerical_rank} of at most {side.possible_rank}; directions "
            "below rounding are left out, and could hold something; truncate"
        )
    return (
        f"view {side.view!r}: the cut is not resolved: within rounding, every rank from {native.lowest_rank} to "
        f"{native.lowest_rank + side.uncertain_ranks} satisfies {side.rule}; name a rank"
    )
