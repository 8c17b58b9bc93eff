"""SVCCA, CCA and projection-weighted CCA of two views."""

from __future__ import annotations

import warnings as _warnings
from typing import Any, Literal

from streamcca import _backend
from streamcca._backend import FloatArray
from streamcca.errors import (
    AccuracyError,
    AccuracyWarning,
    InputError,
    SampleSizeWarning,
    StreamCCAWarning,
    UnderdeterminedError,
)
from streamcca.results import CCAResult, Truncation
from streamcca.significance import forced_ones, null_mean
from streamcca.sources import moments_of
from streamcca.subspace import Rule, Truncated, checked_ridge, parse_rule, truncate_view, why_uncertain

Measure = Literal["svcca", "cca", "pwcca"]
Progress = bool | Literal["auto"]

WARN_ABOVE = 1e-6
REFUSE_ABOVE = 1e-2
FULL = Rule("full")
VARIANCE_99 = Rule("variance", 0.99, 0.99)
_REMEDY = "truncate more, add a ridge, or accumulate with precision='float64'"


def correlate(
    x: Truncated,
    y: Truncated,
    cross: FloatArray,
    *,
    kept: bool = False,
    measure: Measure,
    side: str = "",
    ridge: float = 0.0,
    allow_underdetermined: bool = False,
    allow_inaccurate: bool = False,
) -> tuple[CCAResult, list[StreamCCAWarning]]:
    """CCA of two truncated views of the same rows; returns the result and the warnings that belong to it.

    `cross` is their covariance (dx, dy), or, if `kept`, that of the projections of the rows (kx, ky).
    """
    kx, ky, n = x.native.rank, y.native.rank, x.rows
    notes = _check_rows(x, y, n, allow_underdetermined)
    numbers = _backend.compare(x.native, y.native, cross, side, kept)
    # Each rank that could as well be one higher or lower moves one correlation by at most 1.
    uncertain = x.uncertain_ranks + y.uncertain_ranks
    rounding, shares = numbers["mean_error_bound"], numbers["shares_error_bound"]
    bound = min(1.0, rounding + shares + uncertain * float(numbers["shares"].max()))
    notes += _check_accuracy(x, y, rounding, bound, allow_inaccurate)
    if shares > WARN_ABOVE:
        notes.append(
            AccuracyWarning(
                "correlations that tie within rounding leave their variates, hence the projection weights, "
                f"undetermined: the mean could differ by up to {shares:.1e}"
            )
        )
    result = CCAResult(
        measure=measure,
        mean=numbers["mean"],
        correlations=numbers["correlations"],
        rank_x=kx,
        rank_y=ky,
        n=x.n,
        rows=n,
        width_x=x.native.width,
        width_y=y.native.width,
        truncation=Truncation(x.rule, x.native.share, y.native.share, x.native.margin, y.native.margin, uncertain == 0),
        error_bound=bound,
        correlation_error_bounds=numbers["correlation_error_bounds"],
        null_mean=null_mean(kx, ky, n),
        x_weights=numbers["x_weights"],
        y_weights=numbers["y_weights"],
        shares=numbers["shares"],
        side=side,
        condition_x=_condition(x),
        condition_y=_condition(y),
        numerical_rank_x=x.native.numerical_rank,
        numerical_rank_y=y.native.numerical_rank,
        ridge=ridge,
        precision=x.precision,
        warnings=tuple(str(note) for note in notes),
    )
    return result, notes


def _check_rows(x: Truncated, y: Truncated, n: int, allow_underdetermined: bool) -> list[StreamCCAWarning]:
    kx, ky = x.native.rank, y.native.rank
    where = f"views {x.view!r} and {y.view!r}: n = {n} rows"
    if n - 1 <= max(kx, ky):
        text = (
            f"{where} are too few for ({kx}, {ky}) kept directions: with n - 1 <= max(kx, ky) every correlation is 1 "
            "whatever the data"
        )
        if not allow_underdetermined:
            raise UnderdeterminedError(
                f"{text}; add rows, keep fewer directions (rank= or a lower share), or pass allow_underdetermined=True"
            )
        return [SampleSizeWarning(text)]
    ones = forced_ones(kx, ky, n)
    if not ones:
        return []
    return [
        SampleSizeWarning(
            f"{where} for ({kx}, {ky}) kept directions force {ones} of the {min(kx, ky)} correlations to 1 whatever "
            "the data; add rows or keep fewer directions"
        )
    ]


