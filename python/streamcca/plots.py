"""Pictures of results. matplotlib is imported when the first one is drawn; nothing is shown or restyled."""

from __future__ import annotations

import importlib.util
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamcca.results import CCAResult, LayerComparison
from streamcca.significance import null_edges
from streamcca.store import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def require_matplotlib() -> None:
    """Say what to install where matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("plots need matplotlib; install streamcca[plot]")


def _axes(ax: Axes | None, size: tuple[float, float]) -> tuple[Any, Any]:
    if ax is not None:
        return ax.figure, ax
    require_matplotlib()
    from matplotlib.figure import Figure

    # Not pyplot: it would keep a reference to every figure and may need a display.
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, complete or not at all."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    write_atomically(Path(path), image.getvalue())


def plot_matrix(result: LayerComparison, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Draw layer by layer similarity: model a upward, model b to the right, colors from 0 to 1.

    Returns
    -------
    (Figure, Axes)
    """
    matrix = result.matrix
    height, width = matrix.shape
    figure, ax = _axes(ax, (2.6 + 0.75 * width, 1.6 + 0.6 * height))
    image = ax.imshow(matrix, origin="lower", vmin=0, vmax=1, cmap="viridis", aspect="auto")
    ax.set_xticks(range(width), result.layers_b, rotation=30 if width > 3 else 0, ha="right" if width > 3 else "center")
    ax.set_yticks(range(height), result.layers_a)
    ax.set_xlabel("model b")
    ax.set_ylabel("model a")
    if matrix.size <= 150:
        for (i, j), value in np.ndenumerate(matrix):
            color = "black" if value > 0.6 else "white"
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", color=color, fontsize=9)
    ax.set_title(f"{result.measure.upper()} similarity, n = {result.n} {result.rows}", fontsize=10)
    bar = figure.colorbar(image, ax=ax)
    null = float(np.mean(result.null_matrix))
    bar.ax.axhline(null, color="white", linewidth=2)
    bar.ax.set_ylabel(f"similarity (white line: chance, {null:.2f} on average)")
    return figure, ax


def plot_spectrum(result: CCAResult, ax: Axes | None = None, label: str | None = None) -> tuple[Figure, Axes]:
    """Draw the canonical correlations in order, and the range in which unrelated views would put theirs.

    Returns
    -------
    (Figure, Axes)
    """
    figure, ax = _axes(ax, (5.5, 3.6))
    from matplotlib.ticker import MaxNLocator

    index = np.arange(1, len(result.correlations) + 1)
    low, high = null_edges(result.rank_x, result.rank_y, result.rows)
    ax.axhspan(low, high, color="0.88", label=f"chance, up to {high:.2f}", zorder=0)
    ax.plot(index, result.correlations, marker="o", markersize=3, label=label or f"mean {result.mean:.3f}")
    ax.set_xlim(0.5, len(index) + 0.5)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("canonical correlation, in order")
    ax.set_ylabel("correlation")
    ax.set_title(
        f"{result.measure.upper()} ({result.truncation}): {result.rank_x} and {result.rank_y} directions, "
        f"n = {result.n}",
        fontsize=10,
    )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    # Above the band of chance, unless that fills the picture.
    ax.legend(loc="lower left", bbox_to_anchor=(0, high / 1.02 if high < 0.6 else 0), fontsize=9)
    return figure, ax
