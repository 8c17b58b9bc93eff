"""SVCCA from Gram matrices: correlations are cosines between spaces of scores, and only the cut can turn these."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from streamcca import _backend
from streamcca._backend import FloatArray
from streamcca.errors import InputError, StreamCCAError, StreamCCAWarning
from streamcca.gram import ViewGram
from streamcca.pairing import Measure, result_of
from streamcca.results import CCAResult
from streamcca.subspace import Rule, Truncated

# As in csrc/linalg/error_bound.cpp: standard deviations of rounding that a bound covers.
_SAFETY = 8.0
_UNIT = 2.0**-53


@dataclass(frozen=True)
class ScoreSpace:
    """Kept scores of one view, and what rounding does to them.

    Entry (s, t) of the view's matrix has an independent error of deviation relative * sqrt(raw_s raw_t).
    """

    side: Truncated
    width: int
    scores: FloatArray  # (n, k), orthonormal
    eigenvalues: FloatArray
    next_eigenvalue: float
    relative: float
    raw: FloatArray
    backward_error: float


def truncate_gram(view: ViewGram, name: str, rule: Rule, value: float) -> ScoreSpace:
    """Keep the leading eigenvectors of one view's matrix; `value` is the rule's value for this side."""
    n = len(view.matrix)
    # Scaling samples to unit variance would not be scaling neurons.
    kind, value = ("variance", 1.0) if rule.name == "full" else (rule.name, value)
    try:
        native = _backend.truncate(view.matrix, view.rounding, kind, value, 0.0)
    except StreamCCAError as error:
        raise type(error)(f"view {name!r}: {error}") from None
    state = native.save()
    unit = state["unit"] ** 2
    return ScoreSpace(
        Truncated(name, rule, native, n, n, view.precision, view.width),
        view.width,
        native.vectors,
        native.eigenvalues,
        state["next_eigenvalue"] * unit,
        view.rounding[0],
        view.rounding[2],
        state["backward_error"] * unit,
    )


def correlate_scores(
    x: ScoreSpace,
    y: ScoreSpace,
    *,
    measure: Measure = "svcca",
    side: str = "",
    ridge: float = 0.0,
    allow_underdetermined: bool = False,
    allow_inaccurate: bool = False,
) -> tuple[CCAResult, list[StreamCCAWarning]]:
    """CCA of the kept scores of two views; returns the result and the warnings that belong to it.

    The correlations are the singular values of Ux'Uy. Untruncated CCA takes all eigenvectors above rounding: the same
    correlations, as scaling the neurons does not change the space of their scores.
    """
    refusal = gram_refuses(measure, ridge)
    if refusal:
        raise InputError(refusal)
    result, notes = result_of(
        x.side,
        y.side,
        _pair(x, y),
        measure=measure,
        allow_underdetermined=allow_underdetermined,
        allow_inaccurate=allow_inaccurate,
        remedy="truncate more, or use precision='float64'",
    )
    return replace(result, width_x=x.width, width_y=y.width, strategy="gram"), notes


def gram_refuses(measure: Measure, ridge: float, nonfinite: str = "raise") -> str:
    """Say what of a question a Gram matrix, which has no neurons, cannot answer; empty if it can."""
    if measure == "pwcca":
        return (
            "pwcca: the Gram route keeps no neurons whose loadings could weigh the correlations; use svcca, or "
            "strategy='covariance' where the moments fit"
        )
    if ridge:
        return f"ridge: got {ridge:g} on the Gram route, which has no neurons to add it to; use 0"
    if nonfinite != "raise":
        return f"nonfinite: got {nonfinite!r}; strategy='gram' takes 'raise' only: leave rows with NaN out before"
    return ""


def _pair(x: ScoreSpace, y: ScoreSpace) -> dict[str, Any]:
    """Return what `_backend.compare` does, with the error bound of this route; no weights of neurons."""
    left, correlations, right = np.linalg.svd(x.scores.T @ y.scores, full_matrices=False)
    correlations = np.minimum(correlations, 1.0)
    turns = [
        _turn(x, left, y.scores @ right.T),
        _turn(y, right.T, x.scores @ left),
    ]
    m = len(correlations)
    second = sum(turn.second for turn in turns)
    final = 16 * _UNIT * np.sqrt(max(x.scores.shape[1], y.scores.shape[1]))
    deviations = np.sqrt(sum(turn.deviations**2 for turn in turns))
    each = _with_neighbors(correlations, _SAFETY * deviations) + sum(turn.solver for turn in turns) + second + final
    mean = _SAFETY * np.sqrt(sum(turn.mean_deviation**2 for turn in turns)) / m
    mean += float(np.mean(sum(turn.solver for turn in turns) + second)) + final
    none = np.empty((0, m))
    return {
        "mean": float(correlations.mean()),
        "mean_error_bound": float(min(1.0, mean)),
        "shares_error_bound": 0.0,
        "correlations": correlations,
        "correlation_error_bounds": np.minimum(each, 1.0),
        "shares": np.full(m, 1 / m),
        "x_weights": none,
        "y_weights": none.copy(),
    }


@dataclass(frozen=True)
class _Turn:
    """What the turning of one view's space adds to the errors; arrays have one entry a correlation."""

    deviations: FloatArray  # first order, of each correlation
    mean_deviation: float  # of their sum
    solver: FloatArray  # largest, by the eigensolver's own rounding
    second: FloatArray  # expected, where the first order vanishes


def _turn(space: ScoreSpace, own: FloatArray, others: FloatArray) -> _Turn:
    """Bound how far errors E of one matrix move the correlations.

    A kept eigenvector u_i turns towards a discarded u_j by u_j'E u_i / (l_i - l_j), and what it gains of the other
    side's variate h is the part w = h - U U'h that the kept space leaves, of length sqrt(1 - rho^2): d rho = c'E w with
    c = sum_i own_i u_i / (l_i - l_j). Turns inside the kept space move no correlation. Each l_j is replaced by the
    largest, which only lengthens c.
    """
    gaps = np.maximum(space.eigenvalues - space.next_eigenvalue, np.finfo(np.float64).tiny)
    steps = own / gaps[:, None]
    rest = others - space.scores @ (space.scores.T @ others)
    turned = space.scores @ steps
    raw = space.raw[:, None]
    # Var(c'E w) <= 2 e^2 (sum raw c^2)(sum raw w^2): E is symmetric, so each of its entries acts twice.
    gram_c, gram_w = turned.T @ (raw * turned), rest.T @ (raw * rest)
    factor = np.sqrt(2.0) * space.relative
    deviations = factor * np.sqrt(np.diag(gram_c) * np.diag(gram_w))
    mean_deviation = factor * np.sqrt(max(0.0, float(np.sum(gram_c * gram_w))))
    solver = space.backward_error * np.linalg.norm(steps, axis=0) * np.linalg.norm(rest, axis=0)
    second = 2 * space.relative**2 * np.diag(gram_c) * space.raw.sum()
    return _Turn(deviations, mean_deviation, solver, second)


def _with_neighbors(correlations: FloatArray, bounds: FloatArray) -> FloatArray:
    """Let correlations that tie within their errors share the largest bound, times sqrt(c) / 2 for c of them."""
    reach = 4 * np.sqrt(len(correlations)) * bounds / _SAFETY
    apart = np.flatnonzero(-np.diff(correlations) > np.maximum(reach[:-1], reach[1:])) + 1
    parts = np.split(bounds, apart)
    return np.concatenate([np.full(len(p), p.max() * max(1.0, np.sqrt(len(p)) / 2)) for p in parts])
