"""Truncation: the leading principal directions of one view."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from streamcca import _backend
from streamcca._backend import FloatArray, TruncatedView
from streamcca.device_algebra import view_operand
from streamcca.errors import AccuracyWarning, InputError, StreamCCAError
from streamcca.kept import KeptView, nothing
from streamcca.moments import Moments

RuleName = Literal["variance", "nuclear", "rank", "full"]


@dataclass(frozen=True)
class Rule:
    """How many directions to keep: a share of the variance or of the nuclear norm, or a number.

    Attributes
    ----------
    name : 'variance', 'nuclear', 'rank' or 'full'
        'variance' keeps the fewest directions with sum s_i^2 >= value * sum s^2 (SVCCA paper, main
        text), 'nuclear' the fewest with sum s_i >= value * sum s (its appendix A), 'rank' a given
        number, 'full' all down to the numerical rank (no truncation).
    x, y : float
        The value for each side; they differ for ranks at most.
    """

    name: RuleName
    x: float = 0
    y: float = 0

    @property
    def keeps_all(self) -> bool:
        """Whether everything down to the numerical rank is kept."""
        return self.name == "full" or (self.name in ("variance", "nuclear") and self.x >= 1)

    def __str__(self) -> str:
        if self.name == "full":
            return "no truncation"
        value = f"{self.x:g}" if self.x == self.y else f"({self.x:g}, {self.y:g})"
        return f"{self.name}={value}"


def parse_rule(variance: Any, nuclear: Any, rank: Any, default: Rule) -> Rule:
    """Turn the keywords of the public functions into a rule."""
    given = {k: v for k, v in (("variance", variance), ("nuclear", nuclear), ("rank", rank)) if v is not None}
    if len(given) > 1:
        raise InputError(f"truncation: got {' and '.join(given)}, expected only one of variance, nuclear and rank")
    if rank is not None:
        x, y = rank if isinstance(rank, tuple) and len(rank) == 2 else (rank, rank)
        for value in (x, y):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value < 2**31:
                raise InputError(f"rank: got {rank!r}, expected an integer of at least 1, or a pair of them")
        return Rule("rank", int(x), int(y))
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, float | int | np.floating) or not 0 < value <= 1:
            raise InputError(f"{name}: got {value!r}, expected a share above 0 and at most 1, such as 0.99")
        return Rule("variance" if name == "variance" else "nuclear", float(value), float(value))
    return default


def checked_ridge(ridge: Any) -> float:
    """Return a ridge as a float; refuses what is none.

    Raises
    ------
    InputError
    """
    if isinstance(ridge, bool) or not isinstance(ridge, int | float | np.number) or not 0 <= ridge < float("inf"):
        raise InputError(f"ridge: got {ridge!r}, expected a finite number >= 0")
    return float(ridge)


@dataclass(frozen=True, eq=False)
class Subspace:
    """Leading principal directions of one view.

    Attributes
    ----------
    rank : int
        Number k of directions kept.
    mean : array (d,)
        Mean row.
    vectors : array (d, k)
        Orthonormal principal directions (right singular vectors of the centered rows), largest first.
    singular_values : array (k,)
        Singular values of the centered rows, decreasing; squared and divided by n - 1 they are the
        variances along the directions.
    total_variance : float
        Trace of the covariance (ddof 1): the variance of all neurons together.
    n : int or float
        Number of rows (sum of weights).
    rule : Rule
        What decided the rank.
    share : float
        Share of the total that is kept, in the terms of the rule (of s for 'nuclear', else of s^2).
    margin : float
        How far the threshold is from the nearest share at which another rank would have been chosen; 0 if the
        share could not be reached, 1 for a given rank.
    numerical_rank : int
        Directions that stand above rounding, of those that were computed (for a wide view only the leading ones).
    """

    rank: int
    mean: FloatArray
    vectors: FloatArray
    singular_values: FloatArray
    total_variance: float
    n: int | float
    rule: Rule
    share: float
    margin: float
    numerical_rank: int

    def __repr__(self) -> str:
        return f"Subspace(rank={self.rank} of {len(self.mean)}, {self.rule}, share={self.share:.6f}, n={self.n})"


@dataclass(frozen=True)
class Truncated:
    """A view after truncation, in the form that `correlate` takes."""

    view: str
    rule: Rule
    native: TruncatedView = field(repr=False)
    n: int | float
    rows: int
    precision: str
    # Directions that there can be at most, where the matrix that was truncated does not say: a Gram matrix has rows.
    most: int | None = None
    # Of the neurons, where the route knows them.
    mean: FloatArray = field(default_factory=nothing, repr=False)
    variances: FloatArray = field(default_factory=nothing, repr=False)

    @functools.cached_property
    def kept(self) -> KeptView | None:
        """What results remember of the view; None where directions are not those of neurons."""
        return KeptView(self.mean, self.variances, self.native) if len(self.mean) == self.native.width else None

    @property
    def constant_neurons(self) -> int:
        """Neurons that do not vary."""
        return self.native.width - self.native.live

    @property
    def possible_rank(self) -> int:
        """Highest rank that these rows can have: neurons that vary, rows less one."""
        possible = min(self.native.live, self.rows - 1)
        return possible if self.most is None else min(possible, self.most)

    @property
    def uncertain_ranks(self) -> int:
        """How many ranks besides the chosen one rounding leaves possible."""
        highest = min(self.native.highest_rank, max(self.possible_rank, self.native.rank))
        return highest - self.native.lowest_rank


def truncate_view(moments: Moments, view: str, rule: Rule, value: float, ridge: float = 0.0) -> Truncated:
    """Truncate one view; `value` is the rule's value for this side."""
    covariance, rounding = view_operand(moments, view)
    variances = covariance.diagonal().copy()
    if not np.isfinite(variances).all():  # what is not finite in a column is not in its variance either
        raise InputError(f"view {view!r}: the moments are not finite, since rows with NaN were let through")
    try:
        native = _backend.truncate(covariance, rounding, rule.name, value, ridge)
    except StreamCCAError as error:
        raise type(error)(f"view {view!r}: {error}") from None
    mean = moments.mean(view)
    return Truncated(view, rule, native, moments.n, moments.rows, moments.precision, mean=mean, variances=variances)


