"""How far rounding may have moved correlations from a triangular factor (docs/numerics.md, "The QR route")."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamcca._backend import FloatArray
from streamcca.qr_truncate import UNIT, Cut

_SAFETY = 8  # standard deviations
_SVD_BACKWARD = 16  # of the final SVD, in unit roundoffs times k^(1/2)


@dataclass(frozen=True, eq=False)
class Variates:
    """Canonical variates by their coordinates in the kept left singular vectors of both sides."""

    correlations: FloatArray  # (m,), decreasing
    x: FloatArray  # (kx, m), orthonormal columns
    y: FloatArray  # (ky, m)


@dataclass(frozen=True, eq=False)
class Bounds:
    """Bounds of the mean for fixed shares, of what moving shares add, and of each correlation."""

    mean: float
    shares: float
    correlations: FloatArray


class _Reach:
    """How one side's rounding moves the correlations, to first order.

    With u_i = U w_i the variate of this side and v_i that of the other, d rho_i = (dU w_i)'v_i. Rounding turns the kept
    left singular vectors U towards those that were not kept, and out of all of them (see `Cut`). So only what the kept
    directions leave of v_i counts, sin(angle) long: without truncation |d rho_i| <= sqrt(1 - rho_i^2) |E a_i|, with E
    the error of the factor and a_i = V w_i / s.
    """

    def __init__(self, cut: Cut, own: FloatArray, other: FloatArray) -> None:
        """Take this side's coordinates (k, m) and the other side's variates (rows of the factor, m)."""
        depth = len(cut.left)
        self.cut, self.own = cut, own
        other = _padded(other, depth)
        self.along = cut.rest.T @ other[:depth]  # (rest, m)
        outside = other.copy()
        outside[:depth] -= cut.left @ (cut.left.T @ other[:depth]) + cut.rest @ self.along
        self.outside = outside  # (rows, m)
        # Squared deviations of |dU w_i|, along the worst direction and in all.
        worst = np.maximum(cut.drifts, cut.turns.max(axis=1, initial=0.0))
        self.spread = (own**2).T @ worst**2
        self.length = depth * self.spread

    def mean_variance(self, shares: FloatArray) -> float:
        weighted = self.own * shares
        along, outside = weighted @ self.along.T, weighted @ self.outside.T
        return float(((along * self.cut.turns) ** 2).sum() + self.cut.drifts**2 @ (outside**2).sum(axis=1))

    def variances(self) -> FloatArray:
        squares = (self.own**2).T
        along = (squares @ self.cut.turns**2 * (self.along**2).T).sum(axis=1)
        result: FloatArray = along + (self.outside**2).sum(axis=0) * (squares @ self.cut.drifts**2)
        return result


def bounds_of(x: Cut, y: Cut, variates: Variates, shares: FloatArray, side: str) -> Bounds:
    """Bound the errors of the correlations, and of their mean with these shares."""
    reach_x = _Reach(x, variates.x, y.left @ variates.y)
    reach_y = _Reach(y, variates.y, x.left @ variates.x)
    rho = variates.correlations
    floor = _SVD_BACKWARD * UNIT * max(x.rank, y.rank) ** 0.5
    deviations = _widened(rho, _deviations(rho, reach_x, reach_y))
    variance = reach_x.mean_variance(shares) + reach_y.mean_variance(shares)
    # Within their error of 1 correlations are cut off there, so their errors all point down and do not average out.
    bias = float((shares * deviations)[1 - rho < 3 * deviations].sum())
    moving = 0.0
    if side:
        own, cut, coordinates = (reach_x, x, variates.x) if side == "x" else (reach_y, y, variates.y)
        moving = _moving_shares(own, reach_y if side == "x" else reach_x, cut, coordinates, rho, shares)
    return Bounds(
        mean=min(1.0, _SAFETY * variance**0.5 + bias + floor),
        shares=moving,
        correlations=np.minimum(1.0, _SAFETY * deviations + floor),
    )


def _deviations(rho: FloatArray, x: _Reach, y: _Reach) -> FloatArray:
    """Return the deviation of each correlation by itself.

    It is largest where the correlation itself may be smaller than computed (next to 1 the first order vanishes), so it
    is taken at the lower end of the interval that it gives. There, the second order counts, too: u_i leaves the kept
    directions by some |E a_i|, and the cosine falls by half its square.
    """
    first = x.variances() + y.variances()
    spread, second = x.spread + y.spread, 0.5 * (x.length + y.length)
    deviation = np.zeros_like(rho)
    for _ in range(3):
        low = np.maximum(0.0, rho - _SAFETY * deviation)
        deviation = np.sqrt(first + spread * (rho**2 - low**2) + second**2)
    return deviation


def _widened(rho: FloatArray, alone: FloatArray) -> FloatArray:
    """Correlations closer than their errors mix: each of c such moves by up to sqrt(c) of the largest deviation."""
    reach = 4 * len(rho) ** 0.5 * np.maximum(alone[:, None], alone[None])
    near = np.abs(rho[:, None] - rho[None]) <= reach
    largest = np.where(near, alone[None], 0.0).max(axis=1)
    result: FloatArray = largest * np.maximum(1.0, 0.5 * np.sqrt(near.sum(axis=1)))
    return result


def _moving_shares(
    side: _Reach, other: _Reach, cut: Cut, coordinates: FloatArray, rho: FloatArray, shares: FloatArray
) -> float:
    """Return what it adds to the error of PWCCA's mean that variates turn into each other, and the shares with them.

    The same sum as for moments (csrc/linalg/error_bound.cpp): by an angle of deviation
    tau sqrt(rho_i^2 + rho_j^2) / |rho_i^2 - rho_j^2| variate i turns towards j, and for each unit of it the mean moves
    by [(rho_i - f) beta_ij - (rho_j - f) beta_ji] / sum alpha, beta_ij = sum sign(loading_i) loading_j.
    """
    loadings = cut.loadings(coordinates)
    loadings /= np.abs(loadings).max()  # of any unit; the total cancels
    sign = np.where(loadings < 0, -1.0, 1.0)
    beta = sign.T @ loadings
    total, mean = float(np.trace(beta)), float(shares @ rho)
    tau = side.spread + other.spread
    tau = np.maximum(tau[:, None], tau[None]) + UNIT**2
    square = rho**2
    distance = np.maximum(UNIT, np.abs(square[:, None] - square[None]))
    angles = tau * (square[:, None] + square[None]) / distance**2
    pull = (rho - mean)[:, None] * beta
    effects = (pull - pull.T) / total
    lower = np.tril_indices(len(rho), -1)
    small, free = _turns(angles[lower], effects[lower])
    if len(coordinates) > len(rho):
        # Kept directions that no variate spans count as partners of correlation 0.
        everything = (cut.singular_values[:, None] * cut.right.T) @ (sign * cut.scale[:, None])
        everything /= np.abs(cut.loadings(coordinates)).max()
        rest = (everything**2).sum(axis=0) - (beta**2).sum(axis=1)
        more = _turns(tau.max(axis=1) / np.maximum(rho, UNIT) ** 2, (rho - mean) / total * np.sqrt(np.maximum(0, rest)))
        small, free = small + more[0], free + more[1]
    # A free turn is no Gaussian: it cannot exceed its spread.
    return float(_SAFETY * small**0.5 + free**0.5)


def _turns(angles: FloatArray, effects: FloatArray) -> tuple[float, float]:
    """Squared effects of turns of small deviation, and of those that are wholly undetermined."""
    moved = effects**2 * np.minimum(1.0, angles)
    return float(moved[angles < 1].sum()), float(moved[angles >= 1].sum())


def _padded(variates: FloatArray, rows: int) -> FloatArray:
    """Return variates with zeros below, down to so many rows of the factor at least."""
    return np.vstack([variates, np.zeros((max(0, rows - len(variates)), variates.shape[1]))])
