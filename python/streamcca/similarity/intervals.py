"""How far sampling can have moved a measure: intervals from how parts of the rows differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import InputError
from streamcca.moments import NonFinite, Precision
from streamcca.similarity.declare import MEASURES
from streamcca.similarity.estimates import Estimate, Sampled
from streamcca.similarity.form import Former, Pair, check_measure, check_taken
from streamcca.similarity.groups import FEWEST, GroupMoments, group_moments
from streamcca.similarity.named import options_of_measures, rule_of, tell
from streamcca.similarity.result import WithChance
from streamcca.sources import two_views
from streamcca.subspace import Rule
from streamcca.views import check_option

Method = Literal["jackknife", "bootstrap"]
_DRAWS = 4000


@dataclass(frozen=True, eq=False, repr=False)
class Interval(WithChance):
    """A number about the population that rows were drawn from, and where it may lie.

    Attributes
    ----------
    measure : str
        A key of `MEASURES`.
    plain : float
        The number of these rows.
    estimate : float
        That of the population: `plain` without the bias that few rows bring, where it is known.
    low, high : float
        Ends of the interval.
    level : float
        Share of samples whose interval covers the population's number.
    standard_error : float
        Of `estimate`.
    corrected : bool
        Whether `estimate` has the bias taken out.
    effective_rows : float
        So many independent Gaussian rows would scatter as these do; `n` or fewer.
    null_mean : float
        What unrelated views of so many rows score, before the bias is taken out. Worked out when it is asked for.
    n : int or float
    parts : int
        Parts of the rows that were compared.
    method : 'jackknife' or 'bootstrap'
    error_bound : float
        How far rounding can have moved `plain`.
    """

    measure: str
    plain: float
    estimate: float
    low: float
    high: float
    level: float
    standard_error: float
    corrected: bool
    effective_rows: float
    null: Callable[[], float] = field(repr=False)
    n: int | float
    parts: int
    method: str
    error_bound: float

    @property
    def mean(self) -> float:
        """The estimate: what stands in the matrix of a comparison."""
        return self.estimate

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        numbers = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "null"}
        return numbers | {"null_mean": self.null_mean}

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __repr__(self) -> str:
        return (
            f"{self.measure} {self.estimate:.4f} [{self.low:.4f}, {self.high:.4f}] at {self.level:g} "
            f"(these rows: {self.plain:.4f}, chance: {self.null_mean:.4f}), n={self.n}, "
            f"{self.effective_rows:.0f} effective rows, {self.parts} parts"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Difference:
    """Difference of one measure between two pairs of views of the same rows.

    Attributes
    ----------
    first, second : Interval
        Both by themselves.
    estimate, low, high, standard_error : float
        Of first - second; rows that move both alike move it little.
    p_value : float
        Two-sided, of no difference, by Student's law.
    """

    first: Interval
    second: Interval
    estimate: float
    low: float
    high: float
    standard_error: float
    p_value: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        numbers = {name: getattr(self, name) for name in ("estimate", "low", "high", "standard_error", "p_value")}
        return numbers | {"first": self.first.to_dict(), "second": self.second.to_dict()}

    def __repr__(self) -> str:
        return (
            f"{self.first.measure}: {self.first.estimate:.4f} - {self.second.estimate:.4f} = {self.estimate:.4f} "
            f"[{self.low:.4f}, {self.high:.4f}] at {self.first.level:g}, p={self.p_value:.2g}"
        )


# ---------------------------------------------------------------------- ends of an interval


def _scale_of(name: str, value: float, few: int) -> tuple[float, bool]:
    """Return the size of the range, and whether numbers near its ends are spread out by Fisher's transformation."""
    declared = MEASURES[name]
    high = declared.high if math.isfinite(declared.high) else float(few)
    return high, declared.kind == "similarity" and abs(value) < high


def _ends(name: str, e: Estimate, level: float, method: Method, few: int) -> tuple[float, float]:
    from scipy.stats import t

    low, high = MEASURES[name].low, MEASURES[name].high
    size, spread = _scale_of(name, e.value, few)
    middle = math.atanh(e.value / size) if spread else e.value
    by = 1 / (size * (1 - (e.value / size) ** 2)) if spread else 1.0
    if method == "jackknife":
        reach = float(t.ppf((1 + level) / 2, len(e.influences) - 1)) * e.standard_error * by
        ends = (middle - reach, middle + reach)
    else:
        ends = tuple(np.quantile(middle + by * _resampled(e.influences), [(1 - level) / 2, (1 + level) / 2]))
    back = [size * math.tanh(end) if spread else end for end in ends]
    # An estimate without bias can lie outside of the range.
    return max(min(low, e.value), back[0]), min(max(high, e.value), back[1])


