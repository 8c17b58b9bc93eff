"""RM and PM as predictors: how well they foretell a number of groups, or of models, that were left out.

Heljakka et al. (arXiv 2206.08890) evaluate RM and PM over a finite sample as predictors of generalization; how, the
abstract does not say, and everything here is ours: least squares with an intercept, judged on the group that was left
out.

    R^2 = 1 - sum (y - foretold)^2 / sum (y - mean of the other groups)^2

1 is perfect, 0 no better than the mean of the groups that were not left out, and it is negative where the line does
worse than that mean, as it does for unrelated predictors (a line through few points has noise of its own).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcca._backend import FloatArray
from streamcca.errors import InputError
from streamcca.multiplicity.checks import checked_count
from streamcca.multiplicity.relation.coefficients import constant
from streamcca.multiplicity.relation.resampling import IntArray

BOTH = "both"
# A predictor whose spread in a fit is below this share of its size says nothing there.
_RANK = 1e-10
_SAME = 1e-12


@dataclass(frozen=True, repr=False)
class Foretold:
    """How well some predictors foretell a target in groups that were left out.

    Attributes
    ----------
    predictors : tuple of str
    r2 : float or None
        Leave-one-group-out R^2; can be negative. None where there are too few groups or nothing to foretell.
    p : float or None
        Share of permutations of the target among groups with at least this R^2, the one observed among them; of the
        hypothesis that none of the predictors tells anything. None where groups differ in size.
    permutations : int
        How many were looked at.
    exact : bool
        Whether these are all there are.
    intercept : float or None
    slopes : dict of str to float
        Of the fit to all groups.
    groups, points : int
        How many there are.
    foretold : tuple of float
        What was foretold of each point by the fit without its group.
    note : str
        Why something is None, or what limits it.
    """

    predictors: tuple[str, ...]
    r2: float | None
    p: float | None
    permutations: int
    exact: bool
    intercept: float | None
    slopes: dict[str, float]
    groups: int
    points: int
    foretold: tuple[float, ...]
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**vars(self), "predictors": list(self.predictors), "foretold": list(self.foretold)}

    def __repr__(self) -> str:
        r2 = "None" if self.r2 is None else f"{self.r2:.3f}"
        p = "None" if self.p is None else f"{self.p:.4f}"
        return f"Foretold(from {', '.join(self.predictors)}: R2 {r2}, p {p}, {self.groups} groups)"


def foretell(
    target: npt.ArrayLike,
    predictors: Mapping[str, npt.ArrayLike],
    *,
    labels: Sequence[Hashable] | None = None,
    permutations: int = 9999,
    seed: int = 0,
) -> dict[str, Foretold]:
    """Foretell a target from each predictor alone and from all together, in groups that were left out.

    Parameters
    ----------
    target : array (N,)
        A number for each point: of every group, or of every model, such as its accuracy out of distribution.
    predictors : mapping of str to array (N,)
        Such as ``{"rm": ..., "pm": ...}``.
    labels : sequence of N, optional
        The group of each point; points of a group are left out together. By default each point is a group.
    permutations : int
        So many are drawn, if there are more; else all are gone through. The targets of whole groups are permuted.
    seed : int

    Returns
    -------
    dict of str to Foretold
        By the name of the predictor; all together, if there are two or more, as 'both'. Of fewer groups than predictors
        + 2 there is no R^2, but a note; of just so many, fits are exact, which the note says.

    Raises
    ------
    InputError
        Lengths differ, or numbers are not finite.

    Examples
    --------
    >>> found = foretell([1, 2, 3, 4, 5.5], {"rm": [1, 2, 3, 4, 5]})["rm"]
    >>> round(found.r2, 3), found.permutations
    (0.979, 120)
    """
    y, x, groups = _checked(target, predictors, labels)
    permutations = checked_count("permutations", permutations)
    sets = [(name,) for name in predictors]
    found = {name: _foretell(y, {name: x[name]}, groups, permutations, seed) for (name,) in sets}
    if len(sets) > 1:
        if BOTH in found:
            raise InputError(f"predictors: got one named {BOTH!r}, which is all of them together; name it otherwise")
        found[BOTH] = _foretell(y, x, groups, permutations, seed)
    return found


def left_out_r2(target: FloatArray, predictors: FloatArray, labels: IntArray | None = None) -> FloatArray:
    """Return leave-one-group-out R^2 of each target (K, N) from predictors (N, P); (K,), NaN of a constant target."""
    groups = np.arange(len(predictors)) if labels is None else labels
    fitted, base = _left_out(predictors, groups), _left_out(predictors[:, :0], groups)
    y = np.atleast_2d(target)
    with np.errstate(invalid="ignore", divide="ignore"):
        r2: FloatArray = 1 - ((y - y @ fitted.T) ** 2).sum(axis=1) / ((y - y @ base.T) ** 2).sum(axis=1)
    r2[[constant(row) for row in y]] = np.nan
    return r2


def _left_out(x: FloatArray, groups: IntArray) -> FloatArray:
    """Matrix (N, N) that takes targets to what is foretold of each point by least squares without its group."""
    result = np.zeros((len(x), len(x)))
    for group in np.unique(groups):
        out = groups == group
        rest = ~out
        count = int(rest.sum())
        mean = x[rest].mean(axis=0)
        inside = x[rest] - mean
        # Predictors in units of their own spread, so that the rank does not hang on their units.
        scale = np.sqrt((inside**2).sum(axis=0))
        some = scale > _RANK * np.abs(x[rest]).max(axis=0, initial=0)
        inverse = np.linalg.pinv(inside[:, some] / scale[some], rcond=_RANK)
        result[np.ix_(out, rest)] = 1 / count + ((x[out] - mean)[:, some] / scale[some]) @ inverse
    return result


def _foretell(
    y: FloatArray, predictors: Mapping[str, FloatArray], groups: IntArray, permutations: int, seed: int
) -> Foretold:
    names, x = tuple(predictors), np.stack(list(predictors.values()), axis=1)
    count = len(np.unique(groups))
    about: dict[str, Any] = {"predictors": names, "groups": count, "points": len(y)}
    nothing: dict[str, Any] = {
        "r2": None,
        "p": None,
        "permutations": 0,
        "exact": False,
        "intercept": None,
        "slopes": {},
        "foretold": (),
    }
    if note := _refusal(y, predictors, count):
        return Foretold(**about, **nothing, note=note)
    r2 = float(left_out_r2(y, x, groups)[0])
    sizes = np.unique(groups, return_counts=True)[1]
    notes = []
    if count == len(names) + 2 and len(y) == count:
        notes.append(f"{count} groups: each fit goes through all the others, and leaves no residual")
    p, looked, exact = None, 0, False
    if len(np.unique(sizes)) == 1:
        orders, exact = _orders(groups, permutations, seed)
        found = left_out_r2(y[orders], x, groups)
        reached, looked = int((found >= r2 - _SAME * max(1, abs(r2))).sum()), len(orders)
        p = reached / looked if exact else (1 + reached) / (1 + looked)
    else:
        notes.append("no p value: groups differ in size, so their targets cannot be permuted")
    slopes, *_ = np.linalg.lstsq(x - x.mean(axis=0), y - y.mean(), rcond=None)
    return Foretold(
        **about,
        r2=r2,
        p=p,
        permutations=looked,
        exact=exact,
        intercept=float(y.mean() - x.mean(axis=0) @ slopes),
        slopes=dict(zip(names, map(float, slopes), strict=True)),
        foretold=tuple(map(float, _left_out(x, groups) @ y)),
        note="; ".join(notes),
    )


def _refusal(y: FloatArray, predictors: Mapping[str, FloatArray], groups: int) -> str:
    need = len(predictors) + 2
    if groups < need:
        return f"{groups} groups, at least {need} are needed for {len(predictors)} predictors"
    if constant(y):
        return "all values of the target are equal"
    flat = [name for name, values in predictors.items() if constant(values)]
    return f"all values of {', '.join(flat)} are equal" if flat else ""


def _orders(groups: IntArray, permutations: int, seed: int) -> tuple[IntArray, bool]:
    """Places (K, N) of the points after permuting groups of one size, the points of each in their order."""
    places = np.stack([np.flatnonzero(groups == group) for group in np.unique(groups)])
    count = len(places)
    exact = math.factorial(count) <= permutations
    if exact:
        orders = np.array(list(itertools.permutations(range(count))))
    else:
        orders = np.random.default_rng(seed).permuted(np.tile(np.arange(count), (permutations, 1)), axis=1)
    result = np.empty((len(orders), len(groups)), dtype=np.int64)
    result[:, places.ravel()] = places[orders].reshape(len(orders), -1)
    return result, exact


def _checked(
    target: npt.ArrayLike, predictors: Mapping[str, npt.ArrayLike], labels: Sequence[Hashable] | None
) -> tuple[FloatArray, dict[str, FloatArray], IntArray]:
    y = np.asarray(target, dtype=np.float64)
    x = {name: np.asarray(values, dtype=np.float64) for name, values in predictors.items()}
    if not x:
        raise InputError("predictors: got none, expected at least one")
    for name, values in {"target": y, **{f"predictor {name!r}": values for name, values in x.items()}}.items():
        if values.ndim != 1 or values.shape != y.shape:
            raise InputError(f"{name}: got shape {values.shape}, expected one number for each of {len(y)} points")
        if not np.isfinite(values).all():
            raise InputError(f"{name}: got a number that is not finite; leave the point out")
    if labels is None:
        return y, x, np.arange(len(y))
    if len(labels) != len(y):
        raise InputError(f"labels: got {len(labels)}, expected one for each of {len(y)} points")
    known: dict[Hashable, int] = {}
    return y, x, np.array([known.setdefault(label, len(known)) for label in labels], dtype=np.int64)


@dataclass(frozen=True)
class CurvePoint:
    """R^2 from RM and PM of so many models, or so many probe rows.

    Attributes
    ----------
    count : int
        Models of a group, or rows.
    value : float or None
        Mean over draws of leave-one-group-out R^2; None where it is not defined in any draw.
    sd : float or None
        Standard deviation over draws (ddof 1); None of a single draw.
    draws : int
        Draws that have an R^2.
    """

    count: int
    value: float | None
    sd: float | None
    draws: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dict(vars(self))


def foretelling_curves(
    counts: Sequence[int],
    predictors: Mapping[str, Sequence[npt.ArrayLike]],
    target: npt.ArrayLike,
) -> dict[str, list[CurvePoint]]:
    """Foretell a target from predictors measured on more and more models, or rows.

    Parameters
    ----------
    counts : sequence of K ints
        How many models, or rows, each measurement rests on.
    predictors : mapping of str to K arrays (D, G)
        Each predictor of every group, in D draws; `finite_sample_models` and `finite_sample_rows` give them as
        ``draws``. A single (G,) is one draw; one that does not depend on the count may be given as K equal arrays.
    target : array (G,)
        Of every group.

    Returns
    -------
    dict of str to list of CurvePoint
        Of each predictor alone, and of 'both'. Draws with a number that is not finite are left out.

    Raises
    ------
    InputError

    Examples
    --------
    >>> curves = foretelling_curves([2], {"rm": [[[1, 2, 3, 4]]]}, [1, 2, 3, 4.5])
    >>> curves["rm"][0].draws
    1
    """
    y = np.asarray(target, dtype=np.float64)
    if y.ndim != 1 or not np.isfinite(y).all():
        raise InputError(f"target: got shape {y.shape}, expected a finite number for each group")
    arrays = {}
    for name, values in predictors.items():
        arrays[name] = [np.atleast_2d(np.asarray(one, dtype=np.float64)) for one in values]
        shapes = [one.shape for one in arrays[name]]
        if len(shapes) != len(counts) or any(len(shape) != 2 or shape[1] != len(y) for shape in shapes):
            raise InputError(
                f"predictor {name!r}: got shapes {shapes}, expected (draws, {len(y)}) for each of {len(counts)} counts"
            )
    sets = {name: [name] for name in arrays} | ({BOTH: list(arrays)} if len(arrays) > 1 else {})
    return {
        key: [_point(int(count), [arrays[name][k] for name in names], y) for k, count in enumerate(counts)]
        for key, names in sets.items()
    }


def _point(count: int, predictors: list[FloatArray], y: FloatArray) -> CurvePoint:
    draws = max(len(one) for one in predictors)
    wrong = [len(one) for one in predictors if len(one) not in (1, draws)]
    if wrong:
        raise InputError(f"predictors: got {wrong[0]} and {draws} draws for {count}, expected the same, or 1")
    values = []
    for d in range(draws):
        x = np.stack([one[d if len(one) > 1 else 0] for one in predictors], axis=1)
        if not np.isfinite(x).all() or _refusal(y, {str(i): column for i, column in enumerate(x.T)}, len(y)):
            continue
        values.append(float(left_out_r2(y, x)[0]))
    if not values:
        return CurvePoint(count, None, None, 0)
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return CurvePoint(count, float(np.mean(values)), sd, len(values))
