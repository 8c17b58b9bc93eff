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


@dataclass(frozen=True)
class Noise:
    """Rounding of the covariance of Ritz coordinates: entry (p, q) has deviation relative a_p a_q + (a_p + a_q) size.

    The second part is that of projections in the rows' type: each coordinate of a row has an error of some
    unit * |row|, and errors of rows are independent.
    """

    relative: float
    size: float
    unit: float

    def of(self, deviations: FloatArray, others: FloatArray) -> FloatArray:
        """Deviations of the entries between two sets of coordinates."""
        return self.relative * np.outer(deviations, others) + self.size * np.add.outer(deviations, others)


def noise_of(side: Ritz, moments: Rounding, unit: float, n: float) -> Noise:
    """Return the rounding of one view, whose moments have the relative error of `moments`."""
    return Noise(max(moments[0], 2.0**-53), unit * (side.trace / n) ** 0.5, unit)


def share_choice(side: Ritz, value: float, unit: float, n: float) -> tuple[int, int, int]:
    """Smallest rank that reaches a share of the variance, and the lowest and highest that could be; -1 if none does.

    The sums of Ritz values are lower bounds of those of eigenvalues; the residuals say by how much.
    """
    if side.trace <= 0:
        raise InputError("every neuron is constant over the rows, so no direction can be kept; leave the view out")
    slack = 4 * unit / n**0.5 + 2.0**-49
    shares = np.cumsum(side.values) / side.trace
    # An eigenvalue lies above its Ritz value by |residual|^2 / gap at most, and by |residual|: that counts where a view
    # has fewer directions than the basis, and Ritz values are rounding, or 0.
    size, gaps = np.sqrt(np.square(side.residuals).sum(axis=0)), side.gaps
    lift = size * np.divide(size, gaps, out=np.ones_like(size), where=size < gaps)
    above = np.cumsum(side.values + lift) / side.trace

    def first(reached: np.typing.NDArray[np.bool_]) -> int:
        return int(np.argmax(reached)) + 1 if reached.any() else -1

    return first(shares >= value), first(above + slack >= value), first(shares - slack >= value)


def truncated(
    name: str, side: Ritz, rule: Rule, rank: int, noise: Noise, moments: Moments, precision: str
) -> Truncated:
    """Cut a view to its first Ritz coordinates; what the others do is billed by `moved_by_others`.

    The errors are put into the form that `correlate` takes, at most r_p r_q for entry (p, q), by
    (a_p + a_q) s <= sqrt(t a_p^2 + s^2 / t) sqrt(t a_q^2 + s^2 / t), with the t that is best for the last.
    """
    values = side.values[:rank]
    t = noise.size / max(float(values[-1]), 1e-300) ** 0.5
    raw = values + (t * values + noise.size**2 / max(t, 1e-300)) / noise.relative
    try:
        native = _backend.truncate(np.diag(values), (noise.relative, noise.unit, raw), "rank", rank, 0.0)
    except StreamCCAError as error:
        raise type(error)(f"view {name!r}: {error}") from None
    return Truncated(name, rule, native, moments.n, moments.rows, precision)


def moved_by_others(
    x: Ritz,
    y: Ritz,
    cross: FloatArray,
    x_weights: FloatArray,
    y_weights: FloatArray,
    noises: tuple[Noise, Noise],
    correlations: FloatArray,
    shares: FloatArray,
) -> tuple[float, FloatArray]:
    """How far directions that are not kept, in the basis or outside, can have moved the mean and each correlation.

    Parameters
    ----------
    x, y : Ritz
        Both views.
    cross : array (Lx + r, Ly + r)
        Covariance of coordinates and probes of the two.
    x_weights, y_weights : array (k, m)
        Canonical weights in the Ritz coordinates that are kept.
    noises : (Noise, Noise)
        Rounding of both.
    correlations, shares : array (m,)
        What was found, and its weights in the mean.
    """
    heard_x = cross[:, : len(y.values)] @ (y.to_ritz[:, : len(y_weights)] @ y_weights)
    heard_y = cross.T[:, : len(x.values)] @ (x.to_ritz[:, : len(x_weights)] @ x_weights)
    parts_x = _moves(x, heard_x, x_weights, noises[0], correlations, shares)
    parts_y = _moves(y, heard_y, y_weights, noises[1], correlations, shares)
    lengths_x, singles_x, mean_x, turn_x = parts_x
    lengths_y, singles_y, mean_y, turn_y = parts_y
    both = lengths_x * lengths_y * (x.rest * y.rest) ** 0.5
    mean = mean_x + mean_y + float(shares @ both)
    return SAFETY * mean, np.asarray(SAFETY * (singles_x + singles_y + both + turn_x + turn_y))