def why_uncertain(side: Truncated) -> str:
    """Say why rounding leaves other ranks possible: the threshold lies there, or directions drown in it."""
    finer = "" if side.precision.startswith("float64") else ", or use precision='float64'"
    if side.rule.keeps_all:
        return (
            f"view {side.view!r}: numerical rank {side.native.numerical_rank} of at most {side.possible_rank}; "
            f"directions below rounding are left out, and could hold something; truncate{finer}"
        )
    lowest = side.native.lowest_rank
    return (
        f"view {side.view!r}: the cut is not resolved: within rounding, every rank from {lowest} to "
        f"{lowest + side.uncertain_ranks} satisfies {side.rule}; name a rank{finer}"
    )


def truncate(
    moments: Moments,
    view: str | None = None,
    *,
    variance: float | None = None,
    nuclear: float | None = None,
    rank: int | None = None,
) -> Subspace:
    """Find the leading principal directions of a view.

    Parameters
    ----------
    moments : Moments
        Moments that hold the covariance of the view.
    view : str, optional
        Name of the view; may be left out if there is only one.
    variance, nuclear, rank : float, float, int
        At most one: share of the variance (sum of s^2) to keep, share of the nuclear norm (sum of s),
        or number of directions. By default 99 % of the variance.

    Returns
    -------
    Subspace

    Raises
    ------
    InputError
        The view is unknown or constant, has no covariance, or lacks the rank asked for.

    Warns
    -----
    AccuracyWarning
        Within rounding, other ranks satisfy the rule as well, or directions drown in it.

    Examples
    --------
    >>> m = Moments({"a": 3})
    >>> m.update(a=np.diag([3.0, 2.0, 1.0]))
    >>> truncate(m, "a", rank=1).rank
    1
    """
    if not isinstance(moments, Moments):
        raise InputError(f"truncate: got {type(moments).__name__}, expected Moments; see Moments.update")
    if isinstance(rank, tuple):
        raise InputError(f"rank: got {rank!r}, expected one integer for one view")
    if view is None:
        if len(moments.views) != 1:
            raise InputError(f"truncate: name one of the views {', '.join(map(repr, moments.views))}")
        view = next(iter(moments.views))
    rule = parse_rule(variance, nuclear, rank, Rule("variance", 0.99, 0.99))
    side = truncate_view(moments, view, rule, rule.x)
    if side.uncertain_ranks:
        warnings.warn(AccuracyWarning(why_uncertain(side)), stacklevel=2)
    native = side.native
    return Subspace(
        rank=native.rank,
        mean=moments.mean(view),
        vectors=native.vectors,
        singular_values=np.sqrt(native.eigenvalues * (moments.n - 1)),
        total_variance=native.trace,
        n=moments.n,
        rule=rule,
        share=native.share,
        margin=native.margin,
        numerical_rank=native.numerical_rank,
    )
