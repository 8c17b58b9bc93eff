"""How a quantity of pairs of models changes with how differently they were trained (arXiv 2110.12899, figure 1).

The paper pairs one base model with all others, and a rung is a property of the pair. We pair every model of a base
group with all others, so that the base is no single draw. Intervals leave models out, never pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamcca._backend import FloatArray
from streamcca.multiplicity.relation.resampling import Estimate, IntArray, jackknife, pair_mean


@dataclass(frozen=True, eq=False)
class AlongLadder:
    """Means of one quantity over the pairs of each rung.

    Attributes
    ----------
    rungs : tuple of str
        Those that have pairs, from the most alike to the most different.
    means : dict of str to Estimate
    slope : Estimate
        Of the straight line through the means, in units of the quantity a rung; the paper's claims are about its sign.
    steps : dict of (str, str) to Estimate
        Change from each rung to the next.
    """

    rungs: tuple[str, ...]
    means: dict[str, Estimate]
    slope: Estimate
    steps: dict[tuple[str, str], Estimate]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "rungs": list(self.rungs),
            "means": {rung: mean.to_dict() for rung, mean in self.means.items()},
            "slope": self.slope.to_dict(),
            "steps": [{"from": a, "to": b, **step.to_dict()} for (a, b), step in self.steps.items()],
        }

    def __repr__(self) -> str:
        means = ", ".join(f"{rung} {mean}" for rung, mean in self.means.items())
        return f"AlongLadder({means}; slope {self.slope})"


def along_ladder(
    values: FloatArray, pairs: Mapping[str, IntArray], groups: Sequence[Sequence[int]], level: float = 0.95
) -> AlongLadder:
    """Average a quantity of pairs of models over each rung, with the trend from rung to rung.

    Parameters
    ----------
    values : array (M, M)
        The quantity of every pair [base, other]; NaN where it is not known.
    pairs : mapping of str to array (P, 2)
        Pairs of each rung, from the most alike to the most different.
    groups : sequence of sequences of int
        Models that were made alike; those of a group of two or more are left out one at a time for the intervals, which
        are therefore about these groups.
    level : float
        Of the intervals.

    Returns
    -------
    AlongLadder

    Examples
    --------
    >>> values = np.array([[0, 1, 3, 4], [1, 0, 3, 4], [3, 3, 0, 0], [4, 4, 0, 0.0]])
    >>> pairs = {"reinit": np.array([[0, 1]]), "other": np.array([[0, 2], [1, 3]])}
    >>> found = along_ladder(values, pairs, groups=[[0, 1], [2, 3]])
    >>> found.means["other"].value, found.slope.value
    (3.5, 2.5)
    """
    known = {rung: found[np.isfinite(values[found[:, 0], found[:, 1]])] for rung, found in pairs.items()}
    known = {rung: found for rung, found in known.items() if len(found)}
    rungs = tuple(known)
    models = len(values)
    means = {rung: _estimates(values, {rung: known[rung]}, groups, models, level)[0] for rung in rungs}
    slope = Estimate(None, reason="a trend needs two rungs")
    steps = {}
    if len(rungs) > 1:
        slope = _estimates(values, known, groups, models, level)[-1]
        for a, b in itertools.pairwise(rungs):
            steps[a, b] = _estimates(values, {a: known[a], b: known[b]}, groups, models, level)[-1]
    return AlongLadder(rungs, means, slope, steps)


def _estimates(
    values: FloatArray,
    pairs: Mapping[str, IntArray],
    groups: Sequence[Sequence[int]],
    models: int,
    level: float,
) -> list[Estimate]:
    """Return the mean of every rung and, of several, the slope of the line through them."""
    used = np.unique(np.concatenate([found.ravel() for found in pairs.values()]))
    strata = [[place for place in group if place in used] for group in groups]
    spared = [group for group in strata if len(group) > 1]
    alone = [group[0] for group in strata if len(group) == 1]
    places = np.arange(len(pairs)) - (len(pairs) - 1) / 2

    def statistic(weights: FloatArray) -> FloatArray:
        weights = weights.copy()
        weights[:, alone] = 1  # nothing to put in the place of a single model
        means = np.stack([pair_mean(values, weights, found) for found in pairs.values()], axis=1)
        if len(pairs) == 1:
            return means
        return np.concatenate([means, (means @ places / (places @ places))[:, None]], axis=1)

    if not spared:
        value = statistic(np.ones((1, models)))[0]
        return [Estimate(float(one), reason="no interval: no group has two models") for one in value]
    return jackknife(statistic, spared, models, level)
