"""Truncation of one view by the singular values of its columns of a triangular factor."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import InputError
from streamcca.qr_state import Factor
from streamcca.subspace import RuleName

UNIT = 2.0**-53
_SAFETY = 3  # standard deviations, for decisions
# Deviation of what rounding adds to the factor along any one direction, in unit roundoffs: of the largest singular
# value for the decomposition, of the longest column for each step that the rows went through (docs/numerics.md).
_OF_SVD = 0.3
_OF_STEP = 0.3
# Directions whose deviation is below this many roundings of the rows are not data.
_ROW_RESOLUTION = 100
_SHARE_ROUNDING = 16 * UNIT


@dataclass(frozen=True, eq=False)
class Cut:
    """A truncated view, R_view = left diag(s) right', in working coordinates: neurons divided by `scale`.

    The scale is the norm of each neuron's column for the rule 'full', one power of two for all neurons otherwise.
    """

    width: int
    live: int  # neurons that vary
    rank: int
    numerical_rank: int
    lowest_rank: int  # the ranks that rounding leaves possible
    highest_rank: int
    share: float
    margin: float
    left: FloatArray = field(repr=False)  # (rows of the factor, k)
    right: FloatArray = field(repr=False)  # (width, k)
    singular_values: FloatArray = field(repr=False)  # (k,)
    rest: FloatArray = field(repr=False)  # left singular vectors that were not kept
    rest_values: FloatArray = field(repr=False)
    scale: FloatArray = field(repr=False)  # (width,); 0 marks a constant neuron
    n: float
    noise: float  # deviation of the factor's error along any direction

    @property
    def eigenvalues(self) -> FloatArray:
        """Squares of the singular values, in working coordinates."""
        return self.singular_values**2

    def in_neurons(self, coordinates: FloatArray) -> FloatArray:
        """Take what acts on kept directions (k, m) to what acts on neurons in their own units (width, m)."""
        result: FloatArray = self.right @ coordinates * _inverse_or_zero(self.scale)[:, None]
        return result

    def loadings(self, coordinates: FloatArray) -> FloatArray:
        """Products (width, m) of the neurons, in their own units, with variates given by their coordinates (k, m)."""
        result: FloatArray = self.right @ (self.singular_values[:, None] * coordinates) * self.scale[:, None]
        return result


@dataclass(frozen=True)
class _Choice:
    rank: int
    lowest: int
    highest: int
    share: float
    margin: float


def cut_view(factor: Factor, columns: slice, rule: RuleName, value: float) -> Cut:
    """Cut one view, the given columns of the factor.

    Raises
    ------
    InputError
        The view is constant or not finite, or its numerical rank is below the rank asked for.
    """
    from scipy.linalg import svd

    matrix = factor.centered[: columns.stop, columns]  # zero below
    if not np.isfinite(matrix).all():
        raise InputError("the moments are not finite, since rows with NaN were let through")
    largest = np.abs(matrix).max(axis=0)
    norms = largest * np.sqrt(((matrix / np.where(largest > 0, largest, 1)) ** 2).sum(axis=0))
    raw = np.hypot(norms, factor.drift[columns])
    live = norms > _SAFETY * UNIT * np.sqrt(1 + factor.steps) * raw
    if not live.any():
        raise InputError(
            "every neuron is constant over the rows, or varies by less than float64 can hold beside its mean, so no "
            "direction can be kept; leave the view out"
        )
    unit = np.exp2(np.rint(np.log2(norms.max())))
    scale = np.where(live, norms if rule == "full" else unit, 0.0)
    inverse = _inverse_or_zero(scale)
    left, s, right = svd(matrix * inverse, full_matrices=False, overwrite_a=True)
    longest = float((raw * inverse).max())
    noise = UNIT * float(np.sqrt((_OF_SVD * s[0]) ** 2 + _OF_STEP**2 * factor.steps * longest**2))
    # A random matrix of such entries has norm 2 sqrt(d) times their deviation.
    tolerance = _SAFETY * noise * 2 * float(np.sqrt(live.sum()))
    above = int((s > tolerance).sum())
    # Directions below the resolution of the rows are no data; if rounding hides more than these, they could be.
    hidden = int(live.sum()) if tolerance > _ROW_RESOLUTION * factor.row_unit * longest else above
    choice = _choose(s[:above], rule, value, noise, tolerance, hidden, _norm2(s))
    k = choice.rank
    return Cut(
        width=len(norms),
        live=int(live.sum()),
        rank=k,
        numerical_rank=above,
        lowest_rank=choice.lowest,
        highest_rank=choice.highest,
        share=choice.share,
        margin=choice.margin,
        left=left[:, :k],
        right=right[:k].T,
        singular_values=s[:k],
        rest=left[:, k:],
        rest_values=s[k:],
        scale=scale,
        n=factor.n,
        noise=noise,
    )


def _choose(
    s: FloatArray, rule: RuleName, value: float, noise: float, tolerance: float, hidden: int, total_variance: float
) -> _Choice:
    """Choose the rank by a rule from the singular values above rounding, and say what else it could be."""
    above = len(s)
    if rule == "rank":
        k = int(value)
        if k > above:
            raise InputError(f"rank {k} was asked for, but the numerical rank is {above}; ask for at most that")
        return _Choice(k, k, k, float((s[:k] ** 2).sum() / total_variance), 1.0)
    parts, total = (s**2, total_variance) if rule in ("variance", "full") else (s, float(s.sum()))
    if rule == "full" or value >= 1:
        return _Choice(above, above, hidden, min(1.0, float(parts.sum() / total)), 1.0 if rule == "full" else 0.0)
    # Inclusive threshold: a share that equals it up to the rounding of this sum has reached it.
    k = _first_reaching(parts, total, value - _SHARE_ROUNDING)
    before, share = float(parts[: k - 1].sum() / total), float(parts[:k].sum() / total)
    margin = 0.0 if share < value else min(share - value, value - before)
    if rule == "variance":
        error = 2 * noise / total**0.5 + UNIT * len(s) ** 0.5
        unseen = 0.0
    else:
        error = float(np.minimum(s, noise).sum()) / total + UNIT * len(s) ** 0.5
        # Directions below rounding are not in the sum, but each could add up to this much.
        unseen = (hidden - above) * tolerance
    lowest = min(k, _first_reaching(parts, total, value - _SAFETY * error))
    highest_value = value + _SAFETY * error
    reached = parts.sum() >= highest_value * (total + unseen)
    highest = max(k, _first_reaching(parts, total + unseen, highest_value)) if reached else max(k, hidden)
    return _Choice(k, lowest, highest, share, margin)


def _first_reaching(parts: FloatArray, total: float, value: float) -> int:
    """First k at which the leading parts reach value * total, or the number of parts if they do not."""
    reached = np.cumsum(parts) >= value * total
    return int(reached.argmax()) + 1 if reached.any() else len(parts)


def _norm2(s: FloatArray) -> float:
    return float(s @ s)


def _inverse_or_zero(values: FloatArray) -> FloatArray:
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)