def _resampled(influences: FloatArray) -> FloatArray:
    """Draw as many parts as there are with replacement; to first order, how the measure of such a sample differs."""
    count = len(influences)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=_DRAWS)
    centered = influences - influences.mean()
    # Student's law is wider than the normal one; so many parts drawn from so few are as much narrower.
    widened: FloatArray = drawn @ centered * math.sqrt(count / (count - 1))
    return widened


def sample(groups: GroupMoments, former: Former, correct: bool, exact: bool = False) -> Sampled:
    """Return what estimates measures from parts of the rows; `former` is that of all rows."""
    if len(groups.parts) < FEWEST:
        raise InputError(
            f"intervals: got {len(groups.parts)} parts with rows, expected at least {FEWEST}; give more batches"
        )
    return Sampled(groups, former, correct, exact)


def sampled_interval(sampled: Sampled, name: str, pair: Pair, level: float, method: Method = "jackknife") -> Interval:
    """Return the interval of one measure of a pair of views."""
    _check(name, level, method, sampled.exact)
    return _interval_of(name, sampled.estimate(name, pair), level, method, sampled, pair)


def _interval_of(name: str, e: Estimate, level: float, method: Method, sampled: Sampled, pair: Pair) -> Interval:
    few = min(sampled.groups.views[pair.a], sampled.groups.views[pair.b])
    low, high = _ends(name, e, level, method, few)
    return Interval(
        measure=name,
        plain=e.plain,
        estimate=e.value,
        low=low,
        high=high,
        level=level,
        standard_error=e.standard_error,
        corrected=e.corrected,
        effective_rows=e.effective_rows,
        null=e.null,
        n=sampled.groups.n,
        parts=len(sampled.groups.parts),
        method=method,
        error_bound=e.error_bound,
    )


def _former(groups: GroupMoments, rule: Rule | None, alpha: float) -> Former:
    pairing = {"ridge": 0.0, "allow_underdetermined": False, "allow_inaccurate": False}
    return Former(groups.total, rule, pairing, options_of_measures(alpha, 0.5, "spearman"))


def interval(
    measure: str,
    *data: Any,
    level: float = 0.95,
    corrected: bool = True,
    method: Method = "jackknife",
    exact: bool = False,
    variance: float | None = None,
    nuclear: float | None = None,
    rank: int | tuple[int, int] | None = None,
    alpha: float = 0.5,
    groups: Any = None,
    parts: int = 32,
    precision: Precision = "auto",
    nonfinite: NonFinite = "raise",
    threads: int | None = None,
    progress: Any = "auto",
) -> Interval:
    """Estimate a measure of the population that the rows were drawn from, with an interval.

    One pass; the rows are cut into parts whose moments are kept apart. To first order the number moves with each part
    by an inner product of its slopes with the part's covariance, so that nothing is decomposed again.

    Parameters
    ----------
    measure : str
        A key of `MEASURES` that can be formed from moments; PWCCA with ``exact=True`` only.
    *data
        `GroupMoments` and two view names; or what `group_moments` takes: two arrays or ``.npy`` paths, or an iterable
        of pairs of batches.
    level : float
        Share of samples whose interval shall cover the population's number.
    corrected : bool
        Take out the bias of few rows. For measures of canonical correlations by `corrected_correlations` at the number
        of effective rows; for CKA by inner products of different parts; for regressions by Ezekiel's adjusted R^2; for
        Procrustes to second order, from how the parts scatter; for all others only with ``exact=True``, by the
        jackknife (``.corrected`` says whether).
    method : 'jackknife' or 'bootstrap'
        Student's interval from the scatter of the parts, or quantiles of 4000 samples of parts.
    exact : bool
        Form the measure again with each part left out, instead of to first order: as many times the decompositions.
    variance, nuclear, rank
        As in `svcca`. The number of directions that a share keeps is taken as given.
    alpha
        As in `similarity`.
    groups, parts, precision, nonfinite, threads, progress
        As in `group_moments`.

    Returns
    -------
    Interval

    Raises
    ------
    InputError
        Too few rows to say anything, or the data cannot be used.

    Warns
    -----
    SampleSizeWarning
        Fewer than 5 effective rows for each kept direction.

    References
    ----------
    Efron & Stein (1981), "The jackknife estimate of variance", Annals of Statistics 9; Jaeckel (1972), "The
    infinitesimal jackknife", Bell Laboratories.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((4000, 10))
    >>> y = 0.6 * x + 0.8 * rng.standard_normal((4000, 10))
    >>> found = interval("cca", x, y)
    >>> 0.6 in found, round(found.plain, 2), found.effective_rows
    (True, 0.61, 4000.0)
    """
    name = _check(check_measure(measure), level, method, exact)
    if data and isinstance(data[0], GroupMoments):
        kept, (a, b) = data[0], two_views(data[0], data[1:])[1:]
    else:
        how = {"precision": precision, "nonfinite": nonfinite, "threads": threads, "progress": progress}
        kept, a, b = group_moments(*data, groups=groups, parts=parts, **how), "x", "y"
    rule = rule_of(variance, nuclear, rank)
    check_taken([name], rule)
    former = _former(kept, rule, alpha)
    sampled, pair = sample(kept, former, corrected, exact), former.pair(a, b)
    result = sampled_interval(sampled, name, pair, level, method)
    tell(pair.notes, 2)
    return result


