"""Saved scores of many models, opened a block of models at a time, and all pairs of models of one layer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import InputError
from streamcca.scores import SubspaceScores
from streamcca.subspace import Rule, Truncated
from streamcca.views import unknown_name

Source = SubspaceScores | str | os.PathLike[str]
# What a model of a block takes of the budget, in sizes of its file: two blocks are held, each with the scores stacked
# and the directions (2), a layer twice while it is stacked, a file and what is read of it. Measured, resident memory,
# 40 files of 4.6 MiB: 109 MiB where this counts 115.
_HELD = 5


@dataclass(frozen=True)
class Header:
    """What must agree between models, and what is told of them."""

    name: str
    layers: tuple[str, ...]
    ranks: tuple[int, ...]
    n: int
    rows: str
    rule: Rule
    ridge: float


@dataclass
class Block:
    """Some models: of each layer, the rows' projections side by side."""

    models: tuple[int, ...]
    stacked: list[FloatArray] = field(repr=False)
    offsets: list[FloatArray] = field(repr=False)
    truncated: list[list[Truncated]] = field(repr=False)
    headers: dict[int, Header] = field(repr=False)

    def part(self, layer: int, i: int) -> slice:
        """Columns of the i-th model of the block."""
        return slice(int(self.offsets[layer][i]), int(self.offsets[layer][i + 1]))


class ScoreBlocks:
    """Opens scores of models block by block.

    Parameters
    ----------
    scores : mapping of str to SubspaceScores or path
    names : sequence of str
        The models that are wanted, in order.
    layers : None or mapping of str to sequence of str
        Of each model, the layers to take, compared by position; None takes all, which must have the same names.
    memory : int
        Bytes that may be held at a time; at least one model a block is.
    allow_other_probe : bool
        As in `compare`.
    """

    def __init__(
        self,
        scores: Mapping[str, Source],
        names: Sequence[str],
        layers: Mapping[str, Sequence[str]] | None,
        memory: int,
        allow_other_probe: bool = False,
    ) -> None:
        if isinstance(memory, bool) or not isinstance(memory, int) or memory < 1:
            raise InputError(f"memory: got {memory!r}, expected a number of bytes, such as 512 << 20")
        for name in names:
            if name not in scores:
                raise InputError(unknown_name("model", name, scores))
            if layers is not None and name not in layers:
                raise InputError(f"layers: got none for model {name!r}, expected those of every model")
        self._scores, self._names, self._chosen = scores, tuple(names), layers
        self._allow_other_probe = allow_other_probe
        self._first: SubspaceScores | None = None
        self.labels: tuple[str, ...] = ()
        largest = max(_size(scores[name]) for name in names)
        count = max(1, min(len(names), memory // (_HELD * largest)))
        places = range(len(names))
        self.blocks = [tuple(places[first : first + count]) for first in range(0, len(names), count)]

    def pairs(self) -> Iterator[tuple[Block, Block]]:
        """Every two blocks, also each with itself; a file is read once for each block before its own, and once more."""
        for i, mine in enumerate(self.blocks):
            block = self.open(mine)
            yield block, block
            for other in self.blocks[i + 1 :]:
                yield block, self.open(other)

    def open(self, models: Sequence[int]) -> Block:
        """Read some models."""
        projections: list[list[FloatArray]] = []
        truncated: list[list[Truncated]] = []
        headers = {}
        for place in models:
            name = self._names[place]
            source = self._scores[name]
            found = source if isinstance(source, SubspaceScores) else SubspaceScores.load(source)
            chosen = self._check(name, found)
            layers = [found[layer] for layer in chosen]
            headers[place] = Header(
                name,
                chosen,
                tuple(found.ranks[layer] for layer in chosen),
                found.n,
                found.rows,
                found.rule,
                found.ridge,
            )
            projections = projections or [[] for _ in layers]
            truncated = truncated or [[] for _ in layers]
            for i, layer in enumerate(layers):
                projections[i].append(layer.projections)
                truncated[i].append(layer.truncated)
        offsets = [np.cumsum([0, *(x.shape[1] for x in parts)]) for parts in projections]
        stacked = []
        for i, parts in enumerate(projections):
            stacked.append(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1))
            projections[i] = []
        return Block(tuple(models), stacked, offsets, truncated, headers)

    def _check(self, name: str, scores: SubspaceScores) -> tuple[str, ...]:
        """Refuse a model that does not go with the first; return its layers."""
        chosen = tuple(scores.layers) if self._chosen is None else tuple(self._chosen[name])
        for layer in chosen:
            scores[layer]
        if self._first is None:
            if not chosen:
                raise InputError(f"layers: got none of model {name!r}, expected at least one")
            self.labels = chosen
            # Only what the checks look at: the arrays of the first model are not kept.
            self._first = SubspaceScores(name, {}, scores.n, scores.rows, scores.rule, scores.ridge, scores.probe)
            return chosen
        first = self._first
        if len(chosen) != len(self.labels) or (self._chosen is None and chosen != self.labels):
            raise InputError(
                f"layers: model {name!r} has {', '.join(chosen)}, and {first.name!r} {', '.join(self.labels)}, not "
                "the same; name as many of each model, in order: layers={model: [...]}"
            )
        first.check_same_rows(scores, self._allow_other_probe)
        if scores.rule != first.rule:
            raise InputError(
                f"scores {first.name!r} and {name!r} are cut by {first.rule} and {scores.rule}; make them by one rule"
            )
        return chosen


def _size(source: Source) -> int:
    if isinstance(source, SubspaceScores):
        return max(1, source.nbytes)
    try:
        return max(1, os.stat(source).st_size)
    except FileNotFoundError:
        return 1  # the reader says so in its own words
