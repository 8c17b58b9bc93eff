"""Truncation of one view by the singular values of its columns of a triangular factor."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import InputError
from streamcca.qr_state import Factor
from streamcca.qr_svd import Svd, polished_svd
from streamcca.subspace import RuleName

UNIT = 2.0**-53
_SAFETY = 3  # standard deviations, for decisions
# What rounding adds to the factor (docs/numerics.md), in unit roundoffs of the length of a column: its deviation along
# any one direction, once and for each step that the rows went through; and by how much a step stretches a column, which
# moves no correlation but where a view is cut. Vectors that could not be polished are LAPACK's (qr_svd.py): roundoffs
# of the largest singular value.
_ONCE = 0.4
_OF_STEP = 0.3
_STRETCH_OF_STEP = 1.5
_OF_LAPACK = 20.0
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
    scale: FloatArray = field(repr=False)  # (width,); 0 marks a constant neuron
    # Deviations of what the factor's error E turns left vector p, if it was kept, towards vector j, if not:
    # (s_p u_j'E v_p + s_j v_j'E'u_p) / (s_p^2 - s_j^2); and towards any direction out of all of them: E v_p / s_p.
    turns: FloatArray = field(repr=False)  # (k, width - k)
    drifts: FloatArray = field(repr=False)  # (k,)

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
    svd = polished_svd(matrix * inverse)
    s = svd.s
    lengths, steps = raw * inverse, np.sqrt(factor.steps)
    noise = _noise_along(svd.v, lengths) * UNIT * np.hypot(_ONCE, _OF_STEP * steps)
    noise = np.where(svd.outside, np.maximum(noise, _OF_LAPACK * UNIT * s[0]), noise)
    stretch = float(UNIT * _STRETCH_OF_STEP * steps * (raw / np.where(live, norms, 1))[live].max())
    # A random matrix of such entries has norm 2 sqrt(d) times their deviation.
    tolerance = float(_SAFETY * UNIT * np.hypot(_ONCE * s[0], _OF_STEP * steps * lengths.max()) * 2 * live.sum() ** 0.5)
    above = int((s > tolerance).sum())
    # Directions below the resolution of the rows are no data; if rounding hides more than these, they could be.
    hidden = int(live.sum()) if tolerance > _ROW_RESOLUTION * factor.row_unit * lengths.max() else above
    choice = _choose(s[:above], rule, value, (float(noise.max()), stretch, tolerance), hidden, float(s @ s))
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
        left=svd.u[:, :k],
        right=svd.v[:, :k],
        singular_values=s[:k],
        rest=svd.u[:, k:],
        scale=scale,
        turns=_turns(svd, k, noise, stretch),
        drifts=noise[:k] / s[:k],
    )


def _noise_along(right: FloatArray, lengths: FloatArray) -> FloatArray:
    """Return a bound of |E v_p| for columns of E that are independent, `lengths` long, for sums over p, too.

    |E sum x_p v_p|^2 = x'V'D^2 V x <= sum x_p^2 r_p with the row sums r of |V'D^2 V| (Gershgorin); 1 for equal lengths.
    """
    products = np.abs(right.T @ (lengths[:, None] ** 2 * right))
    result: FloatArray = np.sqrt(products.sum(axis=1))
    return result


def _turns(svd: Svd, k: int, noise: FloatArray, stretch: float) -> FloatArray:
    s, rest = svd.s[:k, None], svd.s[None, k:]
    # What stretches columns is a small multiple of them: then u_j'E v_p is some s_j.
    polished = np.sqrt((s * noise[:k, None]) ** 2 + (rest * noise[None, k:]) ** 2 + (stretch * s * rest) ** 2)
    by_lapack = _OF_LAPACK * UNIT * svd.s[0] * np.hypot(s, rest)
    gap = np.maximum(s - rest, np.maximum(noise[:k, None], noise[None, k:]))
    size = np.where(svd.unpolished[:k, k:], np.maximum(polished, by_lapack), polished)
    result: FloatArray = size / (gap * (s + rest))
    return result


def _choose(
    s: FloatArray,
    rule: RuleName,
    value: float,
    errors: tuple[float, float, float],
    hidden: int,
    total_variance: float,
) -> _Choice:
    """Choose the rank by a rule from the singular values above rounding, and say what else it could be."""
    noise, stretch, tolerance = errors
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
        error = 2 * noise / total**0.5 + stretch + UNIT * len(s) ** 0.5
        unseen = 0.0
    else:
        error = float(np.minimum(s, noise).sum()) / total + stretch + UNIT * len(s) ** 0.5
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


def _inverse_or_zero(values: FloatArray) -> FloatArray:
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)
