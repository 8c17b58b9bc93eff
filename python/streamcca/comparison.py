"""Grids of results: every layer of one model with every layer of another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import InputError, LayerError
from streamcca.views import unknown_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Cells:
    """A grid of results, and the matrices of their numbers: rows and columns are those of `results`."""

    # `CCAResult`s, or results of other measures, or intervals: all have mean, null_mean, error_bound and to_dict.
    results: tuple[tuple[Any, ...], ...]

    def _matrix(self, attribute: str) -> FloatArray:
        return np.array([[getattr(cell, attribute) for cell in row] for row in self.results], dtype=np.float64)

    @property
    def matrix(self) -> FloatArray:
        """Similarity of each cell."""
        return self._matrix("mean")

    @property
    def null_matrix(self) -> FloatArray:
        """Chance level of each cell."""
        return self._matrix("null_mean")

    @property
    def error_bounds(self) -> FloatArray:
        """Error bound of each cell."""
        return self._matrix("error_bound")


@dataclass(frozen=True, eq=False, repr=False)
class LayerComparison(Cells):
    """Similarity of every layer of one model with every layer of another.

    Attributes
    ----------
    measure : str
        The measure in the cells.
    layers_a, layers_b : tuple of str
        Layer names of model a (rows) and b (columns).
    results : tuple of tuple of CCAResult, SimilarityResult or Interval
        One result per cell.
    n : int
        Number of rows that every cell rests on.
    rows : str
        What a row is: 'samples', 'positions', 'tokens', 'samples (averaged over positions)', ...
    strategy : 'covariance', 'replay' or 'scores'
        How the pairs were formed: in one pass, in two, or from saved scores.
    """

    measure: str
    layers_a: tuple[str, ...]
    layers_b: tuple[str, ...]
    results: tuple[tuple[Any, ...], ...] = field(repr=False)
    n: int | float
    rows: str
    strategy: str = "covariance"

    def __getitem__(self, layers: tuple[str, str]) -> Any:
        if not isinstance(layers, tuple) or len(layers) != 2:
            raise InputError(f"got {layers!r}, expected result[layer of a, layer of b]")
        a, b = layers
        for name, known in ((a, self.layers_a), (b, self.layers_b)):
            if name not in known:
                raise LayerError(unknown_name("layer", name, known))
        return self.results[self.layers_a.index(a)][self.layers_b.index(b)]

    @property
    def low(self) -> FloatArray:
        """Lower ends of the intervals."""
        return self._ends("low")

    @property
    def high(self) -> FloatArray:
        """Upper ends of the intervals."""
        return self._ends("high")

    def _ends(self, which: str) -> FloatArray:
        if not self.has_intervals:
            raise InputError("this comparison has no intervals; use compare(..., intervals=True)")
        return self._matrix(which)

    @property
    def has_intervals(self) -> bool:
        """Whether the cells are intervals."""
        return hasattr(self.results[0][0], "low")

    def table(self) -> str:
        """Return the matrix as text, with the kept ranks of every layer, n and the chance levels, or the intervals."""
        ranked = hasattr(self.results[0][0], "rank_x")
        head, side = list(self.layers_b), list(self.layers_a)
        if ranked:
            head = [f"{name} [{cell.rank_y}]" for name, cell in zip(head, self.results[0], strict=True)]
            side = [f"{name} [{row[0].rank_x}]" for name, row in zip(side, self.results, strict=True)]
        cells = [[self._text(cell) for cell in row] for row in self.results]
        width = max(13, *(len(text) for text in head), *(len(text) for row in cells for text in row)) + 2
        left = max(len(text) for text in side)
        lines = [" " * left + "".join(text.rjust(width) for text in head)]
        for text, row in zip(side, cells, strict=True):
            lines.append(text.ljust(left) + "".join(cell.rjust(width) for cell in row))
        marks = ["[directions kept]"] * ranked + ["[interval]"] * self.has_intervals + ["(chance level)"]
        lines.append(
            f"{self.measure.upper()} of n = {self.n} {self.rows}; {', '.join(marks)}; "
            f"largest error bound {self.error_bounds.max():.1e}"
        )
        return "\n".join(lines)

    def _text(self, cell: Any) -> str:
        interval = f"[{cell.low:.3f}, {cell.high:.3f}] " if self.has_intervals else ""
        return f"{cell.mean:.3f} {interval}({cell.null_mean:.3f})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "measure": self.measure,
            "layers_a": list(self.layers_a),
            "layers_b": list(self.layers_b),
            "n": self.n,
            "rows": self.rows,
            "strategy": self.strategy,
            "matrix": self.matrix.tolist(),
            "null_matrix": self.null_matrix.tolist(),
            "error_bounds": self.error_bounds.tolist(),
            "results": [[cell.to_dict() for cell in row] for row in self.results],
        }

    def plot(self, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw the matrix as a heat map, origin at the lower left."""
        from streamcca.plots import plot_matrix

        return plot_matrix(self, ax=ax)

    def __repr__(self) -> str:
        return (
            f"LayerComparison({self.measure}, {len(self.layers_a)} x {len(self.layers_b)} layers, "
            f"n={self.n} {self.rows}, similarity {self.matrix.min():.3f} to {self.matrix.max():.3f})"
        )
