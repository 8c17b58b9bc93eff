"""How far sampling can have moved a measure: intervals from how parts of the rows differ."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import InputError, SampleSizeWarning
from streamcca.moments import Moments, NonFinite, Precision
from streamcca.population import corrected_correlations
from streamcca.results import CCAResult
from streamcca.significance import null_mean
from streamcca.similarity.canonical import slopes_of
from streamcca.similarity.covariances import FULL, Formed
from streamcca.similarity.declare import MEASURES
from streamcca.similarity.form import CANONICAL, Former, Pair, check_measure
from streamcca.similarity.groups import FEWEST, GroupMoments, group_moments, second_moments
from streamcca.similarity.named import options_of_measures, rule_of, tell
from streamcca.similarity.result import WithChance
from streamcca.sources import two_views
from streamcca.subspace import Rule
from streamcca.views import check_option

Method = Literal["jackknife", "bootstrap"]
_DRAWS = 4000
# Leading directions of each view, and variates, whose scatter says how much rows depend on each other: they have 240
# and 4032 pairs, each with the scatter of all parts.
_LEADING, _VARIATES = 16, 64
# Fewer effective rows for each kept direction than this get a warning.
_ENOUGH = 5


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


@dataclass(frozen=True)
class _Estimate:
    """An estimate of the population's number, and what each part of the rows adds to its distance from it."""

    plain: float
    value: float
    influences: FloatArray  # (parts,), sum about 0
    corrected: bool
    effective_rows: float
    null: Callable[[], float]
    error_bound: float

    @property
    def standard_error(self) -> float:
        count = len(self.influences)
        return float(np.sqrt(count / (count - 1) * np.sum((self.influences - self.influences.mean()) ** 2)))


