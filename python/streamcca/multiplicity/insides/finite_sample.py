"""Representational multiplicity over a finite sample: of fewer models, and of fewer rows.

Heljakka et al. (arXiv 2206.08890) evaluate RM over a finite sample; of what and how, the abstract does not say. Ours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import InputError
from streamcca.multiplicity.checks import checked_count
from streamcca.multiplicity.insides.score_blocks import Block, ScoreBlocks, Source
from streamcca.multiplicity.relation.resampling import checked_groups, named_groups, pair_mean, pairs_within
from streamcca.pairing import Progress
from streamcca.sources import progress_bar
from streamcca.subspace import Truncated

# The scores of one group are held at a time, whatever they take.
_NO_LIMIT = 1 << 62


@dataclass(frozen=True, eq=False, repr=False)
class FiniteSample:
    """RM of groups measured on more and more models, or rows.

    Attributes
    ----------
    of : 'models' or 'rows'
        What is counted.
    counts : tuple of int
    groups : tuple of str
    draws : tuple of array (D, G)
        For each count: RM of every group in every draw; NaN where it is not defined.
    exact : tuple of bool
        For each count: whether all subsets were gone through, in every group.
    note : str
        What was done.
    """

    of: str
    counts: tuple[int, ...]
    groups: tuple[str, ...]
    draws: tuple[FloatArray, ...] = field(repr=False)
    exact: tuple[bool, ...]
    note: str

    @property
    def mean(self) -> FloatArray:
        """Mean over draws (K, G); NaN where there is none."""
        return np.stack([_over_draws(values, 0) for values in self.draws])

    @property
    def sd(self) -> FloatArray:
        """Standard deviation over draws (K, G): ddof 0 where all subsets were gone through, else 1."""
        both = zip(self.draws, self.exact, strict=True)
        return np.stack([_over_draws(values, 1 if exact else 2) for values, exact in both])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "of": self.of,
            "counts": list(self.counts),
            "groups": list(self.groups),
            "mean": _plain(self.mean),
            "sd": _plain(self.sd),
            "exact": list(self.exact),
            "note": self.note,
        }

    def table(self) -> str:
        """Lay it out as text."""
        width = max(map(len, self.groups))
        lines = [self.note, " " * width + "".join(f"{count:>18}" for count in self.counts)]
        for g, name in enumerate(self.groups):
            cells = [
                "-" if not np.isfinite(m) else f"{m:.4f}" + (f" +- {s:.4f}" if np.isfinite(s) else "")
                for m, s in zip(self.mean[:, g], self.sd[:, g], strict=True)
            ]
            lines.append(f"{name:<{width}}" + "".join(f"{cell:>18}" for cell in cells))
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"FiniteSample(of {self.of}: {', '.join(map(str, self.counts))}, {len(self.groups)} groups)"


def finite_sample_models(
    matrix: FloatArray,
    groups: Mapping[str, Sequence[int]],
    counts: Sequence[int] | None = None,
    *,
    draws: int = 200,
    seed: int = 0,
) -> FiniteSample:
    """Measure the mean over pairs of m models of each group, for m = 2, 3 and so on.

    Parameters
    ----------
    matrix : array (M, M)
        A number for every two models: distances of insides, or differences of predictions.
    groups : mapping of str to sequence of int
        Places of the models.
    counts : sequence of int, optional
        Models of each group; by default 2 up to the size of the smallest group that has two. A group with fewer has
        none.
    draws : int
        So many subsets are drawn for each count (with replacement, from each group on its own), unless no group has
        more. Matrices that go with each other get the same subsets if draws and seed agree.
    seed : int

    Returns
    -------
    FiniteSample
        If all subsets are gone through, their mean is that of all models, whatever m; the SD tells how far one finite
        sample can be off. With groups of different size, those with fewer subsets repeat theirs.

    Examples
    --------
    >>> d = np.array([[0, 1, 2], [1, 0, 6], [2, 6, 0.0]])
    >>> finite_sample_models(d, {"a": [0, 1, 2]}).mean.ravel()
    array([3., 3.])
    """
    draws = checked_count("draws", draws)
    places = checked_groups(list(groups.values()), len(matrix))
    sizes = [len(group) for group in places]
    largest = min((size for size in sizes if size > 1), default=1)
    chosen = tuple(range(2, largest + 1)) if counts is None else tuple(checked_count("counts", c, 2) for c in counts)
    values, exact = [], []
    for count in chosen:
        ways = [math.comb(size, count) for size in sizes]
        everything = max(ways) <= draws and len({way for way in ways if way}) == 1
        number = max(ways) if everything else draws
        columns = np.full((number, len(places)), np.nan)
        for g, group in enumerate(places):
            if count > len(group):
                continue
            weights = np.zeros((number, len(matrix)))
            for row, subset in enumerate(_subsets(len(group), count, number, everything, (seed, count, g))):
                weights[row, group[list(subset)]] = 1
            columns[:, g] = pair_mean(matrix, weights, pairs_within(group))
        values.append(columns)
        exact.append(everything)
    return FiniteSample(
        "models", chosen, tuple(groups), tuple(values), tuple(exact), "mean over pairs of so many models of each group"
    )


def _subsets(size: int, count: int, number: int, everything: bool, seed: tuple[int, ...]) -> Any:
    if everything:
        return itertools.combinations(range(size), count)
    rng = np.random.default_rng(seed)
    return (rng.choice(size, count, replace=False) for _ in range(number))


def finite_sample_rows(
    scores: Mapping[str, Source],
    groups: Mapping[str, Sequence[str]],
    counts: Sequence[int],
    *,
    layers: Mapping[str, Sequence[str]] | None = None,
    draws: int = 5,
    seed: int = 0,
    allow_other_probe: bool = False,
    progress: Progress = "auto",
) -> FiniteSample:
    """Measure RM within groups on random subsets of the probe rows.

    Everything is fitted anew to the rows of a subset, as if there were no others: their mean is taken out, the leading
    directions are found, as many are kept as the rule says, and these are correlated. That needs no neurons, since it
    happens in the coordinates of the stored scores; what it leaves out is what lay outside the directions kept of all
    rows. So a rule by share asks for the same share of the whole, the variance that was cut off taken as the same share
    of the subset's: keep the fewest directions with ``sum s_i^2 >= value / share kept of all rows * sum s^2`` (of s for
    'nuclear'). With all rows that gives the subspaces that are stored, hence the RM of `representational_multiplicity`.

    Parameters
    ----------
    scores, groups, layers, allow_other_probe
        As in `representational_multiplicity`.
    counts : sequence of int
        Rows of a subset. A row is what the scores call one: a position of an image is one if they say so.
    draws : int
        Subsets for each count, without replacement, the same for all models.
    seed : int
    progress
        As in `compare`.

    Returns
    -------
    FiniteSample
        With RM of 'svcca', the plain mean of correlations. NaN where the rows are no more than the directions kept.

    Raises
    ------
    InputError
        As `representational_multiplicity`; scores with a ridge; a count above the number of rows.
    """
    draws = checked_count("draws", draws)
    wanted = tuple(checked_count("counts", count, 3) for count in counts)
    named_groups(groups, list(scores))
    values = [np.full((draws, len(groups)), np.nan) for _ in wanted]
    names = [name for members in groups.values() for name in members]
    blocks = ScoreBlocks(scores, names, layers, _NO_LIMIT, allow_other_probe)
    first = 0
    with progress_bar(progress, len(groups) * len(wanted) * draws, "draw", "RM of fewer rows") as bar:
        for g, members in enumerate(groups.values()):
            block = blocks.open(range(first, first + len(members)))
            first += len(members)
            header = next(iter(block.headers.values()))
            if header.ridge:
                raise InputError("scores: they have a ridge, under which fewer rows cannot be fitted from scores")
            if wanted and max(wanted) > header.n:
                raise InputError(f"counts: got {max(wanted)}, expected at most the {header.n} rows that there are")
            for k, count in enumerate(wanted):
                for d in range(draws):
                    rows = np.sort(np.random.default_rng((seed, count, d)).choice(header.n, count, replace=False))
                    values[k][d, g] = _distance(block, rows)
                    bar.update(1)
    note = "RM within groups on so many rows, all fitted anew in the coordinates of the stored scores"
    return FiniteSample("rows", wanted, tuple(groups), tuple(values), (False,) * len(wanted), note)


def _distance(block: Block, rows: Any) -> float:
    """Mean distance over pairs and layers on some rows; NaN where it is not defined."""
    models = range(len(block.models))
    total, count = 0.0, 0
    for layer, stacked in enumerate(block.stacked):
        some = stacked[rows]
        some -= some.mean(axis=0)
        bases = [_basis(some[:, block.part(layer, i)], block.truncated[layer][i]) for i in models]
        for i, j in itertools.combinations(models, 2):
            if max(bases[i].shape[1], bases[j].shape[1]) >= len(rows) - 1:
                return math.nan
            correlations = np.linalg.svd(bases[i].T @ bases[j], compute_uv=False)
            total, count = total + 1 - float(np.minimum(correlations, 1).mean()), count + 1
    return total / count if count else math.nan


def _basis(rows: FloatArray, kept: Truncated) -> FloatArray:
    """Left singular vectors (n, k) of centered rows, as many as the rule keeps."""
    u, s, _ = np.linalg.svd(rows, full_matrices=False)
    live = int((s > s[0] * max(rows.shape) * np.finfo(np.float64).eps).sum()) if len(s) and s[0] > 0 else 0
    rule = kept.rule
    if rule.name in ("variance", "nuclear") and not rule.keeps_all:
        sizes = s[:live] ** 2 if rule.name == "variance" else s[:live]
        # Rounding must not ask for one direction more than all rows gave.
        share = min(1.0, rule.x / kept.native.share) - 1e-12
        live = min(live, int(np.searchsorted(np.cumsum(sizes) / sizes.sum(), share) + 1)) if live else 0
    return u[:, :live]


def _over_draws(values: FloatArray, what: int) -> FloatArray:
    """Mean (0), or standard deviation with ddof 0 (1) or 1 (2), of the finite draws of each group."""
    result = np.full(values.shape[1], np.nan)
    for g, column in enumerate(values.T):
        some = column[np.isfinite(column)]
        if what == 0 and len(some):
            result[g] = some.mean()
        elif what and len(some) >= what:
            result[g] = some.std(ddof=what - 1)
    return result


def _plain(values: FloatArray) -> list[list[float | None]]:
    return [[float(value) if np.isfinite(value) else None for value in row] for row in values]
