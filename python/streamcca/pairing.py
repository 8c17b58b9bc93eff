"""Two truncated views of the same rows, paired: correlations into a result, with what limits its digits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args

from streamcca import _backend
from streamcca._backend import Canonical, FloatArray
from streamcca.device_algebra import DeviceCross
from streamcca.errors import (
    AccuracyError,
    AccuracyWarning,
    SampleSizeWarning,
    StreamCCAWarning,
    UnderdeterminedError,
)
from streamcca.results import CCAResult, Truncation
from streamcca.significance import forced_ones, null_mean
from streamcca.subspace import Rule, Truncated, why_uncertain

Measure = Literal["svcca", "cca", "pwcca"]
CORRELATIONS: tuple[Measure, ...] = get_args(Measure)
Progress = bool | Literal["auto"]
FULL = Rule("full")
VARIANCE_99 = Rule("variance", 0.99, 0.99)

WARN_ABOVE = 1e-6
REFUSE_ABOVE = 1e-2
REMEDY = (
    "truncate more, add a ridge, accumulate with precision='float64', or give the rows "
    "to svcca or cca with strategy='qr'"
)


def correlate(
    x: Truncated,
    y: Truncated,
    cross: FloatArray | DeviceCross | Canonical,
    *,
    kept: bool = False,
    measure: Measure,
    side: str = "",
    ridge: float = 0.0,
    allow_underdetermined: bool = False,
    allow_inaccurate: bool = False,
) -> tuple[CCAResult, list[StreamCCAWarning]]:
    """CCA of two truncated views of the same rows; returns the result and the warnings that belong to it.

    `cross` is their covariance (dx, dy), or, if `kept`, that of the projections of the rows (kx, ky), or the canonical
    variates that were found of these.
    """
    found = cross if isinstance(cross, Canonical) else _backend.canonical(x.native, y.native, cross, kept)
    numbers = _backend.compare(x.native, y.native, found, side)
    result, notes = result_of(
        x,
        y,
        numbers,
        measure=measure,
        side=side,
        ridge=ridge,
        allow_underdetermined=allow_underdetermined,
        allow_inaccurate=allow_inaccurate,
    )
    return replace(result, x_mean=x.mean, y_mean=y.mean, x_kept=x.kept, y_kept=y.kept), notes


def result_of(
    x: Truncated,
    y: Truncated,
    numbers: dict[str, Any],
    *,
    measure: Measure,
    side: str = "",
    ridge: float = 0.0,
    allow_underdetermined: bool = False,
    allow_inaccurate: bool = False,
    remedy: str = REMEDY,
) -> tuple[CCAResult, list[StreamCCAWarning]]:
    """Turn the numbers of `_backend.compare`, however they came about, into a result, and warn of what limits them.

    `remedy` names what would give more digits.
    """
    kx, ky, n = x.native.rank, y.native.rank, x.rows
    notes = _check_rows(x, y, allow_underdetermined)
    # Each rank that could as well be one higher or lower moves one correlation by at most 1.
    uncertain = x.uncertain_ranks + y.uncertain_ranks
    rounding, shares = numbers["mean_error_bound"], numbers["shares_error_bound"]
    bound = min(1.0, rounding + shares + uncertain * float(numbers["shares"].max()))
    notes += _check_accuracy(x, y, rounding, bound, allow_inaccurate, remedy)
    if shares > WARN_ABOVE:
        notes.append(
            AccuracyWarning(
                "correlations that tie within rounding leave their variates, hence the projection weights, "
                f"undetermined: the mean could differ by up to {shares:.1e}"
            )
        )
    result = CCAResult(
        measure=measure,
        mean=min(1.0, numbers["mean"]),  # shares of 1 / m add up to 1 but for their rounding
        correlations=numbers["correlations"],
        rank_x=kx,
        rank_y=ky,
        n=x.n,
        rows=n,
        width_x=x.native.width,
        width_y=y.native.width,
        truncation=Truncation(x.rule, x.native.share, y.native.share, x.native.margin, y.native.margin, uncertain == 0),
        error_bound=bound,
        correlation_error_bounds=numbers["correlation_error_bounds"],
        null_mean=null_mean(kx, ky, n),
        x_weights=numbers["x_weights"],
        y_weights=numbers["y_weights"],
        shares=numbers["shares"],
        side=side,
        condition_x=_condition(x),
        condition_y=_condition(y),
        numerical_rank_x=x.native.numerical_rank,
        numerical_rank_y=y.native.numerical_rank,
        ridge=ridge,
        precision=x.precision,
        warnings=tuple(str(note) for note in notes),
    )
    return result, notes


def _check_rows(x: Truncated, y: Truncated, allow_underdetermined: bool) -> list[StreamCCAWarning]:
    kx, ky, n = x.native.rank, y.native.rank, x.rows
    where = f"views {x.view!r} and {y.view!r}: n = {n} rows"
    if n - 1 <= max(kx, ky):
        text = (
            f"{where} are too few for ({kx}, {ky}) kept directions: with n - 1 <= max(kx, ky) every correlation is 1 "
            "whatever the data"
        )
        if not allow_underdetermined:
            raise UnderdeterminedError(
                f"{text}; add rows, keep fewer directions (rank= or a lower share), or pass allow_underdetermined=True"
            )
        return [SampleSizeWarning(text)]
    ones = forced_ones(kx, ky, n)
    if not ones:
        return []
    return [
        SampleSizeWarning(
            f"{where} for ({kx}, {ky}) kept directions force {ones} of the {min(kx, ky)} correlations to 1 whatever "
            "the data; add rows or keep fewer directions"
        )
    ]


def _check_accuracy(
    x: Truncated, y: Truncated, rounding: float, bound: float, allow_inaccurate: bool, remedy: str
) -> list[StreamCCAWarning]:
    """Refuse or note what limits the digits: rounding, an unresolved cut, directions below rounding."""
    # A threshold that falls between two ranks can be moved; that directions drown in rounding is the data's doing
    # (neurons that depend on each other exactly look the same), so it is said and bounded, but not refused.
    cut = [side for side in (x, y) if side.uncertain_ranks and not side.rule.keeps_all]
    drowned = [side for side in (x, y) if side.uncertain_ranks and side.rule.keeps_all]
    amount = bound if cut else rounding
    if amount > REFUSE_ABOVE and not allow_inaccurate:
        raise AccuracyError(
            f"views {x.view!r} and {y.view!r}: rounding may have moved the mean by {amount:.1e}, more than "
            f"{REFUSE_ABOVE:g}{', since it decides the rank' if cut else ''}; {remedy}, or pass allow_inaccurate=True"
        )
    notes = [
        StreamCCAWarning(f"view {side.view!r}: {side.constant_neurons} constant neurons are left out")
        for side in (x, y)
        if side.rule.name == "full" and side.constant_neurons
    ]
    if rounding > WARN_ABOVE:
        notes.append(AccuracyWarning(f"rounding may have moved the mean by up to {rounding:.1e}; {remedy}"))
    notes += [AccuracyWarning(why_uncertain(side)) for side in cut + drowned]
    return notes


def _condition(side: Truncated) -> float:
    values = side.native.eigenvalues
    return float((values[0] / values[-1]) ** 0.5)
