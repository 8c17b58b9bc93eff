"""Ensembles that grow by the model that helps most (arXiv 2110.12899)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamcca._backend import FloatArray
from streamcca.errors import InputError
from streamcca.multiplicity.answers.predictions import BoolArray, IntArray, Kind, Predictions, Rule, block_kind


@dataclass(frozen=True, repr=False)
class GreedyEnsemble:
    """An ensemble that grew by the model that helped most.

    Attributes
    ----------
    name : str
        Of the test set that accuracies were measured on.
    rule : {'probability', 'logit', 'geometric'}
    names : tuple of str
        In the order in which they joined; the first is the start.
    selection_accuracies : tuple of float
        Of the first 1, 2, ... models, on the rows on which they were chosen.
    held_out_accuracies : tuple of float or None
        The same on rows that had no part in the choice; None if there are none.
    best_size : int
        The smallest size with the largest accuracy on the rows of the choice.
    selection_rows, held_out_rows : int
    note : str
        Which of the accuracies are biased, and how.
    """

    name: str
    rule: Rule
    names: tuple[str, ...]
    selection_accuracies: tuple[float, ...]
    held_out_accuracies: tuple[float, ...] | None
    best_size: int
    selection_rows: int
    held_out_rows: int
    note: str

    @property
    def best(self) -> tuple[str, ...]:
        """The first `best_size` models."""
        return self.names[: self.best_size]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        held_out = self.held_out_accuracies
        return {
            **vars(self),
            "names": list(self.names),
            "selection_accuracies": list(self.selection_accuracies),
            "held_out_accuracies": None if held_out is None else list(held_out),
        }

    def table(self) -> str:
        """Return a line for each model that joined."""
        width = max(map(len, self.names))
        lines = [f"{'':{width + 4}} chosen on   held out"]
        for i, name in enumerate(self.names):
            held_out = "" if self.held_out_accuracies is None else f"{self.held_out_accuracies[i]:11.4f}"
            mark = " *" if i + 1 == self.best_size else ""
            lines.append(f"{i + 1:>3} {name:<{width}} {self.selection_accuracies[i]:10.4f}{held_out}{mark}")
        return "\n".join([*lines, self.note])

    def __repr__(self) -> str:
        """Return one line."""
        path = self.selection_accuracies if self.held_out_accuracies is None else self.held_out_accuracies
        kind = "on the rows of the choice" if self.held_out_accuracies is None else "held out"
        return (
            f"GreedyEnsemble({self.names[0]!r} {path[0]:.4f} to {path[self.best_size - 1]:.4f} with {self.best_size} "
            f"models, {kind})"
        )


_BIASED = (
    "selection accuracies are those that the choice maximized, so they are too high, the more so the more candidates "
    "and the fewer rows there are"
)


def greedy_ensemble(
    predictions: Predictions,
    start: str,
    candidates: Sequence[str] | None = None,
    *,
    rule: Rule = "probability",
    size: int | None = None,
    selection: Predictions | ArrayLike | None = None,
    rows: int | None = None,
) -> GreedyEnsemble:
    """Start from one model and add, one by one, the model that raises the ensemble's accuracy most.

    Parameters
    ----------
    predictions : Predictions
        With labels.
    start : str
    candidates : sequence of str, optional
        Models that may join, each once; by default all others. Of equally good ones the first joins.
    rule
        See `pair_ensemble`.
    size : int, optional
        How many models at most; by default all candidates join, and `best_size` tells where to stop.
    selection : Predictions, or array_like (N,) of bool, optional
        What to choose on: predictions of the same models for other rows (then all rows of `predictions` are held out),
        or which of the rows (then the others are held out). By default all rows, and nothing is held out.
    rows : int, optional
        Rows of a block.

    Returns
    -------
    GreedyEnsemble

    Raises
    ------
    InputError
        If models are unknown or given twice, sizes or the mask do not fit, or labels are missing.

    Notes
    -----
    arXiv 2110.12899 adds models of low accuracy to one of high accuracy until the accuracy falls, and
    measures on the rows of the choice. Here the path goes on, as it may rise again, and held-out rows measure it.

    Examples
    --------
    >>> p = Predictions.of_logits(
    ...     {"a": [[3, 0], [0, 1.0]], "b": [[0, 1.0], [0, 1]], "c": [[0, 1], [9, 0.0]]}, labels=[0, 1]
    ... )
    >>> greedy_ensemble(p, "b").names
    ('b', 'a', 'c')
    """
    kind = block_kind(rule)
    others = [name for name in predictions.names if name != start] if candidates is None else list(candidates)
    order = [predictions.index(name) for name in (start, *others)]
    if len(set(order)) < len(order):
        raise InputError(f"candidates: got {others!r} with start {start!r}, expected other models, each once")
    chosen_on, mask = _selection(predictions, selection)
    limit = len(order) if size is None else size
    if isinstance(limit, bool) or not isinstance(limit, int | np.integer) or not 1 <= limit <= len(order):
        raise InputError(f"size: got {size!r}, expected 1 to {len(order)} models, the start among them")
    pool = chosen_on.select([predictions.names[i] for i in order])
    members, left = [0], list(range(1, len(order)))
    while len(members) < limit:
        hits = _joined_hits(pool, members, left, kind, mask, rows)
        members.append(left.pop(int(np.argmax(hits))))
    names = tuple(pool.names[i] for i in members)
    count = chosen_on.n if mask is None else int(np.count_nonzero(mask))
    path = _path_hits(chosen_on.select(names), kind, mask, rows)
    held_out, held_rows = None, 0
    if chosen_on is not predictions or mask is not None:
        other = None if mask is None else ~mask
        held_rows = predictions.n if other is None else int(np.count_nonzero(other))
        held_out = tuple(float(hits / held_rows) for hits in _path_hits(predictions.select(names), kind, other, rows))
    more = "" if held_out is not None else "; no rows were held out to measure on (give selection=)"
    return GreedyEnsemble(
        name=predictions.name,
        rule=rule,
        names=names,
        selection_accuracies=tuple(float(hits / count) for hits in path),
        held_out_accuracies=held_out,
        best_size=int(np.argmax(path)) + 1,
        selection_rows=count,
        held_out_rows=held_rows,
        note=_BIASED + more,
    )


def _selection(
    predictions: Predictions, selection: Predictions | ArrayLike | None
) -> tuple[Predictions, BoolArray | None]:
    """Predictions to choose on, and which of their rows; None for all."""
    _ = predictions.known_labels
    if selection is None:
        return predictions, None
    if isinstance(selection, Predictions):
        _ = selection.known_labels
        return selection, None
    mask = np.asarray(selection)
    if mask.dtype != np.bool_ or mask.shape != (predictions.n,):
        raise InputError(
            f"selection: got {mask.dtype} of shape {mask.shape}, expected Predictions, or ({predictions.n},) booleans"
        )
    if mask.all() or not mask.any():
        raise InputError(
            f"selection: got {'all' if mask.any() else 'no'} rows, expected some to choose on, some held out"
        )
    return predictions, mask


def _masked(
    predictions: Predictions, kind: Kind, mask: BoolArray | None, rows: int | None
) -> Iterator[tuple[slice, FloatArray, NDArray[Any], IntArray]]:
    """Go through the rows in the mask: where, scores (M, b, C), which of the block's rows, their labels."""
    labels = predictions.known_labels
    for where, block in predictions.blocks(rows, kind):
        inside = np.ones(block.shape[1], dtype=np.bool_) if mask is None else mask[where]
        if inside.any():
            yield where, block[:, inside], inside, labels[where][inside]


def _joined_hits(
    pool: Predictions, members: list[int], left: list[int], kind: Kind, mask: BoolArray | None, rows: int | None
) -> IntArray:
    """Rows that the members get right with each of those left."""
    hits = np.zeros(len(left), dtype=np.int64)
    for _, block, _, labels in _masked(pool, kind, mask, rows):
        together = block[members[0]].copy()
        for i in members[1:]:
            together += block[i]
        for j, i in enumerate(left):
            hits[j] += np.count_nonzero(np.argmax(together + block[i], axis=1) == labels)
    return hits


def _path_hits(chosen: Predictions, kind: Kind, mask: BoolArray | None, rows: int | None) -> IntArray:
    """Rows that the first 1, 2, ... models get right together."""
    hits = np.zeros(len(chosen), dtype=np.int64)
    for where, block, inside, labels in _masked(chosen, kind, mask, rows):
        hits[0] += np.count_nonzero(chosen.votes[0, where][inside] == labels)
        together = block[0].copy()
        for i in range(1, len(block)):
            together += block[i]
            hits[i] += np.count_nonzero(np.argmax(together, axis=1) == labels)
    return hits
