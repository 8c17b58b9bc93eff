"""Measures that are functions of the canonical correlations, and their slopes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from streamcca._backend import Canonical, FloatArray, canonical
from streamcca.device_algebra import cross_operand
from streamcca.errors import InputError, StreamCCAWarning
from streamcca.gram import Gram
from streamcca.gram_cca import correlate_scores, truncate_gram
from streamcca.moments import Moments
from streamcca.pairing import correlate
from streamcca.qr import QRMoments
from streamcca.qr_cca import qr_compare
from streamcca.results import CCAResult, Truncation
from streamcca.similarity.covariances import Formed, PairCovariance, ViewCovariance
from streamcca.subspace import Rule

Outcome = tuple[CCAResult, list[StreamCCAWarning]]


@dataclass(frozen=True)
class OfCorrelations:
    """A measure of canonical correlations: sum of rho_i, or rho_i^2, over a size that the kept directions give."""

    squared: bool
    size: Callable[[int, int], float]

    def value(self, r: CCAResult) -> float:
        """Return the number."""
        power = 2 if self.squared else 1
        return float(np.sum(r.correlations**power)) / self.size(r.rank_x, r.rank_y)

    def error_bound(self, r: CCAResult) -> float:
        """Return how far rounding can have moved it: no square moves by more than twice what moves its root."""
        few = min(r.rank_x, r.rank_y)
        return min(1.0, (2 if self.squared else 1) * r.error_bound) * few / self.size(r.rank_x, r.rank_y)

    def null(self, r: CCAResult) -> float:
        """Return what unrelated views score; exact for squares."""
        few, many = sorted((r.rank_x, r.rank_y))
        mean = min(1.0, many / (r.rows - 1)) if self.squared else r.null_mean
        return mean * few / self.size(few, many)

    def slopes(self, pair: PairCovariance, r: CCAResult) -> Formed:
        """Return the slopes with regard to the covariances, for ranks that stay."""
        size = self.size(r.rank_x, r.rank_y)
        derivative = (2 * r.correlations if self.squared else np.ones(len(r.correlations))) / size
        return slopes_of(pair, r, self.value(r), self.null(r), derivative)


MEAN = OfCorrelations(False, min)
MEAN_SQUARE = OfCorrelations(True, min)
YANAI = OfCorrelations(True, lambda kx, ky: math.sqrt(kx * ky))
PILLAI = OfCorrelations(True, lambda kx, ky: 1.0)


def slopes_of(pair: PairCovariance, r: CCAResult, value: float, null: float, derivative: FloatArray) -> Formed:
    """Return the slopes of a function of the correlations whose derivatives (m,) are given.

    With weights a_i and b_i: d rho_i = a_i' dSxy b_i - rho_i / 2 (a_i' dSxx a_i + b_i' dSyy b_i), and what turns the
    kept directions towards the discarded ones.
    """
    if r.ridge:
        raise InputError(f"intervals: got ridge = {r.ridge:g}, expected 0; a ridge has no sampling distribution here")
    a, b = r.x_weights, r.y_weights
    if len(a) != r.width_x or len(b) != r.width_y:
        raise InputError(f"intervals: strategy {r.strategy!r} keeps no weights of neurons; give moments")
    weighted = derivative * r.correlations
    return Formed(
        value,
        lambda: null,
        -0.5 * (a * weighted) @ a.T + _turning(pair.x, r, pair.cross @ (b * derivative), a, r.truncation.rule),
        -0.5 * (b * weighted) @ b.T + _turning(pair.y, r, pair.cross.T @ (a * derivative), b, r.truncation.rule),
        (a * derivative) @ b.T,
    )


def _turning(
    view: ViewCovariance, r: CCAResult, wanted: FloatArray, weights: FloatArray, rule: Rule
) -> FloatArray | float:
    """Return the slope that comes from the turning of the kept directions v_i towards the discarded v_j.

    dv_i = sum_j v_j (v_j' dS v_i) / (l_i - l_j).
    """
    if rule.name == "full":
        return 0.0
    rank = r.rank_x if weights is r.x_weights else r.rank_y
    values, vectors = view.eigenvalues, view.eigenvectors
    kept, rest = vectors[:, :rank], vectors[:, rank:]
    gaps = np.maximum(values[:rank] - values[rank:, None], np.finfo(np.float64).tiny)
    inner = (rest.T @ wanted) @ (kept.T @ weights).T / gaps
    return rest @ inner @ kept.T


def exchanged(r: CCAResult) -> CCAResult:
    """Return the result of the same views in the other order, for a measure that does not weigh by one of them."""
    swap = {f"{name}_x": f"{name}_y" for name in ("rank", "width", "condition", "numerical_rank")}
    swap |= {f"x_{name}": f"y_{name}" for name in ("weights", "mean", "kept")}
    both = swap | {theirs: own for own, theirs in swap.items()}
    cut = r.truncation
    rule = replace(cut.rule, x=cut.rule.y, y=cut.rule.x)
    truncation = Truncation(rule, cut.share_y, cut.share_x, cut.margin_y, cut.margin_x, cut.resolved)
    return replace(r, truncation=truncation, **{own: getattr(r, theirs) for own, theirs in both.items()})


def correlate_views(
    state: Moments | Gram | QRMoments,
    x: ViewCovariance | str,
    y: ViewCovariance | str,
    rule: Rule,
    options: dict[str, Any],
    found: dict[Rule, Canonical] | None = None,
) -> Outcome:
    """CCA of two views of whatever was counted; views of moments that are at hand keep what was found in them.

    `found`: their canonical variates by rule, to which new ones are added; the sides of PWCCA share them.
    """
    if isinstance(state, Moments):
        x, y = (v if isinstance(v, ViewCovariance) else ViewCovariance(state, v) for v in (x, y))
        ridge = options.get("ridge", 0.0)
        sides = (x.truncated(rule, rule.x, ridge), y.truncated(rule, rule.y, ridge))
        found = {} if found is None else found
        if rule not in found:
            found[rule] = canonical(sides[0].native, sides[1].native, cross_operand(state, x.name, y.name))
        return correlate(*sides, found[rule], **options)
    names = [v if isinstance(v, str) else v.name for v in (x, y)]
    if isinstance(state, Gram):
        spaces = [
            truncate_gram(state.view(v), v, rule, value) for v, value in zip(names, (rule.x, rule.y), strict=True)
        ]
        return correlate_scores(spaces[0], spaces[1], **options)
    options = dict(options)
    if options.pop("ridge", 0.0):
        raise InputError("ridge: strategy='qr' is for views as they are; use strategy='covariance', or 0")
    return qr_compare(state, names[0], names[1], rule, **options)