def _check_accuracy(
    x: Truncated, y: Truncated, rounding: float, bound: float, allow_inaccurate: bool
) -> list[StreamCCAWarning]:
    """Refuse or note what limits the digits: rounding, an unresolved cut, directions below rounding."""
    # A threshold that falls between two ranks can be moved; that directions drown in rounding is the data's doing
    # (neurons that depend on each other exactly look the same), so it is said and bounded, but not refused.
    cut = [side for side in (x, y) if side.uncertain_ranks and not side.rule.keeps_all]
    drowned = [side for side in (x, y) if side.uncertain_ranks and side.rule.keeps_all]
    amount = bound if cut else rounding
    if amount > REFUSE_ABOVE and not allow_inaccurate:
        raise AccuracyError(
            f"views {x.view!r} and {y.view!r}: rounding may have moved the mean by {amount:.1e}, more than "
            f"{REFUSE_ABOVE:g}{', since it decides the rank' if cut else ''}; {_REMEDY}, or pass allow_inaccurate=True"
        )
    notes = [
        StreamCCAWarning(f"view {side.view!r}: {side.constant_neurons} constant neurons are left out")
        for side in (x, y)
        if side.rule.name == "full" and side.constant_neurons
    ]
    if rounding > WARN_ABOVE:
        notes.append(AccuracyWarning(f"rounding may have moved the mean by up to {rounding:.1e}; {_REMEDY}"))
    notes += [AccuracyWarning(why_uncertain(side)) for side in cut + drowned]
    return notes


def _condition(side: Truncated) -> float:
    values = side.native.eigenvalues
    return float((values[0] / values[-1]) ** 0.5)


def _run(
    data: tuple[Any, ...],
    measure: Measure,
    rule: Rule,
    *,
    side: str,
    ridge: float,
    allow_underdetermined: bool,
    allow_inaccurate: bool,
    accumulate: dict[str, Any],
) -> CCAResult:
    ridge = checked_ridge(ridge)
    moments, a, b = moments_of(data, **accumulate)
    x = truncate_view(moments, a, rule, rule.x, ridge)
    y = truncate_view(moments, b, rule, rule.y, ridge)
    result, notes = correlate(
        x,
        y,
        moments.covariance(a, b),
        measure=measure,
        side=side,
        ridge=ridge,
        allow_underdetermined=allow_underdetermined,
        allow_inaccurate=allow_inaccurate,
    )
    for note in notes:
        _warnings.warn(note, stacklevel=3)
    return result


def svcca(
    *data: Any,
    variance: float | None = None,
    nuclear: float | None = None,
    rank: int | tuple[int, int] | None = None,
    ridge: float = 0.0,
    allow_underdetermined: bool = False,
    allow_inaccurate: bool = False,
    precision: str = "auto",
    nonfinite: str = "raise",
    threads: int | None = None,
    progress: Progress = "auto",
) -> CCAResult:
    """Singular vector canonical correlation analysis: how alike two representations are.

    Each view is cut to its leading principal directions; the mean canonical correlation of what is
    left is the similarity.

    Parameters
    ----------
    *data
        ``(moments, 'a', 'b')``, or ``(moments,)`` if it has just two views; ``(X, Y)``, two arrays
        (n, d) in memory, memory maps, or paths of ``.npy`` files of any size; or ``(batches,)``, an
        iterable of pairs of arrays.
    variance, nuclear, rank
        At most one rule of truncation: the share of the variance (sum of s^2) to keep, the share of the
        nuclear norm (sum of s), or the number of directions (an int, or one for each side). By default
        99 % of the variance.
    ridge : float
        Added to the diagonal of both covariances, in units of the mean variance of a neuron. Changes
        the answer and stands in the result; 0 by default, and never added behind the caller's back.
    allow_underdetermined : bool
        Return the correlations of 1 that too few rows force instead of refusing.
    allow_inaccurate : bool
        Return a result whose error bound is above 0.01 instead of refusing.
    precision, nonfinite, threads
        As in `Moments`, for data that are not moments yet.
    progress : 'auto' or bool
        Progress bar on stderr for files and iterables; 'auto' shows it on a terminal.

    Returns
    -------
    CCAResult
        ``.mean`` is the similarity.

    Raises
    ------
    InputError, DTypeError, NonFiniteError
        The data cannot be used.
    UnderdeterminedError
        n - 1 <= max(kx, ky): every correlation would be 1.
    AccuracyError
        Rounding may have moved the mean by more than 0.01, or by so much with the cut that it leaves open. Directions
        lost to rounding, and PWCCA weights that ties leave undetermined, only widen the bound and warn.

    References
    ----------
    Raghu, Gilmer, Yosinski & Sohl-Dickstein (2017), "SVCCA: Singular Vector Canonical Correlation
    Analysis for Deep Learning Dynamics and Interpretability", arXiv 1706.05806.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((1000, 5))
    >>> y = x @ rng.standard_normal((5, 5))
    >>> round(svcca(x, y, variance=1.0).mean, 6)
    1.0
    """
    return _run(
        data,
        "svcca",
        parse_rule(variance, nuclear, rank, VARIANCE_99),
        side="",
        ridge=ridge,
        allow_underdetermined=allow_underdetermined,
        allow_inaccurate=allow_inaccurate,
        accumulate={"precision": precision, "nonfinite": nonfinite, "threads": threads, "progress": progress},
    )


