"""Pictures of results. matplotlib is imported when the first one is drawn; nothing is shown or restyled."""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamcca.comparison import LayerComparison
from streamcca.errors import InputError, LayerError
from streamcca.results import CCAResult
from streamcca.significance import null_edges
from streamcca.store import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from streamcca.curves import Curves
    from streamcca.fourier import FourierResult
    from streamcca.many import ModelComparison
    from streamcca.similarity.matrix import SimilarityMatrix
    from streamcca.similarity.path import RidgePath


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


def _heat_map(ax: Axes, result: LayerComparison | SimilarityMatrix, upward: bool) -> Any:
    """Draw the numbers of a grid as colors and text, from the lowest to the highest that there can be."""
    from streamcca.similarity.declare import MEASURES

    matrix, declared = result.matrix, MEASURES[result.measure]
    high = declared.high if np.isfinite(declared.high) else max(1.0, float(matrix.max()))
    alike = declared.kind == "similarity"
    image = ax.imshow(
        matrix,
        origin="lower" if upward else "upper",
        vmin=max(0.0, declared.low),
        vmax=high,
        cmap="viridis" if alike else "viridis_r",
        aspect="auto",
    )
    if matrix.size > 150:
        return image
    for (i, j), value in np.ndenumerate(matrix):
        text = f"{round(float(value), 2) + 0.0:.2f}"  # no -0.00
        if result.has_intervals and matrix.size <= 64:
            text += f"\n\u00b1{(result.high[i, j] - result.low[i, j]) / 2:.2f}"
        bright = value / high if alike else 1 - value / high
        ax.text(j, i, text, ha="center", va="center", color="black" if bright > 0.6 else "white", fontsize=8.5)
    return image


