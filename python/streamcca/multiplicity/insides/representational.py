"""Representational multiplicity: how different the insides of models are, within and between groups of models.

After Heljakka, Trapp, Kannala and Solin, "Disentangling Model Multiplicity in Deep Learning" (arXiv 2206.08890), of
which only the abstract is known to us: it measures by SVCCA how similar the activations of equally good models are. The
formulas are ours:

    d_ab(l) = 1 - similarity of layer l of models a and b on the same rows
    RM_l(g) = mean of d_ab(l) over all pairs a < b of group g            RM(g) = mean of RM_l(g) over the layers
    RM_l(g, h) = mean of d_ab(l) over a in g, b in h                     excess(g, h) = RM(g, h) - (RM(g) + RM(h)) / 2
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from streamcca import _backend
from streamcca._backend import FloatArray
from streamcca.errors import AccuracyError, StreamCCAWarning, UnderdeterminedError
from streamcca.multiplicity.checks import checked_count, checked_level
from streamcca.multiplicity.insides.rm_result import BetweenGroups, RepresentationalMultiplicity, WithinGroup
from streamcca.multiplicity.insides.score_blocks import Block, Header, ScoreBlocks, Source
from streamcca.multiplicity.relation.resampling import (
    Estimate,
    IntArray,
    IntervalMethod,
    jackknife,
    model_weights,
    named_groups,
    pair_mean,
    pairs_between,
    pairs_within,
    percentiles,
)
from streamcca.pairing import CORRELATIONS, Measure, Progress, result_of
from streamcca.sources import progress_bar
from streamcca.subspace import Truncated
from streamcca.views import check_option

MEMORY = 512 << 20


def representational_multiplicity(
    scores: Mapping[str, Source],
    groups: Mapping[str, Sequence[str]],
    *,
    layers: Mapping[str, Sequence[str]] | None = None,
    measure: Measure = "svcca",
    level: float = 0.95,
    method: IntervalMethod = "jackknife",
    draws: int = 2000,
    seed: int = 0,
    memory: int = MEMORY,
    allow_underdetermined: bool = False,
    allow_inaccurate: bool = False,
    allow_other_probe: bool = False,
    progress: Progress = "auto",
) -> RepresentationalMultiplicity:
    """Measure how different the insides of models are, layer by layer, within and between groups.

    Every layer of every model is compared with the same layer of every other model, from scores alone: neither models
    nor data are needed any more. Numbers, warnings and refusals are those of `SubspaceScores.pair`.

    Parameters
    ----------
    scores : mapping of str to SubspaceScores or path
        Of every model on the same rows: what `subspace_scores` gave, or the path it was saved to. Files are opened a
        block of models at a time, so that memory does not grow with the number of models (but for 8 bytes a pair and
        layer).
    groups : mapping of str to sequence of str
        The models of each group; no model in two.
    layers : mapping of str to sequence of str, optional
        Of each model, the layers to compare, by position: architectures name theirs differently. By default all, which
        must then have the same names in all models.
    measure : 'svcca', 'cca' or 'pwcca'
        What is said of two layers' kept directions: the plain mean of correlations ('svcca' of scores that were cut,
        'cca' of scores that were not), or the one weighted by projection. As the latter is not symmetric, the mean of
        both sides is taken (ours).
    level, method, draws, seed
        Intervals by leaving out ('jackknife') or resampling ('percentile') models; see `resampling`. Draws and seed
        matter to 'percentile' only.
    memory : int
        Bytes of scores that may be held at a time (at least two models are).
    allow_underdetermined, allow_inaccurate, allow_other_probe
        As in `compare`.
    progress
        As in `compare`.

    Returns
    -------
    RepresentationalMultiplicity

    Raises
    ------
    InputError, LayerError, ReplayError
        Unknown names; models that have other layers, other rows, another rule or ridge.
    UnderdeterminedError, AccuracyError
        As in `svcca`.

    Warns
    -----
    StreamCCAWarning
        Once for each kind, however many pairs it concerns.

    Examples
    --------
    >>> import torch
    >>> from streamcca import subspace_scores
    >>> exact = {"precision": "float64"}
    >>> probe, nets = torch.randn(300, 8), [torch.nn.Sequential(torch.nn.Linear(8, 6)) for _ in range(4)]
    >>> scores = {str(i): subspace_scores(net, probe, rank=3, **exact) for i, net in enumerate(nets)}
    >>> rm = representational_multiplicity(scores, {"a": ["0", "1"], "b": ["2", "3"]})
    >>> rm.distances.shape
    (1, 4, 4)
    """
    check_option("measure", measure, CORRELATIONS)
    check_option("method", method, get_args(IntervalMethod))
    level, draws = checked_level(level), checked_count("draws", draws)
    named_groups(groups, list(scores))
    names = tuple(name for members in groups.values() for name in members)
    places = named_groups(groups, names)
    blocks = ScoreBlocks(scores, names, layers, memory, allow_other_probe)
    pairs = _Pairs(
        len(names),
        measure,
        {"allow_underdetermined": allow_underdetermined, "allow_inaccurate": allow_inaccurate},
    )
    total = len(names) * (len(names) - 1) // 2
    with progress_bar(progress, total, "pair", f"{measure} of {len(names)} models") as bar:
        for x, y in blocks.pairs():
            pairs.add(x, y, bar)
    pairs.tell(stacklevel=2)
    about = {"level": level, "method": method, "draws": draws if method == "percentile" else None, "seed": seed}
    within, between = _summaries(pairs.distances, pairs.chance, places, about)
    first = pairs.headers[0]
    rows = " / ".join(dict.fromkeys(pairs.headers[i].rows for i in range(len(names))))
    return RepresentationalMultiplicity(
        names=names,
        groups=places,
        layers=blocks.labels,
        distances=pairs.distances,
        chance=pairs.chance,
        error_bounds=pairs.bounds,
        ranks=np.array([pairs.headers[i].ranks for i in range(len(names))], dtype=np.int64).T,
        within=within,
        between=between,
        measure=measure,
        rule=str(first.rule),
        ridge=first.ridge,
        rows=rows,
        n=first.n,
        level=level,
        method=method,
        warnings=pairs.sentences(),
    )


class _Pairs:
    """Fills the matrices of all layers, block against block."""

    def __init__(self, models: int, measure: Measure, options: dict[str, Any]) -> None:
        self._measure, self._options, self._models = measure, options, models
        self._sides = ("x", "y") if measure == "pwcca" else ("",)
        self.headers: dict[int, Header] = {}
        self.distances = self.chance = self.bounds = np.zeros((0, models, models))
        # By kind: how many notes, and the first.
        self._notes: dict[type[StreamCCAWarning], tuple[int, str]] = {}

    def add(self, x: Block, y: Block, bar: Any) -> None:
        """Compare every model of one block with every one of another, or of the same."""
        self.headers |= x.headers | y.headers
        if not len(self.distances):
            shape = (len(x.stacked), self._models, self._models)
            self.distances, self.chance, self.bounds = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        count = len(x.stacked)
        for layer in range(count):
            cross = x.stacked[layer].T @ y.stacked[layer]
            for i, a in enumerate(x.models):
                rows = cross[x.part(layer, i)] / (x.truncated[layer][i].n - 1)
                for j, b in enumerate(y.models):
                    if a < b:
                        self._compare(layer, (x, i), (y, j), np.ascontiguousarray(rows[:, y.part(layer, j)]))
                        bar.update(1 / count)

    def _compare(self, layer: int, one: tuple[Block, int], other: tuple[Block, int], cross: FloatArray) -> None:
        (x, i), (y, j) = one, other
        a, b = x.models[i], y.models[j]
        left, right = x.truncated[layer][i], y.truncated[layer][j]
        found = _backend.canonical(left.native, right.native, cross, kept=True)
        similarity = chance = bound = 0.0
        for side in self._sides:
            mean, null, error = self._similarity(left, right, found, side, (x.headers[a], y.headers[b], layer))
            similarity, chance, bound = similarity + mean, chance + null, bound + error
        sides = len(self._sides)
        for matrix, value in (
            (self.distances, 1 - similarity / sides),
            (self.chance, chance / sides),
            (self.bounds, bound / sides),
        ):
            matrix[layer, a, b] = matrix[layer, b, a] = value

    def _similarity(
        self, x: Truncated, y: Truncated, found: _backend.Canonical, side: str, where: tuple[Header, Header, int]
    ) -> tuple[float, float, float]:
        a, b, layer = where
        numbers = _backend.compare(x.native, y.native, found, side)
        try:
            result, notes = result_of(x, y, numbers, measure=self._measure, side=side, ridge=a.ridge, **self._options)
        except (AccuracyError, UnderdeterminedError) as error:
            raise type(error)(f"models {a.name!r} and {b.name!r}: {error}") from None
        for note in notes:
            known, text = self._notes.get(type(note), (0, ""))
            text = text or f"layers {a.name}:{a.layers[layer]} and {b.name}:{b.layers[layer]}: {note}"
            self._notes[type(note)] = known + 1, text
        return result.mean, result.null_mean, result.error_bound

    def sentences(self) -> tuple[str, ...]:
        """One sentence for each kind of note."""
        return tuple(
            text + (f" (and {count - 1} more such notes)" if count > 1 else "") for count, text in self._notes.values()
        )

    def tell(self, stacklevel: int) -> None:
        """Warn once for each kind."""
        for kind, text in zip(self._notes, self.sentences(), strict=True):
            warnings.warn(kind(text), stacklevel=stacklevel + 1)


def _estimates(
    matrices: FloatArray, terms: Any, groups: list[tuple[int, ...]], about: Mapping[str, Any]
) -> list[Estimate]:
    """Intervals of sums of means over pairs, for every matrix (L, M, M); `terms` are factors with the pairs."""

    def statistic(weights: FloatArray) -> FloatArray:
        total: FloatArray = sum(factor * pair_mean(matrices, weights, pairs) for factor, pairs in terms)
        return total

    models = matrices.shape[-1]
    if about["method"] == "jackknife":
        return jackknife(statistic, groups, models, about["level"])
    places = [[*group] for group in groups]
    weights = model_weights(places, about["draws"], about["seed"])
    weights = np.pad(weights, ((0, 0), (0, models - weights.shape[1])))
    return percentiles(statistic, groups, models, about["level"], weights)


def _summaries(
    distances: FloatArray, chance: FloatArray, groups: Mapping[str, tuple[int, ...]], about: Mapping[str, Any]
) -> tuple[dict[str, WithinGroup], dict[tuple[str, str], BetweenGroups]]:
    # Of the mean over layers, of every layer, and of the distances in terms of those that chance leaves.
    relative = _relative(distances, chance)
    matrices = np.concatenate([distances.mean(axis=0)[None], distances, relative.mean(axis=0)[None]])
    within = {}
    for name, members in groups.items():
        pairs = pairs_within(members)
        mean, *per_layer, scaled = _estimates(matrices, [(1.0, pairs)], [members], about)
        within[name] = WithinGroup(
            name, len(members), len(pairs), mean, _sd(matrices[0], pairs), tuple(per_layer), scaled
        )
    between = {}
    named = list(groups.items())
    for k, (g, a) in enumerate(named):
        for h, b in named[k + 1 :]:
            pairs = pairs_between(a, b)
            mean, *per_layer, scaled = _estimates(matrices, [(1.0, pairs)], [a, b], about)
            terms = [(1.0, pairs), (-0.5, pairs_within(a)), (-0.5, pairs_within(b))]
            excess, *excess_per_layer, _ = _estimates(matrices, terms, [a, b], about)
            between[g, h] = BetweenGroups(
                (g, h),
                len(pairs),
                mean,
                _sd(matrices[0], pairs),
                tuple(per_layer),
                scaled,
                excess,
                tuple(excess_per_layer),
            )
    return within, between


def _relative(distances: FloatArray, chance: FloatArray) -> FloatArray:
    """Distances as shares of those of unrelated representations; 1 where chance leaves no distance at all."""
    room = 1 - chance
    return np.divide(distances, room, out=np.ones_like(distances), where=room > 0)


def _sd(matrix: FloatArray, pairs: IntArray) -> float | None:
    values = matrix[pairs[:, 0], pairs[:, 1]]
    return float(values.std(ddof=1)) if len(values) > 1 else None
