"""A measure of every view with every other: a labeled matrix, clustered, written, drawn, with intervals."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import InputError, StreamCCAWarning
from streamcca.gram import Gram
from streamcca.moments import Moments
from streamcca.similarity.canonical import exchanged
from streamcca.similarity.declare import MEASURES
from streamcca.similarity.form import Former, check_measure, check_taken
from streamcca.similarity.groups import GroupMoments
from streamcca.similarity.intervals import Interval, sample, sampled_interval
from streamcca.similarity.named import options_of_measures, rule_of, tell
from streamcca.similarity.result import SimilarityResult
from streamcca.sources import progress_bar
from streamcca.store import write_atomically
from streamcca.views import unknown_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Cell = SimilarityResult | Interval


@dataclass(frozen=True, eq=False, repr=False)
class SimilarityMatrix:
    """One measure of views with views: rows are `names_a`, columns `names_b`.

    Attributes
    ----------
    measure : str
        A key of `MEASURES`.
    names_a, names_b : tuple of str
    cells : tuple of tuple of SimilarityResult or Interval
    n : int or float
        Number of rows that every cell rests on.
    """

    measure: str
    names_a: tuple[str, ...]
    names_b: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...] = field(repr=False)
    n: int | float

    def __getitem__(self, names: tuple[str, str]) -> Cell:
        if not isinstance(names, tuple) or len(names) != 2:
            raise InputError(f"got {names!r}, expected matrix[name of a row, name of a column]")
        for name, known in zip(names, (self.names_a, self.names_b), strict=True):
            if name not in known:
                raise InputError(unknown_name("view", name, list(known)))
        return self.cells[self.names_a.index(names[0])][self.names_b.index(names[1])]

    def _numbers(self, attribute: str) -> FloatArray:
        return np.array([[getattr(cell, attribute) for cell in row] for row in self.cells], dtype=np.float64)

    @property
    def matrix(self) -> FloatArray:
        """The numbers (rows, columns); with intervals, the estimates."""
        return self._numbers("estimate" if self.has_intervals else "mean")

    @property
    def null_matrix(self) -> FloatArray:
        """Chance level of each."""
        return self._numbers("null_mean")

    @property
    def has_intervals(self) -> bool:
        """Whether the cells are intervals."""
        return isinstance(self.cells[0][0], Interval)

    @property
    def low(self) -> FloatArray:
        """Lower ends of the intervals."""
        self._check_intervals()
        return self._numbers("low")

    @property
    def high(self) -> FloatArray:
        """Upper ends of the intervals."""
        self._check_intervals()
        return self._numbers("high")

    def _check_intervals(self) -> None:
        if not self.has_intervals:
            raise InputError("this matrix has no intervals; give GroupMoments, and intervals=True")

    def order(self) -> list[int]:
        """Return the order of the names in which alike ones are neighbors (average linkage, optimal leaves).

        Raises
        ------
        InputError
            Rows and columns are different views.
        """
        from scipy.cluster.hierarchy import leaves_list, linkage
        from scipy.spatial.distance import squareform

        if self.names_a != self.names_b:
            raise InputError("order: rows and columns are different views; an order needs each view with each")
        if len(self.names_a) < 3:
            return list(range(len(self.names_a)))
        matrix = (self.matrix + self.matrix.T) / 2
        distance = matrix if MEASURES[self.measure].kind == "distance" else matrix.max() - matrix
        np.fill_diagonal(distance, 0)
        tree = linkage(squareform(np.maximum(distance, 0), checks=False), "average", optimal_ordering=True)
        return [int(i) for i in leaves_list(tree)]

    def reordered(self, order: Sequence[int]) -> SimilarityMatrix:
        """Return the same with rows and columns in another order."""
        if sorted(order) != list(range(len(self.names_a))) or self.names_a != self.names_b:
            raise InputError(f"order: got {list(order)!r}, expected each of 0 .. {len(self.names_a) - 1} once")
        names = tuple(self.names_a[i] for i in order)
        cells = tuple(tuple(self.cells[i][j] for j in order) for i in order)
        return SimilarityMatrix(self.measure, names, names, cells, self.n)

    def records(self) -> list[dict[str, Any]]:
        """Return one plain mapping for each cell: names, number, chance level, and bounds or interval."""
        keys = ("low", "high", "standard_error", "plain", "effective_rows") if self.has_intervals else ("error_bound",)
        return [
            {"a": a, "b": b, self.measure: self.matrix[i, j], "null_mean": self.cells[i][j].null_mean}
            | {key: getattr(self.cells[i][j], key) for key in keys}
            for i, a in enumerate(self.names_a)
            for j, b in enumerate(self.names_b)
        ]

    def to_pandas(self) -> Any:
        """Return the numbers as a DataFrame with the names as labels."""
        try:
            import pandas as pd  # type: ignore[import-untyped,unused-ignore]
        except ImportError:
            raise ImportError("to_pandas needs pandas; install pandas, or use to_csv") from None
        return pd.DataFrame(self.matrix, index=list(self.names_a), columns=list(self.names_b))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write `records` as a table, complete or not at all.

        Raises
        ------
        StorageError
        """
        text, records = io.StringIO(newline=""), self.records()
        writer = csv.DictWriter(text, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
        write_atomically(Path(path), text.getvalue().encode())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "measure": self.measure,
            "names_a": list(self.names_a),
            "names_b": list(self.names_b),
            "n": self.n,
            "matrix": self.matrix.tolist(),
            "null_matrix": self.null_matrix.tolist(),
            "cells": [[cell.to_dict() for cell in row] for row in self.cells],
        }

    def table(self) -> str:
        """Return the matrix as text, with the intervals if there are any."""
        text = [
            [
                f"{c.estimate:.3f} [{c.low:.3f}, {c.high:.3f}]" if isinstance(c, Interval) else f"{c.mean:.3f}"
                for c in row
            ]
            for row in self.cells
        ]
        width = max(7, *(len(cell) for row in text for cell in row), *map(len, self.names_b)) + 2
        left = max(map(len, self.names_a))
        lines = [" " * left + "".join(name.rjust(width) for name in self.names_b)]
        lines += [
            a.ljust(left) + "".join(c.rjust(width) for c in row) for a, row in zip(self.names_a, text, strict=True)
        ]
        lines.append(
            f"{self.measure}, n = {self.n}; chance {self.null_matrix.min():.3f} to {self.null_matrix.max():.3f}"
        )
        return "\n".join(lines)

    def plot(self, clustered: bool = False, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw the matrix as a heat map; `clustered` puts alike views side by side."""
        from streamcca.plots import plot_similarities

        return plot_similarities(self.reordered(self.order()) if clustered else self, ax=ax)

    def __repr__(self) -> str:
        values = self.matrix
        return (
            f"SimilarityMatrix({self.measure}, {len(self.names_a)} x {len(self.names_b)}, n={self.n}, "
            f"{values.min():.3f} to {values.max():.3f})"
        )


def similarity_matrix(
    data: Moments | Gram | GroupMoments,
    measures: str | Iterable[str] = "svcca",
    names: Sequence[str] | None = None,
    names_b: Sequence[str] | None = None,
    *,
    intervals: bool = False,
    level: float = 0.95,
    corrected: bool = True,
    variance: float | None = None,
    nuclear: float | None = None,
    rank: int | None = None,
    alpha: float = 0.5,
    bandwidth: float = 0.5,
    correlation: str = "spearman",
    allow_underdetermined: bool = False,
    allow_inaccurate: bool = False,
    progress: Any = "auto",
) -> Any:
    """Form measures of every view with every other; what is found in a view or a pair serves all cells and measures.

    Parameters
    ----------
    data : Moments, Gram or GroupMoments
        What was counted, of all views: `watch(...).moments`, `accumulate`, `gram`, `GroupMoments`.
    measures : str or iterable of str
        Keys of `MEASURES`; several give a mapping from name to matrix.
    names, names_b : sequence of str, optional
        Views in the rows and, if they differ, in the columns; by default all.
    intervals, level, corrected
        With `GroupMoments`: cells are `interval`s instead of numbers.
    variance, nuclear, rank, alpha, bandwidth, correlation, allow_underdetermined, allow_inaccurate
        As in `similarity`.
    progress : 'auto' or bool
        Progress bar on stderr.

    Returns
    -------
    SimilarityMatrix, or dict of str to SimilarityMatrix

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> a, b = rng.standard_normal((500, 4)), rng.standard_normal((500, 6))
    >>> m = Moments({"a": 4, "b": 6, "c": 4})
    >>> m.update(a=a, b=b, c=a @ rng.standard_normal((4, 4)) + 0.1 * rng.standard_normal((500, 4)))
    >>> found = similarity_matrix(m, "cca")
    >>> found["a", "c"].mean > 0.9, found.order()
    (True, [1, 0, 2])
    """
    wanted = [check_measure(measures)] if isinstance(measures, str) else [check_measure(name) for name in measures]
    rows = _known(names, data.views)
    columns = rows if names_b is None else _known(names_b, data.views)
    if intervals and not isinstance(data, GroupMoments):
        raise InputError(
            f"intervals: got {type(data).__name__}, expected GroupMoments, whose parts say how far rows scatter"
        )
    options = options_of_measures(alpha, bandwidth, correlation)
    rule = rule_of(variance, nuclear, rank)
    check_taken(wanted, rule)
    pairing = {"ridge": 0.0, "allow_underdetermined": allow_underdetermined, "allow_inaccurate": allow_inaccurate}
    state = data.total if isinstance(data, GroupMoments) else data
    former = Former(state, rule, pairing, options)
    sampled = sample(data, former, corrected) if isinstance(data, GroupMoments) and intervals else None
    notes: list[StreamCCAWarning] = []
    cells: dict[str, dict[tuple[str, str], Cell]] = {name: {} for name in wanted}
    with progress_bar(progress, len(rows) * len(columns), "pair", "similarities") as bar:
        for a in rows:
            for b in columns:
                pair = former.pair(a, b)
                for name in wanted:
                    mirrored = cells[name].get((b, a)) if MEASURES[name].symmetric else None
                    if mirrored is not None:
                        cells[name][a, b] = _mirrored(mirrored)
                    elif sampled is not None:
                        cells[name][a, b] = sampled_interval(sampled, name, pair, level)
                    else:
                        cells[name][a, b] = pair.form(name)
                notes += [note for note in pair.notes if str(note) not in map(str, notes)]
                bar.update(1)
    tell(notes, 2)
    matrices = {
        name: SimilarityMatrix(
            name, tuple(rows), tuple(columns), tuple(tuple(found[a, b] for b in columns) for a in rows), data.n
        )
        for name, found in cells.items()
    }
    return matrices[wanted[0]] if isinstance(measures, str) else matrices


def _mirrored(cell: Cell) -> Cell:
    """Return a cell of a symmetric measure with its views in the other order."""
    if isinstance(cell, Interval):
        return cell
    detail = None if cell.detail is None else exchanged(cell.detail)
    return replace(cell, width_x=cell.width_y, width_y=cell.width_x, detail=detail)


def _known(names: Sequence[str] | None, views: Mapping[str, int]) -> list[str]:
    if names is None:
        return list(views)
    if isinstance(names, str):
        raise InputError(f"names: got {names!r}, expected a list of views")
    for name in names:
        if name not in views:
            raise InputError(unknown_name("view", name, list(views)))
    if not names or len(set(names)) != len(names):
        raise InputError(f"names: got {list(names)!r}, expected at least one view, each once")
    return list(names)
