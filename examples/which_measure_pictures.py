"""Pictures of docs/which-measure.md; the numbers come from `which_measure`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import which_measure as examples
from matplotlib.figure import Figure

from streamcca.plots import save_figure

# One color for each family: correlations blue, alignment of Gram matrices orange, Procrustes green, regression violet,
# distances of samples gray. Within a family the lines differ in lightness.
COLORS = {
    "cca": "#08306b",
    "svcca": "#2171b5",
    "pwcca_x": "#4a98c9",
    "yanai": "#7fb8dd",
    "over_width": "#08306b",
    "cka": "#b54a00",
    "debiased_cka": "#f08c2e",
    "rbf_cka": "#d8a05c",
    "procrustes": "#1b7837",
    "shape": "#6cb577",
    "regression_x": "#7a4fa3",
    "rsa": "#555555",
}
LABELS = {"over_width": "sum of correlations / width"}
# Lines that lie on each other stay visible: the lower ones are wider.
WIDTHS = {"cca": 5.0, "svcca": 3.0, "pwcca_x": 1.2}


def _axes(axes: Any, title: str, xlabel: str, ylabel: str | None = "number (1: alike)") -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(xlabel)
    axes.set_ylim(-0.07, 1.04)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if ylabel:
        axes.set_ylabel(ylabel)


def _label_ends(axes: Any, ends: dict[str, float], colors: dict[str, str], step: float = 0.055) -> None:
    """Write names beside the right ends of lines, pushed apart where they would overlap."""
    names = sorted(ends, key=lambda name: ends[name])
    heights = np.array([ends[name] for name in names])
    for _ in range(500):
        for i in range(len(heights) - 1):
            overlap = step - (heights[i + 1] - heights[i])
            if overlap > 0:
                heights[i] -= overlap / 2
                heights[i + 1] += overlap / 2
        heights = np.clip(heights, -0.04, 1.02)
    place = axes.get_yaxis_transform()
    for height, name in zip(heights, names, strict=True):
        text = LABELS.get(name, name)
        axes.text(1.015, height, text, transform=place, va="center", fontsize=8.5, color=colors[name])


def _lines(axes: Any, x: Sequence[float], curves: dict[str, list[float]], names: Iterable[str]) -> None:
    names = list(names)
    for name in names:
        style = "--" if name == "over_width" else "-"
        axes.plot(x, curves[name], style, color=COLORS[name], lw=WIDTHS.get(name, 1.8))
    _label_ends(axes, {name: curves[name][-1] for name in names}, COLORS)


def draw_deleted() -> Figure:
    """Draw each measure against the number of deleted components (Ding et al.)."""
    counts = [0, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 93, 95, 97, 98, 99]
    curves = examples.deleted(counts)
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    names = ("cca", "svcca", "pwcca_x", "yanai", "over_width", "cka", "procrustes", "regression_x")
    _lines(axes, counts, curves, names)
    _axes(
        axes, "A view of 100 neurons (variances 1/i) and itself without its smallest components", "components deleted"
    )
    axes.set_xlim(0, 99)
    return figure


def draw_chance() -> Figure:
    """Draw what unrelated views score against the number of rows, and the chance level as a dashed line."""
    rows = [60, 80, 100, 150, 200, 300, 500, 1000]
    measured = examples.chance(rows)
    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    # pwcca lies on cca, and regression on yanai: both measures have the same chance level there.
    names = [name for name in examples.CHANCE if name not in ("pwcca_x", "regression_x")]
    for name in names:
        number, level = zip(*measured[name], strict=True)
        axes.plot(rows, number, "o", ms=4.5, color=COLORS[name])
        axes.plot(rows, level, "--", lw=1.3, color=COLORS[name])
    _label_ends(axes, {name: measured[name][-1][0] for name in names}, COLORS)
    _axes(axes, "Unrelated views of 50 neurons each: dots measured, dashed lines null_mean", "rows (log scale)")
    axes.set_xscale("log")
    ticks = [60, 100, 200, 500, 1000]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(55, 1050)
    return figure


def draw_few_rows() -> Figure:
    """Draw what a few moved rows (Davari et al.) and one shared direction (Nguyen et al.) do."""
    figure = Figure(figsize=(10.4, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    distances = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 13.0, 17.0, 22.0, 30.0]
    names = ("cca", "svcca", "cka", "debiased_cka", "procrustes", "rsa")
    _lines(left, distances, examples.moved(distances, 0.005), names)
    _axes(left, "A view and itself with 5 of 1000 rows moved", "distance moved, in typical norms of a row")
    left.set_xlim(0, 30)
    shares = np.r_[0:0.9:19j, 0.94, 0.96, 0.98, 0.985, 0.988, 0.992, 0.996, 0.999].tolist()
    names = ("cca", "svcca", "pwcca_x", "cka", "procrustes", "regression_x")
    _lines(right, shares, examples.dominant(shares), names)
    _axes(right, "Unrelated views that share one direction", "share of variance in that direction", None)
    right.set_xlim(0, 1)
    right.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    return figure


def draw_between() -> Figure:
    """Draw the shape measure between canonical correlations and Procrustes (Williams et al.)."""
    alphas = np.linspace(0, 1, 21).tolist()
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    curves = examples.between(alphas)
    colors = {"10 strong directions shared": "#1b7837", "40 faint directions shared": "#2171b5"}
    for label, curve in zip(colors, curves.values(), strict=True):
        axes.plot(alphas, curve, color=colors[label], lw=1.8)
    _label_ends(axes, {label: curve[-1] for label, curve in zip(colors, curves.values(), strict=True)}, colors)
    _axes(axes, "shape of two views of 50 neurons", "alpha (0: canonical correlations, 1: Procrustes)")
    axes.set_xlim(0, 1)
    return figure


PICTURES = {
    "which-deleted.png": draw_deleted,
    "which-chance.png": draw_chance,
    "which-few-rows.png": draw_few_rows,
    "which-between.png": draw_between,
}


def draw_all(folder: Path) -> list[Path]:
    """Write every picture; return their paths."""
    paths = []
    for name, draw in PICTURES.items():
        save_figure(draw(), folder / name)
        paths.append(folder / name)
    return paths
