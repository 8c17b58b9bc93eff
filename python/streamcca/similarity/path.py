"""CCA from no ridge to much of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import InputError, StreamCCAWarning
from streamcca.moments import Moments, Precision
from streamcca.results import CCAResult
from streamcca.similarity.canonical import correlate_views
from streamcca.similarity.covariances import FULL, ViewCovariance
from streamcca.similarity.named import rule_of, tell
from streamcca.sources import moments_of
from streamcca.subspace import checked_ridge

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RIDGES = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True, eq=False, repr=False)
class RidgePath:
    """CCA of two views with one ridge after another.

    Attributes
    ----------
    ridges : array (r,)
        In units of the mean variance of a neuron.
    results : tuple of CCAResult
        One for each.
    """

    ridges: FloatArray
    results: tuple[CCAResult, ...] = field(repr=False)

    @property
    def means(self) -> FloatArray:
        """Mean correlation at each ridge."""
        return np.array([r.mean for r in self.results])

    @property
    def correlations(self) -> FloatArray:
        """Correlations (ridges, m); those that a smaller numerical rank leaves out are NaN."""
        width = max(len(r.correlations) for r in self.results)
        return np.array(
            [np.pad(r.correlations, (0, width - len(r.correlations)), constant_values=np.nan) for r in self.results]
        )

    def table(self) -> str:
        """Return a line for each ridge."""
        lines = [
            f"{'ridge':>8}  {'mean':>8}  {'largest':>8}  {'rounding':>8}  {'condition x':>11}  {'condition y':>11}"
        ]
        for ridge, r in zip(self.ridges, self.results, strict=True):
            lines.append(
                f"{ridge:>8.2g}  {r.mean:>8.4f}  {r.correlations[0]:>8.4f}  {r.error_bound:>8.0e}  "
                f"{r.condition_x:>11.2g}  {r.condition_y:>11.2g}"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {"ridges": self.ridges.tolist(), "results": [r.to_dict() for r in self.results]}

    def plot(self, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw the correlations and their mean against the ridge."""
        from streamcca.plots import plot_ridge_path

        return plot_ridge_path(self, ax=ax)

    def __repr__(self) -> str:
        return f"RidgePath({len(self.ridges)} ridges, mean {self.means[0]:.4f} to {self.means[-1]:.4f})"


def ridge_path(
    *data: Any,
    ridges: Iterable[float] = _RIDGES,
    variance: float | None = None,
    nuclear: float | None = None,
    rank: int | tuple[int, int] | None = None,
    allow_inaccurate: bool = False,
    precision: Precision = "auto",
    threads: int | None = None,
    progress: Any = "auto",
) -> RidgePath:
    """Compare two views with one ridge after another, from one pass over the rows.

    A number that hangs on the ridge hangs on directions of little variance. A large ridge turns CCA into a comparison
    of covariances; the mean falls with it, so that numbers of different ridges cannot be compared.

    Parameters
    ----------
    *data
        Moments and two view names, two arrays or ``.npy`` paths, or an iterable of pairs; see `svcca`.
    ridges : iterable of float
        In units of the mean variance of a neuron, as in `cca`.
    variance, nuclear, rank, allow_inaccurate, precision, threads, progress
        As in `cca`.

    Returns
    -------
    RidgePath

    Raises
    ------
    InputError
        A ridge is negative, or the data cannot be used.

    References
    ----------
    Vinod (1976), "Canonical ridge and econometrics of joint production", Journal of Econometrics 4.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((500, 8))
    >>> path = ridge_path(x, x + rng.standard_normal((500, 8)), ridges=[0, 1])
    >>> path.means.round(2)
    array([0.7 , 0.35])
    """
    chosen = [checked_ridge(ridge) for ridge in ridges]
    if not chosen:
        raise InputError("ridges: got none, expected at least one number >= 0")
    moments, a, b = moments_of(data, precision=precision, threads=threads, progress=progress)
    assert isinstance(moments, Moments)  # noqa: S101 - `moments_of`
    x, y = ViewCovariance(moments, a), ViewCovariance(moments, b)
    options = {"measure": "cca", "allow_inaccurate": allow_inaccurate}
    rule = rule_of(variance, nuclear, rank) or FULL
    results: list[CCAResult] = []
    notes: list[StreamCCAWarning] = []
    for ridge in chosen:
        result, own = correlate_views(moments, x, y, rule, options | {"ridge": ridge})
        results.append(result)
        notes += [note for note in own if str(note) not in map(str, notes)]
    tell(notes, 2)
    return RidgePath(np.array(chosen), tuple(results))
