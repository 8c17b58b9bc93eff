"""Estimates of the population's number from parts of the rows: what each part adds, and the bias of few rows."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import InputError, SampleSizeWarning
from streamcca.moments import Moments
from streamcca.population import corrected_correlations
from streamcca.results import CCAResult
from streamcca.significance import null_mean
from streamcca.similarity.canonical import slopes_of
from streamcca.similarity.covariances import FULL, Formed
from streamcca.similarity.form import CANONICAL, Former, Pair
from streamcca.similarity.groups import GroupMoments, second_moments
from streamcca.subspace import Rule

# Leading directions of each view, and variates, whose scatter says how much rows depend on each other: they have 240
# and 4032 pairs, each with the scatter of all parts.
_LEADING, _VARIATES = 16, 64
# Fewer effective rows for each kept direction than this get a warning.
_ENOUGH = 5
# The parts' covariances of a pair of views are formed once, if they take no more than this.
_KEPT_BYTES = 512 << 20


@dataclass(frozen=True)
class Estimate:
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
        """Root of the sum of what the parts differ by, squared."""
        count = len(self.influences)
        return float(np.sqrt(count / (count - 1) * np.sum((self.influences - self.influences.mean()) ** 2)))


@dataclass
class Sampled:
    """Measures of views of parts of the rows."""

    groups: GroupMoments
    former: Former
    correct: bool
    exact: bool
    _kept: dict[tuple[int, str, str], tuple[FloatArray, FloatArray, FloatArray]] = field(default_factory=dict)
    _kept_of: tuple[str, str] | None = None

    def estimate(self, name: str, pair: Pair) -> Estimate:
        """Estimate one measure of a pair of views."""
        if self._kept_of != (pair.a, pair.b):
            self._kept, self._kept_of = {}, (pair.a, pair.b)
        return self._exactly(name, pair) if self.exact else self._to_first_order(name, pair)

    def _second_moments(self, part: int, a: str, b: str) -> tuple[FloatArray, FloatArray, FloatArray]:
        """`second_moments` of one part, kept as long as those of a pair are small."""
        widths = [self.groups.views[name] for name in (a, b)]
        if 8 * 3 * len(self.groups.parts) * max(widths) ** 2 > _KEPT_BYTES:
            return second_moments(self.groups.parts[part], self.groups.total, a, b)
        if (part, a, b) not in self._kept:
            self._kept[part, a, b] = second_moments(self.groups.parts[part], self.groups.total, a, b)
        return self._kept[part, a, b]

    # -------------------------------------------------------------- first order

    def _to_first_order(self, name: str, pair: Pair) -> Estimate:
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
            return Estimate(plain, plain, self._influences(pair, formed), False, rows, null, number.error_bound)
        return Estimate(plain, value, self._influences(pair, formed), True, rows, null, number.error_bound)

    def _influences(self, pair: Pair, formed: Formed) -> FloatArray:
        """<slope, S_part - S> times the part's share of the rows, about the means of all rows."""
        total, result = self.groups.total, []
        whole = sum(
            float(np.vdot(slope, total.covariance(a, b, ddof=0)))
            for slope, a, b in ((formed.x, pair.a, pair.a), (formed.y, pair.b, pair.b), (formed.cross, pair.a, pair.b))
        )
        for i, part in enumerate(self.groups.parts):
            own = 0.0
            for slope, a, b in (
                (formed.x, pair.a, pair.a),
                (formed.y, pair.b, pair.b),
                (formed.cross, pair.a, pair.b),
            ):
                covariance, left, right = self._second_moments(i, a, b)
                own += float(np.vdot(slope, covariance) + left @ slope @ right)
            # Slopes are with regard to covariances of divisor n - 1.
            result.append((own - whole) * part.n / (total.n - 1))
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
        for i, part in enumerate(parts):
            covariance, left, right = self._second_moments(i, pair.a, pair.b)
            own = a.T @ covariance @ b + np.outer(left @ a, right @ b)
            squares += (part.n * (own - np.diag(rho))) ** 2
        ratios = squares * total.rows / total.n**2 * len(parts) / (len(parts) - 1) / (1 + np.diag(rho) ** 2)
        if m > 1:
            np.fill_diagonal(ratios, np.nan)
        ratio = float(np.nanmean(ratios))
        scatter = math.sqrt(2 / ((len(parts) - 1) * max(1, m * m - m)))
        return total.rows / ratio if ratio > 1 + 2 * scatter else float(total.rows)

    def _variates(self, pair: Pair, name: str) -> CCAResult:
        """Variates whose scatter is looked at: those of the measure, or of a few leading directions."""
        if name in CANONICAL:
            return pair.correlate(self.former.rule or CANONICAL[name][1])
        # Of few rows few: correlations that rows force to be 1 say nothing.
        few = min(_LEADING, max(1, (self.groups.rows - 2) // 4))
        if max(self.groups.views[pair.a], self.groups.views[pair.b]) > few:
            with contextlib.suppress(InputError):  # fewer directions than that
                return pair.correlate(Rule("rank", few, few))
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
            for i in range(len(parts)):
                covariance, left, right = self._second_moments(i, a, b)
                # |C + l r'|^2, without a matrix of it
                both = 2 * left @ covariance @ right + (left @ left) * (right @ right)
                own.append(float(np.vdot(covariance, covariance) + both))
            whole = total.covariance(a, b, ddof=0)
            terms.append((float(np.vdot(whole, whole)) - float(shares**2 @ own)) / (1 - float(shares @ shares)))
        for term, view in zip(terms[:2], (pair.a, pair.b), strict=True):
            if not term > 0:
                raise InputError(
                    f"view {view!r}: its parts are no more alike than by chance; add rows, or use corrected=False"
                )
        value = terms[2] / math.sqrt(terms[0] * terms[1])
        terms = [term * (total.n / (total.n - 1)) ** 2 for term in terms]
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
        u, s, v = c.cross_svd
        inside, left_over, right_over = np.zeros((len(s), len(s))), np.zeros(len(s)), np.zeros(len(s))
        count = len(self.groups.parts)
        for i, part in enumerate(self.groups.parts):
            covariance, left, right = self._second_moments(i, pair.a, pair.b)
            noise = (covariance + np.outer(left, right) - c.cross) * (part.n / total.n * math.sqrt(count / (count - 1)))
            by_u = u.T @ noise
            both = by_u @ v.T
            inside += (both - both.T) ** 2
            # U and V span the narrower view: nothing lies outside of that.
            if len(u) > len(s):
                left_over += ((noise @ v.T) ** 2).sum(axis=0) - (both**2).sum(axis=0)
            if v.shape[1] > len(s):
                right_over += (by_u**2).sum(axis=1) - (both**2).sum(axis=1)
        sums = np.add.outer(s, s)
        # Each pair i < j stands twice in the square, hence the half; the diagonal is zero.
        bias = 0.5 * float(np.sum(np.sqrt(sums**2 + inside) - sums))
        bias += sum(float(np.sum(np.sqrt(s**2 + np.maximum(over, 0)) - s)) for over in (left_over, right_over))
        return bias / math.sqrt(c.x.trace * c.y.trace)

    # -------------------------------------------------------------- by computing again

    def _exactly(self, name: str, pair: Pair) -> Estimate:
        """Leave each part out in turn (Quenouille 1956; Tukey 1958)."""
        number = pair.form(name)
        plain, without = number.mean, []
        for rest in each_left_out(self.groups.parts):
            former = replace(self.former, state=rest, _views={})
            without.append(former.pair(pair.a, pair.b).form(name).mean)
        count, mean = len(without), float(np.mean(without))
        value = count * plain - (count - 1) * mean if self.correct else plain
        influences = (mean - np.array(without)) * (count - 1) / count
        rows = self._effective_rows(pair, name)
        return Estimate(plain, value, influences, self.correct, rows, lambda: number.null_mean, number.error_bound)


def each_left_out(parts: list[Moments], outside: Moments | None = None) -> Iterator[Moments]:
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
        yield from each_left_out(inside, rest)


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
