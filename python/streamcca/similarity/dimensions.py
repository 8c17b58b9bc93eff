"""How many directions one layer uses."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import InputError
from streamcca.gram import Gram
from streamcca.moments import Moments
from streamcca.similarity.covariances import SAFETY, ViewCovariance, spectral_error
from streamcca.views import unknown_name

_UNIT = 2.0**-53


@dataclass(frozen=True)
class Dimensions:
    """Numbers of directions that a view uses, by several definitions.

    Attributes
    ----------
    effective_rank : float
        exp of the entropy of the singular values' shares (Roy & Vetterli 2007).
    participation_ratio : float
        (sum l)^2 / sum l^2 of the variances l along the principal directions.
    stable_rank : float
        sum l / largest l.
    variance_rank : int
        Fewest directions that hold `share` of the variance.
    saturation : float
        `variance_rank` over the width (Shenk, Richter, Byttner, Arpteg & Huss 2019, arXiv 1907.08589).
    numerical_rank : int
        Directions above rounding.
    share : float
    width : int
    n : int or float
        Rows. Few rows make all of these too low: of white rows the participation ratio is d n / (d + n).
    error_bounds : dict of str to float
        How far rounding can have moved each of the first three.
    """

    effective_rank: float
    participation_ratio: float
    stable_rank: float
    variance_rank: int
    saturation: float
    numerical_rank: int
    share: float
    width: int
    n: int | float
    error_bounds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


def dimensions(data: Moments | Gram, view: str | None = None, *, share: float = 0.99) -> Dimensions:
    """Say how many directions a view uses.

    Parameters
    ----------
    data : Moments or Gram
        For rows: ``dimensions(accumulate(rows))``.
    view : str, optional
        May be left out if there is only one.
    share : float
        Of the variance, for `variance_rank` and `saturation`.

    Returns
    -------
    Dimensions

    Raises
    ------
    InputError
        The view is unknown or constant.

    Examples
    --------
    >>> m = Moments({"a": 4})
    >>> m.update(a=np.vstack([np.eye(4), -np.eye(4)]) * [1, 1, 1, 0])
    >>> found = dimensions(m)
    >>> round(found.participation_ratio, 9), round(found.stable_rank, 9), found.variance_rank, found.saturation
    (3.0, 3.0, 3, 0.75)
    """
    if not isinstance(data, Moments | Gram):
        raise InputError(f"dimensions: got {type(data).__name__}, expected Moments or Gram; see accumulate")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise InputError(f"share: got {share!r}, expected a share above 0 and at most 1")
    if view is None and len(data.views) == 1:
        view = next(iter(data.views))
    if view not in data.views:
        raise InputError(unknown_name("view", str(view), list(data.views)))
    if isinstance(data, Moments):
        seen = ViewCovariance(data, view)
        values, vectors, relative, raw = seen.eigenvalues, seen.eigenvectors, seen.relative, seen.raw
    else:
        kept = data.view(view)
        values, vectors = (part[..., ::-1] for part in np.linalg.eigh(kept.matrix))
        relative, _, raw = kept.rounding
    error = spectral_error(relative, raw, float(values[0]))
    most = min(data.rows - 1 if isinstance(data, Moments) else data.n - 1, data.views[view])
    rank = max(1, min(int(np.sum(values > error)), most))
    # Of a Gram matrix the other directions are rounding, and so are all eigenvalues below zero.
    values, vectors = values[:most], vectors[:, :most]
    return _of_spectrum(values, vectors, relative, raw, error, rank, share, data.views[view], data.n)


def _of_spectrum(
    values: FloatArray,
    vectors: FloatArray,
    relative: float,
    raw: FloatArray,
    error: float,
    rank: int,
    share: float,
    width: int,
    n: int | float,
) -> Dimensions:
    total, square = float(values.sum()), float(values @ values)
    if not total > 0:
        raise InputError("dimensions: every neuron is constant over the rows; leave the view out")
    roots = np.sqrt(np.maximum(values, 0))
    p = roots / roots.sum()
    entropy = -float(np.sum(p[p > 0] * np.log(p[p > 0])))
    effective = float(np.exp(entropy))
    kept = int(np.searchsorted(np.cumsum(values), share * total * (1 - 4 * _UNIT)) + 1)
    # Slopes with regard to the variances along the principal directions; first order as for all measures.
    safe = np.maximum(roots, np.sqrt(max(error, np.finfo(np.float64).tiny)))
    of_roots = -effective * (np.log(np.maximum(p, np.finfo(np.float64).tiny)) + entropy) / roots.sum()
    first = (np.arange(len(values)) == 0).astype(np.float64)
    slopes = {
        "effective_rank": of_roots / (2 * safe),
        "participation_ratio": 2 * total / square - 2 * total**2 / square**2 * values,
        "stable_rank": 1 / values[0] - total / values[0] ** 2 * first,
    }
    # Var(sum_i s_i v_i'E v_i), E symmetric with entries of deviation e sqrt(r_s r_t).
    weighted = vectors.T @ (raw[:, None] * vectors)
    bounds = {}
    for name, slope in slopes.items():
        deviation = relative * np.sqrt(max(0.0, 2 * float(slope @ weighted**2 @ slope)))
        # What lies below the error can be anything up to it.
        lost = float(np.sum(np.abs(slope[values <= error]))) * error if name == "effective_rank" else 0.0
        bounds[name] = float(SAFETY * deviation + lost + 16 * _UNIT * np.sqrt(len(values)) * max(1.0, effective))
    return Dimensions(
        effective_rank=effective,
        participation_ratio=total**2 / square,
        stable_rank=total / float(values[0]),
        variance_rank=min(kept, len(values)),
        saturation=min(kept, len(values)) / width,
        numerical_rank=rank,
        share=float(share),
        width=width,
        n=n,
        error_bounds=bounds,
    )
