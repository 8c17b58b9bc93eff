"""Angles between subspaces, to full accuracy also where they are small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import InputError, NonFiniteError


@dataclass(frozen=True, eq=False, repr=False)
class PrincipalAngles:
    """Angles between two subspaces, increasing.

    Attributes
    ----------
    angles : array (m,)
        In radians, m the smaller of both dimensions.
    cosines, sines : array (m,)
        Cosines lose angles below 1e-8, sines those near a right angle; each angle comes from the one that keeps it.
    """

    angles: FloatArray
    cosines: FloatArray
    sines: FloatArray

    @property
    def overlap(self) -> float:
        """Mean squared cosine: 1 where one subspace contains the other, 0 where they are at right angles."""
        return float(np.mean(self.cosines**2))

    @property
    def distance(self) -> float:
        """Geodesic distance of the subspaces: root of the sum of squared angles."""
        return float(np.linalg.norm(self.angles))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {"angles": self.angles.tolist(), "overlap": self.overlap, "distance": self.distance}

    def __repr__(self) -> str:
        return (
            f"PrincipalAngles({len(self.angles)} from {self.angles[0]:.3g} to {self.angles[-1]:.3g}, "
            f"overlap={self.overlap:.6f})"
        )


def principal_angles(a: Any, b: Any) -> PrincipalAngles:
    """Return the principal angles between the spaces that the columns of two matrices span.

    Of principal directions of one layer at two steps (``truncate(...).vectors``) they say how far its subspace has
    turned; of the scores of two layers on the same rows their cosines are the canonical correlations.

    Parameters
    ----------
    a, b : array (n, k), (n, m)
        Columns that are linearly independent.

    Returns
    -------
    PrincipalAngles

    Raises
    ------
    InputError
        The arrays do not fit together, or their columns depend on each other.
    NonFiniteError

    References
    ----------
    Bjorck & Golub (1973), Mathematics of Computation 27; Knyazev & Argentati (2002), SIAM Journal on Scientific
    Computing 23, algorithm 3.1.

    Examples
    --------
    >>> tilted = np.array([[1.0], [1e-12], [0.0]])
    >>> float(principal_angles(np.eye(3, 2)[:, :1], tilted).angles[0])
    1e-12
    """
    bases = [_basis(array, name) for array, name in ((a, "a"), (b, "b"))]
    if len(bases[0]) != len(bases[1]):
        raise InputError(f"b: got columns of {len(bases[1])} numbers, expected {len(bases[0])} as in a")
    wide, narrow = sorted(bases, key=lambda basis: -basis.shape[1])
    inner = wide.T @ narrow
    cosines = np.minimum(np.linalg.svd(inner, compute_uv=False), 1.0)
    sines = np.minimum(np.linalg.svd(narrow - wide @ inner, compute_uv=False)[::-1], 1.0)
    angles = np.where(cosines**2 < 0.5, np.arccos(cosines), np.arcsin(sines))
    return PrincipalAngles(np.maximum.accumulate(angles), cosines, sines)


def _basis(array: Any, name: str) -> FloatArray:
    matrix = np.asarray(array, dtype=np.float64)
    if matrix.ndim != 2 or not 1 <= matrix.shape[1] <= matrix.shape[0]:
        raise InputError(
            f"{name}: got shape {matrix.shape}, expected (n, k) with 1 <= k <= n columns that span a subspace"
        )
    if not np.isfinite(matrix).all():
        raise NonFiniteError(f"{name}: it holds NaN or infinity, expected numbers")
    q, r = np.linalg.qr(matrix / np.maximum(np.linalg.norm(matrix, axis=0), np.finfo(np.float64).tiny))
    if np.linalg.svd(r, compute_uv=False)[-1] < len(matrix) * 2.0**-52:
        raise InputError(f"{name}: its columns depend on each other; give a basis of the subspace")
    return q