def _moves(
    side: Ritz, heard: FloatArray, weights: FloatArray, noise: Noise, correlations: FloatArray, shares: FloatArray
) -> tuple[FloatArray, FloatArray, float, FloatArray]:
    """Return what turns of one side's kept vectors do.

    `heard` are the covariances of this side's coordinates and probes with the other's variates. Returned: lengths of
    the turns out of the basis, their effect on each correlation, the effect of all turns on the mean, and that of turns
    within the basis on each correlation.
    """
    rank = len(weights)
    # Out of the basis: a kept vector v_p turns by (theta_p - C_outside)^-1 (1 - V V') C v_p.
    turn = side.residuals[:, :rank] @ (weights / side.gaps[:rank, None])
    pull = side.outside @ heard / len(side.outside) ** 0.5 - (side.residuals[:, :rank] @ weights) * correlations
    lengths = np.sqrt(np.square(turn).sum(axis=0))
    second = 0.5 * correlations * side.rest * lengths**2
    singles = lengths * np.sqrt(np.square(pull).sum(axis=0)) + second
    # The mean moves by <turn, pull diag(shares)>, which the probes estimate with its sign, to a deviation of at most
    # sqrt(2 / r) |turn diag(shares) pull'|_F; three of them.
    spread = float(((turn.T @ turn) * (pull.T @ pull) * np.outer(shares, shares)).sum())
    first = abs(float((turn * pull).sum(axis=0) @ shares)) + 3 * (2 * max(0.0, spread) / len(pull)) ** 0.5
    within, alone = _moves_within(side, side.to_ritz.T @ heard[: len(side.values)], weights, noise, shares)
    return lengths, singles, first + float(shares @ second) + within, alone


def _moves_within(
    side: Ritz, heard: FloatArray, weights: FloatArray, noise: Noise, shares: FloatArray
) -> tuple[float, FloatArray]:
    """Return what turns of kept vectors to others of the basis do to the mean, and to each correlation.

    v_q enters v_p by (residual_q . residual_p) / (gap_p (theta_p - theta_q)), and by the rounding of the covariance
    between them; what that does to a correlation is known.
    """
    rank = len(weights)
    if rank == len(side.values):
        return 0.0, np.zeros_like(shares)
    deviations = np.sqrt(side.values)
    distance = np.maximum(side.values[:rank] - side.values[rank:, None], 1e-15 * side.values[0])
    size = np.sqrt(np.square(side.residuals).sum(axis=0))
    scale = 1 / (side.gaps[:rank] * distance)
    mixed = np.clip(side.residuals[:, rank:].T @ side.residuals[:, :rank] * scale, -1, 1)
    unsure = np.square(np.outer(size[rank:], size[:rank]) * scale) / len(side.outside)
    unsure = np.minimum(unsure + np.square(noise.of(deviations[rank:], deviations[:rank]) / distance), 1)
    angles = 0.5 * float(np.minimum(np.square(mixed).sum(axis=0) + unsure.sum(axis=0), 1).sum())
    gradient = (heard[rank:] * shares) @ weights.T
    mean = abs(float((gradient * mixed).sum())) + 3 * float((gradient**2 * unsure).sum()) ** 0.5
    alone = np.abs((heard[rank:] * (mixed @ weights)).sum(axis=0))
    alone += 3 * np.sqrt(np.einsum("qi,qp,pi->i", heard[rank:] ** 2, unsure, weights**2))
    return mean + float(shares.max()) * angles, alone + angles
