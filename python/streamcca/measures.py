"""The best known measures that are no functions of canonical correlations."""

from __future__ import annotations

import os
from typing import Any, Literal

from streamcca.errors import InputError
from streamcca.pairing import Progress
from streamcca.plan import Strategy
from streamcca.similarity.named import plain_measure
from streamcca.similarity.result import SimilarityResult
from streamcca.views import check_option


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
    how = {"precision": precision, "nonfinite": nonfinite, "threads": threads, "progress": progress}
    return plain_measure("debiased_cka" if debiased else "cka", data, how, strategy, folder)


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
    how = {"precision": precision, "nonfinite": nonfinite, "threads": threads, "progress": progress}
    return plain_measure("procrustes", data, how, strategy, folder)


def linear_regression(
    *data: Any,
    predict: Literal["x", "y"] = "y",
    precision: str = "auto",
    nonfinite: str = "raise",
    threads: int | None = None,
    progress: Progress = "auto",
    strategy: Strategy = "auto",
    folder: str | os.PathLike[str] | None = None,
) -> SimilarityResult:
    """Share of the variance of one view that the best linear map of the other explains (R^2); not symmetric.

    Parameters
    ----------
    *data
        As in `svcca`: moments (or a `Gram`) and two view names, two arrays or ``.npy`` paths, or an iterable of pairs.
    predict : 'x' or 'y'
        The view that is explained.
    precision, nonfinite, threads, progress, strategy, folder
        As in `svcca`.

    Returns
    -------
    SimilarityResult
        ``.null_mean`` is what unrelated views reach: directions of the explaining view over n - 1.

    Raises
    ------
    UnderdeterminedError
        With so few rows anything is explained.
    InputError
        The data cannot be used; a view is constant.

    References
    ----------
    Kornblith, Norouzi, Lee & Hinton (2019), arXiv 1905.00414, table 1.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((500, 20))
    >>> round(linear_regression(x, x[:, :5] ** 2 + x[:, 5:10]).mean, 1)
    0.4
    """
    check_option("predict", predict, ("x", "y"))
    how = {"precision": precision, "nonfinite": nonfinite, "threads": threads, "progress": progress}
    return plain_measure(f"regression_{predict}", data, how, strategy, folder)
