"""What the measures return: frozen, printable, plottable, JSON-able."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from streamcca._backend import FloatArray
from streamcca.kept import KeptView, nothing
from streamcca.subspace import Rule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Truncation:
    """What was kept of both views, and how clear the choice was.

    Attributes
    ----------
    rule : Rule
        The rule and its value on each side.
    share_x, share_y : float
        Share of the total that is kept.
    margin_x, margin_y : float
        Distance of the threshold to the nearest share that would have given another rank.
    resolved : bool
        False if, within rounding, another rank would do as well, or directions are lost to rounding.
    """

    rule: Rule
    share_x: float
    share_y: float
    margin_x: float
    margin_y: float
    resolved: bool

    def __str__(self) -> str:
        return str(self.rule)


@dataclass(frozen=True, eq=False, repr=False)
class CCAResult:
    """Canonical correlations of two views, with the reasons to trust them.

    Attributes
    ----------
    measure : str
        'svcca', 'cca' or 'pwcca'.
    mean : float
        The similarity, in [0, 1], high for alike: mean of the min(kx, ky) correlations; for PWCCA the
        mean weighted by `shares`.
    correlations : array (m,)
        Canonical correlations, decreasing, m = min(kx, ky).
    rank_x, rank_y : int
        Directions kept of each view, kx and ky.
    n : int or float
        Number of rows; with weights, their sum.
    rows : int
        Number of rows of weight above zero; chance levels rest on these.
    width_x, width_y : int
        Neurons of each view.
    truncation : Truncation
        The rule, the kept shares and the margins.
    error_bound : float
        How far rounding, conditioning, the cut and directions lost to rounding can have moved `mean`.
        First-order, with eight standard deviations of a measured error model; not a proof
        (docs/numerics.md).
    correlation_error_bounds : array (m,)
        What rounding and conditioning can have done to each correlation, given the directions that were kept.
    null_mean : float
        What unrelated representations of as many rows, kx and ky score on average.
    x_weights, y_weights : array (d, m)
        Canonical weights in the original neurons: without a ridge, (x - mean) @ x_weights has unit
        variances, and its correlations with (y - mean) @ y_weights are `correlations`.
    shares : array (m,)
        Weight of each correlation in `mean`.
    side : str
        Whose neurons weigh the correlations of PWCCA, 'x' or 'y'; '' for the other measures.
    condition_x, condition_y : float
        Condition number of what is kept of each view: ratio of its largest to its smallest standard
        deviation, after scaling to unit variances if nothing was truncated.
    numerical_rank_x, numerical_rank_y : int
        Directions that stand above rounding. For a truncated wide view only the leading directions
        are computed; then it is those of them, at least the rank.
    ridge : float
        The caller's ridge, in units of the mean variance of a neuron.
    precision : str
        Type in which products were formed (after merging different ones: that of the receiver).
    warnings : tuple of str
        What a reader of the number should know.
    strategy : 'covariance', 'gram', 'sketch' or 'qr'
        The route that the numbers came by. 'gram' leaves the weights of neurons out: they are (0, m).
    x_mean, y_mean : array (d,)
        Mean rows; (0,) where there are no weights.
    x_kept, y_kept : KeptView or None
        What `loadings` are formed from, where the route has it.
    """

    measure: str
    mean: float
    correlations: FloatArray
    rank_x: int
    rank_y: int
    n: int | float
    rows: int
    width_x: int
    width_y: int
    truncation: Truncation
    error_bound: float
    correlation_error_bounds: FloatArray
    null_mean: float
    x_weights: FloatArray
    y_weights: FloatArray
    shares: FloatArray
    side: str
    condition_x: float
    condition_y: float
    numerical_rank_x: int
    numerical_rank_y: int
    ridge: float
    precision: str
    warnings: tuple[str, ...] = ()
    strategy: str = "covariance"
    x_mean: FloatArray = field(default_factory=nothing)
    y_mean: FloatArray = field(default_factory=nothing)
    x_kept: KeptView | None = None
    y_kept: KeptView | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    @property
    def distance(self) -> float:
        """1 - mean."""
        return 1 - self.mean

    def to_dict(self, weights: bool = False) -> dict[str, Any]:
        """Return plain values that JSON can hold; the d x m weights, and the mean rows, only if asked for."""
        result: dict[str, Any] = {}
        left_out = {"x_kept", "y_kept"} | (set() if weights else {"x_weights", "y_weights", "x_mean", "y_mean"})
        for item in fields(self):
            if item.name in left_out:
                continue
            result[item.name] = plain(getattr(self, item.name))
        return result

    def transform(self, x: Any = None, y: Any = None) -> Any:
        """Return the canonical variates of rows, of those that were compared or of new ones.

        On the rows that were compared, without a ridge, each variate has mean 0 and variance 1 (ddof 1), those of one
        side are uncorrelated, and the i-th of both sides correlate by ``correlations[i]``.

        Parameters
        ----------
        x, y : array (n, d) or path
            Rows of either view or of both, as `svcca` takes them. NaN gives NaN.

        Returns
        -------
        array (n, m), or a pair of them
            ``(rows - mean) @ weights`` in float64, of the side that was given, or of x and y.

        Raises
        ------
        InputError, DTypeError
            Neither side was given; the rows do not fit; the route has left no weights of neurons.

        Examples
        --------
        >>> import streamcca as sc
        >>> x = np.random.default_rng(0).standard_normal((100, 3))
        >>> u, v = sc.cca(x[:50], x[:50] ** 3).transform(x, x**3)
        >>> u.shape, round(float(u[:50, 0].var(ddof=1)), 6)
        ((100, 3), 1.0)
        """
        from streamcca.directions import transformed

        return transformed(self, x, y)

    def loadings(self, side: Literal["x", "y"]) -> FloatArray:
        """Return the covariances (d, m) of the neurons of one side with its own canonical variates.

        Divided by the neurons' standard deviations they are structure coefficients: correlations, which say what a
        direction measures, where its weights say how to compute it. By a sketch they are those within its basis.

        Raises
        ------
        InputError
            The result has a ridge, or comes by a route that does not know them.

        Examples
        --------
        >>> import streamcca as sc
        >>> x = np.random.default_rng(0).standard_normal((100, 3))
        >>> r = sc.cca(x, x @ np.ones((3, 1)))
        >>> bool(np.allclose(r.loadings("x"), np.cov(np.hstack([x, r.transform(x)]).T)[:3, 3:]))
        True
        """
        from streamcca.directions import loadings_of

        return loadings_of(self, side)

    def neuron_importance(self, side: Literal["x", "y"]) -> FloatArray:
        """Return how much each neuron of one side takes part in what is shared, (d,) shares of its variance.

        ``sum_i correlations_i^2 corr(neuron, variate_i)^2``: of the neuron's variance the share that lies in the kept
        directions of its side and that a linear regression on those of the other side explains. Without truncation
        that is R^2 of the regression on the other view, its mean is the redundancy of Stewart and Love, and the mean
        weighted by variances the linear regression of Kornblith et al. A constant neuron has 0.

        What it does not see: how many other neurons say the same (copies are all as important), what is not linear,
        how large the neuron is, whether the model uses it; and chance: an unrelated view of k directions explains
        about k / (n - 1) of every neuron.

        Raises
        ------
        InputError
            As `loadings`.

        References
        ----------
        Stewart & Love (1968), "A general canonical correlation index", Psychological Bulletin 70.
        Kornblith et al. (2019), arXiv 1905.00414, table 1 (linear regression).

        Examples
        --------
        >>> import streamcca as sc
        >>> x = np.random.default_rng(0).standard_normal((500, 3))
        >>> sc.cca(x, x[:, :1] * 2).neuron_importance("x").round(1)
        array([1., 0., 0.])
        """
        from streamcca.directions import importance_of

        return importance_of(self, side)

    def plot(self, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw the correlations in order, with the range that chance alone would give."""
        from streamcca.plots import plot_spectrum

        return plot_spectrum(self, ax=ax)

    def __repr__(self) -> str:
        name = self.measure.upper() + (f" ({self.side} side)" if self.side else "")
        return (
            f"{name} {self.mean:.6f} +- {self.error_bound:.1e} (chance {self.null_mean:.4f}), "
            f"{self.truncation}: {self.rank_x} of {self.width_x} and {self.rank_y} of {self.width_y}, n={self.n}"
        )


def plain(value: Any) -> Any:
    """Turn arrays, rules and NumPy scalars into lists, dicts and Python numbers."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Truncation | Rule):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value