@dataclass
class Sampled:
    """Measures of views of parts of the rows."""

    groups: GroupMoments
    former: Former
    correct: bool
    exact: bool

    def estimate(self, name: str, pair: Pair) -> _Estimate:
        """Estimate one measure of a pair of views."""
        return self._exactly(name, pair) if self.exact else self._to_first_order(name, pair)

    # -------------------------------------------------------------- first order

    def _to_first_order(self, name: str, pair: Pair) -> _Estimate:
        number = pair.form(name)
        plain, rows = number.mean, self._effective_rows(pair, name)

        def null() -> float:
            return number.null_mean

        if self.correct and name in CANONICAL:
            value, formed = self._without_bias(name, pair, rows)
            null = formed.null
        elif self.correct and name in ("cka", "rv"):
            value, formed = self._cka_across_parts(pair)
        elif self.correct and name in ("regression_x", "regression_y"):
            value, formed = _adjusted_regression(name, pair, rows)
        elif self.correct and name in ("procrustes", "bures"):
            formed = pair.slopes(name)
            value = max(0.0, formed.value - self._bias_of_nuclear_norm(pair))
        else:
            formed = pair.slopes(name)
            return _Estimate(plain, plain, self._influences(pair, formed), False, rows, null, number.error_bound)
        return _Estimate(plain, value, self._influences(pair, formed), True, rows, null, number.error_bound)

    def _influences(self, pair: Pair, formed: Formed) -> FloatArray:
        """<slope, S_part - S> times the part's share of the rows, about the means of all rows."""
        total, result = self.groups.total, []
        whole = sum(
            float(np.vdot(slope, total.covariance(a, b, ddof=0)))
            for slope, a, b in ((formed.x, pair.a, pair.a), (formed.y, pair.b, pair.b), (formed.cross, pair.a, pair.b))
        )
        for part in self.groups.parts:
            own = 0.0
            for slope, a, b in (
                (formed.x, pair.a, pair.a),
                (formed.y, pair.b, pair.b),
                (formed.cross, pair.a, pair.b),
            ):
                covariance, left, right = second_moments(part, total, a, b)
                own += float(np.vdot(slope, covariance) + left @ slope @ right)
            result.append((own - whole) * part.n / total.n)
        return np.array(result)

    def _effective_rows(self, pair: Pair, name: str) -> float:
        """Estimate how many independent Gaussian rows would scatter as these do.

        Sums over a part of u_i v_j, i and j different variates of both views, have variance n_part for those. Where
        the mean over all i and j is above that by no more than twice its own scatter, rows count as independent. Fitted
        directions take part of the scatter away, and with it of the bias, so that what they took is not given back:
        when it was (rows in 41 groups, 20 directions a side) the corrected mean was low by 0.018 instead of 0.003.
        """
        r = self._variates(pair, name)
        total, parts = self.groups.total, self.groups.parts
        m = min(len(r.correlations), _VARIATES)
        rho, a, b = r.correlations[:m], r.x_weights[:, :m], r.y_weights[:, :m]
        squares = np.zeros((m, m))
        for part in parts:
            covariance, left, right = second_moments(part, total, pair.a, pair.b)
            own = a.T @ covariance @ b + np.outer(left @ a, right @ b)
            squares += (part.n * (own - np.diag(rho))) ** 2
        ratios = squares / total.n * len(parts) / (len(parts) - 1) / (1 + np.diag(rho) ** 2)
        if m > 1:
            np.fill_diagonal(ratios, np.nan)
        ratio = float(np.nanmean(ratios))
        scatter = math.sqrt(2 / ((len(parts) - 1) * max(1, m * m - m)))
        return float(total.n) / ratio if ratio > 1 + 2 * scatter else float(total.n)

    def _variates(self, pair: Pair, name: str) -> CCAResult:
        """Variates whose scatter is looked at: those of the measure, or of a few leading directions."""
        if name in CANONICAL:
            return pair.correlate(self.former.rule or CANONICAL[name][1])
        if min(self.groups.views[pair.a], self.groups.views[pair.b]) <= _VARIATES:
            return pair.correlate(FULL)
        try:
            return pair.correlate(Rule("rank", _LEADING, _LEADING))
        except InputError:  # fewer directions than that
            return pair.correlate(FULL)

    def _without_bias(self, name: str, pair: Pair, rows: float) -> tuple[float, Formed]:
        measure, default = CANONICAL[name]
        r = pair.correlate(self.former.rule or default)
        _warn_of_few_rows(r.rank_x, r.rank_y, rows, self.groups.n)
        found = corrected_correlations(r.correlations, r.rank_x, r.rank_y, rows)
        size = measure.size(r.rank_x, r.rank_y)
        power = 2 if measure.squared else 1
        value = (
            float(np.sum(found.correlations**power)) / size
            if measure.squared
            else found.mean * len(r.correlations) / size
        )
        derivative = (2 * found.correlations if measure.squared else np.ones(len(r.correlations))) * found.slope / size
        null = measure.null(replace(r, rows=max(2, int(rows)), null_mean=null_mean(r.rank_x, r.rank_y, max(rows, 2.0))))
        return value, slopes_of(pair.covariance, r, value, null, derivative)

    def _cka_across_parts(self, pair: Pair) -> tuple[float, Formed]:
        """CKA whose three terms are inner products of *different* parts: what one part's noise adds is left out."""
        total, parts = self.groups.total, self.groups.parts
        shares = np.array([part.n / total.n for part in parts])
        terms = []
        for a, b in ((pair.a, pair.a), (pair.b, pair.b), (pair.a, pair.b)):
            own = []
            for part in parts:
                covariance, left, right = second_moments(part, total, a, b)
                own.append(float(np.vdot(covariance + np.outer(left, right), covariance + np.outer(left, right))))
            whole = total.covariance(a, b, ddof=0)
            terms.append((float(np.vdot(whole, whole)) - float(shares**2 @ own)) / (1 - float(shares @ shares)))
        for term, view in zip(terms[:2], (pair.a, pair.b), strict=True):
            if not term > 0:
                raise InputError(
                    f"view {view!r}: its parts are no more alike than by chance; add rows, or use corrected=False"
                )
        value = terms[2] / math.sqrt(terms[0] * terms[1])
        c, size = pair.covariance, math.sqrt(terms[0] * terms[1])
        slopes = (-value / terms[0] * c.x.matrix, -value / terms[1] * c.y.matrix, 2 / size * c.cross)
        return value, Formed(value, lambda: 0.0, *slopes)

    def _bias_of_nuclear_norm(self, pair: Pair) -> float:
        """Return what noise E adds to |Sxy|_* / sqrt(tr Sxx tr Syy), to second order, from how the parts scatter.

        |C + E|_* = |C|_* + tr V U'E + sum over i < j of (u_i'E v_j - u_j'E v_i)^2 / 2 (s_i + s_j) + what E has outside
        of the spaces of U or V, squared, over 2 s_i. Where a sum of two singular values is not above its noise, the
        root of both squares is taken instead, which noise cannot drive to infinity.
        """
        total, c = self.groups.total, pair.covariance
        u, s, v = np.linalg.svd(c.cross, full_matrices=False)
        inside, left_over, right_over = np.zeros((len(s), len(s))), np.zeros(len(s)), np.zeros(len(s))
        count = len(self.groups.parts)
        for part in self.groups.parts:
            covariance, left, right = second_moments(part, total, pair.a, pair.b)
            noise = (covariance + np.outer(left, right) - c.cross) * (part.n / total.n * math.sqrt(count / (count - 1)))
            by_u, by_v = u.T @ noise, noise @ v.T
            both = by_u @ v.T
            inside += (both - both.T) ** 2
            left_over += (by_v**2).sum(axis=0) - (both**2).sum(axis=0)
            right_over += (by_u**2).sum(axis=1) - (both**2).sum(axis=1)
        sums = np.add.outer(s, s)
        # Each pair i < j stands twice in the square, hence the half; the diagonal is zero.
        bias = 0.5 * float(np.sum(np.sqrt(sums**2 + inside) - sums))
        bias += sum(float(np.sum(np.sqrt(s**2 + np.maximum(over, 0)) - s)) for over in (left_over, right_over))
        return bias / math.sqrt(c.x.trace * c.y.trace)

    # -------------------------------------------------------------- by computing again

    def _exactly(self, name: str, pair: Pair) -> _Estimate:
        """Leave each part out in turn (Quenouille 1956; Tukey 1958)."""
        number = pair.form(name)
        plain, without = number.mean, []
        for rest in _each_left_out(self.groups.parts):
            former = replace(self.former, state=rest, _views={})
            without.append(former.pair(pair.a, pair.b).form(name).mean)
        count, mean = len(without), float(np.mean(without))
        value = count * plain - (count - 1) * mean if self.correct else plain
        influences = (mean - np.array(without)) * (count - 1) / count
        rows = self._effective_rows(pair, name)
        return _Estimate(plain, value, influences, self.correct, rows, lambda: number.null_mean, number.error_bound)


