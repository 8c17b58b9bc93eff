"""What a measure sees of two views: their covariances, decompositions that a grid of pairs shares, and rounding."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from streamcca._backend import FloatArray
from streamcca.blas_threads import few_threads
from streamcca.errors import InputError
from streamcca.moments import Moments
from streamcca.similarity.blas import inner, singular_vectors
from streamcca.subspace import Rule, Truncated, truncate_view

FULL = Rule("full")
# Standard deviations of rounding that a bound covers, as for correlations.
SAFETY = 8.0
_UNIT = 2.0**-53


def check_range(view: str, trace: float) -> None:
    """Refuse a view that does not vary, or whose squared variances leave the range of float64."""
    if not trace > 0:
        raise InputError(f"view {view!r}: every neuron is constant over the rows; leave the view out")
    if not 1e-145 < trace < 1e145:
        raise InputError(
            f"view {view!r}: got variances of {trace:.0e} in all, whose squares leave float64's range; scale the rows"
        )


class ViewCovariance:
    """Covariance (d, d) of one view of moments, and what is found in it on demand, once."""

    def __init__(self, moments: Moments, name: str) -> None:
        self._moments, self.name, self.rows = moments, name, moments.rows
        self._truncated: dict[tuple[str, float, float], Truncated] = {}

    @functools.cached_property
    def _read(self) -> tuple[FloatArray, float, FloatArray]:
        """Covariance and what describes its rounding; not read for truncation, which reads its own."""
        matrix, (relative, _, raw) = self._moments._covariance(self.name, self.name)
        if not np.isfinite(matrix).all():
            raise InputError(f"view {self.name!r}: the moments are not finite, since rows with NaN were let through")
        check_range(self.name, float(np.trace(matrix)))
        return matrix, relative, raw

    @property
    def matrix(self) -> FloatArray:
        """Covariance (d, d)."""
        return self._read[0]

    @property
    def relative(self) -> float:
        """Deviation of the errors of entries (i, j), over sqrt(raw_i raw_j)."""
        return self._read[1]

    @property
    def raw(self) -> FloatArray:
        """Raw second moments (d,) of the neurons."""
        return self._read[2]

    @functools.cached_property
    def trace(self) -> float:
        """Variance of all neurons together."""
        return float(np.trace(self.matrix))

    @property
    def width(self) -> int:
        """Neurons."""
        return len(self.matrix)

    @functools.cached_property
    def norm(self) -> float:
        """Frobenius norm."""
        return float(np.sqrt(inner(self.matrix, self.matrix)))

    @functools.cached_property
    def _decomposed(self) -> tuple[FloatArray, FloatArray]:
        from scipy.linalg import eigh

        with few_threads(self.width):
            values, vectors = eigh(self.matrix, driver="evd", check_finite=False)
        return values[::-1].copy(), np.ascontiguousarray(vectors[:, ::-1])

    @property
    def eigenvalues(self) -> FloatArray:
        """All d, decreasing; those below rounding can be negative."""
        return self._decomposed[0]

    @property
    def eigenvectors(self) -> FloatArray:
        """Columns, in the order of `eigenvalues`."""
        return self._decomposed[1]

    def truncated(self, rule: Rule, value: float, ridge: float = 0.0) -> Truncated:
        """Leading directions by a rule, whose value for this side is `value`."""
        key = (rule.name, value, ridge)
        if key not in self._truncated:
            self._truncated[key] = truncate_view(self._moments, self.name, rule, value, ridge)
        return self._truncated[key]

    @functools.cached_property
    def whitening(self) -> FloatArray:
        """(d, k): uncorrelated combinations of unit variance of the neurons, all that stand above rounding."""
        native = self.truncated(FULL, 0).native
        scale = native.save()["scale"]
        inverse = np.divide(1.0, scale, where=scale > 0, out=np.zeros_like(scale))
        whitening: FloatArray = inverse[:, None] * native.vectors / np.sqrt(native.eigenvalues)
        return whitening

    @property
    def condition(self) -> float:
        """Largest over smallest variance of the directions that `whitening` keeps."""
        values = self.truncated(FULL, 0).native.eigenvalues
        return float(values[0] / values[-1])


def spectral_error(relative: float, raw: FloatArray, largest: float) -> float:
    """Spectral norm that the rounding of a matrix, and of its decomposition, may have.

    Of a symmetric matrix with independent entries of deviation e sqrt(r_i r_j) it is about 2 e sqrt(max r sum r); three
    times that. `largest` is the largest eigenvalue.
    """
    noise = 6 * relative * np.sqrt(float(raw.max()) * float(raw.sum()))
    return float(noise + 8 * _UNIT * np.sqrt(len(raw)) * largest)


@dataclass(frozen=True, eq=False)
class PairCovariance:
    """Two views and their cross-covariance (dx, dy)."""

    x: ViewCovariance
    y: ViewCovariance
    cross: FloatArray
    n: int | float
    precision: str

    @property
    def rows(self) -> int:
        """Rows of weight above zero."""
        return self.x.rows

    @functools.cached_property
    def cross_svd(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """U (dx, k), singular values (k,) in falling order, and v' (k, dy) of `cross`, k the narrower width."""
        return singular_vectors(self.cross)


def pair_covariance(moments: Moments, x: ViewCovariance, y: ViewCovariance) -> PairCovariance:
    """Join two views of the same moments."""
    return PairCovariance(x, y, moments.covariance(x.name, y.name), moments.n, moments.precision)


@dataclass(frozen=True, eq=False)
class Formed:
    """A number that was formed from covariances, its slopes, and what unrelated views score.

    For small changes of the covariances the number changes by <x, dSxx> + <y, dSyy> + <cross, dSxy>: rounding and
    sampling both enter this way. `null` can take longer than the number itself; `further` is what rounding does beyond
    the first order.
    """

    value: float
    null: Callable[[], float]
    x: FloatArray
    y: FloatArray
    cross: FloatArray
    further: float = 0.0

    def error_bound(self, pair: PairCovariance) -> float:
        """Eight deviations of the covariances' rounding, to first order, and what was added to it.

        Entries (i, j) have independent errors of deviation e sqrt(r_i r_j); those of Sxx and Syy are symmetric, so
        that each acts twice.
        """
        x, y = pair.x, pair.y
        variances = [
            2 * x.relative**2 * inner(self.x**2, np.outer(x.raw, x.raw)),
            2 * y.relative**2 * inner(self.y**2, np.outer(y.raw, y.raw)),
            max(x.relative, y.relative) ** 2 * inner(self.cross**2, np.outer(x.raw, y.raw)),
        ]
        roundoff = 16 * _UNIT * float(np.sqrt(x.width + y.width))
        return float(SAFETY * np.sqrt(sum(variances)) + self.further + roundoff)
