"""Similarity of every layer over the steps of training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from streamcca.comparison import Cells
from streamcca.results import CCAResult
from streamcca.views import check_option

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

To = Literal["final", "first", "previous"]


@dataclass(frozen=True, eq=False, repr=False)
class Curves(Cells):
    """Similarity of every layer, at every recorded step, to itself at another step.

    Attributes
    ----------
    measure : str
    to : 'final', 'first' or 'previous'
        The state that each step is compared with.
    steps : tuple of int
        Steps, increasing; the state itself is left out.
    layers : tuple of str
        In the order of the model, so that the first is nearest to the input.
    results : tuple of tuple of CCAResult
        One for each layer and step.
    n : int
        Rows of the probe set.
    rows : str
        What a row is.
    """

    measure: str
    to: To
    steps: tuple[int, ...]
    layers: tuple[str, ...]
    results: tuple[tuple[CCAResult, ...], ...] = field(repr=False)
    n: int
    rows: str

    def reached(self, similarity: float) -> dict[str, int | None]:
        """Return for each layer the first step from which on it stays at least this similar; None if it never does.

        With ``to='final'`` this is when the layer has converged (SVCCA paper, section 4.1): layers near the input come
        first.
        """
        found: dict[str, int | None] = {}
        for layer, row in zip(self.layers, self.matrix, strict=True):
            below = np.flatnonzero(row < similarity)
            first = int(below[-1]) + 1 if len(below) else 0
            found[layer] = self.steps[first] if first < len(self.steps) else None
        return found

    def table(self) -> str:
        """Return the similarities as text, a line for each layer."""
        left = max(map(len, self.layers))
        lines = [" " * left + "".join(f"{step:>9}" for step in self.steps)]
        for layer, row in zip(self.layers, self.matrix, strict=True):
            lines.append(layer.ljust(left) + "".join(f"{value:9.3f}" for value in row))
        lines.append(
            f"{self.measure.upper()} to the {self.to} state, n = {self.n} {self.rows}; chance "
            f"{self.null_matrix.min():.3f} to {self.null_matrix.max():.3f}, largest error bound "
            f"{self.error_bounds.max():.1e}"
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "measure": self.measure,
            "to": self.to,
            "steps": list(self.steps),
            "layers": list(self.layers),
            "n": self.n,
            "rows": self.rows,
            "matrix": self.matrix.tolist(),
            "null_matrix": self.null_matrix.tolist(),
            "error_bounds": self.error_bounds.tolist(),
        }

    def plot(self, kind: Literal["curves", "map"] = "curves", ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw a line for each layer over the steps, or a map with the layers from the input upward."""
        from streamcca.plots import plot_curve_map, plot_curves

        check_option("kind", kind, ("curves", "map"))
        return (plot_curves if kind == "curves" else plot_curve_map)(self, ax=ax)

    def __repr__(self) -> str:
        return (
            f"Curves({self.measure} to {self.to}, {len(self.layers)} layers, {len(self.steps)} steps, "
            f"similarity {self.matrix.min():.3f} to {self.matrix.max():.3f})"
        )