def _each_left_out(parts: list[Moments], outside: Moments | None = None) -> Iterator[Moments]:
    """Yield the moments of all parts but one, for each, in about log2(parts) merges."""
    if len(parts) == 1:
        assert outside is not None  # noqa: S101 - there are at least two parts
        yield outside
        return
    half = len(parts) // 2
    for inside, others in ((parts[:half], parts[half:]), (parts[half:], parts[:half])):
        rest = others[0].copy() if outside is None else outside.copy()
        for part in others[outside is None :]:
            rest.merge(part)
        yield from _each_left_out(inside, rest)


def _adjusted_regression(name: str, pair: Pair, rows: float) -> tuple[float, Formed]:
    """1 - (1 - R^2) (n - 1) / (n - 1 - k), by Ezekiel."""
    formed = pair.slopes(name)
    explaining = pair.covariance.x if name == "regression_y" else pair.covariance.y
    k = explaining.whitening.shape[1]
    if rows - 1 <= 2 * k:
        raise InputError(
            f"{name}: {rows:.0f} effective rows are too few for {k} explaining directions to take the bias out; add "
            "rows, or use corrected=False"
        )
    factor = (rows - 1) / (rows - 1 - k)
    scaled = {side: factor * getattr(formed, side) for side in ("x", "y", "cross")}
    return 1 - (1 - formed.value) * factor, replace(formed, **scaled)


def _warn_of_few_rows(kx: int, ky: int, rows: float, n: float) -> None:
    if rows < _ENOUGH * max(kx, ky):
        warnings.warn(
            SampleSizeWarning(
                f"n = {n:g} rows, which scatter like {rows:.0f} independent ones, for ({kx}, {ky}) kept directions: "
                f"unrelated views would score {null_mean(kx, ky, max(rows, 2)):.3f}, and the interval rests on how "
                "well that is taken out; add rows or keep fewer directions"
            ),
            stacklevel=6,
        )


# ---------------------------------------------------------------------- ends of an interval


def _scale_of(name: str, value: float, few: int) -> tuple[float, bool]:
    """Return the size of the range, and whether numbers near its ends are spread out by Fisher's transformation."""
    declared = MEASURES[name]
    high = declared.high if math.isfinite(declared.high) else float(few)
    return high, declared.kind == "similarity" and abs(value) < high


def _ends(name: str, e: _Estimate, level: float, method: Method, few: int) -> tuple[float, float]:
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


def _interval_of(name: str, e: _Estimate, level: float, method: Method, sampled: Sampled, pair: Pair) -> Interval:
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
    former = _former(kept, rule_of(variance, nuclear, rank), alpha)
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
    former = _former(groups, rule_of(variance, nuclear, rank), alpha)
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
