"""Rayleigh-Ritz: the principal directions within a basis, and how far those outside it can move the correlations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamcca import _backend
from streamcca._backend import FloatArray, Rounding
from streamcca.errors import InputError, StreamCCAError
from streamcca.moments import Moments
from streamcca.subspace import Rule, Truncated

# Factor on first and second order terms of norms that PROBES random vectors estimate (calibrated: docs/numerics.md).
SAFETY = 3.0
PROBES = 16


@dataclass
class Ritz:
    """One view in the basis of a replay, rotated to its Ritz vectors.

    Attributes
    ----------
    to_ritz : array (L, L)
        Takes coordinates in the stored basis to Ritz coordinates: V' x -> to_ritz' (V' x).
    values : array (L,)
        Ritz values, decreasing: variances along the Ritz vectors, each at most the eigenvalue of the same number.
    residuals : array (r, L)
        Probes of (1 - V V') C v_p; the squared length of column p estimates that of the residual.
    outside : array (r, L + r)
        Takes coordinates and probes of a row to the probes of what lies outside the basis.
    trace : float
        Trace of the whole covariance.
    rest : float
        Typical eigenvalue of the covariance outside the basis.
    """

    to_ritz: FloatArray
    values: FloatArray
    residuals: FloatArray
    outside: FloatArray
    trace: float
    rest: float

    @property
    def gaps(self) -> FloatArray:
        """Distance of each Ritz value from what lies outside the basis; a tenth of it at least."""
        return np.maximum(self.values - self.rest, 0.1 * self.values)

    def head(self, covariance: FloatArray) -> FloatArray:
        """Return the rows of a covariance with coordinates and probes of this view, as Ritz coordinates."""
        return self.to_ritz.T @ covariance[: len(self.values)]


def ritz_of(covariance: FloatArray, basis_gram: FloatArray, size: int, trace: float, cap: float) -> Ritz:
    """Rayleigh-Ritz in a basis.

    Parameters
    ----------
    covariance : array (L + r, L + r)
        Of the coordinates V'x and the probes W'x, W random signs.
    basis_gram : array (L + r, L + r)
        [V W]'[V W]; the basis is stored in float32, and orthonormal to that only.
    size : int
        L, rows of the basis.
    trace : float
        Of the covariance of all neurons.
    cap : float
        Proved upper bound of the covariance outside the basis, or infinity.
    """
    values, vectors = np.linalg.eigh(basis_gram[:size, :size])
    whiten = (vectors / np.sqrt(values)) @ vectors.T
    inside = whiten @ covariance[:size, :size] @ whiten
    values, vectors = np.linalg.eigh((inside + inside.T) / 2)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    # What a probe says of the part of a row outside the basis: W'(1 - V V') x.
    probes = len(covariance) - size
    outside = np.hstack([-basis_gram[size:, :size] @ whiten @ whiten, np.eye(probes)])
    to_ritz = whiten @ vectors
    residuals = outside @ covariance[:, :size] @ to_ritz / probes**0.5
    rest = _typical(outside @ covariance @ outside.T, max(0.0, trace - float(values.sum())))
    return Ritz(to_ritz, values, residuals, outside, trace, min(cap, rest))


def _typical(probed: FloatArray, trace: float) -> float:
    """Mean eigenvalue outside the basis, each weighing as much as it is large: |C|_F^2 / trace(C); at most the trace.

    Off the diagonal the square of w_i' C w_j is |C|_F^2 on average.
    """
    count = len(probed) * (len(probed) - 1)
    if trace <= 0 or not count:
        return trace
    square = (float(np.square(probed).sum()) - float(np.square(np.diag(probed)).sum())) / count
    return min(trace, square / trace)


def coordinate_rounding(side: Ritz, moments: Rounding, unit: float, n: float) -> Rounding:
    """Describe the rounding of Ritz coordinates' covariance: that of moments, and of projections in the rows' type.

    Each coordinate of a row has an error of some unit * |row|; errors of rows are independent, so an entry of the
    covariance moves by (a_i s + a_j s) / sqrt(n), a the coordinates' deviations: at most r_i r_j with
    r_i^2 = (t a_i^2 + s^2 / t) / sqrt(n).
    """
    relative = max(moments[0], 2.0**-53)
    size = unit * side.trace**0.5
    spread = np.maximum(side.values, 1e-300)
    t = size * (len(spread) / float(spread.sum())) ** 0.5
    raw = side.values + (t * spread + size**2 / max(t, 1e-300)) / (n**0.5 * relative)
    return relative, unit, raw


def share_choice(side: Ritz, value: float, unit: float, n: float) -> tuple[int, int, int]:
    """Smallest rank that reaches a share of the variance, and the lowest and highest that could be; -1 if none does.

    The sums of Ritz values are lower bounds of those of eigenvalues; the residuals say by how much.
    """
    if side.trace <= 0:
        raise InputError("every neuron is constant over the rows, so no direction can be kept; leave the view out")
    slack = 4 * unit / n**0.5 + 2.0**-49
    shares = np.cumsum(side.values) / side.trace
    above = np.cumsum(side.values + np.square(side.residuals).sum(axis=0) / side.gaps) / side.trace

    def first(reached: np.typing.NDArray[np.bool_]) -> int:
        return int(np.argmax(reached)) + 1 if reached.any() else -1

    return first(shares >= value), first(above + slack >= value), first(shares - slack >= value)


def truncated(
    name: str, side: Ritz, rule: Rule, rank: int, rounding: Rounding, moments: Moments, precision: str
) -> Truncated:
    """Cut a view in its Ritz coordinates."""
    try:
        native = _backend.truncate(np.diag(side.values), rounding, "rank", rank, 0.0)
    except StreamCCAError as error:
        raise type(error)(f"view {name!r}: {error}") from None
    return Truncated(name, rule, native, moments.n, moments.rows, precision)


def moved_by_outside(
    x: Ritz,
    y: Ritz,
    cross: FloatArray,
    x_weights: FloatArray,
    y_weights: FloatArray,
    ranks: tuple[int, int],
    correlations: FloatArray,
    shares: FloatArray,
) -> tuple[float, FloatArray]:
    """How far the mean, and each correlation, can be from that of the true principal directions.

    Parameters
    ----------
    x, y : Ritz
        Both views.
    cross : array (Lx + r, Ly + r)
        Covariance of coordinates and probes of the two.
    x_weights, y_weights : array (L, m)
        Canonical weights in Ritz coordinates.
    ranks : (int, int)
        Ritz vectors kept of each.
    correlations, shares : array (m,)
        What was found, and its weights in the mean.
    """
    parts_x = _moves(x, cross, x_weights, y.to_ritz @ y_weights, ranks[0], correlations, shares, len(y.values))
    parts_y = _moves(y, cross.T, y_weights, x.to_ritz @ x_weights, ranks[1], correlations, shares, len(x.values))
    lengths_x, singles_x, mean_x, turn_x = parts_x
    lengths_y, singles_y, mean_y, turn_y = parts_y
    both = lengths_x * lengths_y * (x.rest * y.rest) ** 0.5
    mean = mean_x + mean_y + float(shares @ both)
    return SAFETY * mean, np.asarray(SAFETY * (singles_x + singles_y + both + turn_x + turn_y))


def _moves(
    side: Ritz,
    cross: FloatArray,
    weights: FloatArray,
    other: FloatArray,
    rank: int,
    correlations: FloatArray,
    shares: FloatArray,
    other_size: int,
) -> tuple[FloatArray, FloatArray, float, FloatArray]:
    """Return what turns of one side's kept vectors do.

    Lengths of the turns out of the basis, their effect on each correlation, the effect of all turns on the mean, and
    that of turns within the basis on each correlation.
    """
    # Out of the basis: a kept vector v_p turns by (theta_p - C_outside)^-1 (1 - V V') C v_p.
    gaps = side.gaps[:rank, None]
    turn = side.residuals[:, :rank] @ (weights[:rank] / gaps)
    said = side.outside @ cross[:, :other_size] @ other / len(side.outside) ** 0.5
    pull = said - (side.residuals[:, :rank] @ weights[:rank]) * correlations
    lengths = np.sqrt(np.square(turn).sum(axis=0))
    second = 0.5 * correlations * side.rest * lengths**2
    singles = lengths * np.sqrt(np.square(pull).sum(axis=0)) + second
    # The mean moves by <turn, pull diag(shares)>, which the probes estimate with its sign, to a deviation of at most
    # sqrt(2 / r) |turn diag(shares) pull'|_F; three of them.
    spread = float(((turn.T @ turn) * (pull.T @ pull) * np.outer(shares, shares)).sum())
    first = abs(float((turn * pull).sum(axis=0) @ shares)) + 3 * (2 * max(0.0, spread) / len(pull)) ** 0.5
    first += float(shares @ second)
    if rank == len(side.values):
        return lengths, singles, first, np.zeros_like(shares)
    # Within it: v_q enters by (residual_q . residual_p) / (gap_p (theta_p - theta_q)).
    distance = np.maximum(side.values[:rank] - side.values[rank:, None], 1e-15 * side.values[0])
    size = np.sqrt(np.square(side.residuals).sum(axis=0))
    scale = 1 / (side.gaps[:rank] * distance)
    mixed = np.clip(side.residuals[:, rank:].T @ side.residuals[:, :rank] * scale, -1, 1)
    noise = np.minimum(np.outer(size[rank:], size[:rank]) * scale / len(side.outside) ** 0.5, 1)
    heard = (side.to_ritz.T @ cross[: len(side.values), :other_size] @ other)[rank:]
    gradient = (heard * shares) @ weights[:rank].T
    angles = np.minimum(np.square(mixed).sum(axis=0), 1)
    within = abs(float((gradient * mixed).sum())) + 3 * float(np.square(gradient * noise).sum()) ** 0.5
    within += 0.5 * float(shares.max()) * float(angles.sum())
    # One correlation: entries of one variate, their worst signs replaced by three deviations.
    alone = np.abs((heard * (mixed @ weights[:rank])).sum(axis=0))
    alone += 3 * np.sqrt(np.einsum("qi,qp,pi->i", heard**2, noise**2, weights[:rank] ** 2)) + 0.5 * float(angles.sum())
    return lengths, singles, first + within, alone
