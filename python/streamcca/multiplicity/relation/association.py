"""What representational multiplicity tells about predictive multiplicity: over groups, and over pairs of models.

Heljakka et al. (arXiv 2206.08890) say that the two are correlated, not by which coefficient over what; the choices are
ours. Pairs of models share models, so neither intervals nor p values ever treat pairs as independent: intervals come
from resampling models within their groups, p values of pairs from permuting the models of one matrix (Mantel).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcca._backend import FloatArray
from streamcca.errors import InputError
from streamcca.multiplicity.checks import checked_count, checked_level
from streamcca.multiplicity.relation.coefficients import (
    COEFFICIENTS,
    Coefficient,
    correlation,
    correlations_of_rows,
    weighted_correlations,
)
from streamcca.multiplicity.relation.permutations import PermutationTest, mantel, permutation_test
from streamcca.multiplicity.relation.resampling import (
    Estimate,
    IntArray,
    checked_groups,
    model_weights,
    pair_mean,
    pairs_within,
    percentile_interval,
)

_FEWEST = 3


@dataclass(frozen=True, repr=False)
class Correlations:
    """How two quantities go together over some points.

    Attributes
    ----------
    over : str
        What a point is.
    points : int
        How many there are.
    pearson, spearman, kendall : Estimate
        Coefficients (Kendall's is tau-b), with percentile intervals over models.
    test : PermutationTest
        Of groups: their values permuted; of pairs: the models of one matrix permuted (Mantel).
    """

    over: str
    points: int
    pearson: Estimate
    spearman: Estimate
    kendall: Estimate
    test: PermutationTest

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        coefficients: dict[str, Any] = {str(name): getattr(self, name).to_dict() for name in COEFFICIENTS}
        return {"over": self.over, "points": self.points, **coefficients, "test": self.test.to_dict()}

    def __repr__(self) -> str:
        return f"Correlations({self.points} {self.over}: Spearman {self.spearman}, p {self.test.p})"


@dataclass(frozen=True, repr=False)
class Association:
    """How RM and PM go together.

    Attributes
    ----------
    groups : Correlations
        A point is a group: mean distance and mean PM of its pairs. Groups that have no pair are left out. The interval
        says what other models of the same methods could have given; it does not treat the methods as a sample.
    within : Correlations
        A point is a pair of models of one group. Pairs of all groups together, so that differences between groups count
        too; the test permutes models within their groups only, and is therefore about pairs of the same method.
    all : Correlations
        A point is any pair of models; the test permutes all models, and is about methods as well.
    rm, pm : dict of str to float
        The values of the groups.
    level : float
        Of the intervals.
    """

    groups: Correlations
    within: Correlations
    all: Correlations
    rm: dict[str, float]
    pm: dict[str, float]
    level: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        parts = {name: getattr(self, name).to_dict() for name in ("groups", "within", "all")}
        return {**parts, "rm": dict(self.rm), "pm": dict(self.pm), "level": self.level}

    def table(self) -> str:
        """Lay it out as text."""
        lines = [f"RM with PM, intervals of {self.level:.0%} by resampling models within groups"]
        for part in (self.groups, self.within, self.all):
            p = "-" if part.test.p is None else f"{part.test.p:.4f}"
            lines.append(f"over {part.points} {part.over}: p = {p} ({part.test.kind})")
            for name in COEFFICIENTS:
                estimate = getattr(part, name)
                more = f" ({estimate.reason})" if estimate.reason else ""
                lines.append(f"  {name:<9} {estimate}{more}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Association(groups: Spearman {self.groups.spearman}, pairs: Spearman {self.all.spearman})"


def associate(
    rm: npt.ArrayLike,
    pm: npt.ArrayLike,
    groups: Mapping[str, Sequence[int]],
    *,
    group_pm: Mapping[str, float] | None = None,
    coefficient: Coefficient = "pearson",
    level: float = 0.95,
    draws: int = 2000,
    permutations: int = 9999,
    seed: int = 0,
) -> Association:
    """Correlate distances of models' insides with differences of their predictions, over groups and over pairs.

    Parameters
    ----------
    rm : array (M, M)
        Distance of every two models, such as `RepresentationalMultiplicity.matrix`.
    pm : array (M, M)
        Difference of the predictions of every two models, such as their disagreement. The values of a group are means
        over its pairs; that covers the variance of predicted probabilities too, since with ddof 1 the variance of M
        numbers is the mean over pairs of half their squared difference.
    groups : mapping of str to sequence of int
        Places of the models of each group.
    group_pm : mapping of str to float, optional
        PM of each group, where it is no mean over pairs; intervals over groups are then of RM's models only, and say
        so.
    coefficient : 'pearson' or 'spearman'
        What the permutation tests look at.
    level, draws, seed
        Percentile intervals from so many draws of models within groups. Drawing models blurs the values of groups, as
        the sample itself does, so that a correlation near 1 is seen lower and its interval lies below it. Simulated
        (nominal 95 %, 8 groups of 4 to 10 models, 150 repetitions): 0.91 to 0.98 where the correlation of the groups is
        0.1 to 0.7, but 0 to 0.07 where it is 0.997; over pairs within groups 0.94 to 0.98 in all these cases.
    permutations : int
        Permutations drawn by a test, if there are more than so many; else all are gone through.

    Returns
    -------
    Association
        Coefficients that are not defined (fewer than 3 points, or one side constant) are None, with a reason.

    Raises
    ------
    InputError
        Matrices of another shape, not finite, not symmetric; groups that overlap.

    Examples
    --------
    >>> x = np.random.default_rng(0).random((9, 2))
    >>> d = np.linalg.norm(x[:, None] - x[None], axis=2)
    >>> found = associate(d, d**2, {"a": [0, 1, 2], "b": [3, 4, 5], "c": [6, 7, 8]}, draws=100, permutations=99)
    >>> found.all.points, round(found.all.spearman.value, 6), found.all.test.p
    (36, 1.0, 0.01)
    """
    x, y = checked_matrix("rm", rm), checked_matrix("pm", pm)
    if len(x) != len(y):
        raise InputError(f"rm and pm: got {len(x)} and {len(y)} models, expected the same")
    places = dict(zip(groups, checked_groups(list(groups.values()), len(x)), strict=True))
    level, draws = checked_level(level), checked_count("draws", draws)
    permutations = checked_count("permutations", permutations)
    weights = model_weights([list(group) for group in places.values()], draws, seed)
    weights = np.pad(weights, ((0, 0), (0, len(x) - weights.shape[1])))
    test: dict[str, Any] = {"coefficient": coefficient, "permutations": permutations, "seed": seed}
    members = np.sort(np.concatenate(list(places.values())))
    within = np.concatenate([pairs_within(group) for group in places.values()])
    sizes = [len(group) for group in places.values()]
    strata = np.full(len(x), -1)
    for i, group in enumerate(places.values()):
        strata[group] = i
    of_one, of_all = (
        _over_pairs(x, y, pairs, what, weights, level, smallest, mantel(x, y, pairs=pairs, strata=own, **test))
        for pairs, what, own, smallest in (
            (within, "pairs of models of one group", strata, min((s for s in sizes if s > 1), default=0)),
            (pairs_within(members), "pairs of models", np.where(strata < 0, -1, 0), min(sizes)),
        )
    )
    over_groups, group_rm, own_pm = _over_groups(x, y, places, group_pm, weights, level, test)
    return Association(over_groups, of_one, of_all, group_rm, own_pm, level)


def _over_groups(
    x: FloatArray,
    y: FloatArray,
    places: Mapping[str, IntArray],
    group_pm: Mapping[str, float] | None,
    weights: IntArray,
    level: float,
    test: Mapping[str, Any],
) -> tuple[Correlations, dict[str, float], dict[str, float]]:
    with_pairs = {name: group for name, group in places.items() if len(group) > 1}
    if group_pm is not None and (missing := [name for name in with_pairs if name not in group_pm]):
        raise InputError(f"group_pm: got none for {', '.join(map(repr, missing))}, expected one number for each group")
    ones = np.ones((1, len(x)))
    rows = np.concatenate([ones, weights])

    def means(matrix: FloatArray) -> FloatArray:
        columns = [pair_mean(matrix, rows, pairs_within(group)) for group in with_pairs.values()]
        return np.stack(columns, axis=1) if columns else np.zeros((len(rows), 0))

    rm, pm = means(x), means(y)
    if group_pm is not None:
        pm = np.broadcast_to(np.array([float(group_pm[name]) for name in with_pairs]), rm.shape)
        if not np.isfinite(pm).all():
            raise InputError("group_pm: got a number that is not finite, expected one number for each group")
    smallest = min(map(len, with_pairs.values()), default=0)
    note = _few(smallest)
    if group_pm is not None:
        note = "; ".join(filter(None, [note, "the interval is of the models' distances; PM is taken as it is"]))
    estimates: dict[str, Estimate] = {}
    for name in COEFFICIENTS:
        value, reason = correlation(name, rm[0], pm[0]) if rm.shape[1] >= _FEWEST else (None, _too_few(rm, "groups"))
        drawn = correlations_of_rows(name, rm[1:], pm[1:]) if value is not None else np.zeros(0)
        estimates[name] = _estimate(value, reason or note, drawn, level, smallest)
    found = Correlations("groups", rm.shape[1], **estimates, test=permutation_test(rm[0], pm[0], **test))
    named = [dict(zip(with_pairs, map(float, side[0]), strict=True)) for side in (rm, pm)]
    return found, named[0], named[1]


def _over_pairs(
    x: FloatArray,
    y: FloatArray,
    pairs: IntArray,
    what: str,
    weights: IntArray,
    level: float,
    smallest: int,
    test: PermutationTest,
) -> Correlations:
    a, b = x[pairs[:, 0], pairs[:, 1]], y[pairs[:, 0], pairs[:, 1]]
    estimates: dict[str, Estimate] = {}
    for name in COEFFICIENTS:
        value, reason = correlation(name, a, b) if len(a) >= _FEWEST else (None, _too_few(a[None], "pairs"))
        drawn = weighted_correlations(name, a, b, weights, pairs) if value is not None else np.zeros(0)
        estimates[name] = _estimate(value, reason or _few(smallest), drawn, level, smallest)
    return Correlations(what, len(pairs), **estimates, test=test)


def _estimate(value: float | None, reason: str, drawn: FloatArray, level: float, smallest: int) -> Estimate:
    finite = drawn[np.isfinite(drawn)]
    if value is None or len(finite) < 2:
        return Estimate(value, reason=reason)
    return Estimate(value, *percentile_interval(finite, level), reason)


def _few(smallest: int) -> str:
    if smallest >= _FEWEST:
        return ""
    return f"the smallest group has {smallest} of the {_FEWEST} models that resampling takes: its spread is left out"


def _too_few(values: FloatArray, what: str) -> str:
    return f"{values.shape[1]} {what}, at least {_FEWEST} are needed"


def checked_matrix(name: str, matrix: npt.ArrayLike) -> FloatArray:
    """Return a symmetric matrix of finite numbers, of every two models.

    Raises
    ------
    InputError
    """
    found = np.asarray(matrix, dtype=np.float64)
    if found.ndim != 2 or found.shape[0] != found.shape[1]:
        raise InputError(f"{name}: got shape {found.shape}, expected (M, M): a number for every two models")
    if not np.isfinite(found).all():
        raise InputError(f"{name}: got {int((~np.isfinite(found)).sum())} numbers that are not finite, expected none")
    if not np.allclose(found, found.T, rtol=1e-9, atol=1e-12):
        raise InputError(f"{name}: it is not symmetric, expected one number for every two models")
    return found