def difference(
    measure: str,
    groups: GroupMoments,
    first: tuple[str, str],
    second: tuple[str, str],
    *,
    level: float = 0.95,
    corrected: bool = True,
    exact: bool = False,
    variance: float | None = None,
    nuclear: float | None = None,
    rank: int | None = None,
    alpha: float = 0.5,
) -> Difference:
    """Estimate the difference of a measure between two pairs of views, with its interval.

    Both numbers come from the same rows, so that much of what moves one moves the other: the interval of the
    difference is often far narrower than the two intervals suggest.

    Parameters
    ----------
    measure, level, corrected, exact, variance, nuclear, rank, alpha
        As in `interval`.
    groups : GroupMoments
        With all views in question.
    first, second : (str, str)
        Names of the views of each pair.

    Returns
    -------
    Difference

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> g = GroupMoments({"a": 5, "b": 5, "c": 5})
    >>> for _ in range(32):
    ...     a = rng.standard_normal((100, 5))
    ...     g.update(a=a, b=a + rng.standard_normal((100, 5)), c=a + 2 * rng.standard_normal((100, 5)))
    >>> found = difference("cca", g, ("a", "b"), ("a", "c"))
    >>> found.low > 0, found.p_value < 1e-6
    (True, True)
    """
    from scipy.stats import t

    name = _check(check_measure(measure), level, "jackknife", exact)
    if not isinstance(groups, GroupMoments):
        raise InputError(f"difference: got {type(groups).__name__}, expected GroupMoments")
    rule = rule_of(variance, nuclear, rank)
    check_taken([name], rule)
    former = _former(groups, rule, alpha)
    sampled = sample(groups, former, corrected, exact)
    both, estimates = [], []
    for names in (first, second):
        _, a, b = two_views(groups, tuple(names))
        pair = former.pair(a, b)
        estimates.append(sampled.estimate(name, pair))
        both.append(_interval_of(name, estimates[-1], level, "jackknife", sampled, pair))
        tell(pair.notes, 2)
    apart = replace(estimates[0], influences=estimates[0].influences - estimates[1].influences)
    value, error, freedom = estimates[0].value - estimates[1].value, apart.standard_error, len(apart.influences) - 1
    reach = float(t.ppf((1 + level) / 2, freedom)) * error
    p_value = float(2 * t.sf(abs(value) / error, freedom)) if error > 0 else float(value == 0)
    return Difference(both[0], both[1], value, value - reach, value + reach, error, p_value)


def _check(name: str, level: Any, method: Any, exact: bool) -> str:
    if "moments" not in MEASURES[name].sources:
        raise InputError(f"{name}: intervals are for measures that moments can form, which this is not")
    if "pwcca" in name and not exact:
        raise InputError(f"{name}: its slopes are not known; use exact=True")
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0.5 <= level < 1:
        raise InputError(f"level: got {level!r}, expected a share from 0.5 to below 1, such as 0.95")
    check_option("method", method, ("jackknife", "bootstrap"))
    return name