def cca(
    *data: Any,
    variance: float | None = None,
    nuclear: float | None = None,
    rank: int | tuple[int, int] | None = None,
    ridge: float = 0.0,
    allow_underdetermined: bool = False,
    allow_inaccurate: bool = False,
    precision: str = "auto",
    nonfinite: str = "raise",
    threads: int | None = None,
    progress: Progress = "auto",
) -> CCAResult:
    """Canonical correlation analysis, by default without truncation.

    Without a rule neurons are scaled to unit variance first, so that their units do not matter, and
    directions below the rounding of the moments are left out (``numerical_rank_x``). With a rule this is `svcca`.
    A ridge is added before the scaling. Parameters, returned result and errors are those of `svcca`.

    References
    ----------
    Hotelling (1936), "Relations between two sets of variates", Biometrika 28; in moment form after
    Bjorck & Golub (1973), Mathematics of Computation 27.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((1000, 3))
    >>> round(cca(x, x @ np.diag([1.0, 10.0, 100.0])).mean, 6)
    1.0
    """
    return _run(
        data,
        "cca",
        parse_rule(variance, nuclear, rank, FULL),
        side="",
        ridge=ridge,
        allow_underdetermined=allow_underdetermined,
        allow_inaccurate=allow_inaccurate,
        accumulate={"precision": precision, "nonfinite": nonfinite, "threads": threads, "progress": progress},
    )


def pwcca(
    *data: Any,
    side: Literal["x", "y"] = "x",
    variance: float | None = None,
    nuclear: float | None = None,
    rank: int | tuple[int, int] | None = None,
    ridge: float = 0.0,
    allow_underdetermined: bool = False,
    allow_inaccurate: bool = False,
    precision: str = "auto",
    nonfinite: str = "raise",
    threads: int | None = None,
    progress: Progress = "auto",
) -> CCAResult:
    """Projection-weighted CCA: correlations weighted by how much of one view they account for.

    The weight of the i-th correlation is sum_j |cov(h_i, z_j)|, over the neurons z_j of the chosen side
    and its i-th canonical variate h_i. Not symmetric: `side` says whose neurons weigh. By default
    nothing is truncated. The other parameters, the result and the errors are those of `svcca`.

    Parameters
    ----------
    *data
        As in `svcca`.
    side : 'x' or 'y'
        The side whose neurons weigh the correlations.

    References
    ----------
    Morcos, Raghu & Bengio (2018), "Insights on representational similarity in neural networks with
    canonical correlation", arXiv 1806.05759.
    """
    if side not in ("x", "y"):
        raise InputError(f"side: got {side!r}, expected 'x' or 'y'")
    return _run(
        data,
        "pwcca",
        parse_rule(variance, nuclear, rank, FULL),
        side=side,
        ridge=ridge,
        allow_underdetermined=allow_underdetermined,
        allow_inaccurate=allow_inaccurate,
        accumulate={"precision": precision, "nonfinite": nonfinite, "threads": threads, "progress": progress},
    )