def plot_matrix(result: LayerComparison, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Draw layer by layer similarity: model a upward, model b to the right, colors over the measure's range.

    Returns
    -------
    (Figure, Axes)
    """
    height, width = result.matrix.shape
    figure, ax = _axes(ax, (2.6 + 0.75 * width, 1.6 + 0.6 * height))
    image = _heat_map(ax, result, upward=True)
    ax.set_xticks(range(width), result.layers_b, rotation=30 if width > 3 else 0, ha="right" if width > 3 else "center")
    ax.set_yticks(range(height), result.layers_a)
    ax.set_xlabel("model b")
    ax.set_ylabel("model a")
    ax.set_title(f"{result.measure.upper()}, n = {result.n} {result.rows}", fontsize=10)
    bar = figure.colorbar(image, ax=ax)
    null = float(np.mean(result.null_matrix))
    bar.ax.axhline(null, color="white", linewidth=2)
    bar.ax.set_ylabel(f"{_kind(result.measure)} (white line: chance, {null:.2f} on average)")
    return figure, ax


def _kind(measure: str) -> str:
    from streamcca.similarity.declare import MEASURES

    return MEASURES[measure].kind


def plot_similarities(result: SimilarityMatrix, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Draw a measure of views with views, the first on top; colors over the measure's range.

    Returns
    -------
    (Figure, Axes)
    """
    from streamcca.similarity.declare import MEASURES

    height, width = result.matrix.shape
    figure, ax = _axes(ax, (2.6 + 0.72 * width, 1.8 + 0.52 * height))
    image = _heat_map(ax, result, upward=False)
    ax.set_xticks(range(width), result.names_b, rotation=30, ha="right")
    ax.set_yticks(range(height), result.names_a)
    chance = float(np.mean(result.null_matrix))
    ax.set_title(f"{MEASURES[result.measure].title}\nn = {result.n}, chance {chance:.2f} on average", fontsize=9)
    figure.colorbar(image, ax=ax).ax.set_ylabel(f"{result.measure} ({_kind(result.measure)})")
    return figure, ax


def plot_ridge_path(result: RidgePath, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Draw the correlations (thin) and their mean (thick) against the ridge; without a ridge at the left edge.

    Returns
    -------
    (Figure, Axes)
    """
    figure, ax = _axes(ax, (6.4, 3.8))
    ax.plot(result.ridges, result.correlations, color="0.7", linewidth=0.8)
    ax.plot(result.ridges, result.means, color="tab:blue", marker="o", linewidth=2)
    positive = result.ridges[result.ridges > 0]
    ax.set_xscale("symlog", linthresh=float(positive.min()) if len(positive) else 1.0)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("ridge (mean variances of a neuron)")
    ax.set_ylabel("correlation; dots: the mean")
    ax.set_title(
        f"CCA, n = {result.results[0].n}, widths {result.results[0].width_x}, {result.results[0].width_y}", fontsize=10
    )
    return figure, ax


def plot_models(result: ModelComparison, layer: str | None = None, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Draw models against each other: the similarity of one layer, or its mean over all layers that they share.

    Returns
    -------
    (Figure, Axes)
    """
    if not result.layers:
        raise LayerError("plot: the models have no layer of the same name; plot two of them: result[a, b].plot()")
    matrix = result.matrix.mean(axis=0) if layer is None else result.layer_matrix(layer)
    count = len(result.names)
    figure, ax = _axes(ax, (2.8 + 0.6 * count, 1.8 + 0.5 * count))
    image = ax.imshow(matrix, vmin=0, vmax=1, cmap="viridis")
    ax.set_xticks(range(count), result.names, rotation=30, ha="right")
    ax.set_yticks(range(count), result.names)
    if count <= 12:
        for (i, j), value in np.ndenumerate(matrix):
            color = "black" if value > 0.6 else "white"
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8)
    what = f"layer {layer}" if layer is not None else f"mean of {len(result.layers)} layers"
    ax.set_title(f"{result.measure.upper()} similarity, {what}", fontsize=10)
    figure.colorbar(image, ax=ax).ax.set_ylabel("similarity")
    return figure, ax


def plot_curves(result: Curves, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Draw the similarity of each layer over the steps of training; dark lines are near the input.

    Returns
    -------
    (Figure, Axes)
    """
    figure, ax = _axes(ax, (6.4, 3.8))
    from matplotlib import colormaps

    colors = colormaps["viridis"](np.linspace(0, 0.92, len(result.layers)))
    for layer, row, color in zip(result.layers, result.matrix, colors, strict=True):
        ax.plot(result.steps, row, marker="o", markersize=3, color=color, label=layer)
    low, high = float(result.null_matrix.min()), float(result.null_matrix.max())
    ax.axhspan(low, max(high, low + 0.005), color="0.85", label="chance", zorder=0)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("step")
    ax.set_ylabel(f"similarity to the {result.to} state")
    ax.set_title(f"{result.measure.upper()}, n = {result.n} {result.rows}", fontsize=10)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, ncols=1 + len(result.layers) // 16)
    return figure, ax


def plot_curve_map(result: Curves, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Draw layers (from the input upward) against steps, colored by similarity: convergence from the bottom up.

    Returns
    -------
    (Figure, Axes)
    """
    matrix = result.matrix
    height, width = matrix.shape
    figure, ax = _axes(ax, (min(12, 3 + 0.55 * width), 1.6 + 0.45 * height))
    image = ax.imshow(matrix, origin="lower", vmin=0, vmax=1, cmap="viridis", aspect="auto")
    shown = range(0, width, 1 + width // 16)
    ax.set_xticks(shown, [str(result.steps[i]) for i in shown])
    ax.set_yticks(range(height), result.layers)
    ax.set_xlabel("step")
    ax.set_ylabel("layer, input at the bottom")
    ax.set_title(f"{result.measure.upper()} to the {result.to} state, n = {result.n} {result.rows}", fontsize=10)
    bar = figure.colorbar(image, ax=ax)
    null = float(result.null_matrix.mean())
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


def plot_frequencies(result: FourierResult, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Draw the similarity of each spatial frequency, zero in the middle; gray where a side has no signal.

    Returns
    -------
    (Figure, Axes)

    Raises
    ------
    InputError
        The maps have three axes.
    """
    values = np.fft.fftshift(result.per_frequency)
    if values.ndim == 3:
        raise InputError("plot: maps with three axes have no picture; take per_frequency, an array of three axes")
    title = f"SVCCA per frequency ({result.truncation}), mean {result.mean:.3f}, n = {result.n}"
    if values.ndim == 1:
        return _line_of_frequencies(result, values, title, ax)
    height, width = values.shape
    figure, ax = _axes(ax, (2.2 + 3.2 * min(2.0, max(0.8, width / height)), 4.0))
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    low, left = -(height // 2) - 0.5, -(width // 2) - 0.5
    image = ax.imshow(
        values,
        origin="lower",
        extent=(left, left + width, low, low + height),
        vmin=0,
        vmax=1,
        cmap=colormaps["viridis"].with_extremes(bad="0.7"),
        aspect="equal" if 0.5 <= width / height <= 2 else "auto",
    )
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1))
    ax.set_xlabel("waves across the width")
    ax.set_ylabel("waves across the height")
    ax.set_title(title + ("\ngray: no signal" if np.isnan(values).any() else ""), fontsize=10)
    bar = figure.colorbar(image, ax=ax)
    bar.ax.axhline(result.null_mean, color="white", linewidth=2)
    bar.ax.set_ylabel(f"similarity (white line: chance, {result.null_mean:.2f} on average)")
    return figure, ax


def _line_of_frequencies(result: FourierResult, values: Any, title: str, ax: Axes | None) -> tuple[Figure, Axes]:
    figure, ax = _axes(ax, (5.5, 3.6))
    index = np.arange(len(values)) - len(values) // 2
    ax.plot(index, values, marker="o", markersize=3, label=f"mean {result.mean:.3f}")
    ax.plot(index, np.fft.fftshift(result.null_means), color="0.6", label=f"chance, {result.null_mean:.3f} on average")
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("waves along the axis")
    ax.set_ylabel("mean correlation")
    ax.set_title(title, fontsize=10)
    ax.legend(fontsize=9)
    return figure, ax


def plot_projections(
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], full: float | None = None, ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """Draw how well a model does with a layer projected on its first k directions, for several kinds of directions.

    Parameters
    ----------
    curves : mapping of str to (numbers of directions, accuracies)
        By kind of direction. One that is called as another, followed by a comma, is drawn dashed in its color.
    full : float, optional
        Accuracy with the whole layer.
    ax : Axes, optional

    Returns
    -------
    (Figure, Axes)
    """
    figure, ax = _axes(ax, (7.6, 4.0))
    from matplotlib.ticker import NullLocator, PercentFormatter, ScalarFormatter

    colors: dict[str, str] = {}
    for name, (counts, values) in curves.items():
        whose = name.split(",")[0]
        color = colors.setdefault(whose, f"C{len(colors)}")
        ax.plot(counts, values, "--" if whose != name and whose in curves else "-", color=color, label=name)
    if full is not None:
        ax.axhline(full, color="0.6", linewidth=1, zorder=0, label=f"the whole layer, {full:.1%}")
    most = max(counts[-1] for counts, _ in curves.values())
    ax.set_xscale("log", base=2)
    ax.set_xticks([2**i for i in range(20) if 2**i <= most])
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("directions kept")
    ax.set_ylabel("accuracy")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
    return figure, ax
