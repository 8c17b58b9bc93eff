"""SVCCA, CCA and projection-weighted CCA of two views."""

from __future__ import annotations

import os
import warnings as _warnings
from typing import Any, Literal

from streamcca.errors import InputError
from streamcca.pairing import FULL, VARIANCE_99, Measure, Progress
from streamcca.plan import Strategy
from streamcca.results import CCAResult
from streamcca.routes import route
from streamcca.subspace import Rule, checked_ridge, parse_rule


def _run(
    data: tuple[Any, ...],
    measure: Measure,
    rule: Rule,
    *,
    strategy: Strategy,
    folder: Any,
    accumulate: dict[str, Any],
    sketching: dict[str, Any] | None = None,
    **options: Any,
) -> CCAResult:
    options["ridge"] = checked_ridge(options["ridge"])
    result, notes = route(data, rule, strategy, folder, accumulate, sketching, measure=measure, **options)
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
    strategy: Strategy = "auto",
    folder: str | os.PathLike[str] | None = None,
    directions: int | None = None,
    power: int = 0,
    replay: bool = True,
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
    strategy : 'auto', 'covariance', 'gram', 'sketch' or 'qr'
        How the numbers come about, for data that are not moments yet: by covariances, of any number of rows; by an
        n x n matrix for each view, of any width (`gram`); by a sketch of each view and a second pass, of any width and
        number of rows, nearly; by a triangular factor of the rows (`QRMoments`), which costs more and keeps twice as
        many digits of ill-conditioned views. 'auto' takes the first of the first three that fits into memory; see
        `plan`.
    folder : path, optional
        Where unfinished work waits, for 'gram' also rows of an iterable, and where a killed job goes on to the same
        bits; written at most every five minutes, removed in the end. Rows that were counted are not read again.
    directions, power, replay
        For 'sketch': directions of each sketch (by default 10 for each that a rank keeps, 4 of very wide views; for a
        share as many as it takes), further passes that come closer, and False for the answer after one pass, which is
        approximate and says so with its bound.

    Returns
    -------
    CCAResult
        ``.mean`` is the similarity.

    Raises
    ------
    InputError, DTypeError, NonFiniteError
        The data cannot be used.
    MemoryLimitError
        No strategy fits, or not the one asked for; said before anything is allocated.
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
        strategy=strategy,
        folder=folder,
        sketching={"directions": directions, "power": power, "replay": replay},
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
    strategy: Strategy = "auto",
    folder: str | os.PathLike[str] | None = None,
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
        strategy=strategy,
        folder=folder,
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
    strategy: Strategy = "auto",
    folder: str | os.PathLike[str] | None = None,
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
        strategy=strategy,
        folder=folder,
        side=side,
        ridge=ridge,
        allow_underdetermined=allow_underdetermined,
        allow_inaccurate=allow_inaccurate,
        accumulate={"precision": precision, "nonfinite": nonfinite, "threads": threads, "progress": progress},
    )
